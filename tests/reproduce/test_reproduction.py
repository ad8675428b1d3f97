import json
import math

import pytest

from superpose.errors import UserError
from superpose.paper.published import published_gain, published_runs
from superpose.reproduce import reproduce
from superpose.reproduce.experiments import EPOCHS, EXPERIMENTS, ORDINARY
from superpose.reproduce.reproduction import (
    EQUAL,
    Reproduction,
    data_bound,
    experiment_runs,
    judge,
    reproduction,
    save,
    scale_recipe,
)
from superpose.results.statistics import Difference
from superpose.runs.pool import Outcome
from superpose.train.recipe_file import load_recipe, with_settings
from tests.conftest import trained


@pytest.fixture(scope="module")
def roomy(recipe):
    """Long enough for bags of 16 to have a boundary."""
    return with_settings(recipe, "train", steps=20, eval_every=20)


def outcomes(runs, loss_of):
    result = {"raw_tokens": 100, "epochs": 0.5, "flops": 1e9, "seconds": 2.0}
    return [Outcome(run, None, {**result, "val_loss": loss_of(run.arm, run.seed)}) for run in runs]


def test_every_experiment_can_be_planned(roomy, store):
    for name, experiment in EXPERIMENTS.items():
        if experiment.needs_weights:
            continue
        runs, _ = experiment_runs(experiment, roomy, store, (1, 2), {})
        assert len(runs) == 2 * len(experiment.arms)
        for claim in experiment.claims:
            assert {claim.arm, claim.against} <= set(experiment.arms), name
        ordinary = [run for run in runs if run.arm == ORDINARY]
        assert all(not run.recipe.schedule.boundaries for run in ordinary)
        # An arm that computes what another does is no arm of its own.
        assert len({run.key(store) for run in runs}) == len(runs)


def test_the_corpus_own_weights_take_part(roomy, store, monkeypatch):
    from superpose.data.information import PowerLaw
    from superpose.reproduce import reproduction as module

    law = PowerLaw(0.5, 1.0, -1.0, -1.1, -0.9, {distance: 0.5 + 1 / distance for distance in range(1, 33)})
    monkeypatch.setattr(module, "fit_power_law", lambda tokens: law)
    runs, found = experiment_runs(EXPERIMENTS["figure10"], roomy, store, (1,), {})
    weights = next(run.recipe.superposition.weighting for run in runs if run.arm == "information-s16")
    assert found is law
    assert len(weights) == 16
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert weights[0] / weights[1] == pytest.approx(1.5, rel=1e-4)
    done = reproduction("figure10", "tiny", roomy, store, outcomes(runs, lambda arm, seed: 3.0), law, {})
    assert done.findings[-1].verdict == "disagrees"  # -1.1 to -0.9 is not DCLM's -1.25
    assert "0.500 + 1.000 d^-1.000" in done.tables()[-1][0]


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (-0.2, -0.1, "lower", "agrees"),
        (-0.2, 0.1, "lower", "undecided"),
        (0.1, 0.2, "lower", "disagrees"),
        (0.1, 0.2, "higher", "agrees"),
        (-0.2, -0.1, "higher", "disagrees"),
        (-EQUAL / 2, EQUAL / 2, "equal", "agrees"),
        (-EQUAL / 2, EQUAL * 2, "equal", "undecided"),
        (EQUAL * 2, EQUAL * 3, "equal", "disagrees"),
        (None, None, "lower", "undecided"),
    ],
)
def test_an_interval_decides(low, high, expected, verdict):
    assert judge(Difference(0.0, low, high, 3), expected) == verdict


def test_findings_stand_beside_the_paper(roomy, store):
    runs, _ = experiment_runs(EXPERIMENTS["table2"], roomy, store, (1, 2, 3), {})
    base = {"ordinary": 3.0, "tst": 2.9, "reinit": 2.95}
    done = reproduction(
        "table2", "tiny", roomy, store, outcomes(runs, lambda arm, seed: base[arm] + seed / 1000), None, {}
    )
    assert [finding.verdict for finding in done.findings] == ["agrees", "agrees", "disagrees"]
    assert [finding.published for finding in done.findings] == [-0.132, 0.262, 0.13]
    assert done.verdict() == "table2: 2 agrees, 1 disagrees, 0 undecided"


def test_a_sweep_is_likened_to_the_papers(roomy, store):
    runs, _ = experiment_runs(EXPERIMENTS["figure4"], roomy, store, (1,), {})

    def like_the_paper(arm, seed):
        if arm == ORDINARY:
            return 3.0
        size, ratio = arm.removeprefix("s").split("-r")
        return 3.0 + published_gain("270m_20k", int(size), float(ratio))

    done = reproduction("figure4", "tiny", roomy, store, outcomes(runs, like_the_paper), None, {})
    likeness = done.findings[-1]
    assert likeness.ours == pytest.approx(1)
    assert likeness.verdict == "agrees"
    against = reproduction(
        "figure4", "tiny", roomy, store, outcomes(runs, lambda a, s: 6 - like_the_paper(a, s)), None, {}
    )
    assert against.findings[-1].verdict == "disagrees"


def test_what_is_written_is_read_back(roomy, store, tmp_path):
    runs, _ = experiment_runs(EXPERIMENTS["appendixC"], roomy, store, (1, 2), {})
    done = reproduction("appendixC", "tiny", roomy, store, outcomes(runs, lambda arm, seed: 3 + seed / 10), None, {})
    save([done], "superpose reproduce appendixC", tmp_path)
    (again,) = Reproduction.load(tmp_path / "reproduction.json")
    assert again == done
    saved = json.loads((tmp_path / "reproduction.json").read_text())
    assert saved["command"] == "superpose reproduce appendixC"
    for change in ({"format": "other"}, {"experiments": [{}]}, {"experiments": 3}):
        (tmp_path / "altered.json").write_text(json.dumps(saved | change))
        with pytest.raises(UserError, match="reproduce again"):
            Reproduction.load(tmp_path / "altered.json")


def test_a_failed_arm_leaves_the_other_claims(roomy, store):
    runs, _ = experiment_runs(EXPERIMENTS["appendixC"], roomy, store, (1,), {})
    some = [
        Outcome(o.run, None, None, "died") if o.run.arm == "hinge" else o for o in outcomes(runs, lambda arm, seed: 3.0)
    ]
    done = reproduction("appendixC", "tiny", roomy, store, some, None, {})
    assert "hinge" not in {arm.name for arm in done.arms}
    assert [finding.what.split()[0] for finding in done.findings] == ["mce_alt", "bce"]


def test_the_ablations_train_and_differ(roomy, store, tmp_path):
    """Every way of training the paper tried, for a few steps: finite, and not what another arm does."""
    chosen = {"hinge", "bce", "mce_alt", "mce"}
    runs, _ = experiment_runs(EXPERIMENTS["appendixC"], roomy, store, (1,), {})
    reinit, _ = experiment_runs(EXPERIMENTS["table2"], roomy, store, (1,), {})
    mine = [run for run in runs if run.arm in chosen] + [run for run in reinit if run.arm == "reinit"]
    done = trained(mine, store, tmp_path)
    losses = [outcome.result["val_loss"] for outcome in done]
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == len(mine)


def test_arms_take_their_tuned_learning_rates(roomy, store):
    runs, _ = experiment_runs(EXPERIMENTS["table2"], roomy, store, (1,), {ORDINARY: 1e-3, "tst": 5e-3})
    assert {run.arm: run.recipe.train.lr for run in runs} == {"ordinary": 1e-3, "tst": 5e-3, "reinit": 5e-3}


def test_a_data_bound_run_reads_its_text_several_times(recipe, store):
    bound = data_bound(with_settings(recipe, "train", steps=2000), store)
    tokens = bound.data.max_megabytes * 1e6 / (store.train.bytes / len(store.train.tokens))
    assert 2000 * recipe.latents_per_step / tokens == pytest.approx(EPOCHS, rel=0.01)


def test_scales():
    small = scale_recipe("small", None, [])
    assert small.computing == load_recipe("cpu-small").computing
    assert scale_recipe("tiny", None, ["train.seed=4"]).train.seed == 4
    with pytest.raises(UserError, match="--recipe"):
        scale_recipe("paper", None, [])


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="choose one of table1"):
        reproduce(["table9"])
    assert published_gain("270m_20k", 99, 0.1) is None


def test_published_figures_are_those_of_the_paper():
    """Also those that experiments.toml states: differences of runs of tables 1 and 2, and of cells of tables 4 to 7."""
    losses = {(run.params, run.steps, run.bag_size): run.loss for run in published_runs()}
    ordinary, tst = losses["3B", 20_000, None], losses["3B", 20_000, 6]
    assert (ordinary, tst) == (2.808, 2.676)
    assert published_gain("270m_20k", 7, 0.3) == round(3.1392 - 3.2124, 4)
    assert published_gain("600m_20k_power", 13, 0.3) == round(2.9471 - 3.0186, 4)

    def stated(name):
        return [claim.published for claim in EXPERIMENTS[name].claims if claim.published is not None]

    assert stated("table1") == pytest.approx([losses["270M", 20_000, 6] - losses["270M", 20_000, None]])
    assert stated("table2") == pytest.approx([tst - ordinary, 2.938 - tst, 2.938 - ordinary])
    assert stated("figure6") == [published_gain("270m_20k", 4, 0.5)]
    power, uniform = (published_gain(name, 4, 0.3) for name in ("600m_20k_power", "600m_20k"))
    assert stated("figures8-9") == pytest.approx([power - uniform])
