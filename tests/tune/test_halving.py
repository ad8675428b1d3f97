import itertools
import math
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose.compare.experiment import Design, plan_tuning
from superpose.errors import UserError
from superpose.runs.pool import Outcome
from superpose.train.config import Recipe, SuperpositionArgs
from superpose.train.recipe_file import load_recipe, with_settings
from superpose.tune.halving import halve
from superpose.tune.search import (
    BAG_SIZES,
    RATIOS,
    Rung,
    Search,
    Trial,
    candidates,
    draw,
    likely_settings,
    plan_search,
    rung_steps,
    rungs_of,
)

RECIPE = with_settings(Recipe(), "train", steps=800, warmup_steps=10)
RATES = (1e-3, 2e-3, 4e-3)
GRID = candidates(RECIPE, (2, 4, 8), (0.1, 0.3), RATES)
FEW = settings(max_examples=25)


def trial_of(run):
    recipe = run.recipe
    ordinary = not recipe.schedule.boundaries
    bags = (1, 0.0) if ordinary else (recipe.superposition.bag_size, recipe.superposition.ratio)
    return Trial(*bags, recipe.train.lr)


def trained_on(surface, made=None):
    """Trains nothing: the loss of a run is the surface's at trial, steps and seed; None fails."""

    def execute(runs):
        losses = [surface(trial_of(run), run.steps, run.seed) for run in runs]
        if made is not None:
            made.extend(runs)
        return [
            Outcome(run, Path(), None if loss is None else {"val_loss": loss})
            for run, loss in zip(runs, losses, strict=True)
        ]

    return execute


def bowl(best):
    """A surface that is lowest at one trial, whatever the steps."""

    def surface(trial, steps, seed):
        if trial.ordinary:
            return 3.5 + abs(math.log(trial.lr / best.lr))
        away = abs(math.log(trial.bag_size / best.bag_size)) + abs(trial.ratio - best.ratio)
        return 3 + away + abs(math.log(trial.lr / best.lr)) + 100 / steps

    return surface


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(2, 5), st.integers(1, 100))
def test_rungs_lead_up_to_full_runs(steps, least, eta, trials):
    by_steps = rung_steps(steps, min(least, steps), eta)
    assert by_steps[-1] == steps
    assert by_steps[0] >= min(least, steps)
    assert by_steps[0] // eta < min(least, steps)
    assert all(short * eta <= long < (short + 1) * eta for short, long in itertools.pairwise(by_steps))
    rungs = rungs_of(trials, by_steps, eta, (7, 8))
    assert rungs[0].trials == trials
    assert all(1 <= after.trials >= before.trials / eta for before, after in itertools.pairwise(rungs))
    assert [rung.seeds for rung in rungs] == [(7,)] * (len(rungs) - 1) + [(7, 8)]


@FEW
@given(st.floats(4, 40), st.integers(2, 4), st.integers(100, 800), st.sampled_from([(0,), (3, 1)]))
def test_the_budget_is_used_and_not_overrun(budget, eta, min_steps, seeds):
    grid = candidates(RECIPE, (2, 4, 8), (0.1, 0.3), RATES[:2])

    def plan(**of):
        return plan_search(RECIPE, grid, eta=eta, min_steps=min_steps, seeds=seeds, **of)

    made = []
    least = plan(count=1)
    if least.cost > budget:
        with pytest.raises(UserError, match="--budget"):
            plan(budget=budget)
        return
    search = plan(budget=budget)
    assert search.cost <= budget
    if len(search.trials) < len(grid):
        assert plan(count=len(search.trials) + 1).cost > budget
    halve(search, trained_on(bowl(GRID[0]), made))
    assert len(made) == len({run.name for run in made}) == search.count
    # Ordinary runs of a learning rate and a seed share what is before the shorter one's decay.
    chains = Counter((run.arm, run.seed) for run in made if "ordinary" in run.arm)
    shared = 0
    for arm, seed in chains:
        chain = sorted((run for run in made if (run.arm, run.seed) == (arm, seed)), key=lambda run: run.steps)
        shared += sum(run.recipe.stable_steps for run in chain[:-1])
    assert sum(run.steps for run in made) - shared == search.computed_steps


def test_costs_by_hand():
    """8 trials at 200 steps, 4 at 400, 2 at 800; ordinary runs branch after 180 and 360 steps."""
    search = plan_search(RECIPE, candidates(RECIPE, (2, 4, 8, 16), (0.1, 0.3), (1e-3,)), count=8)
    assert search.rungs == (Rung(200, 8, (0,)), Rung(400, 4, (0,)), Rung(800, 2, (0,)))
    assert search.computed_steps == 8 * 200 + 4 * 400 + 2 * 800 + 200 + (400 - 180) + (800 - 360)
    assert search.cost == search.computed_steps / 800
    assert search.spoken()[-1] == f"together 17 runs of 5,660 steps, which is {5660 / 800:.2f} times one full run"


@FEW
@given(st.data())
def test_survivors_are_the_best_whatever_the_order(data):
    """With ties and failures; ordinary training is never dropped."""
    trials = data.draw(st.lists(st.sampled_from(GRID), min_size=1, max_size=9, unique=True))
    loss = st.sampled_from([1.0, 1.5, 2.0, None])
    known = {}

    def surface(trial, steps, seed):
        if trial.ordinary:
            return 1.5
        return known.setdefault((trial, steps), data.draw(loss))

    steps = rung_steps(800, 200, 2)
    rungs = rungs_of(len(trials), steps, 2, (0,))
    try:
        tuned = halve(Search(RECIPE, tuple(trials), RATES, rungs), trained_on(surface))
    except UserError as error:
        assert "failed" in str(error)  # noqa: PT017
        return
    for ranking, after in itertools.zip_longest(tuned.rankings, tuned.rankings[1:]):
        assert {standing.trial.lr for standing in ranking.ordinary} == set(RATES)
        kept = [standing.loss for standing in ranking.tst if standing.kept]
        dropped = [standing.loss for standing in ranking.tst if not standing.kept and standing.loss is not None]
        assert None not in kept
        assert max(kept) <= min(dropped, default=math.inf)
        assert {s.trial for s in (after.tst if after else (tuned.best_tst,))} == {
            standing.trial for standing in ranking.tst if standing.kept
        }
    shuffled = tuple(data.draw(st.permutations(trials)))
    again = halve(
        Search(RECIPE, shuffled, RATES, rungs), lambda runs: list(reversed(trained_on(surface)(list(reversed(runs)))))
    )
    assert again.rankings == tuned.rankings
    assert again.verdict() == tuned.verdict()


def test_of_equal_losses_the_one_that_reads_less_is_better():
    search = plan_search(RECIPE, GRID)
    tuned = halve(search, trained_on(lambda trial, steps, seed: 2.0))
    assert tuned.best_tst.trial == Trial(2, 0.1, 1e-3)
    assert tuned.winner.trial.ordinary
    assert tuned.correlations == (None, None)


@pytest.mark.parametrize("best", [GRID[0], GRID[7], GRID[-1]], ids=str)
@pytest.mark.parametrize("eta", [2, 3])
def test_the_best_is_found_where_short_runs_agree(best, eta):
    tuned = halve(plan_search(RECIPE, GRID, eta=eta), trained_on(bowl(best)))
    assert tuned.best_tst.trial == tuned.winner.trial == best
    assert all(agreement > 0.9 for agreement in tuned.correlations)
    assert tuned.recipe == best.applied(RECIPE)
    assert "TST won" in tuned.verdict()


def test_short_runs_that_mislead_are_told_of():
    """Short runs in which the order is the reverse, and TST loses: the hazard of rungs."""

    def surface(trial, steps, seed):
        if trial.ordinary:
            return 3 + trial.lr
        side = 1 if steps == 800 else -1
        return 3 - side * trial.bag_size * (0.01 + trial.ratio / 100)

    tuned = halve(plan_search(RECIPE, GRID, min_steps=400), trained_on(surface))
    assert tuned.correlations == (pytest.approx(-1, abs=0.2),)
    assert "The order at 400 steps said little" in tuned.verdict()
    assert tuned.rankings[0].tst[0].loss > tuned.rankings[0].ordinary[0].loss
    assert tuned.best_tst.loss < tuned.best_ordinary.loss


class TestResult:
    def tuned(self, surface, seeds=(0,), recipe=RECIPE):
        return halve(plan_search(recipe, GRID, seeds=seeds), trained_on(surface))

    def test_ordinary_training_may_be_best(self, tmp_path):
        recipe = with_settings(RECIPE, "superposition", weighting="power")
        tuned = self.tuned(lambda trial, *_: 3 + (not trial.ordinary) + trial.lr, recipe=recipe)
        assert tuned.recipe == with_settings(recipe, "train", lr=1e-3).ordinary()
        assert tuned.verdict().startswith("TST lost at seed 0: ")
        assert "The recipe is ordinary." in tuned.verdict()
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert load_recipe(tmp_path / "recipe.toml") == tuned.recipe
        command = shlex.split(tuned.next_command(tmp_path / "recipe.toml", Path("runs")))
        assert command[3:8] == ["--bag-size", "2", "--ratio", "0.1", '--set=superposition.weighting="power"']

    def test_each_arm_is_to_be_compared_at_its_best_rate_with_new_seeds(self):
        surface = bowl(Trial(4, 0.3, 2e-3))
        tuned = self.tuned(lambda trial, *of: surface(trial, *of) if not trial.ordinary else 5 - trial.lr, seeds=(2, 0))
        assert tuned.next_command(Path("runs/tune-a/recipe.toml"), Path("runs")) == (
            "superpose compare runs/tune-a/recipe.toml --lrs 0.002,0.004 --seeds 1,3,4,5,6 --name tune-a-compared"
        )

    def test_the_comparison_finds_full_runs_in_the_pool(self):
        """At the best rates, both of which it tries: with the seed of the search, as those it compares with are new."""
        surface, made = bowl(Trial(4, 0.3, 2e-3)), []
        lowest = trained_on(lambda trial, *of: surface(trial, *of) if not trial.ordinary else 5 - trial.lr, made)
        tuned = halve(plan_search(RECIPE, GRID), lowest)
        tuning = plan_tuning(Design(tuned.recipe, (1, 2, 3, 4, 5), tune={"train.lr": (2e-3, 4e-3)}))
        known = [run.recipe for run in made]
        assert [run.recipe in known for run in tuning if run.arm == "ordinary"] == [True, True]
        assert next(run.recipe in known for run in tuning if run.arm == "tst")

    def test_the_mean_over_seeds_decides(self):
        lucky, good = Trial(8, 0.3, 4e-3), Trial(4, 0.1, 2e-3)

        def surface(trial, steps, seed):
            if trial == lucky:
                return 2.0 if seed == 0 else 3.5
            return {good: 2.2}.get(trial, 3.2) + 0.01 * seed

        assert self.tuned(surface).winner.trial == lucky
        tuned = self.tuned(surface, (0, 1, 2))
        assert tuned.winner.trial == good
        assert tuned.winner.losses == pytest.approx((2.2, 2.21, 2.22))
        assert tuned.difference.excludes_zero
        assert "95 % interval" in tuned.verdict()
        assert lucky in tuned.near  # its interval is wide

    def test_what_seeds_may_have_done_is_not_called_a_result(self):
        def surface(trial, steps, seed):
            return 3 + (0.01 if trial.ordinary else trial.bag_size / 1000) + (seed - 1) * (0.1 if trial.ordinary else 0)

        assert "by less than seeds differ" in self.tuned(lambda trial, steps, seed: surface(trial, steps, 1)).verdict()
        assert self.tuned(surface, (0, 1, 2)).verdict().startswith("Undecided: ")

    def test_edges_are_told(self):
        verdict = self.tuned(bowl(Trial(8, 0.3, 4e-3))).verdict()
        assert "TST's best bag size, 8, is at the edge" in verdict
        assert "TST's best ratio, 0.3" in verdict
        assert "Ordinary training's best learning rate, 0.004" in verdict
        assert "bag size" not in self.tuned(bowl(Trial(2, 0.3, 4e-3))).verdict().split("compare with new seeds")[1]

    def test_failures(self):
        surface = bowl(GRID[0])
        tuned = self.tuned(lambda trial, *of: None if trial.lr == 4e-3 else surface(trial, *of))
        assert all(standing.trial.lr < 4e-3 for standing in tuned.rankings[-1].tst)
        assert "Runs failed of 7 trials: ordinary, learning rate 0.004; s 2, r 0.1, learning rate 0.004" in (
            tuned.verdict()
        )
        assert "failed" in str(tuned.tables())
        made = []
        with pytest.raises(UserError, match="all runs of ordinary training failed at 800 steps"):
            halve(plan_search(RECIPE, GRID), trained_on(lambda *of: None, made))
        assert all(trial_of(run).ordinary for run in made)  # nothing more was spent
        with pytest.raises(UserError, match="all runs of TST failed at 200 steps"):
            self.tuned(lambda trial, *of: 3.0 if trial.ordinary else None)


@given(st.integers(0, 5), st.integers(0, 18))
def test_a_draw_is_even_and_begins_with_shorter_ones(seed, count):
    drawn = draw(GRID, count, seed)
    assert len(set(drawn)) == count
    assert draw(tuple(reversed(GRID)), 18, seed)[:count] == drawn
    for part in ("bag_size", "ratio", "lr"):
        used = Counter(getattr(trial, part) for trial in drawn)
        counts = [used[value] for value in {getattr(trial, part) for trial in GRID}]
        assert max(counts) - min(counts) <= 2


def test_settings_that_are_tried_by_default():
    everything = tuple(itertools.product(BAG_SIZES, RATIOS))
    assert likely_settings(RECIPE, 1024) == everything
    many = with_settings(RECIPE, "train", steps=20_000)
    assert likely_settings(many, 128_256) == everything  # no evidence on so small a model at so many steps
    large = load_recipe("paper-600m")
    likely = likely_settings(large, 128_256)
    assert set(likely) < set(everything)
    assert {(6, 0.2), (8, 0.2)} <= set(likely)
    assert likely_settings(with_settings(large, "superposition", mode="output"), 1024) == everything


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1}, "--eta 1"),
        ({"min_steps": 0}, "--min-steps 0: expected 1 to 800"),
        ({"min_steps": 801}, "--min-steps 801"),
        ({"min_steps": 5}, r"warmup_steps \(10\).*--min-steps makes them longer"),
        ({"seeds": (1, 1)}, "--seeds 1,1"),
        ({"seeds": ()}, "--seeds"),
        ({"count": 0}, "--trials 0"),
        ({"count": 2, "budget": 9}, "leave out --trials"),
        ({"budget": 1}, "takes 4.97 full runs"),
    ],
)
def test_a_wrong_plan_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        plan_search(RECIPE, GRID, **options)


@pytest.mark.parametrize(
    ("bag_size", "ratio", "rate", "message"),
    [
        (1, 0.1, 1e-3, "--bag-sizes 1"),
        (2, 0.0, 1e-3, "--ratios 0"),
        (2, 1.0, 1e-3, "--ratios 1"),
        (2, 0.1, 0.0, "--lrs 0"),
    ],
)
def test_wrong_candidates_are_refused(bag_size, ratio, rate, message):
    with pytest.raises(UserError, match=message):
        candidates(RECIPE, (bag_size,), (ratio,), (rate,))
    with pytest.raises(UserError, match="nothing to try"):
        plan_search(RECIPE, candidates(RECIPE, ratios=()))


def test_candidates_that_nobody_names():
    rates = [RECIPE.train.lr / 2, RECIPE.train.lr, RECIPE.train.lr * 2]
    assert {trial.bag_size for trial in candidates(RECIPE, ratios=(0.2,))} == set(BAG_SIZES)
    assert {trial.ratio for trial in candidates(RECIPE, bag_sizes=(2,))} == set(RATIOS)
    everything = candidates(RECIPE)  # so few steps that no setting is likelier than another
    assert len(everything) == len(BAG_SIZES) * len(RATIOS) * len(rates)
    assert sorted({trial.lr for trial in everything}) == rates
    assert plan_search(RECIPE).rates == tuple(rates)


def test_the_written_recipe_says_where_it_comes_from(tmp_path):
    tuned = TestResult().tuned(bowl(Trial(4, 0.3, 2e-3)))
    tuned.write(tmp_path, "superpose tune --eta 2", Path("runs"))
    text = (tmp_path / "recipe.toml").read_text()
    for words in ("# Found by: superpose tune --eta 2", "# s 4, r 0.3, learning rate 0.002: validation loss 3.1250"):
        assert words in text
    assert load_recipe(tmp_path / "recipe.toml") == tuned.recipe


TWO = {"power": ["superposition.weighting=power"], "deep": {"model": {"config": {"num_hidden_layers": 9}}}}


class TestVariants:
    def candidates(self, variants=TWO):
        return candidates(RECIPE, (2, 8), (0.1,), RATES[:2], variants)

    def search(self, **of):
        return plan_search(RECIPE, self.candidates(), variants=TWO, **of)

    def surface(self, best, ordinary=4.0):
        """Of losses by what runs are named by, as two trials may differ in their variant alone."""

        def execute(runs):
            loss = {True: ordinary, False: 3.5}
            return [
                Outcome(
                    run,
                    Path(),
                    {"val_loss": 3.0 if run.arm == best else loss["ordinary" in run.arm] + len(run.arm) / 1000},
                )
                for run in runs
            ]

        return execute

    def test_each_is_a_further_candidate_at_each_rate(self):
        found = self.candidates()
        assert set(candidates(RECIPE, (2, 8), (0.1,), RATES[:2])) < set(found)
        assert {(t.variant, t.bag_size, t.ratio, t.lr) for t in found if t.variant} == {
            (name, 4, 0.3, rate) for name in TWO for rate in RATES[:2]
        }
        assert not any(trial.ordinary for trial in found)

    def test_a_search_without_variants_draws_what_it_drew(self):
        assert draw(self.candidates({}), 4, 3) == draw(candidates(RECIPE, (2, 8), (0.1,), RATES[:2]), 4, 3)

    @given(st.integers(0, 5))
    def test_a_variant_comes_up_about_as_often_as_a_bag_size(self, seed):
        used = Counter(trial.variant or trial.bag_size for trial in draw(self.candidates(), 4, seed))
        assert max(used.values()) - min(used.get(value, 0) for value in (2, 8, *TWO)) <= 2

    def test_the_budget_holds(self):
        search = self.search(budget=8)
        assert search.cost <= 8
        assert {trial.variant for trial in search.trials} == {"", *TWO}

    def test_runs_take_the_flops_of_their_rung(self):
        search = self.search()
        for rung in search.rungs:
            for trial in search.trials:
                (run,) = search.runs([trial], rung)
                assert run.steps < rung.steps if trial.variant == "deep" else run.steps == rung.steps
        runs = [run for rung in search.rungs for run in search.runs(search.trials, rung)]
        assert len({run.name for run in runs}) == len(runs)

    def test_the_best_one_is_the_recipe(self, tmp_path):
        tuned = halve(self.search(), self.surface("variant-power-lr0.002"))
        assert str(tuned.winner.trial) == "power, learning rate 0.002"
        assert tuned.recipe == with_settings(RECIPE, "superposition", weighting="power")
        assert "TST won" in tuned.verdict()
        assert "--bag-sizes" not in tuned.verdict()
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert load_recipe(tmp_path / "recipe.toml") == tuned.recipe
        assert not (tmp_path / "tst.toml").exists()
        assert any(row[0] == "power, learning rate 0.002" for row in tuned.tables()[0][2])

    def test_one_that_ordinary_training_beat_is_written_to_be_compared(self, tmp_path):
        tuned = halve(self.search(), self.surface("variant-deep-lr0.001", ordinary=2.0))
        assert tuned.recipe == with_settings(RECIPE.ordinary(), "train", lr=tuned.winner.trial.lr)
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert load_recipe(tmp_path / "tst.toml").model.config["num_hidden_layers"] == 9
        command = shlex.split(tuned.next_command(tmp_path / "recipe.toml", Path("runs")))
        assert command[:3] == ["superpose", "compare", str(tmp_path / "tst.toml")]
        assert "--bag-size" not in command

    def test_one_of_stages_is_written_so_that_it_can_be_read(self, tmp_path):
        slow = {"slow": ["superposition.lr_factor=0.5"]}
        search = plan_search(RECIPE, candidates(RECIPE, (2,), (0.1,), RATES, slow), variants=slow)
        tuned = halve(search, self.surface("variant-slow-lr0.004"))
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert tuned.recipe.schedule.args[0].lr_factor == 0.5
        assert load_recipe(tmp_path / "recipe.toml") == tuned.recipe

    def test_what_cannot_be_compared_is_refused(self):
        for changes, words in ((["train.lr=1e-3"], "which --lrs chooses"), (["data.seed=3"], "all arms read")):
            with pytest.raises(UserError, match=words):
                plan_search(RECIPE, candidates(RECIPE, (2,), (0.1,)), variants={"a": changes})


class TestDescribedStages:
    """A recipe of described stages: they stay, and the learning rate is searched."""

    RECIPE = with_settings(
        RECIPE.model_copy(update={"superposition": SuperpositionArgs()}),
        "superposition",
        stages=[{"ratio": 0.2, "bag_size": {"8": 1, "4": 1}, "lr_factor": 2.0}, {"ratio": 0.2, "bag_size": 2}],
    )

    def searched(self, best, ordinary=4.0, **of):
        return halve(plan_search(self.RECIPE, **of), TestVariants().surface(best, ordinary))

    def test_they_are_tried_at_each_rate_beside_ordinary_training(self):
        search = plan_search(self.RECIPE)
        assert {str(trial) for trial in search.trials} == {f"stages, learning rate {rate}" for rate in RATES}
        for rung in search.rungs:
            for run in search.runs(search.trials, rung):
                assert run.recipe.superposition == self.RECIPE.superposition
                assert run.steps == rung.steps
            assert all(not run.recipe.superposition.stages for run in search.runs(search.ordinary, rung))

    def test_the_best_rate_is_written_with_the_stages(self, tmp_path):
        tuned = self.searched("variant-stages-lr0.004")
        assert tuned.recipe == with_settings(self.RECIPE, "train", lr=0.004)
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert load_recipe(tmp_path / "recipe.toml") == tuned.recipe
        assert "--lrs" in tuned.verdict()
        assert "--bag-sizes" not in tuned.verdict()

    def test_where_ordinary_training_wins_they_are_written_to_be_compared(self, tmp_path):
        tuned = self.searched("variant-stages-lr0.002", ordinary=2.0)
        tuned.write(tmp_path, "superpose tune", Path("runs"))
        assert not tuned.recipe.superposition.stages
        assert load_recipe(tmp_path / "tst.toml") == self.RECIPE
        assert str(tmp_path / "tst.toml") in tuned.next_command(tmp_path / "recipe.toml", Path("runs"))

    def test_variants_change_what_they_name_in_each_stage(self):
        sqrt = {"sqrt": ["superposition.pooling=sqrt"]}
        search = plan_search(self.RECIPE, candidates(self.RECIPE, None, None, (1e-3,), sqrt), variants=sqrt)
        found = {run.arm: run.recipe.schedule.args for run in search.runs(search.trials, search.rungs[-1])}
        assert found == {
            "variant-stages-lr0.001": self.RECIPE.schedule.args,
            "variant-sqrt-lr0.001": tuple(replace(stage, pooling="sqrt") for stage in self.RECIPE.schedule.args),
        }

    def test_what_would_take_their_place_is_refused(self):
        for pairs, option in (((2,), None), "--bag-sizes"), ((None, (0.1,)), "--ratios"):
            with pytest.raises(UserError, match=rf"{option} would take the place of superposition\.stages"):
                candidates(self.RECIPE, *pairs)
        for name, changes in {"stages": ["superposition.pooling=sqrt"], "a": []}.items():
            with pytest.raises(
                UserError, match=f"--variant {name} (is the name of an arm|computes the same as stages)"
            ):
                plan_search(self.RECIPE, variants={name: changes})
