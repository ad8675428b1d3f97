"""Trains the paper's experiments at one's own scale, and puts what came out beside what the paper found.

experiment -> arms x seeds -> runs in RUNS/pool -> findings: ours, the paper's, and whether they agree -> RUNS/NAME
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from scipy.stats import spearmanr

from superpose.compare.comparison import Comparison
from superpose.compare.experiment import ORDINARY, TST, Design, found_tunings, plan_runs, plan_tuning
from superpose.compare.tuned import LR
from superpose.compare.variants import Changes
from superpose.compare.workflow import compare
from superpose.data.config import prepare
from superpose.data.information import PowerLaw, fit_power_law
from superpose.data.store import TokenStore
from superpose.engine.jobs import Engine
from superpose.engine.local import Local
from superpose.errors import UserError
from superpose.files import read_json, write_json, write_text
from superpose.reproduce.experiments import EPOCHS, EXPERIMENTS, SWEEP, Claim, Expected, Experiment
from superpose.results.intervals import Interval, spoken
from superpose.results.progress import Display
from superpose.results.statistics import paired_difference
from superpose.results.tables import Row, Table, markdown
from superpose.runs.pool import POOL, Outcome, Run, named_directory, settled, train_all
from superpose.train.config import Recipe
from superpose.train.loop import check_recipe
from superpose.train.recipe_file import load_recipe, override, with_settings

Scale = Literal["tiny", "small", "paper"]
Agreement = Literal["agrees", "disagrees", "undecided"]
_FORMAT = "superpose reproduction 1"

EQUAL = 0.01
"""Nats within which two losses are called equal; the paper's seeds differ by a few thousandths."""


@dataclass(frozen=True)
class ClaimResult:
    """One claim of the paper, here.

    Attributes:
        what: the quantity, in words.
        ours: mean; with one seed it has no interval, and nothing is decided.
        low, high: 95 % interval.
        published: the paper's figure, None where it gives a direction alone.
        expected: what the paper found, in words.
        where: in the paper.
    """

    what: str
    ours: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    seeds: int
    published: FiniteFloat | None
    expected: str
    where: str
    verdict: Agreement


@dataclass(frozen=True)
class Arm:
    """Final validation losses of an arm by seed, in nats per token, and what its runs read; None if all failed."""

    name: str
    losses: Annotated[dict[int, FiniteFloat], Field(min_length=1)]
    raw_tokens: int
    epochs: FiniteFloat
    flops: FiniteFloat
    seconds: FiniteFloat


@dataclass(frozen=True)
class Reproduction:
    """An experiment's results.

    Attributes:
        law: the corpus' mutual information, where it was asked for.
        rates: tuned learning rates of the arms "ordinary" and "tst", which stands for all others.
    """

    name: str
    title: str
    scale: str
    recipe: Recipe
    store: dict[str, Any]
    arms: tuple[Arm, ...]
    findings: tuple[ClaimResult, ...]
    law: PowerLaw | None = None
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "list[Reproduction]":
        """All experiments of a reproduction.json.

        Raises:
            UserError: the file is missing, altered, or of another version.
        """
        saved = read_json(path)
        if saved.get("format") != _FORMAT:
            raise UserError(f"{path} is of another version of superpose; reproduce again to write it anew")
        try:
            return TypeAdapter(list[Reproduction]).validate_python(saved.get("experiments"))
        except ValidationError:
            raise UserError(f"{path} was altered; reproduce again to write it anew") from None

    def tables(self) -> list[Table]:
        """Findings beside the paper's figures, and each arm's losses."""
        findings, arms = list[Row](), list[Row]()
        for finding in self.findings:
            paper = finding.expected if finding.published is None else f"{finding.published:+.4f}"
            ours = spoken(Interval(finding.ours, finding.low, finding.high))
            findings.append((finding.what, paper, ours, finding.verdict, finding.where))
        for arm in self.arms:
            losses = arm.losses.values()
            mean, ends = f"{statistics.fmean(losses):.4f}", f"{min(losses):.4f} to {max(losses):.4f}"
            arms.append((arm.name, str(len(losses)), mean, ends, f"{arm.raw_tokens:,}", f"{arm.epochs:.2f}"))
        header = ("arm", "seeds", "loss, nats", "lowest to highest", "raw tokens", "epochs")
        tables: list[Table] = [
            (self.title, ("", "paper", "ours (95 % interval)", "", "in the paper"), findings),
            (f"{self.name}: losses", header, arms),
        ]
        if (law := self.law) is not None:
            rows = [(str(distance), f"{law.information[distance]:.4f}") for distance in (1, 2, 4, 8, 16, 32)]
            fitted = f"I(d) = {law.constant:.3f} + {law.factor:.3f} d^{law.exponent:.3f}"
            tables.append((f"Mutual information of tokens d apart, {fitted}", ("d", "nats"), [*rows]))
        return tables

    def verdict(self) -> str:
        """How many findings agree with the paper's."""
        counts = Counter(finding.verdict for finding in self.findings)
        return f"{self.name}: " + ", ".join(f"{counts[word]} {word}" for word in get_args(Agreement))


def save(reproductions: Sequence[Reproduction], command: str, directory: Path) -> None:
    """Writes reproduction.json and summary.md."""
    entries = [{**asdict(entry), "recipe": entry.recipe.model_dump(mode="json")} for entry in reproductions]
    write_json(directory / "reproduction.json", {"format": _FORMAT, "command": command, "experiments": entries})
    tables = [table for entry in reproductions for table in entry.tables()]
    write_text(directory / "summary.md", markdown(tables, "\n".join(entry.verdict() for entry in reproductions)))


def reproduce(
    experiments: Sequence[str] = tuple(EXPERIMENTS),
    *,
    scale: Scale = "tiny",
    recipe: Recipe | None = None,
    seeds: tuple[int, ...] = (1, 2, 3),
    rates: tuple[float, ...] = (),
    runs: Path = Path("runs"),
    name: str | None = None,
    jobs: int = 0,
    engine: Engine | None = None,
    display: Display | None = None,
    command: str = "superpose.reproduce.reproduce",
    listener: Callable[[Reproduction | Comparison], None] = lambda done: None,
    variants: Mapping[str, Changes] | None = None,
) -> list[Reproduction]:
    """Runs the paper's experiments again, and says which of its findings hold here.

    Writes reproduction.json and summary.md into RUNS/NAME after each experiment. Called again, it goes on where it
    stopped. Runs that fail are left out, and named in `display.failed`.

    Args:
        experiments: keys of `superpose.reproduce.EXPERIMENTS`.
        scale: its TST recipe is trained, before an experiment changes it.
        recipe: in place of the scale's own; "paper" has none.
        seeds: each arm is trained once with each.
        rates: learning rates to try first, ordinarily and with the TST recipe; arms take the best.
        name: of the results; by default reproduce-SCALE.
        runs, jobs, engine, display: as of `superpose.compare.compare`.
        command: what reproduction.json says it was made with.
        listener: called with each experiment when it is done, and with the comparison of the variants.
        variants: of the scale's recipe, see `superpose.compare.Design`: compared with its ordinary and TST arms after
            the experiments, in a comparison called NAME-variants, which trains no run again.

    Raises:
        UserError: there is no such experiment, a variant cannot be compared, the scale needs a recipe, its model
            cannot be built, its text cannot be read, or all learning rates failed.
    """
    if unknown := [key for key in experiments if key not in EXPERIMENTS]:
        raise UserError(f"there is no experiment {unknown[0]!r}; choose one of {', '.join(EXPERIMENTS)}")
    design, name = (
        Design(recipe or scale_recipe(scale), seeds, tune={LR: rates} if rates else {}),
        name or f"reproduce-{scale}",
    )
    plan_runs(replace(design, variants=variants or {}))  # says what is wrong before any work
    check_recipe(design.recipe)
    directory, display, keys = named_directory(runs, name), display or Display(), list(dict.fromkeys(experiments))
    done: list[Reproduction] = []
    with engine or Local() as machines:
        with display:
            design = replace(design, recipe=settled(design.recipe, machines))
            store = prepare(design.recipe.data, display.prepare)
            tuning, later = plan_tuning(design), _expected(keys, design.recipe, seeds, {})
            tunings = found_tunings(design, train_all(tuning, store, runs / POOL, jobs, display, machines, later))
            tuned = {tuning.arm: tuning.best[LR] for tuning in tunings}
        for place, key in enumerate(keys):
            experiment, arms, text = EXPERIMENTS[key], design.recipe, store
            with display:
                if experiment.data_bound:
                    arms = data_bound(arms, store)
                    text = prepare(arms.data, display.prepare)
                planned, law = experiment_runs(experiment, arms, text, seeds, tuned)
                display.say(f"{experiment.title}: {len(planned)} runs")
                later = _expected(keys[place + 1 :], design.recipe, seeds, tuned)
                outcomes = train_all(planned, text, runs / POOL, jobs, display, machines, later)
            done.append(reproduction(key, scale, arms, text, outcomes, law, tuned))
            save(done, command, directory)
            listener(done[-1])
    if variants:
        beside = replace(design, variants=variants)
        name = f"{name}-variants"
        compared = compare(beside, runs=runs, name=name, jobs=jobs, engine=engine, display=display)
        if compared.seeds:
            listener(compared)
    return done


def scale_recipe(scale: Scale, recipe: Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The TST recipe of a scale, before an experiment changes it.

    Both scales of our own train 0.09 million parameters, in minutes an experiment on a laptop (2,000 steps, 25 s a run
    on a core) and in an hour (the recipe cpu-small: 8,000 steps, 100 s).

    Args:
        scale: "paper" takes its settings from `recipe`.
        recipe: settings instead of the scale's own.
        changes: further settings, as `section.name=value`.

    Raises:
        UserError: the scale needs a recipe, or one of the settings is wrong.
    """
    if recipe is None and scale == "paper":
        raise UserError("--scale paper trains the recipe that is given; add --recipe, such as paper-270m")
    shorter = ["train.steps=2000", "train.eval_every=250"] if recipe is None and scale == "tiny" else []
    return load_recipe(recipe or "cpu-small", [*shorter, *changes])


def data_bound(recipe: Recipe, store: TokenStore) -> Recipe:
    """The same with so little text that an ordinary run reads it `EPOCHS` times."""
    tokens = recipe.train.steps * recipe.latents_per_step / EPOCHS
    megabytes = tokens * store.train.bytes / len(store.train.tokens) / 1e6
    return with_settings(recipe, "data", max_megabytes=round(megabytes, 3))


def experiment_runs(
    experiment: Experiment, recipe: Recipe, store: TokenStore, seeds: Sequence[int], rates: Mapping[str, float]
) -> tuple[list[Run], PowerLaw | None]:
    """All runs of an experiment, seed by seed, and the corpus' power law if an arm takes its weights from it.

    Args:
        rates: learning rates of the arms "ordinary" and "tst", which stands for all others; none, and all take the
            recipe's.
    """
    law = fit_power_law(store.train.tokens) if experiment.needs_weights else None
    return _runs(experiment, recipe, seeds, rates, law), law


def _expected(keys: Sequence[str], recipe: Recipe, seeds: Sequence[int], rates: Mapping[str, float]) -> list[Run]:
    """The runs of experiments that are to come, but for weights that are not measured yet."""
    return [run for key in keys for run in _runs(EXPERIMENTS[key], recipe, seeds, rates, None)]


def _runs(
    experiment: Experiment, recipe: Recipe, seeds: Sequence[int], rates: Mapping[str, float], law: PowerLaw | None
) -> list[Run]:
    recipes = {}
    for name, changes in experiment.arms.items():
        arm = recipe.ordinary() if name == ORDINARY else override(recipe, changes)
        if law is not None and name in experiment.needs_weights:
            weights = law.weights(experiment.needs_weights[name])
            arm = with_settings(arm, "superposition", weighting=tuple(round(weight, 6) for weight in weights))
        rate = rates.get(ORDINARY if name == ORDINARY else TST)
        recipes[name] = with_settings(arm, "train", lr=rate) if rate else arm
    return [Run(name, with_settings(arm, "train", seed=seed)) for seed in seeds for name, arm in recipes.items()]


def reproduction(
    name: str,
    scale: str,
    recipe: Recipe,
    store: TokenStore,
    outcomes: Sequence[Outcome],
    law: PowerLaw | None,
    rates: dict[str, float],
) -> Reproduction:
    """What came of an experiment's runs; arms of which no run finished are left out."""
    experiment, arms = EXPERIMENTS[name], []
    for arm in experiment.arms:
        finished = {o.run.seed: o.result for o in outcomes if o.run.arm == arm and o.result is not None}
        if finished:
            one = next(iter(finished.values()))
            losses = {seed: float(result["val_loss"]) for seed, result in sorted(finished.items())}
            seconds = statistics.median(result["seconds"] for result in finished.values())
            arms.append(Arm(arm, losses, one["raw_tokens"], one["epochs"], one["flops"], seconds))
    by_name = {arm.name: arm.losses for arm in arms}
    findings = [finding for claim in experiment.claims if (finding := _finding(claim, by_name)) is not None]
    if name == "figure4":
        findings += _likeness(findings)
    if law is not None:
        findings.append(_exponent(law))
    return Reproduction(name, experiment.title, scale, recipe, store.facts, tuple(arms), tuple(findings), law, rates)


def judge(difference: Interval, expected: Expected) -> Agreement:
    """Whether an interval says what was expected, its contrary, or neither."""
    least, most = {"lower": (-math.inf, 0.0), "higher": (0.0, math.inf), "equal": (-EQUAL, EQUAL)}[expected]
    if difference.low is None or difference.high is None:
        return "undecided"
    if least < difference.low and difference.high < most:
        return "agrees"
    return "disagrees" if difference.high < least or difference.low > most else "undecided"


def _finding(claim: Claim, losses: dict[str, dict[int, float]]) -> ClaimResult | None:
    """None where no seed finished both arms."""
    arm, against = losses.get(claim.arm, {}), losses.get(claim.against, {})
    seeds = sorted(arm.keys() & against.keys())
    if not seeds:
        return None
    ours = paired_difference([against[seed] for seed in seeds], [arm[seed] for seed in seeds])
    what, paper = f"{claim.arm} minus {claim.against}, nats", (claim.published, claim.expected, claim.where)
    return ClaimResult(what, ours.value, ours.low, ours.high, ours.seeds, *paper, judge(ours, claim.expected))


def _likeness(cells: Sequence[ClaimResult]) -> list[ClaimResult]:
    """Whether bag sizes and ratios rank here as they do in the paper: Spearman's correlation of the gains.

    None of four cells or fewer, or of gains that are all the same.
    """
    pairs = [(cell.ours, cell.published) for cell in cells if cell.published is not None]
    if len(pairs) < 5 or len({ours for ours, _ in pairs}) == 1:
        return []
    rank = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    # Fisher's transformation with the variance Bonett and Wright give for ranks.
    half = 1.96 * ((1 + rank**2 / 2) / (len(pairs) - 3)) ** 0.5
    low, high = (math.tanh(math.atanh(max(-0.999999, min(0.999999, rank))) + side * half) for side in (-1, 1))
    verdict = judge(Interval(rank, low, high), "higher")
    what = f"rank correlation of the gains of {len(pairs)} cells"
    return [ClaimResult(what, rank, low, high, cells[0].seeds, None, "positive", f"table 4 ({SWEEP})", verdict)]


def _exponent(law: PowerLaw) -> ClaimResult:
    """The fall of mutual information with distance, beside DCLM's."""
    ours, published = (law.exponent, law.exponent_low, law.exponent_high), -1.25
    verdict: Agreement = "agrees" if law.exponent_low <= published <= law.exponent_high else "disagrees"
    what, where = "exponent k of the mutual information at a distance", "figure 10, DCLM with 128,256 entries"
    return ClaimResult(what, *ours, 1, published, "a power law", where, verdict)
