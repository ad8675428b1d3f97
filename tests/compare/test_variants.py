import dataclasses
import json
from pathlib import Path

import pytest

from superpose.compare.charts import all_charts
from superpose.compare.comparison import Comparison, Trained
from superpose.compare.experiment import CONTEXT, ORDINARY, TST, Design, found_tunings, plan_runs, plan_tuning
from superpose.compare.tuned import LR, Trial, Tuning
from superpose.compare.variant_tables import changes_of, variant_tables
from superpose.compare.variants import (
    changed_recipe,
    parse_variant,
    parse_variants,
    settings_of,
    steps_of_equal_flops,
    training_flops,
)
from superpose.core import Schedule, StageArgs
from superpose.errors import UserError
from superpose.results.statistics import corrected
from superpose.runs.pool import Outcome
from superpose.train.loop import train
from superpose.train.recipe_file import with_settings

POWER, BATCH = {"power": ["superposition.weighting=power"]}, {"batch": ["superposition.expand=batch"]}


class TestReading:
    @pytest.mark.parametrize(
        ("text", "settings"),
        [
            ("a.b=1", ["a.b=1"]),
            ("a.b=1,c.d=x", ["a.b=1", "c.d=x"]),
            ("a.b=1; c.d=x ;", ["a.b=1", "c.d=x"]),
            ("a.b=[1,2],c.d=[[1,2],[3]]", ["a.b=[1,2]", "c.d=[[1,2],[3]]"]),
            ("a.b={x=1,y=2};c.d=3", ["a.b={x=1,y=2}", "c.d=3"]),
            ("a.b='x,y',c.d=\"z;]\"", ["a.b='x,y'", 'c.d="z;]"']),
        ],
    )
    def test_settings_end_at_commas_and_semicolons_outside_of_brackets_and_quotes(self, text, settings):
        assert settings_of(text) == settings
        assert parse_variant(f"name={text}") == ("name", settings)

    def test_a_file_gives_sections(self, recipe, tmp_path):
        path = tmp_path / "slow.toml"
        path.write_text("[superposition]\nbag_size = 2\n\n[model.config]\nnum_hidden_layers = 2\n")
        (variant,) = Design(recipe, variants=parse_variants([f"slow={path}"])).variant_recipes.values()
        changed = variant[20]
        assert changed.superposition.bag_size == 2
        assert changed.superposition.ratio == recipe.superposition.ratio
        assert changed.model.config == {**recipe.model.config, "num_hidden_layers": 2}

    @pytest.mark.parametrize("text", ["", "sqrt", "=a.b=1", "sqrt=", "sqrt= "])
    def test_half_a_variant_is_refused(self, text):
        with pytest.raises(UserError, match="expected NAME=SETTINGS or NAME=FILE"):
            parse_variant(text)

    def test_a_name_twice_is_refused(self):
        with pytest.raises(UserError, match="--variant a stands there twice"):
            parse_variants(["a=x.y=1", "a=x.y=2"])

    def test_a_file_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"missing\.toml cannot be read"):
            parse_variant(f"a={tmp_path}/missing.toml")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        *(
            (name, ["superposition.bag_size=2"], f"--variant {name} is the name of an arm")
            for name in ("ordinary", TST)
        ),
        (CONTEXT, ["superposition.bag_size=2"], f"--variant {CONTEXT} is the name of an arm"),
        ("../up", ["superposition.bag_size=2"], "becomes part of names of runs"),
        ("a b", ["superposition.bag_size=2"], "becomes part of names of runs"),
        ("a", ["superposition.bagsize=2"], "--variant a: there is no setting 'superposition.bagsize'"),
        ("a", {"superposition": {"bag_size": 0}}, "--variant a: superposition.bag_size is 0"),
        ("a", {"nonsense": {"x": 1}}, "--variant a: there is no setting 'nonsense'"),
        ("a", ["superposition.bag_size"], "--variant a superposition.bag_size: expected NAME=VALUE"),
        ("a", ["superposition.bag_size=4"], "--variant a computes the same as tst"),
        ("a", ["superposition.ratio=0", "superposition.bag_size=1"], "--variant a computes the same as ordinary"),
        ("a", ["superposition.ratio=1"], "--variant a ends in superposition"),
        ("a", ["train.seed=7"], "--variant a changes train.seed, but all arms are trained with the comparison's seeds"),
        ("a", ["train.steps=7"], "--variant a changes train.steps, but all arms"),
        ("a", ["train.latents=8"], "--variant a changes train.latents, but losses are of validated rows"),
        ("a", ["data.vocab_size=400"], "--variant a changes data.vocab_size, but all arms read"),
        ("a", ["train.log_every=3"], "--variant a changes train.log_every, which says how a run is computed"),
        ("a", ["parallel.timeout=3"], "--variant a changes parallel.timeout, which says how a run is computed"),
    ],
)
def test_what_does_not_compare_is_refused_in_a_sentence(recipe, name, changes, message):
    with pytest.raises(UserError) as caught:
        Design(recipe, variants={name: changes})
    assert message in str(caught.value)


class TestStages:
    """What a variant says of stages, whatever form the recipe has."""

    def made(self, recipe, *changes):
        return Design(recipe, variants={"a": changes}).variant_recipes["a"][20]

    def test_a_setting_of_stages_is_one_of_each_stage_of_bags(self, recipe):
        assert self.made(recipe, "superposition.lr_factor=0.5").schedule == Schedule(
            20, stages=[StageArgs(0.4, bag_size=4, lr_factor=0.5)]
        )
        bags = "superposition.bag_size=[4,2]", "superposition.ratio=[0.2,0.2]"
        two = self.made(recipe, *bags, "superposition.lr_factor=2")
        assert [(stage.bag_size, stage.lr_factor) for stage in two.schedule.stages] == [(4, 2), (2, 2), (1, 1)]
        file = Design(recipe, variants={"a": {"superposition": {"lr_factor": 0.5}}}).variant_recipes["a"][20]
        assert file == self.made(recipe, "superposition.lr_factor=0.5")

    def test_stages_take_the_place_of_the_short_form_and_it_takes_theirs(self, recipe):
        recipe = with_settings(recipe, "superposition", bag_size=8, weighting="power")
        staged = self.made(recipe, "superposition.stages=[{ratio=0.3, bag_size=2}]")
        assert staged.schedule == Schedule(20, 2, 0.3)
        assert self.made(staged, "superposition.ratio=0.2").schedule == Schedule(20, 4, 0.2)
        assert self.made(staged, "superposition.weighting=power").schedule == Schedule(20, 2, 0.3, weighting="power")

    def test_the_same_stages_spelled_out_compute_the_same(self, recipe):
        with pytest.raises(UserError, match="--variant a computes the same as tst"):
            self.made(recipe, "superposition.stages=[{ratio=0.4, bag_size=4}]")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ("superposition.lr_factor=0", "--variant a: lr_factor is 0"),
            ("superposition.lr_factor=fast", "--variant a: lr_factor is 'fast'"),
            ("superposition.bag_size={8=1,4=1}", "give superposition.stages=[{ratio=0.3, bag_size={8=1, 4=1}}]"),
            ("superposition.ratio=0,superposition.lr_factor=2", "superposition.lr_factor would be ignored"),
            ("superposition.stages=[{ratio=0.3, bag_size=2}],superposition.ratio=0.3", "superposition.ratio would be"),
            ("superposition.stages=[{ratio=0.3, bagsize=2}]", "--variant a: superposition.stages, stage 1"),
        ],
    )
    def test_wrong_stages_are_one_sentence(self, recipe, changes, message):
        with pytest.raises(UserError) as caught:
            self.made(recipe, *settings_of(changes))
        assert message in str(caught.value)
        assert "--variant a" in str(caught.value)

    def test_the_table_says_what_differs(self, recipe):
        recipe = with_settings(recipe, "superposition", bag_size=8)
        made = made_up(recipe, {n: LOSSES[n] for n in (ORDINARY, TST)}, {"a": ["superposition.lr_factor=0.5"]})
        assert changes_of(made, "a") == ["superposition.stages = s 8, r 0.4, lr factor 0.5"]
        deep = made_up(recipe, {n: LOSSES[n] for n in (ORDINARY, TST)}, {"a": ["model.config.num_hidden_layers=2"]})
        assert changes_of(deep, "a") == ['model.config = {"num_hidden_layers": 2}']


def test_two_variants_that_compute_the_same_are_refused(recipe):
    with pytest.raises(UserError, match="--variant b computes the same as a"):
        Design(recipe, variants={"a": ["superposition.bag_size=2"], "b": {"superposition": {"bag_size": 2}}})


def test_a_rate_of_its_own_is_refused_where_rates_are_tried(recipe):
    changes = {"slow": ["train.lr=1e-3"]}
    (run,) = (run for run in plan_runs(Design(recipe, variants=changes), {}) if run.arm == "slow")
    assert run.recipe.train.lr == 1e-3
    with pytest.raises(UserError, match="which --lrs chooses for each arm"):
        Design(recipe, tune={LR: (1e-3, 2e-3)}, variants=changes)


def test_a_setting_of_bags_goes_to_the_stages_that_have_such(recipe):
    stages = [{"ratio": 0.3, "bag_size": 4}, {"ratio": 0.1, "bag_size": 2, "mode": "output"}]
    mine = changed_recipe(recipe, "tail", {"superposition": {"stages": stages}})
    (run,) = (run for run in plan_runs(Design(mine, variants={"x": ["superposition.pooling=sqrt"]})) if run.arm == "x")
    assert [stage.pooling for stage in run.recipe.schedule.args] == ["sqrt", "mean"]
    single = with_settings(recipe, "superposition", mode="output")
    with pytest.raises(UserError, match="has no stage of bags"):
        Design(single, variants={"x": ["superposition.pooling=sqrt"]})


class TestPlanning:
    def test_variants_are_trained_with_all_seeds_at_all_of_tsts_budgets(self, recipe):
        planned = plan_runs(Design(recipe, (1, 2), budgets=(40,), ordinary_budgets=(100,), variants=POWER), {})
        assert [(run.seed, run.steps) for run in planned if run.arm == "power"] == [(1, 20), (1, 40), (2, 20), (2, 40)]
        (tst, *_), (power, *_) = ([run for run in planned if run.arm == arm] for arm in (TST, "power"))
        assert power.recipe.changes(tst.recipe) == ["superposition.weighting"]

    def test_both_arms_and_variants_have_the_embeddings_rate(self, recipe):
        design = Design(with_settings(recipe, "train", embedding_lr_factor=0.5), variants=POWER)
        assert {run.recipe.train.embedding_lr_factor for run in plan_runs(design, {})} == {0.5}

    def test_rates_are_tried_for_each_variant_under_names_of_their_own(self, recipe):
        design = Design(recipe, (1,), tune={LR: (1e-3, 2e-3)}, variants=POWER)
        planned = plan_tuning(design)
        assert [run.name for run in planned if run.arm == "power"] == [
            "power-20-lr0.001-seed0",
            "power-20-lr0.002-seed0",
        ]
        assert len({run.name for run in planned}) == len(planned) == 6
        best = {ORDINARY: 1e-3, TST: 1e-3, "power": 2e-3}
        outcomes = [Outcome(run, None, {"val_loss": 3 + abs(run.recipe.train.lr - best[run.arm])}) for run in planned]
        tunings = found_tunings(design, outcomes)
        assert {tuning.arm: tuning.best[LR] for tuning in tunings} == best
        assert all(run.recipe.train.lr == best[run.arm] for run in plan_runs(design, tunings))

    def test_auto_budgets_read_as_much_as_each_variant(self, recipe, store):
        variants = {"more": ["superposition.bag_size=8"], "rows": ["train.batch_size=8"]}
        design = Design(recipe, (1,), equal_data=True, variants=variants)
        planned = plan_runs(design, {})
        reads = {run.arm: run.recipe.windows(store.train).raw_tokens() for run in planned if run.arm != ORDINARY}
        ordinary = {run.recipe.windows(store.train).raw_tokens() for run in planned if run.arm == ORDINARY}
        assert set(reads) == {TST, "more", "rows"}
        assert set(reads.values()) <= ordinary


class TestEqualFlops:
    def test_steps_that_cost_the_same_are_as_many(self, recipe):
        other = with_settings(recipe, "superposition", bag_size=8, ratio=0.5)
        assert training_flops(other) == training_flops(recipe.ordinary())
        assert steps_of_equal_flops(other, recipe.ordinary()) == 20

    def test_flops_are_those_that_a_run_counts(self, recipe, compared):
        _, comparison = compared
        by_arm = {run.arm: run.result["flops"] for run in comparison.runs if run.steps == 20 and run.arm != "power"}
        assert by_arm == {
            ORDINARY: training_flops(recipe.ordinary()),
            TST: training_flops(recipe),
            CONTEXT: training_flops(with_settings(recipe, "superposition", expand="batch")),
        }

    @pytest.mark.parametrize(
        "stage",
        [{"bag_size": {"4": 1, "2": 1}}, {"bag_size": 4, "ordinary_rows": 0.5}, {"bag_size": 4, "extra_heads": 2}],
        ids=["drawn", "mixed", "heads"],
    )
    def test_flops_of_stages_of_other_kinds_are_those_that_a_run_counts(self, stage, recipe, store, tmp_path):
        staged = with_settings(recipe, "superposition", ratio=0.3, stages=[{"ratio": 0.4, **stage}])
        assert train(staged, store, tmp_path / "run")["flops"] == training_flops(staged)

    def test_a_larger_model_takes_fewer_steps(self, recipe):
        recipe = with_settings(recipe, "train", steps=200)
        variants = {"deep": ["model.config.num_hidden_layers=4"], "rows": ["train.batch_size=8"], **BATCH}
        ordinary = training_flops(recipe.ordinary())
        for name, of_budget in Design(recipe, variants=variants).variant_recipes.items():
            steps = of_budget[200].train.steps
            per_step = training_flops(of_budget[200]) / steps
            assert abs(training_flops(of_budget[200]) - ordinary) <= per_step, name  # to less than one step
            assert {"deep": steps < 180, "rows": steps == 100, "batch": steps > 200}[name]


def made_up(recipe, losses, variants=POWER, **more):
    """A comparison with given losses at 20 steps: {arm: one a seed, from seed 1 on}."""
    design = Design(recipe, (1,), variants=variants)
    lengths = {name: of_budget[20].train.steps for name, of_budget in design.variant_recipes.items()}
    trained = [
        Trained(arm, seed, lengths.get(arm, 20), 1e-3, Path(), {"val_loss": loss, "flops": 100, "parameters": 7})
        for arm, of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds, 1)
        if loss is not None
    ]
    return Comparison(recipe, tuple(trained), variants=design.variant_recipes, **more)


TWO = {"power": ["superposition.weighting=power"], "small": ["superposition.bag_size=2"]}
LOSSES = {
    ORDINARY: [3.0, 3.1, 3.2, 3.05],
    TST: [2.9, 3.02, 3.08, 2.96],
    "power": [2.8, 2.91, 2.99, 2.85],
    "small": [3.01, 2.95, 3.25, 3.0],
}


class TestAnswers:
    def test_differences_are_paired_by_seed_and_corrected_for_all_tried(self, recipe):
        comparison = made_up(recipe, LOSSES, TWO)
        for other in (ORDINARY, TST):
            pairs = {name: comparison.equal_flops(arm=name, against=other) for name in TWO}
            assert comparison.variants_against(other) == corrected(pairs)
            assert pairs["power"].value == pytest.approx(
                sum(b - a for a, b in zip(LOSSES[other], LOSSES["power"], strict=True)) / 4
            )

    def test_a_variant_that_never_finished_was_tried_all_the_same(self, recipe):
        comparison = made_up(recipe, {**LOSSES, "small": [None] * 4}, TWO)
        alone = made_up(recipe, {name: LOSSES[name] for name in (ORDINARY, TST, "power")})
        (one,), (other,) = (c.variants_against(TST).values() for c in (comparison, alone))
        assert one.tried == 2
        assert one.p == pytest.approx(2 * other.p)
        assert "small" not in comparison.verdict()

    def test_a_seed_that_a_variant_lost_is_missing_from_it_alone(self, recipe):
        comparison = made_up(recipe, {**LOSSES, "small": [3.01, None, 3.25, 3.0]}, TWO)
        found = comparison.variants_against(ORDINARY)
        assert (found["power"].seeds, found["small"].seeds) == (4, 3)
        assert comparison.equal_flops().seeds == 4

    def test_what_is_said_follows_the_corrected_p(self, recipe):
        verdict = made_up(recipe, LOSSES, TWO).verdict()
        assert (
            "Variants, at equal FLOPs, corrected for 2 tried: power ended 0.1025 nats per token lower than TST"
            in verdict
        )
        assert "small cannot be told from TST" in verdict
        assert verdict.index("TST won") < verdict.index("Variants")

    def test_at_one_seed_it_is_said(self, recipe):
        verdict = made_up(recipe, {arm: losses[:1] for arm, losses in LOSSES.items()}, TWO).verdict()
        assert "power ended 0.1000 nats per token lower than TST" in verdict
        assert "at one seed." in verdict

    def test_without_variants_nothing_is_said_of_them(self, recipe):
        comparison = made_up(recipe, {arm: LOSSES[arm] for arm in (ORDINARY, TST)}, {})
        assert "ariant" not in comparison.verdict()
        assert variant_tables(comparison) == []

    def test_more_than_superposition_is_said(self, recipe):
        variants = {"muon": ["train.optimizer=muon"], "deep": ["model.config.num_hidden_layers=2"]}
        losses = {**LOSSES, "muon": LOSSES["power"], "deep": LOSSES["small"]}
        verdict = made_up(recipe, {n: losses[n] for n in (ORDINARY, TST, *variants)}, variants).verdict()
        assert 'It alone has train.optimizer = "muon", so the difference is not superposition\'s alone.' in verdict
        assert "times ordinary ones, so it takes" in verdict

    def test_a_mixture_or_a_rate_of_stages_is_said_not_to_be_of_bags(self, recipe):
        mixed = with_settings(
            recipe, "superposition", ratio=0.3, stages=[{"ratio": 0.4, "bag_size": 4, "mixture": {"web": 1.0}}]
        )
        said = "a mixture of sources, which ordinary training has not, so the difference is not of bags alone"
        assert not mixed.ordinary().schedule.mixes
        assert f"TST's stages have {said}: a variant" in made_up(mixed, LOSSES, POWER).verdict()
        variants = {"mixed": ["superposition.mixture={web=1}"], "slow": ["superposition.lr_factor=0.5"]}
        losses = {ORDINARY: LOSSES[ORDINARY], TST: LOSSES[TST], "mixed": LOSSES["power"], "slow": LOSSES["small"]}
        verdict = made_up(recipe, losses, variants).verdict()
        assert f"Its stages have {said}." in verdict
        assert "Its stages have a learning rate of their own, which" in verdict
        assert "TST's stages have" not in verdict

    def test_ordinary_training_with_the_same_mixture_can_stand_beside(self, recipe):
        single = {"web-first": ["superposition.stages=[{ratio=0.4, mixture={web=1}}]"]}
        made = Design(recipe, variants=single).variant_recipes["web-first"][20]
        assert made.schedule.args == (StageArgs(0.4, mixture={"web": 1.0}),)
        assert training_flops(made) == training_flops(recipe.ordinary())
        assert not any(stage.superposes for stage in made.schedule.stages)

    def test_the_speedup_of_a_variant_is_read_off_the_same_curve(self, recipe):
        comparison = made_up(recipe, LOSSES, TWO)
        more = [Trained(ORDINARY, seed, 80, 1e-3, Path(), {"val_loss": 2.8}) for seed in (1, 2, 3, 4)]
        comparison = dataclasses.replace(comparison, runs=(*comparison.runs, *more))
        tst, power = comparison.equal_loss(), comparison.equal_loss(arm="power")
        assert 1 < tst.ratio < power.ratio < 4

    def test_the_table_of_rates_has_a_column_for_each_variant(self, recipe):
        trials = (Trial({LR: 1e-3}, 3.1), Trial({LR: 2e-3}, 3.0))
        tunings = tuple(Tuning(arm, 20, trials) for arm in (ORDINARY, TST, "power"))
        comparison = made_up(recipe, {n: LOSSES[n] for n in (ORDINARY, TST, "power")}, tunings=tunings)
        assert comparison.tuning_rows(20)[0] == ("0.001", "3.1000", "3.1000", "3.1000")


def test_what_is_written_of_a_variant(compared):
    directory, comparison = compared
    saved = json.loads((directory / "comparison.json").read_text())
    answer = saved["answers"]["variants"]["power"]["20"]
    assert answer["minus_tst"]["value"] == comparison.equal_flops(arm="power", against=TST).value
    assert answer["steps"] == 20
    assert [tuning["arm"] for tuning in saved["tunings"]] == [ORDINARY, TST, "power"]
    assert {path.name for path in directory.glob("power-*")} == {"power-20-seed1", "power-20-seed2"}
    summary = (directory / "summary.md").read_text()
    assert "Variants at 20 steps and equal FLOPs" in summary
    assert 'superposition.weighting = "power"' in summary
    assert "| power | 2 |" in summary


def test_charts_have_a_line_for_each_variant(compared):
    charts = {chart.title: chart for chart in all_charts(compared[1])}
    for title in ("Validation loss", "Spread of the seeds", "Final loss at each budget"):
        assert "power" in {series.name for series in charts[title].series}
    for series in charts["Variants, at equal FLOPs"].series:
        (value,), (low,), (high,) = series.y, series.low, series.high
        assert low < value < high


def test_an_older_comparison_is_read(compared, tmp_path):
    directory, comparison = compared
    saved = json.loads((directory / "comparison.json").read_text())
    del saved["variants"], saved["answers"]["variants"]
    saved["tunings"] = {
        one.arm: {"arm": one.arm, "losses": {str(t.settings[LR]): t.val_loss for t in one.trials}, "best": one.best[LR]}
        for one in comparison.tunings
        if one.arm != "power"
    }
    (tmp_path / "comparison.json").write_text(json.dumps(saved | {"format": "superpose comparison 2"}))
    again = Comparison.load(tmp_path)
    assert again.variants == {}
    assert again.tunings == comparison.tunings[:2]
    assert again.rows() == comparison.rows()
    assert again.equal_flops() == comparison.equal_flops()


@pytest.mark.parametrize("variants", [{"tst": {}}, {"a": {}}, {"a": {"20": {"train": 1}}}, {"a": 1}])
def test_altered_variants_are_one_sentence(compared, tmp_path, variants):
    directory, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps(saved | {"variants": variants}))
    with pytest.raises(UserError, match="run the comparison again"):
        Comparison.load(tmp_path)
