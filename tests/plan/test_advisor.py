from dataclasses import replace
from pathlib import Path

import pytest

from superpose import Schedule, StageArgs
from superpose.plan import Point, Setting, make_plan, parse_hardware, request_for, request_of, summary
from superpose.plan.evidence import RULE
from superpose.plan.tables import record, tables
from superpose.train.recipe_file import load_recipe, override

ROOT = Path(__file__).parents[2]
PAPER = request_for(600e6, 42e9, hardware=parse_hardware("8xB200"), unique_tokens=1e12)


def texts(plan, decision=None):
    return " ".join(reason.text for reason in plan.reasons if decision in (None, reason.decision))


def test_the_papers_own_scale_is_a_go():
    plan = make_plan(PAPER)
    assert plan.decision == "go"
    assert plan.prediction.low > 0
    assert plan.setting == RULE
    assert summary(plan).startswith("go: ")
    assert plan.cost.raw_tokens == pytest.approx(
        plan.cost.latents * (1 + plan.setting.ratio * (plan.setting.bag_size - 1)), rel=1e-3
    )


def test_the_verdict_is_that_of_the_worst_reason():
    order = ["go", "small gain", "compare first", "do not"]
    for plan in (make_plan(PAPER), make_plan(replace(PAPER, steps=1500, unique_tokens=1e9))):
        weights = [-1 if reason.decision is None else order.index(reason.decision) for reason in plan.reasons]
        assert order.index(plan.decision) == max(weights)
        assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    ("unique", "decision", "words"),
    [(1e12, "go", ""), (60e9, "go", "nearly as good as new"), (10e9, "small gain", "mode 'output'"),
     (2e9, "do not", "worth nothing more")],
)  # fmt: skip
def test_data_bound(unique, decision, words):
    plan = make_plan(replace(PAPER, unique_tokens=unique))
    assert plan.decision == decision
    assert words in texts(plan)


def test_a_source_that_is_worn_out_is_named():
    stages = [StageArgs(0.3, bag_size=4, mixture={"web": 1.0}), StageArgs(0.7, mixture={"web": 0.5, "code": 0.5})]
    schedule, sources = Schedule(PAPER.steps, stages=stages), {"web": 200_000_000_000, "code": 2_000_000_000}
    plan = make_plan(replace(PAPER, setting=Setting(4, 0.3), schedule=schedule, sources=sources, unique_tokens=202e9))
    latents = PAPER.steps * PAPER.latents_per_step
    assert plan.cost.source_epochs["code"] == pytest.approx(0.35 * latents / 2e9, rel=1e-3)
    assert plan.cost.source_epochs["web"] == pytest.approx(1.55 * latents / 2e11, rel=1e-3)
    (reason,) = [reason.text for reason in plan.reasons if "the source" in reason.text]
    assert f"the source code is read {plan.cost.source_epochs['code']:.1f} times" in reason
    assert ("passes over code", "", "", f"{plan.cost.source_epochs['code']:.2f}") in tables(plan)[1][2]


def test_few_steps():
    assert make_plan(replace(PAPER, steps=1500)).decision == "do not"
    assert make_plan(replace(PAPER, steps=3000)).decision == "compare first"
    assert "steps are few" in texts(make_plan(replace(PAPER, steps=1500)), "do not")


def test_what_has_no_evidence_is_no_go():
    plan = make_plan(replace(PAPER, unusual=("continued pre-training (model.init_from)",)))
    assert plan.decision == "compare first"
    assert "no evidence" in texts(plan, "compare first")
    byte_level = request_for(100e6, 20e9, vocab_size=257)
    assert "a bag of bytes" in texts(make_plan(byte_level), "compare first")


@pytest.mark.parametrize(("params", "tokens"), [(1e9, 500e6), (1e9, 1e12), (8e9, 15e12), (20e6, 1e9)])
def test_an_extrapolation_is_never_a_go(params, tokens):
    plan = make_plan(request_for(params, tokens, hardware=parse_hardware("8xB300")))
    assert plan.decision == "compare first"
    assert plan.prediction.gain is None
    assert "the nearest evidence is" in texts(plan)
    assert "no evidence here" in summary(plan)


def test_a_summary_does_not_contradict_its_verdict():
    plan = make_plan(replace(PAPER, unique_tokens=105e9 / 480))
    assert summary(plan).startswith("do not: ")
    assert "480.0 times" in summary(plan)
    assert "times the steps" not in summary(plan)
    labels = {label for label, _ in tables(plan)[0][2]}
    assert labels == {"do not", "note"}


def test_without_a_text_the_tokens_it_needs_are_named():
    plan = make_plan(replace(PAPER, unique_tokens=None))
    assert "105B tokens" in texts(plan)
    assert "26.2B to read each up to 4 times" in texts(plan)


def test_our_small_recipe_is_predicted_as_it_was_measured():
    plan = make_plan(request_of(load_recipe(ROOT / "recipes" / "cpu-small.toml")))
    assert plan.decision == "small gain"
    assert plan.prediction.gain == pytest.approx(0.049, abs=0.014)
    assert plan.prediction.speedup[1] == pytest.approx(1.4, abs=0.05)


def test_a_setting_of_ones_own_is_kept_and_held_against_the_best():
    plan = make_plan(replace(PAPER, setting=Setting(16, 0.8)))
    assert plan.setting == Setting(16, 0.8)
    assert "s 6, r 0.3 is predicted to gain" in texts(plan)
    ordinary = make_plan(replace(PAPER, setting=Setting(1, 0.0)))
    assert ordinary.prediction.gain == 0
    assert ordinary.cost.raw_tokens == ordinary.cost.latents


@pytest.mark.parametrize(
    ("params", "hardware", "words"),
    [
        (70e9, "8xH100", "alone take 131); the fewest that it fits are 32 x H100"),
        (3e9, "1xRTX4090", "the fewest that it fits are 4 x RTX4090"),
    ],
)
def test_a_model_whose_states_do_not_fit_is_a_do_not(params, hardware, words):
    plan = make_plan(request_for(params, 60e9, hardware=parse_hardware(hardware)))
    assert plan.decision == "do not"
    assert words in texts(plan, "do not")
    count = int(words.split(" x ")[0].split()[-1])
    name = hardware.split("x")[1]
    assert make_plan(request_for(params, 60e9, hardware=parse_hardware(f"{count}x{name}"))).decision != "do not"


def test_a_recipe_that_does_not_fit_as_it_stands_says_what_to_set():
    recipe = override(load_recipe(ROOT / "recipes" / "paper-600m.toml"), ["train.accumulate=1"])
    plan = make_plan(request_of(recipe, parse_hardware("8xA100-40")))
    assert plan.decision == "do not"
    assert "it does with train.accumulate = " in texts(plan, "do not")
    assert "and parallel.shard_gradients = true" in texts(plan, "do not")


def test_rows_at_a_time_are_as_many_as_fit():
    plan = make_plan(request_for(3e9, 60e9, hardware=parse_hardware("8xH100")))
    assert plan.memory.peak < 0.9 * 80 * 2**30
    assert plan.request.parts > 1
    roomy = make_plan(request_for(270e6, 42e9, hardware=parse_hardware("8xB200")))
    assert roomy.request.parts < plan.request.parts


def test_a_setting_that_spares_the_text_is_taken_where_it_is_as_good():
    plan = make_plan(replace(PAPER, unique_tokens=42e9 / 1.9))
    assert plan.cost.epochs <= 4
    assert plan.setting != RULE
    assert "s 6, r 0.3 reads the text 4.7 times; s 6, r 0.2 cannot be told from it" in texts(plan)


def test_points_of_ones_own_move_the_plan():
    model_plan = make_plan(PAPER)
    params, latents = model_plan.model.parameters, PAPER.steps * PAPER.rows * PAPER.latents
    own = [Point(params, latents, PAPER.steps, RULE, -0.05, "mine", error=0.003)]
    moved = make_plan(PAPER, own)
    assert moved.prediction.gain < model_plan.prediction.gain - 0.02


def test_a_recipe_brings_its_own_setting(recipe):
    request = request_of(recipe)
    assert request.setting == Setting(4, 0.4)
    assert request.steps == 20
    assert make_plan(request).decision == "do not"
    staged = override(recipe, ["superposition.bag_size=[8,2]", "superposition.ratio=[0.2,0.2]"])
    assert "2 stages of superposition" in request_of(staged).unusual[0]
    assert request_of(recipe.ordinary()).setting == Setting(1, 0.0)


@pytest.mark.parametrize("name", ["paper-270m", "paper-600m", "paper-3b", "paper-10b-a1b", "gpt2-124m", "cpu-tiny"])
def test_every_recipe_can_be_planned(name):
    plan = make_plan(request_of(load_recipe(name), parse_hardware("8xH100")))
    assert plan.memory.peak > 0
    assert plan.cost.hours[0] > 0
    written = record(plan)
    assert written["model"]["parameters"] == plan.model.parameters
    assert {table["title"] for table in written["tables"]} == {title for title, *_ in tables(plan)}
