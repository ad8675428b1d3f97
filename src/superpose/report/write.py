"""Writes a report: one HTML page, and the same as Markdown with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from superpose import __version__
from superpose.files import write_text
from superpose.report.page import page
from superpose.report.sections import Section, read_sections
from superpose.results.charts import draw
from superpose.results.tables import markdown, plain


def write_report(places: Sequence[Path], out: Path) -> list[Path]:
    """Reports on comparisons, reproductions and runs; returns what was written, the page first.

    Args:
        places: their directories.
        out: the page, NAME.html; NAME.md and NAME-1.png and so on are written beside it.

    Raises:
        UserError: a directory holds nothing to report.
    """
    sections = read_sections(places)
    about = f"superpose {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    write_text(out, page(sections, about))
    pictures: list[Path] = []
    parts = [f"# superpose report\n\n{about}\n"]
    for section in sections:
        parts.append(_markdown(section, out, pictures))
    text = out.with_suffix(".md")
    write_text(text, "\n".join(parts))
    return [out, text, *pictures]


def _markdown(section: Section, out: Path, pictures: list[Path]) -> str:
    parts = [f"## {plain(section.title)}\n"]
    for chart in section.charts:
        picture = out.with_name(f"{out.stem}-{len(pictures) + 1}.png")
        # Equal FLOPs beside equal data, where a chart has both.
        draw(chart, [axis for axis in ("flops", "raw_tokens") if axis in chart.axes] or [*chart.axes][:1], picture)
        pictures.append(picture)
        parts.append(f"![{plain(chart.title)}]({picture.name})\n\n{plain(chart.caption)}\n")
    tables = [
        (plain(title), tuple(map(plain, header)), [tuple(map(plain, row)) for row in rows])
        for title, header, rows in section.tables
    ]
    return "\n".join([*parts, markdown(tables, plain(section.verdict))])
