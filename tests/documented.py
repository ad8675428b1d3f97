"""The lines of code that the documentation shows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "checks")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def lines_of(page, start):
    """Lines of code that begin so, continued lines joined, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if re.match(rf"    (?:{start})\b", line)]


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in lines_of(page, "superpose")))
OTHERS = list(dict.fromkeys(line for page in PAGES for line in lines_of(page, "torchrun|python|accelerate|make")))
