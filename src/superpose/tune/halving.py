"""What `superpose tune` does: successive halving over the rungs of a search, and what it found, as words and recipe.

    ordinary training: all learning rates at all rungs
    TST: rung -> losses -> ranked -> the best 1/eta -> next rung -> ... -> best at the full steps
    the lower of the two best -> recipe

It says best of what was tried, no more: the winner of several is chosen for its luck too, so its loss flatters it, and
only a comparison with other seeds tells what TST brings. `Tuned.next_command` is that comparison.

RUNS/NAME/recipe.toml  for `superpose train`    RUNS/NAME/tuning.json  all results    RUNS/NAME/summary.md  tables
"""

import itertools
import json
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scipy.stats import spearmanr

from superpose.data.config import prepare
from superpose.engine.jobs import Engine
from superpose.engine.local import Local
from superpose.errors import UserError
from superpose.files import write_json, write_text
from superpose.plan.evidence import ONE_SEED, Setting
from superpose.plan.prediction import few_steps
from superpose.results.intervals import ends
from superpose.results.progress import Display
from superpose.results.statistics import Difference, paired_difference
from superpose.results.tables import Row, Table, markdown
from superpose.runs.pool import POOL, Outcome, Run, link, named_directory, settled, train_all
from superpose.train.config import Recipe
from superpose.train.loop import check_recipe
from superpose.train.recipe_file import recipe_toml, write_recipe
from superpose.tune.search import Rung, Search, Trial

Execute = Callable[[Sequence[Run]], Sequence[Outcome]]
"""Trains runs and returns their outcomes, such as `superpose.runs.pool.execute` on a pool."""
SEARCHED = ("superposition.bag_size", "superposition.ratio", "train.steps", "train.lr")
"""Settings the recipe spells out, be they defaults or not."""
RECIPE = "recipe.toml"
TST_RECIPE = "tst.toml"
"""Of the best of TST, where that is a variant and ordinary training won: no option of a command could say it."""
_AGREE = 0.5
"""Rank correlation of two rungs below which the shorter one is said to have told little."""


@dataclass(frozen=True)
class Standing:
    """What became of a trial on a rung.

    Attributes:
        losses: final next-token validation losses, nats per token, by seed of the rung; None where the run failed.
        kept: whether it goes on to the next rung; on the last one, whether it is the best of its kind.
    """

    trial: Trial
    losses: tuple[float | None, ...]
    kept: bool

    @property
    def loss(self) -> float | None:
        """Mean over the seeds; None if one of them failed, as such a setting is not to be relied on."""
        known = [loss for loss in self.losses if loss is not None]
        return statistics.fmean(known) if len(known) == len(self.losses) else None


@dataclass(frozen=True)
class Ranking:
    """A rung's standings, of TST and of ordinary training, best first."""

    rung: Rung
    tst: tuple[Standing, ...]
    ordinary: tuple[Standing, ...]

    @property
    def kept(self) -> int:
        """Trials of TST that go on."""
        return sum(standing.kept for standing in self.tst)

    def spoken(self) -> str:
        """The rung in a sentence."""
        best, kept = self.tst[0], f"{self.rung.steps:,} steps: {self.kept} of {len(self.tst)} trials kept"
        return f"{kept}; best {best.trial}, validation loss {_cell(best)}; ordinary training {_cell(self.ordinary[0])}"


def halve(search: Search, execute: Execute, listener: Callable[[Ranking], None] = lambda ranking: None) -> "Tuned":
    """Trains rung by rung and keeps the best.

    Nothing of it depends on the order of trials or outcomes. Of equal losses, the one that reads less data is better.

    Args:
        execute: what trains. If it is stopped and called again with the same runs it has to give the same outcomes;
            then a search that was stopped ends as if it had not been.
        listener: told of each rung when it is done.

    Raises:
        UserError: all learning rates of ordinary training failed, or all trials of a rung.
    """
    rungs, last = search.rungs, search.rungs[-1]
    outcomes = execute(search.ordinary_runs)
    ordinary = [_ranked(search, search.ordinary, rung, outcomes, 1 if rung is last else None) for rung in rungs]
    alive, rankings = search.trials, []
    for rung, after, beside in itertools.zip_longest(rungs, rungs[1:], ordinary):
        tst = _ranked(search, alive, rung, execute(search.runs(alive, rung)), after.trials if after else 1)
        rankings.append(Ranking(rung, tst, beside))
        listener(rankings[-1])
        alive = tuple(standing.trial for standing in tst if standing.kept)
    return Tuned(search, tuple(rankings))


def _ranked(
    search: Search, trials: Sequence[Trial], rung: Rung, outcomes: Sequence[Outcome], keep: int | None
) -> tuple[Standing, ...]:
    """Standings on a rung, best first; of those without a failed run the first `keep` are kept, or all."""
    losses = {outcome.run.name: outcome.result["val_loss"] if outcome.result else None for outcome in outcomes}
    of_trial = {trial: tuple(losses[run.name] for run in search.runs([trial], rung)) for trial in trials}
    standings = [Standing(trial, values, False) for trial, values in of_trial.items()]
    standings.sort(key=lambda s: (s.loss is None, s.loss or 0.0, s.trial.ratio * (s.trial.bag_size - 1), s.trial))
    if keep is not None and standings[0].loss is None:
        kind = "ordinary training" if standings[0].trial.ordinary else "TST"
        raise UserError(f"all runs of {kind} failed at {rung.steps:,} steps; give lower learning rates, --lrs")
    return tuple(
        replace(standing, kept=standing.loss is not None and (keep is None or place < keep))
        for place, standing in enumerate(standings)
    )


@dataclass(frozen=True)
class Tuned:
    """A finished search; `halve` makes it.

    Attributes:
        rankings: of the rungs, by steps, ascending.
    """

    search: Search
    rankings: tuple[Ranking, ...]

    @property
    def best_tst(self) -> Standing:
        """At the full steps."""
        return self.rankings[-1].tst[0]

    @property
    def best_ordinary(self) -> Standing:
        """At the full steps."""
        return self.rankings[-1].ordinary[0]

    @property
    def difference(self) -> Difference:
        """The best of TST minus the best of ordinary training, at the full steps."""
        return _difference(self.best_ordinary, self.best_tst)

    @property
    def winner(self) -> Standing:
        """The lower of the two; ordinary training if they are equal, as it reads less data."""
        return self.best_tst if self.difference.value < 0 else self.best_ordinary

    @property
    def recipe(self) -> Recipe:
        """That of the search with the winner's bag size, ratio and learning rate, and with its own seed."""
        return self.winner.trial.applied(self.search.recipe, self.search.variants)

    @property
    def correlations(self) -> tuple[float | None, ...]:
        """Spearman's rank correlation of each rung with the next, over the trials of TST that were on both.

        None where there are fewer than three. Those who go on are near each other, so it is lower than one over all
        trials would be.
        """
        found = []
        for short, long in itertools.pairwise(self.rankings):
            before = {standing.trial: standing.loss for standing in short.tst}
            pairs = [(before[s.trial], s.loss) for s in long.tst if s.loss is not None]
            distinct = all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
            found.append(float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 and distinct else None)
        return tuple(found)

    @property
    def near(self) -> tuple[Trial, ...]:
        """Trials of TST with full runs that cannot be told from the best of them: their 95 % interval includes it.

        With one seed there is no interval; then those less than `ONE_SEED` behind.
        """
        best, *others = self.rankings[-1].tst
        return tuple(other.trial for other in others if other.loss is not None and not _apart(_difference(best, other)))

    def verdict(self) -> str:
        """Whether TST won, and with what, in words."""
        difference = self.difference
        side, word = ("lower", "TST won") if difference.value < 0 else ("higher", "TST lost")
        amount = (
            f"the best of TST ({self.best_tst.trial}) ended {abs(difference.value):.4f} nats per token {side} than the "
            f"best of ordinary training ({self.best_ordinary.trial}), at {self.search.steps:,} steps each"
        )
        if difference.low is None:
            seed = self.search.rungs[-1].seeds[0]
            small = "" if _apart(difference) else f", by less than seeds differ (about {ONE_SEED:g} nats)"
            sure = "One seed is an anecdote, and"
            sentence = f"{word} at seed {seed}{small}: {amount}."
        else:
            interval = f"(95 % interval {ends(difference)}, {difference.seeds} seeds)"
            sure = "The interval does not know that"
            sentence = f"{word if difference.excludes_zero else 'Undecided'}: {amount} {interval}."
        what = "ordinary" if self.winner is self.best_ordinary else "TST's"
        flatters = f"{sure} the best of several is lucky as well: compare with new seeds."
        return " ".join((sentence, f"The recipe is {what}.", flatters, *self.cautions()))

    def cautions(self) -> list[str]:
        """What keeps the result from meaning more."""
        last, notes = self.rankings[-1], []
        if self.near:
            how, others = "the 95 % interval of the difference includes 0", "; ".join(map(str, self.near))
            if len(last.rung.seeds) == 1:
                how = f"less than {ONE_SEED:g} nats behind, which seeds differ by"
            notes.append(f"Other trials of TST that cannot be told from the best: {others} ({how}).")
        for (short, long), agreement in zip(itertools.pairwise(self.rankings), self.correlations, strict=True):
            if agreement is not None and agreement < _AGREE:
                notes.append(
                    f"The order at {short.rung.steps:,} steps said little of that at {long.rung.steps:,} (rank "
                    f"correlation {agreement:.2f} of {len(long.tst)} trials): raise --min-steps, or keep more by a "
                    f"lower --eta."
                )
        # A better setting may lie beyond those tried.
        tst, ordinary, trials = self.best_tst.trial, self.best_ordinary.trial, self.search.trials
        # A variant has bags of its own, of which there are no more to try.
        plain = [] if tst.variant else [trial for trial in trials if not trial.variant]
        for option, whose, value, tried in (
            ("--bag-sizes", "TST's best bag size", tst.bag_size, {trial.bag_size for trial in plain}),
            ("--ratios", "TST's best ratio", tst.ratio, {trial.ratio for trial in plain}),
            ("--lrs", "TST's best learning rate", tst.lr, {trial.lr for trial in trials}),
            ("--lrs", "Ordinary training's best learning rate", ordinary.lr, set(self.search.rates)),
        ):
            below = (option, value) == ("--bag-sizes", 2)  # there is ordinary training, which is tried
            if len(tried) > 1 and value in (min(tried), max(tried)) and not below:
                notes.append(f"{whose}, {value:g}, is at the edge of those tried: give {option} beyond it.")
        failed = {s.trial for ranking in self.rankings for s in (*ranking.tst, *ranking.ordinary) if s.loss is None}
        if failed:
            notes.append(f"Runs failed of {len(failed)} trials: {'; '.join(map(str, sorted(failed)))}.")
        return notes

    def tables(self) -> list[Table]:
        """Trials by rung, then the rungs."""
        steps = [f"{ranking.rung.steps:,} steps" for ranking in self.rankings]
        several = len(self.search.rungs[-1].seeds) > 1
        title = "Validation loss, nats per token" + (", mean over seeds at the full steps" if several else "")
        rungs: list[Row] = []
        for ranking, agreement in itertools.zip_longest(self.rankings, self.correlations):
            rung, tst, ordinary = ranking.rung, ranking.tst[0], ranking.ordinary[0]
            counts = f"{rung.steps:,}", str(len(ranking.tst)), str(ranking.kept), ",".join(map(str, rung.seeds))
            difference = "-" if tst.loss is None or ordinary.loss is None else f"{tst.loss - ordinary.loss:+.4f}"
            order = "-" if agreement is None else f"{agreement:.2f}"
            rungs.append((*counts, _cell(tst), _cell(ordinary), difference, order))
        header = ("steps", "TST trials", "kept", "seeds", "TST", "ordinary", "difference", "agreement")
        best = "Rungs: the best of each kind; agreement is the rank correlation with the next"
        trials: list[Row] = []
        for kind in ([ranking.tst for ranking in self.rankings], [ranking.ordinary for ranking in self.rankings]):
            columns = [{standing.trial: standing for standing in standings} for standings in kind]
            # Those that came furthest first.
            for trial in dict.fromkeys(trial for column in reversed(columns) for trial in column):
                best_of_all = " (best)" if trial == kind[-1][0].trial else ""
                *short, full = (_cell(column.get(trial)) for column in columns)
                trials.append((str(trial), *short, full + best_of_all))
        return [(title, ("trial", *steps), trials), (best, header, rungs)]

    @property
    def _beaten_variant(self) -> bool:
        return self.winner is self.best_ordinary and bool(self.best_tst.trial.variant)

    def next_command(self, recipe: Path, runs: Path) -> str:
        """The comparison that tells what the winner is worth: seeds that took no part, each arm at its best rates."""
        used = self.search.rungs[-1].seeds
        seeds = [seed for seed in range(1, len(used) + 6) if seed not in used][:5]
        rates = sorted({self.best_tst.trial.lr, self.best_ordinary.trial.lr})
        words = ["superpose", "compare", str(recipe)]
        if self._beaten_variant:
            words[-1] = str(recipe.with_name(TST_RECIPE))
        elif self.winner is self.best_ordinary:
            # The recipe knows nothing of bags, so the command tells what was tried.
            tst = self.best_tst.trial
            words += ["--bag-size", str(tst.bag_size), "--ratio", f"{tst.ratio!r}"]
            kind = self.search.recipe.superposition.model_dump(
                mode="json", exclude_defaults=True, exclude={"bag_size", "ratio", "documents"}
            )
            words += [f"--set=superposition.{name}={json.dumps(value)}" for name, value in kind.items()]
        words += ["--lrs", ",".join(f"{rate!r}" for rate in rates)] if len(rates) > 1 else []
        words += ["--seeds", ",".join(map(str, seeds)), "--name", f"{recipe.parent.name}-compared"]
        words += ["--runs", str(runs)] if runs != Path("runs") else []
        return shlex.join(words)

    def write(self, directory: Path, command: str, runs: Path) -> None:
        """Writes recipe.toml, tuning.json and summary.md, each whole or not at all.

        Args:
            command: that made them.
            runs: for `next_command`.
        """
        search, seeds = self.search, ", ".join(map(str, self.search.rungs[-1].seeds))
        comments = [
            f"Found by: {command}",
            f"Best of {len(search.trials)} settings of TST and {len(search.rates)} learning rates of ordinary "
            f"training, {search.steps:,} steps, seed {seeds}.",
            *(f"{s.trial}: validation loss {s.loss:.4f} nats per token" for s in (self.best_tst, self.best_ordinary)),
            self.verdict().replace(". ", ".\n"),
        ]
        write_recipe(self.recipe, directory / RECIPE, comments, SEARCHED)
        if self._beaten_variant:
            tst = self.best_tst.trial.applied(search.recipe, search.variants)
            write_recipe(
                tst, directory / TST_RECIPE, [f"Found by: {command}", "Best of TST; ordinary training was better."]
            )
        written = {
            "format": "superpose tuning 1",
            "command": command,
            "verdict": self.verdict(),
            "next": self.next_command(directory / RECIPE, runs),
            "winner": asdict(self.winner),
            "best_tst": asdict(self.best_tst),
            "best_ordinary": asdict(self.best_ordinary),
            "difference": self.difference.record(),
            "near": [asdict(trial) for trial in self.near],
            "correlations": self.correlations,
            "cost": {"runs": search.count, "steps": search.computed_steps, "full_runs": search.cost},
            "rungs": [asdict(ranking) for ranking in self.rankings],
            "recipe": self.recipe.model_dump(mode="json"),
        }
        write_json(directory / "tuning.json", written)
        write_text(directory / "summary.md", markdown(self.tables(), self.verdict()))


def _difference(one: Standing, other: Standing) -> Difference:
    """The other minus the one, of two whose runs all finished."""
    a, b = ([loss for loss in standing.losses if loss is not None] for standing in (one, other))
    return paired_difference(a, b)


def _apart(difference: Difference) -> bool:
    """Whether two are told apart, by the interval or, with one seed, by what seeds are known to differ by."""
    return difference.excludes_zero if difference.low is not None else abs(difference.value) >= ONE_SEED


def _cell(standing: Standing | None) -> str:
    if standing is None:
        return "-"
    return "failed" if standing.loss is None else f"{standing.loss:.4f}"


def tune(
    search: Search,
    *,
    runs: Path = Path("runs"),
    name: str = "tune-cpu-tiny",
    jobs: int = 0,
    engine: Engine | None = None,
    display: Display | None = None,
    command: str = "superpose.tune.tune",
) -> Tuned:
    """Searches bag size, ratio, variants and learning rate within a budget, and writes the recipe that is best.

    Writes recipe.toml, tuning.json, summary.md and links to the runs into RUNS/NAME. Called again, it goes on where it
    stopped.

    Args:
        search: what is tried and for how long; `superpose.tune.plan_search` makes it.
        name: of the search.
        runs, jobs, engine, display: as of `superpose.compare.compare`.
        command: what the files say they were made with.

    Raises:
        UserError: the recipe cannot be written as TOML, its model cannot be built, its text cannot be read, or all runs
            of a rung failed.
    """
    recipe_toml(search.recipe)  # says what cannot be written before any work
    check_recipe(search.recipe)
    directory, display = named_directory(runs, name), display or Display()
    for line in search.spoken():
        display.say(line)
    first = search.trials[0]
    for line in few_steps(search.rungs[0].steps, Setting(first.bag_size, first.ratio))[:1]:
        display.say(f"{line}; so the shortest rung is little to go by", style="yellow")
    with display, engine or Local() as machines:
        # Once for all runs. The recipe that is written keeps its own.
        precise = replace(search, recipe=settled(search.recipe, machines))
        store = prepare(search.recipe.data, display.prepare)

        def execute(planned: Sequence[Run]) -> list[Outcome]:
            later = precise.expected_after(planned)
            outcomes = train_all(planned, store, runs / POOL, jobs, display, machines, later)
            link(outcomes, directory)
            return outcomes

        rankings = halve(precise, execute, lambda ranking: display.say(ranking.spoken())).rankings
    tuned = Tuned(search, rankings)
    tuned.write(directory, command, runs)
    return tuned
