"""What became of a comparison's variants, in tables, in words and for comparison.json."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from superpose.compare.experiment import ORDINARY, TST
from superpose.compare.variants import beside_bags
from superpose.results.intervals import ends, spoken
from superpose.results.statistics import Corrected
from superpose.results.tables import Row, Table, describe
from superpose.train.config import SHORT_FORM, Recipe

if TYPE_CHECKING:  # it asks for these
    from superpose.compare.comparison import Comparison

_OTHERS = ((TST, "TST"), (ORDINARY, "ordinary training"))


def variant_tables(comparison: Comparison) -> list[Table]:
    """How the variants ended, at each budget; and what they are."""
    if not comparison.variants:
        return []
    header = ("arm", "seeds", "loss", "minus ordinary, nats", "p", "minus TST, nats", "p")
    tried = len(comparison.variants)
    title = "Variants at {:,} steps and equal FLOPs" + (f", corrected for {tried} tried" if tried > 1 else "")
    tables: list[Table] = [
        (title.format(budget), header, rows)
        for budget in comparison.budgets(TST)
        if (rows := _ending_rows(comparison, budget))
    ]
    about = ("arm", "steps", "FLOPs", "raw tokens", "parameters", "equal loss, steps", "equal data, nats")
    changes: list[Row] = [(name, "; ".join(changes_of(comparison, name))) for name in comparison.variants]
    return [
        *tables,
        ("What the arms take", about, _about_rows(comparison)),
        ("What the variants change", ("variant", "settings"), changes),
    ]


def _ending_rows(comparison: Comparison, budget: int) -> list[Row]:
    rows: list[Row] = []
    if (planned := comparison.equal_flops(budget)) is not None:
        rows.append((TST, str(planned.seeds), _loss(comparison, TST, budget), spoken(planned), "", "", ""))
    to_ordinary, to_tst = (comparison.variants_against(other, budget) for other in (ORDINARY, TST))
    for name in comparison.variants:
        one, other = to_ordinary.get(name), to_tst.get(name)
        if one is not None or other is not None:
            seeds = str(len(comparison.seeds_of((name, budget))))
            rows.append((name, seeds, _loss(comparison, name, budget), *_cells(one), *_cells(other)))
    return rows


def _about_rows(comparison: Comparison) -> list[Row]:
    ordinary = _measured(comparison, ORDINARY)
    rows: list[Row] = []
    for arm in (TST, *comparison.variants):
        measured, loss, data = (
            _measured(comparison, arm),
            comparison.equal_loss(arm=arm),
            comparison.equal_data(arm=arm),
        )
        flops = _times(measured.get("flops"), ordinary.get("flops"))
        tokens, parameters = (f"{n:,}" if (n := measured.get(of)) else "-" for of in ("raw_tokens", "parameters"))
        answers = loss.spoken() if loss else "-", spoken(data) if data else "-"
        steps = f"{comparison.steps_of(arm, comparison.steps):,}"
        rows.append((arm, steps, flops, tokens, parameters, *answers))
    return rows


def changes_of(comparison: Comparison, name: str) -> list[str]:
    """Settings of a variant that are not the recipe's, "section.name = value"; but for steps and what is tuned."""
    recipe = comparison.variants[name][comparison.steps]
    unsaid = {f"superposition.{setting}" for setting in SHORT_FORM} if recipe.superposition.stages else set()
    tuned = comparison.tunings[0].best if comparison.tunings else ()
    return [
        f"{place} = {_short(recipe, comparison.recipe, place)}"
        for place in recipe.changes(comparison.recipe)
        if place not in unsaid and place not in ("train.steps", *tuned)
    ]


def on_variants(comparison: Comparison) -> str:
    """The variants at the main budget in sentences; nothing where there are none."""
    tried, found = len(comparison.variants), {other: comparison.variants_against(other) for other, _ in _OTHERS}
    sentences = []
    for name in comparison.variants:
        against = [(word, found[other][name]) for other, word in _OTHERS if name in found[other]]
        if not against:
            continue
        parts = [_beside(word, one) for word, one in against]
        lucky = ", at one seed" if all(one.p is None for _, one in against) else ""
        sentences.append(f"{name} {' and '.join(parts)}{lucky}.")
        sentences += _notes(comparison, name)
    if not sentences:
        return ""
    many = f", corrected for {tried} tried" if tried > 1 else ""
    return f"Variants, at equal FLOPs{many}: {' '.join(sentences)}"


def _beside(word: str, one: Corrected) -> str:
    amount = f"ended {abs(one.value):.4f} nats per token {'lower' if one.value < 0 else 'higher'} than {word}"
    if one.p is None:
        return amount
    sure = f"95 % interval {ends(one)}, p {_p(one)}"
    return f"{amount} ({sure})" if one.decided else f"cannot be told from {word} ({one.value:+.4f}, {sure})"


def _notes(comparison: Comparison, name: str) -> list[str]:
    """What else a reader has to know of a variant before its difference is taken for superposition's."""
    notes, steps = [], comparison.steps_of(name, comparison.steps)
    if steps != comparison.steps:
        notes.append(
            f"Its steps cost {comparison.steps / steps:.3g} times ordinary ones, so it takes {steps:,} of them."
        )
    size, ordinary = (_measured(comparison, arm).get("parameters") for arm in (name, ORDINARY))
    if size and ordinary and size != ordinary:
        notes.append(f"Its model has {_times(size, ordinary)} the parameters of ordinary training's.")
    elsewhere = [change for change in changes_of(comparison, name) if not change.startswith("superposition.")]
    if elsewhere:
        notes.append(f"It alone has {'; '.join(elsewhere)}, so the difference is not superposition's alone.")
    if own := beside_bags(comparison.variants[name][comparison.steps]):
        notes.append(f"Its stages have {own}, which ordinary training has not, so the difference is not of bags alone.")
    return notes


def variant_answers(comparison: Comparison) -> dict[str, Any]:
    """For comparison.json: by name and budget."""
    answers: dict[str, Any] = {}
    for name in comparison.variants:
        for budget in comparison.budgets(name):
            to_ordinary, to_tst = (comparison.variants_against(other, budget).get(name) for other in (ORDINARY, TST))
            loss, data = comparison.equal_loss(budget, name), comparison.equal_data(budget, name)
            answers.setdefault(name, {})[str(budget)] = {
                "steps": comparison.steps_of(name, budget),
                "minus_ordinary": asdict(to_ordinary) if to_ordinary else None,
                "minus_tst": asdict(to_tst) if to_tst else None,
                "equal_loss": asdict(loss) if loss else None,
                "equal_data": data.record() if data else None,
            }
    return answers


def _measured(comparison: Comparison, arm: str) -> dict[str, Any]:
    """What a run of an arm at the main budget says of itself; all of them read and compute the same."""
    steps = comparison.steps_of(arm, comparison.steps)
    return next((run.result for run in comparison.runs if (run.arm, run.steps) == (arm, steps)), {})


def _loss(comparison: Comparison, arm: str, budget: int) -> str:
    seeds = comparison.seeds_of((arm, budget))
    return f"{statistics.fmean(comparison.values(arm, 'val_loss', budget, seeds)):.4f}"


def _cells(one: Corrected | None) -> tuple[str, str]:
    return ("-", "-") if one is None else (spoken(one), _p(one))


def _p(one: Corrected) -> str:
    return "-" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "< 0.001"


def _times(amount: float | None, of: float | None) -> str:
    return f"{amount / of:.2f} x" if amount and of else "-"


def _short(recipe: Recipe, base: Recipe, place: str) -> str:
    """A setting's value: stages in the paper's letters, of a table what differs."""
    if place == "superposition.stages" and recipe.superposition.stages:
        return describe(recipe.schedule)
    section, name = place.split(".", 1)
    value, before = (one.model_dump(mode="json")[section][name] for one in (recipe, base))
    if isinstance(value, dict) and isinstance(before, dict):
        value = {key: inner for key, inner in value.items() if before.get(key) != inner}
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
