"""A comparison as people read it: a table, a verdict, and the curves."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superpose.compare.experiment import ARMS, Arm, Outcome
from superpose.compare.statistics import Difference, paired_difference
from superpose.core.schedule import Schedule
from superpose.data.store import TokenStore
from superpose.files import whole_file, write_json, write_text
from superpose.train.config import Recipe
from superpose.train.metrics import read_metrics

_COLORS: dict[Arm, str] = {"ordinary": "#6b7280", "tst": "#2563eb"}


class Comparison:
    """The finished runs of a comparison, pairs of both arms at the same seeds.

    Args:
        recipe: of the TST arm.
        outcomes: of all runs; seeds of which an arm failed are left out.
    """

    def __init__(self, recipe: Recipe, outcomes: list[Outcome]) -> None:
        self.recipe = recipe
        results: dict[Arm, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
        for outcome in outcomes:
            if outcome.result is not None:
                results[outcome.run.arm][outcome.run.seed] = outcome.result
        self.seeds = sorted(results["ordinary"].keys() & results["tst"].keys())
        self.results: dict[Arm, list[dict[str, Any]]] = {
            arm: [results[arm][seed] for seed in self.seeds] for arm in ARMS
        }

    def values(self, arm: Arm, name: str) -> list[float]:
        """One quantity of every seed of an arm."""
        return [result[name] for result in self.results[arm]]

    def difference(self, name: str) -> Difference:
        """TST minus ordinary, paired by seed."""
        return paired_difference(self.values("ordinary", name), self.values("tst", name))

    @property
    def tst_label(self) -> str:
        return f"TST ({describe(self.recipe.schedule)})"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table: what, ordinary, TST, difference; means over the seeds."""
        loss, bits = self.difference("val_loss"), self.difference("val_bits_per_byte")

        def row(what: str, name: str, form: str, difference: str | None = None) -> tuple[str, str, str, str]:
            ordinary, tst = (statistics.fmean(self.values(arm, name)) for arm in ARMS)
            if difference is None:
                difference = "equal" if ordinary == tst else f"{tst / ordinary:.2f} x"
            return what, form.format(ordinary), form.format(tst), difference

        return [
            row("validation loss, nats per token", "val_loss", "{:.4f}", f"{loss.mean:+.4f}"),
            row("validation, bits per byte", "val_bits_per_byte", "{:.4f}", f"{bits.mean:+.4f}"),
            row("raw tokens read", "raw_tokens", "{:,.0f}"),
            row("epochs of the corpus", "epochs", "{:.2f}"),
            row("latents computed", "latents", "{:,.0f}"),
            row("training FLOPs", "flops", "{:.2e}"),
            row("training seconds", "seconds", "{:.0f}"),
        ]

    def seed_rows(self) -> list[tuple[str, str, str, str]]:
        """Validation loss of each seed: seed, ordinary, TST, difference."""
        pairs = zip(self.seeds, self.values("ordinary", "val_loss"), self.values("tst", "val_loss"), strict=True)
        return [(str(seed), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}") for seed, a, b in pairs]

    def verdict(self) -> str:
        """The result in words, whichever way it went."""
        loss = self.difference("val_loss")
        amount = f"{abs(loss.mean):.4f} nats per token {'lower' if loss.mean < 0 else 'higher'} than ordinary training"
        if loss.low is None or loss.high is None:
            better = "TST won" if loss.mean < 0 else "TST lost"
            return (
                f"{better} at seed {self.seeds[0]}: its validation loss ended {amount}, at equal FLOPs. "
                f"One seed is an anecdote: seeds differ, because the step at which a small model learns to copy "
                f"does. Run --seeds 1,2,3,4,5 for an interval."
            )
        pairs = zip(self.values("ordinary", "val_loss"), self.values("tst", "val_loss"), strict=True)
        lower = sum(tst < ordinary for ordinary, tst in pairs)
        interval = f"95 % interval {loss.low:+.4f} to {loss.high:+.4f}; it was lower at {lower} of {loss.seeds} seeds"
        if loss.high < 0:
            return f"TST won: its validation loss ended {amount}, at equal FLOPs ({interval})."
        if loss.low > 0:
            return f"TST lost: its validation loss ended {amount}, at equal FLOPs ({interval})."
        return (
            f"Undecided: TST's validation loss ended {amount} on average, at equal FLOPs, but the interval "
            f"includes 0 ({interval}). Give more seeds or more steps."
        )

    def write(self, directory: Path, store: TokenStore) -> None:
        """Writes comparison.json, summary.md and loss.png."""
        write_json(
            directory / "comparison.json",
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "store": {
                    name: store.manifest[name] for name in ("fingerprint", "preparation", "vocab_size", "splits")
                },
                "seeds": self.seeds,
                "results": self.results,
                "difference": {name: asdict(self.difference(name)) for name in ("val_loss", "val_bits_per_byte")},
                "verdict": self.verdict(),
            },
        )
        write_text(directory / "summary.md", self.markdown())
        plot(self, directory, directory / "loss.png")

    def markdown(self) -> str:
        lines = [_markdown_table(("", "ordinary", self.tst_label, "difference"), self.rows())]
        if len(self.seeds) > 1:
            lines.append(_markdown_table(("seed", "ordinary", "TST", "difference"), self.seed_rows()))
        return "\n\n".join([*lines, self.verdict()]) + "\n"


def describe(schedule: Schedule) -> str:
    """A schedule in the paper's letters: "s 4, r 0.3"."""
    stages = [stage for stage in schedule.stages if stage.phase == "superposition"]
    parts = [f"s {stage.bag_size}, r {stage.steps / schedule.total_steps:.3g}" for stage in stages]
    mode = "" if schedule.mode == "full" else f", {schedule.mode} only"
    return "; ".join(parts) + mode


def plot(comparison: Comparison, directory: Path, path: Path) -> None:
    """Validation loss against steps (equal FLOPs) and raw tokens: thin lines are seeds, thick ones their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    by_step, by_tokens = figure.subplots(1, 2, sharey=True)
    labels = {"ordinary": "ordinary", "tst": comparison.tst_label}
    for axes, quantity, name in (
        (by_step, "step", "step (equal FLOPs)"),
        (by_tokens, "raw_tokens", "raw tokens read, millions"),
    ):
        scale = 1e6 if quantity == "raw_tokens" else 1
        for arm in ARMS:
            curves = [_validation(directory / f"{arm}-seed{seed}") for seed in comparison.seeds]
            places = [record[quantity] / scale for record in curves[0]]
            losses = [[record["val_loss"] for record in curve] for curve in curves]
            if len(losses) > 1:
                for loss in losses:
                    axes.plot(places, loss, color=_COLORS[arm], linewidth=0.7, alpha=0.4)
            mean = [statistics.fmean(column) for column in zip(*losses, strict=True)]
            axes.plot(places, mean, color=_COLORS[arm], linewidth=2, label=labels[arm])
            axes.annotate(
                f"{mean[-1]:.3f}",
                (places[-1], mean[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="top" if arm == "tst" else "bottom",
                color=_COLORS[arm],
                fontsize=9,
            )
        axes.set_xlabel(name)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08)
    latents = comparison.recipe.latents_per_step
    schedule = comparison.recipe.schedule
    for number, boundary in enumerate(schedule.boundaries):
        last = number == len(schedule.boundaries) - 1
        by_step.axvline(
            boundary, color=_COLORS["tst"], linestyle=":", linewidth=1.2, label="recovery begins" if last else None
        )
        by_tokens.axvline(
            schedule.raw_tokens(latents, boundary) / 1e6, color=_COLORS["tst"], linestyle=":", linewidth=1.2
        )
    by_step.set_ylabel("next-token validation loss, nats")
    by_step.legend(frameon=False)
    with whole_file(path) as aside:
        FigureCanvasAgg(figure).print_png(str(aside))


def _validation(run: Path) -> list[dict[str, Any]]:
    """Validation records of a run, without that of the untrained model."""
    return [
        record
        for record in read_metrics(run / "metrics.jsonl")
        if record["kind"] == "validation" and record["step"] > 0
    ]


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> str:
    lines = [header, ("---", *("---:",) * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
