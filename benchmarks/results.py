"""Writes the tables of docs/results.md anew from the results that are committed.

    superpose compare ... --name english          # the commands are on the page
    cp runs/english/comparison.json benchmarks/results/english/
    python benchmarks/results.py

A table stands between `<!-- NAME -->` and `<!-- end -->`, where NAME is a folder of benchmarks/results.
"""

from __future__ import annotations

import re
from pathlib import Path

from measure import refuse_arguments
from superpose.compare.comparison import Comparison
from superpose.files import write_text
from superpose.reproduce.reproduction import Reproduction
from superpose.results.tables import markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    refuse_arguments(__doc__)
    text = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, re.sub(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", filled, text, flags=re.DOTALL))


def filled(place: re.Match[str]) -> str:
    name = place[2]
    folder = RESULTS / name
    if (folder / "comparison.json").exists():
        comparison = Comparison.load(folder)
        tables = [(f"**{title}**", header, rows) for title, header, rows in comparison.tables()]
        return f"{place[1]}\n{comparison.verdict()}\n\n{markdown(tables, '')}{place[3]}"
    entries = Reproduction.load(folder / "reproduction.json")
    tables = [(f"**{title}**", header, rows) for title, header, rows in (entry.tables()[0] for entry in entries)]
    verdicts = "\n".join(f"- {entry.verdict()}" for entry in entries)
    return f"{place[1]}\n{verdicts}\n\n{markdown(tables, '')}{place[3]}"


if __name__ == "__main__":
    main()
