import pytest

from superpose.compare.experiment import CONTEXT, ORDINARY, TST, Design, found_tunings, plan_runs, plan_tuning
from superpose.compare.tuned import LR, Trial, parse_tried, tuned_for
from superpose.core import Schedule
from superpose.errors import UserError
from superpose.runs.pool import Outcome
from superpose.train.recipe_file import with_settings
from tests.train.test_loop import changed


def test_arms_differ_in_superposition_alone(recipe):
    ordinary, tst, *_ = plan_runs(Design(recipe, (5, 6)))
    assert ordinary.recipe.model_dump(exclude={"superposition"}) == tst.recipe.model_dump(exclude={"superposition"})
    assert ordinary.recipe.schedule == Schedule(20)
    assert ordinary.seed == tst.seed == 5


def test_budgets_of_each_arm(recipe):
    design = Design(recipe, (1,), budgets=(40,), ordinary_budgets=(30, 100))
    planned = plan_runs(design, {})
    assert [run.steps for run in planned if run.arm == ORDINARY] == [20, 30, 40, 100]
    assert [run.steps for run in planned if run.arm == TST] == [20, 40]


@pytest.mark.error(n=12)
def test_equal_data_is_as_many_steps_as_read_the_same_tokens(recipe, store):
    """Bags of 4 over 0.4 of 20 steps read 44 steps' worth of tokens."""
    design = Design(recipe, (1,), equal_data=True)
    *_, longest = (run for run in plan_runs(design, {}) if run.arm == ORDINARY)
    assert longest.steps == 44
    assert longest.recipe.windows(store.train).raw_tokens() == recipe.windows(store.train).raw_tokens()


def test_the_control_sees_as_much_context_as_an_ordinary_row(recipe, store):
    (control,) = (run for run in plan_runs(Design(recipe, (1,), context_control=True), {}) if run.arm == CONTEXT)
    plan = control.recipe.windows(store.train)
    stage, _ = control.recipe.schedule.stages
    rows, latents = plan.shape(stage)
    assert (rows, latents) == (4 * 4, 16 // 4)
    assert latents * stage.bag_size == control.recipe.train.latents
    assert plan.raw_tokens() == recipe.windows(store.train).raw_tokens()


class TestTuning:
    def outcomes(self, design, loss_of):
        outcomes = []
        for run in plan_tuning(design):
            loss = loss_of(run.arm, run.recipe.train.lr)
            outcomes.append(Outcome(run, None, None if loss is None else {"val_loss": loss}))
        return outcomes

    def test_both_arms_get_the_same_effort_and_a_seed_of_its_own(self, recipe):
        design = Design(recipe, (0, 1), tune={LR: (1e-3, 2e-3, 4e-3)})
        planned = plan_tuning(design)
        assert len(planned) == 6
        assert {run.seed for run in planned} == {2}
        rates = {arm: [run.recipe.train.lr for run in planned if run.arm == arm] for arm in (ORDINARY, TST)}
        assert rates[ORDINARY] == rates[TST] == [1e-3, 2e-3, 4e-3]

    def test_each_arm_takes_its_best(self, recipe):
        design = Design(recipe, (1, 2), budgets=(40,), tune={LR: (1e-3, 2e-3, 4e-3)})
        best = {ORDINARY: 2e-3, TST: 4e-3}
        tunings = found_tunings(design, self.outcomes(design, lambda arm, rate: 3 + abs(rate - best[arm])))
        assert {tuning.arm: tuning.best[LR] for tuning in tunings} == best
        assert [tuning.edges for tuning in tunings] == [[], [LR]]
        assert all(run.recipe.train.lr == best[run.arm] for run in plan_runs(design, tunings))

    def test_a_rate_that_failed_is_not_chosen(self, recipe):
        design = Design(recipe, (1,), tune={LR: (1e-3, 2e-3)})
        tunings = found_tunings(design, self.outcomes(design, lambda arm, rate: None if rate == 1e-3 else 3.0))
        assert tunings[1].trials == (Trial({LR: 1e-3}, None), Trial({LR: 2e-3}, 3.0))
        assert tunings[1].best == {LR: 2e-3}
        with pytest.raises(UserError, match="all learning rates failed"):
            found_tunings(design, self.outcomes(design, lambda arm, rate: None))

    def test_settings_are_tuned_together_at_each_budget_and_the_nearest_serves_the_others(self, recipe):
        tried = {LR: (1e-3, 2e-3), "train.decay_ratio": (0.1, 0.5)}
        design = Design(recipe, (1,), budgets=(40, 100), ordinary_budgets=(400,), tune=tried, tuned_at=(20, 100))
        planned = plan_tuning(design)
        assert len({run.name for run in planned}) == len(planned) == 2 * 2 * 2 * 2
        assert planned[2].name == "ordinary-20-lr0.001-decay_ratio0.5-seed0"

        def loss_of(run):  # long runs want another decay than short ones, and TST another rate
            train = run.recipe.train
            return abs(train.decay_ratio - (0.1 if run.steps == 20 else 0.5)) + abs(
                train.lr - 1e-3 * (1 + (run.arm == TST))
            )

        tunings = found_tunings(design, [Outcome(run, None, {"val_loss": loss_of(run)}) for run in planned])
        assert [(one.arm, one.steps) for one in tunings] == [(ORDINARY, 20), (TST, 20), (ORDINARY, 100), (TST, 100)]
        assert [tuned_for(tunings, ORDINARY, steps)["train.decay_ratio"] for steps in (20, 40, 100, 400)] == [
            0.1,
            0.1,
            0.5,
            0.5,
        ]
        for run in plan_runs(design, tunings):
            assert run.recipe.train.lr == (2e-3 if run.arm == TST else 1e-3)
            assert run.recipe.train.decay_ratio == (0.1 if run.steps < 45 else 0.5)

    def test_without_rates_nothing_is_tuned(self, recipe):
        design = Design(recipe, (1,))
        assert plan_tuning(design) == []
        assert found_tunings(design, []) == ()
        assert plan_runs(design, {})[0].recipe.train.lr == recipe.train.lr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (1, 1)}, "--seeds 1,1"),
        ({"tune": {LR: (1e-3, 1e-3)}}, "--lrs"),
        ({"tune": {LR: (0.0,)}}, "above 0"),
        ({"tune": {"train.lr": ("fast",)}}, "train.lr"),
        ({"tune": {"train.weight_decay": (0.1, 0.1)}}, "--tune train.weight_decay 0.1,0.1: one stands there twice"),
        ({"tune": {"train.decay_ratio": (0.1, 3.0)}}, "decay_ratio"),
        ({"tune": {"train.color": (1, 2)}}, "color"),
        ({"tune": {"train.batch_size": (2, 4)}}, "different FLOPs"),
        ({"tune": {"train.log_every": (1, 2)}}, "how a run is computed and not what"),
        ({"tune": {"superposition.ratio": (0.1, 0.2)}}, "only these are tuned; leave it out"),
        ({"tuned_at": (20,)}, "--tune-at says where"),
        ({"tune": {LR: (1e-3, 2e-3)}, "tuned_at": (30,)}, "--tune-at 30: no budget of both arms"),
        ({"budgets": (0,)}, "--budgets 0"),
        ({"ordinary_budgets": (-5,)}, "--ordinary-budgets -5"),
    ],
)
def test_wrong_numbers_are_refused(recipe, settings, message):
    with pytest.raises(UserError, match=message):
        Design(recipe, **settings)


def test_nothing_to_compare_is_refused(recipe):
    with pytest.raises(UserError, match="only one phase"):
        Design(recipe.ordinary())
    with pytest.raises(UserError, match="ends in superposition"):
        Design(changed(recipe, "superposition", bag_size=[4, 2], ratio=[0.5, 0.5]))


def test_a_budget_too_short_for_the_recipe_is_refused(recipe):
    with pytest.raises(UserError, match=r"warmup_steps \(50\)"):
        plan_runs(Design(with_settings(recipe, "train", steps=100, warmup_steps=50), (1,), budgets=(30,)), {})


def test_what_is_tried_is_read_with_commas_between():
    assert parse_tried(["train.lr=1e-3,2e-3,train.decay_ratio=0.1,0.4", "train.optimizer=adamw,muon"]) == {
        "train.lr": (1e-3, 2e-3),
        "train.decay_ratio": (0.1, 0.4),
        "train.optimizer": ("adamw", "muon"),
    }
    assert parse_tried(["train.betas=[0.9, 0.95],[0.9, 0.99]"]) == {"train.betas": ([0.9, 0.95], [0.9, 0.99])}
    for text, message in (("1e-3", "expected SETTING=VALUE"), ("train.lr=1,train.lr=2", "names train.lr twice")):
        with pytest.raises(UserError, match=message):
            parse_tried([text])
