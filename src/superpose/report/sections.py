"""What a report can be about: a plan, a comparison, the paper's experiments run again, or a single run.

directory -> Section: verdict, charts, tables, settings -> one page (`superpose.report.page`), Markdown and pictures
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from superpose.compare.charts import all_charts
from superpose.compare.comparison import Comparison
from superpose.compare.logged import Logged
from superpose.data.information import PowerLaw
from superpose.errors import UserError
from superpose.files import read_json
from superpose.paper.published import published_gain
from superpose.plan.tables import PlanRecord
from superpose.report.samples import Samples, samples_of
from superpose.reproduce.experiments import SWEEP, SWEEP_RATIOS, SWEEP_SIZES, cell
from superpose.reproduce.reproduction import Reproduction
from superpose.results.charts import AXES, Chart, Mark, Series
from superpose.results.curves import Losses, captioned, read_series, switch_marks, training_charts, zoomed
from superpose.results.tables import Row, Table
from superpose.train.config import Recipe
from superpose.train.recipe_file import load_recipe
from superpose.train.records import read_result


@dataclass(frozen=True)
class Section:
    """One subject of a report.

    Attributes:
        verdict: what came out, in a sentence or a few; the first is the headline.
        settings: name and JSON text of what it was made with.
        samples: what the models write; None where nobody is asked.
        bag_size: s, to be drawn in the picture of bags; None where it is not known.
        of_tst: whether it is about TST at all: runs that were logged elsewhere may be of anything.
    """

    title: str
    verdict: str
    charts: list[Chart]
    tables: list[Table]
    settings: list[tuple[str, str]]
    samples: Samples | None = None
    bag_size: int | None = None
    of_tst: bool = True


def read_sections(places: Sequence[Path]) -> list[Section]:
    """The sections of some directories, in their order; single runs share one.

    Raises:
        UserError: one of them holds nothing to report, or its files were altered.
    """
    sections = []
    runs = [place for place in places if (place / "result.json").is_file()]
    for place in places:
        if (place / "comparison.json").is_file():
            sections.append(_of_comparison(place))
        elif (place / "reproduction.json").is_file():
            sections += map(_of_reproduction, Reproduction.load(place / "reproduction.json"))
        elif (place / "logged.json").is_file():
            logged = Logged.load(place)
            title = f"Runs of {' and '.join(logged.arms)}"
            section = Section(title, logged.verdict(), [logged.chart()], logged.tables(), [], of_tst=False)
            sections.append(section)
        elif (place / "plan.json").is_file():
            sections.append(_of_plan(place / "plan.json"))
        elif place in runs:
            sections += [_of_runs(runs)] if place == runs[0] else []
        else:
            raise UserError(
                f"{place} holds nothing to report; give the directory of a plan (plan.json), of a comparison "
                f"(comparison.json, or logged.json), of a reproduction (reproduction.json) or of a finished run "
                f"(result.json)"
            )
    return sections


def _of_comparison(place: Path) -> Section:
    comparison = Comparison.load(place)
    if not comparison.seeds:
        raise UserError(f"{place / 'comparison.json'} holds no seed at which both arms finished")
    settings = {
        "versions": comparison.runs[0].result.get("versions", {}),
        "recipe": comparison.recipe.model_dump(mode="json"),
        **{
            f"variant {name}": recipes[comparison.steps].model_dump(mode="json")
            for name, recipes in comparison.variants.items()
        },
        "text": comparison.store,
    }
    arms = ["ordinary training", comparison.tst_label, *comparison.variants]
    title = f"{place.name}: {', '.join(arms[:-1])} and {arms[-1]}"
    charts, tables = all_charts(comparison), comparison.tables()
    samples, size = samples_of(comparison, place), comparison.recipe.schedule.bag_size_at(0)
    return Section(title, comparison.verdict(), charts, tables, _texts(settings), samples, size)


def _of_plan(path: Path) -> Section:
    try:
        plan = PlanRecord.model_validate(read_json(path))
    except ValidationError:
        raise UserError(f"{path} was altered, or written by another version; make the plan again") from None
    tables = [(table.title, table.header, table.rows) for table in plan.tables]
    verdict = f"{plan.summary[:1].upper()}{plan.summary[1:]}."
    return Section(f"{path.parent.name}: plan", verdict, [], tables, _texts({"request": plan.request}))


def _of_reproduction(entry: Reproduction) -> Section:
    charts = [_findings(entry)]
    charts += [_sweep(entry)] if entry.name == "figure4" else []
    charts += [_information(entry.law)] if entry.law is not None else []
    settings = _texts({"recipe": entry.recipe.model_dump(mode="json"), "text": entry.store})
    return Section(entry.title, f"{entry.verdict()}.", charts, entry.tables(), settings)


def _of_runs(places: Sequence[Path]) -> Section:
    results = {place: read_result(place / "result.json") for place in places}
    names = {place: place.resolve().name if place.name in ("", ".", "..") else place.name for place in places}
    series = tuple(read_series(place, name) for place, name in names.items())
    recipes = {place: load_recipe(place / "config.json") for place in places}
    marks = _switches(names, recipes)
    title = "Validation loss"
    chart = Chart(
        title, "next-token validation loss, nats per token", dict(AXES), series, marks, y_range=zoomed(series)
    )
    losses = [Losses(place, name) for place, name in names.items()]
    charts = [captioned(chart, "Validation is on the next token in all phases."), *training_charts(losses, marks)]
    rows: list[Row] = []
    for place, result in results.items():
        measured = f"{result.val_loss:.4f}", f"{result.val_bits_per_byte:.4f}"
        rows.append((names[place], *measured, f"{result.raw_tokens:,}", f"{result.flops:.2e}", f"{result.seconds:.0f}"))
    header = ("run", "validation loss, nats", "bits per byte", "raw tokens", "training FLOPs", "seconds")
    best = min(results, key=lambda place: results[place].val_loss)
    amount = f"{results[best].val_loss:.4f} nats per token"
    verdict = f"{names[best]} ended lowest, at {amount}; single runs are no comparison, see superpose compare."
    if len(places) == 1:
        verdict = f"{names[best]} ended at a validation loss of {amount}."
    settings = [(names[place], _text(recipe.model_dump(mode="json"))) for place, recipe in recipes.items()]
    return Section("Runs", verdict, charts, [("Results", header, rows)], settings)


def _switches(names: dict[Path, str], recipes: dict[Path, Recipe]) -> tuple[Mark, ...]:
    """Where the phases of the runs meet; those whose meet after the same steps and tokens share a mark."""
    found = dict[tuple[str, float, float], tuple[Mark, list[str]]]()
    for place, recipe in recipes.items():
        for mark in switch_marks(place, recipe.schedule):
            same = mark[1], mark[0]["step"], mark[0]["raw_tokens"]
            found.setdefault(same, (mark, []))[1].append(names[place])
    if len(names) == 1:
        return tuple(mark for mark, _ in found.values())
    return tuple((places, f"{', '.join(whose)}: {label}") for (places, label), whose in found.values())


def _findings(entry: Reproduction) -> Chart:
    ours = [(float(row), finding) for row, finding in enumerate(entry.findings, 1) if finding.what.endswith("nats")]
    rows = [row for row, _ in ours]
    values, low, high = ([getattr(finding, name) for _, finding in ours] for name in ("ours", "low", "high"))
    series = [Series("ours and its 95 % interval", {"claim": rows}, values, "tst", low, high, points=True)]
    if paper := {row: finding.published for row, finding in ours if finding.published is not None}:
        series.append(Series("the paper, at its scale", {"claim": [*paper]}, [*paper.values()], points=True))
    axes = {"claim": "row of the table below"}
    caption = "Row by row; an interval that crosses the line decides nothing."
    return Chart("Differences of final loss", "nats per token", axes, tuple(series), level=0.0, caption=caption)


def _sweep(entry: Reproduction) -> Chart:
    ours = {finding.what.split(" ")[0]: finding.ours for finding in entry.findings}
    series = []
    for size in SWEEP_SIZES:
        known = [ratio for ratio in SWEEP_RATIOS if cell(size, ratio) in ours]
        series.append(Series(f"s {size}, ours", {"ratio": known}, [ours[cell(size, ratio)] for ratio in known]))
        published = [gain for ratio in known if (gain := published_gain(SWEEP, size, ratio)) is not None]
        if len(published) == len(known):
            series.append(Series(f"s {size}, the paper", {"ratio": known}, published, "ordinary", thin=True))
    title, caption = "Gain against ratio", "Thin grey lines are the paper's, of 270M parameters and 20,000 steps."
    y_title, axes = "TST minus ordinary, nats per token", {"ratio": "ratio r"}
    return Chart(title, y_title, axes, tuple(series), level=0.0, caption=caption)


def _information(law: PowerLaw) -> Chart:
    distances = [float(distance) for distance in law.information]
    fitted = [law.constant + law.factor * distance**law.exponent for distance in distances]
    series = (
        Series("measured", {"distance": distances}, list(law.information.values()), "tst", points=True),
        Series("fitted power law", {"distance": distances}, fitted, "ordinary"),
    )
    title, axes = "Mutual information of tokens at a distance", {"distance": "tokens apart"}
    return Chart(title, "nats", axes, series, log_x=True)


def _texts(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in settings.items()]


def _text(value: Any) -> str:
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, stays spelled.
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
