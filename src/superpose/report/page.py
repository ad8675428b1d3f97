"""A report as one HTML file that needs no network, with styles, scripts and data in it; and the same as Markdown with
pictures.

Everything that comes from outside is text: escaped in the page, in the data its script reads, and in the labels that
plotly would read as HTML. The page's policy lets it load nothing.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from superpose import __version__
from superpose.files import write_text
from superpose.report.bags import TST, bags_picture
from superpose.report.glossary import glossary, marked, words_of
from superpose.report.samples import Samples
from superpose.report.sections import Section, read_sections
from superpose.results.charts import FEW, Chart, Series, apart, color_of, draw
from superpose.results.tables import Table, markdown, of_words, plain

_DARK = {"#6b7280": "#a1a9b8", "#2563eb": "#7aa2ff", "#4b5563": "#cbd5e1", "#7c3aed": "#a78bfa", "#be185d": "#f472b6"}
"""Colours that are too dark on a dark page, and what stands for them there."""


def write_report(places: Sequence[Path], out: Path) -> list[Path]:
    """Reports on plans, comparisons, reproductions and runs; returns what was written, the page first.

    Args:
        places: their directories.
        out: the page, NAME.html; NAME.md and NAME-1.png and so on are written beside it.

    Raises:
        UserError: a directory holds nothing to report.
    """
    sections, pictures = read_sections(places), list[Path]()
    about, text = f"superpose {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", out.with_suffix(".md")
    write_text(out, page(sections, about))
    parts = [_markdown(section, out, pictures) for section in sections]
    intro = [" ".join(TST) + "\n"] if any(section.of_tst for section in sections) else []
    words = [f"- **{name}**: {meaning}" for name, meaning in words_of("\n".join([*intro, *parts]))]
    parts += ["\n".join(["## Words\n", *words, ""])] if words else []
    write_text(text, "\n".join([f"# superpose report\n\n{about}\n", *intro, *parts]))
    return [out, text, *pictures]


def _markdown(section: Section, out: Path, pictures: list[Path]) -> str:
    parts = [f"## {plain(section.title)}\n"]
    for chart in section.charts:
        picture = out.with_name(f"{out.stem}-{len(pictures) + 1}.png")
        # Equal FLOPs beside equal data, where a chart has both.
        draw(chart, ("flops", "raw_tokens") if "flops" in chart.axes else [*chart.axes][:1], picture)
        pictures.append(picture)
        parts.append(f"![{plain(chart.title)}]({picture.name})\n\n{plain(chart.caption)}\n")
    tables = [
        (plain(title), tuple(map(plain, header)), [tuple(map(plain, row)) for row in rows])
        for title, header, rows in section.tables
    ]
    samples = [] if section.samples is None else _samples_as_markdown(section.samples)
    return "\n".join([*parts, markdown(tables, plain(section.verdict)), *samples])


def _samples_as_markdown(samples: Samples) -> list[str]:
    """Each text as a block of code, which ends nowhere but where its indentation does."""
    texts = {"the prompt": samples.prompt, **samples.texts} if samples.texts else {}
    blocks = ["\n".join(f"    {line}" for line in text.splitlines()) for text in texts.values()]
    named = [f"{plain(name)}:\n\n{block}\n" for name, block in zip(texts, blocks, strict=True)]
    return ["What they write\n", *named, f"{plain(samples.note)}\n"]


def page(sections: Sequence[Section], about: str) -> str:
    """The whole page; `about` is a line below the title, such as the version that wrote it."""
    from plotly.offline import get_plotlyjs

    numbers = itertools.count()
    body = _intro(sections) + "".join(_section(section, numbers) for section in sections)
    return Template(_asset("page.html")).substitute(
        title=escape(sections[0].title if len(sections) == 1 else f"{sections[0].title} and {len(sections) - 1} more"),
        about=escape(about),
        body=body + glossary(body),
        charts=_data([_chart(chart) for section in sections for chart in section.charts]),
        style=_asset("page.css"),
        script=_asset("page.js"),
        explain=_asset("glossary.js"),
        plotly=get_plotlyjs(),
    )


def _intro(sections: Sequence[Section]) -> str:
    """What TST is, with the bag size of the first section that has one; nothing on a page about other things."""
    if not any(section.of_tst for section in sections):
        return ""
    size = next((section.bag_size for section in sections if section.bag_size is not None), None)
    picture = bags_picture() if size is None else bags_picture(size)
    return f'<section class="intro"><h2>What TST is</h2><p>{marked(" ".join(TST))}</p>{picture}</section>\n'


def _section(section: Section, numbers: Iterator[int]) -> str:
    headline, _, rest = section.verdict.partition(". ")
    verdict = f"<strong>{marked(headline + ('.' if rest else ''))}</strong>"
    if rest:
        verdict += f"<span>{marked(rest)}</span>"
    figures = "".join(_figure(chart, next(numbers)) for chart in section.charts)
    tables = "".join(map(_table, section.tables))
    samples = "" if section.samples is None else _samples(section.samples)
    settings = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in section.settings
    )
    made_with = f"<h3>Made with</h3>{settings}" if settings else ""
    return (
        f'<section><h2>{escape(section.title)}</h2><div class="verdict">{verdict}</div>'
        f"{figures}{tables}{samples}{made_with}</section>\n"
    )


def _figure(chart: Chart, number: int) -> str:
    buttons = "".join(
        f'<button type="button" data-chart="{number}" data-axis="{escape(axis)}" '
        f'aria-pressed="{"true" if place == 0 else "false"}">{escape(title)}</button>'
        for place, (axis, title) in enumerate(chart.axes.items())
    )
    axes = f'<div class="axes" role="group" aria-label="x axis">{buttons}</div>' if len(chart.axes) > 1 else ""
    return (
        f'<figure><h3>{escape(chart.title)}</h3>{axes}<div class="chart" id="chart-{number}"></div>'
        f"<figcaption>{marked(chart.caption)}</figcaption></figure>"
    )


def _samples(samples: Samples) -> str:
    """Each text after its prompt, side by side where there is room."""
    texts = "".join(
        f"<div><h4>{escape(name)}</h4><pre><mark>{escape(samples.prompt)}</mark>{escape(text)}</pre></div>"
        for name, text in samples.texts.items()
    )
    side_by_side = f'<div class="samples">{texts}</div>' if texts else ""
    return f"<figure><h3>What they write</h3>{side_by_side}<figcaption>{marked(samples.note)}</figcaption></figure>"


def _table(table: Table) -> str:
    title, header, rows = table
    words = [of_words(rows, place) for place in range(len(header))]
    head = "".join(f"<th{_class('words' * left)}>{marked(name)}</th>" for name, left in zip(header, words, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, words))}</tr>" for row in rows)
    return (
        f'<h3>{escape(title)}</h3><div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str, words: bool) -> str:
    mark = value if value in ("agrees", "disagrees") else ""
    return f"<td{_class(mark, 'words' * words)}>{marked(value) if words else escape(value)}</td>"


def _class(*names: str) -> str:
    known = " ".join(filter(None, names))
    return f' class="{known}"' if known else ""


def _chart(chart: Chart) -> dict[str, Any]:
    """What the page's script draws."""
    colors = [color_of(one, chart) for one in chart.series]
    return {
        "axes": {axis: escape(title) for axis, title in chart.axes.items()},
        "y_title": escape(chart.y_title),
        "series": [
            {**vars(one), **_look(one), "name": escape(one.name), "color": color, "dark": _DARK.get(color, color)}
            for one, color in zip(chart.series, colors, strict=True)
        ],
        "marks": [{"x": places, "label": escape(label)} for places, label in chart.marks],
        "level": chart.level,
        "log_x": chart.log_x,
        "y_range": chart.shown,
        "ticks": {axis: _ticks(chart, axis) for axis in chart.axes},
    }


def _look(series: Series) -> dict[str, bool]:
    """Points, lines, or both: each point is seen where they are few, and one alone always."""
    few = series.points or len(series.y) <= FEW
    return {"dots": few, "lines": not series.points}


def _ticks(chart: Chart, axis: str) -> dict[str, Any]:
    """Few places with names of their own are all named, but those that would touch: budgets, seeds, ratios."""
    places = apart(chart.places(axis), chart.log_x) if chart.places(axis) else []
    if not places:
        return {}
    return {"tickvals": places, "ticktext": [f"{place:,.6g}" for place in places]}


def _data(value: Any) -> str:
    """JSON that no script can be ended from."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return files("superpose.report").joinpath(name).read_text("utf-8")
