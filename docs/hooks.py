"""What the site adds to the pages of docs/: they are written for a code host, and stay readable there.

README.md is the home page; the changelog and what is written for contributors are pages too. Pages link to files
outside docs/; those get pages of their own (sources and recipes, as they are) or are copied (figures as JSON), and
links are turned to them. A built page that would fetch anything from the network fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "checks/README.md": "checks.md",
}
LANGUAGES = {".py": "python", ".toml": "toml"}
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(\))")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="?https?:|<link\b[^>]*rel="?stylesheet[^>]*https?:"""
)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the pages that are not in docs/, and what they and the others link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for source in sorted(_linked_outside()):
        path, page = ROOT / source, _page_of(source)
        if path.is_dir():
            names = [f"{source}/{item.name}" for item in sorted(path.iterdir()) if item.suffix in LANGUAGES]
            listed = "\n".join(f"- [{Path(name).name}]({Path(_page_of(name)).name})" for name in names)
            files.append(_unlisted(config, page, f"# {path.name}\n\n{listed}\n"))
            for name in names:
                if name not in _linked_outside():
                    files.append(_source(config, name))
        elif path.suffix in LANGUAGES:
            files.append(_source(config, source))
        else:
            files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to where the site has what they lead to on a code host."""
    here = page.file.src_uri
    source = next((source for source, uri in PAGES.items() if uri == here), f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        target = _page_of(_resolved(source, link[2]))
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3] or ''}{link[4]}"

    return _outside_fences(lambda text: LINK.sub(turned, text), markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Nothing is fetched when a page is read."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        if fetched := FETCHED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} fetches from the network: {fetched[0]}")


def _linked_outside() -> set[str]:
    pages = [ROOT / source for source in PAGES] + sorted((ROOT / "docs").rglob("*.md"))
    targets = {
        _resolved(page.relative_to(ROOT).as_posix(), link[2])
        for page in pages
        for link in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8")))
    }
    return {target for target in targets if not target.startswith("docs/") and target not in PAGES}


def _resolved(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _page_of(path: str) -> str:
    """Where in the site a path of the repository is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    if (ROOT / path).is_dir():
        return f"files/{path}/index.md"
    return f"files/{path}.md" if Path(path).suffix in LANGUAGES else f"files/{path}"


def _source(config: Any, path: str) -> File:
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return _unlisted(config, _page_of(path), f"# {path}\n\n```{LANGUAGES[Path(path).suffix]}\n{text}\n```\n")


def _unlisted(config: Any, page: str, content: str) -> File:
    return File.generated(config, page, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _outside_fences(change: Any, markdown: str) -> str:
    parts, at = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [change(markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(markdown[at:])])
