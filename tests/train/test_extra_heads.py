"""A run with extra heads in its stages: they come and go at the switches, and leave an ordinary model behind."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from superpose import IGNORE_INDEX, Schedule, StageArgs, SuperposedLM
from superpose.core.accounting import extra_heads_flops
from superpose.data.stream import WindowStream
from superpose.data.windows import WindowPlan
from superpose.train.loop import train
from superpose.train.records import read_metrics
from superpose.train.step import accumulate_gradients, build_state
from tests.conftest import make_model
from tests.train.test_loop import (
    ALONE,
    KilledError,
    changed,
    killed_after,
    killed_and_resumed,
    same_weights,
    weights,
)
from tests.train.test_step import counted_compilations

STAGES = [
    {"ratio": 0.3, "bag_size": 4, "extra_heads": 2, "extra_heads_weight": 1.0, "extra_heads_weight_end": 0.25},
    {"ratio": 0.2, "bag_size": 2, "extra_heads": 1},
    {"ratio": 0.2, "bag_size": 1, "extra_heads": 2},
]
"""The switches are at steps 6, 10 and 14 of 20."""


def of_stages(recipe, stages):
    return changed(recipe, "superposition", bag_size=4, ratio=0.3, stages=stages)


def without_heads(stages):
    return [{name: value for name, value in stage.items() if "heads" not in name} for stage in stages]


@pytest.fixture(scope="module")
def headed(recipe):
    return of_stages(recipe, STAGES)


@pytest.fixture(scope="module")
def finished(headed, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("heads") / "whole"
    train(headed, store, run)
    return run


@pytest.fixture(scope="module")
def plain(recipe, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("heads") / "plain"
    train(of_stages(recipe, without_heads(STAGES)), store, run)
    return run


def records_of(run, kind):
    return [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == kind]


def names_in(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def test_the_model_of_the_run_is_an_ordinary_one(finished, plain):
    """Of the same weights' names and configuration, and trained to something else."""
    ours, theirs = weights(finished), weights(plain)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (finished / "model" / "config.json").read_text() == (plain / "model" / "config.json").read_text()
    result = json.loads((finished / "result.json").read_text())
    assert result["parameters"] == json.loads((plain / "result.json").read_text())["parameters"]
    assert result["extra_parameters"] == 2 * 16 * 16
    assert "extra_parameters" not in json.loads((plain / "result.json").read_text())


def test_heads_are_trained_from_the_second_step_on_and_reported_apart(finished, plain):
    """At the first step a fresh head is the model, so both runs compute the same loss of their own."""
    ours, theirs = records_of(finished, "training"), records_of(plain, "training")
    assert ours[0]["bag_loss"] == theirs[0]["bag_loss"]
    assert ours[1]["bag_loss"] != theirs[1]["bag_loss"]
    assert [record["step"] for record in ours if "extra_loss" in record] == list(range(1, 15))
    assert not any("extra_loss" in record for record in theirs)
    assert ours[0]["extra_loss"] == pytest.approx(ours[0]["bag_loss"], abs=0.05)
    assert [record["raw_tokens"] for record in ours] == [record["raw_tokens"] for record in theirs]


@pytest.mark.error(n=12)
def test_flops_of_heads_are_those_of_their_stages(finished, plain):
    ours, theirs = (json.loads((run / "result.json").read_text())["flops"] for run in (finished, plain))
    steps_of_heads = 6 * 2 + 4 * 1 + 4 * 2
    assert ours - theirs == steps_of_heads * 4 * 16 * extra_heads_flops(1, 16, 300)


@pytest.mark.error(n=9)
@pytest.mark.parametrize("step", [4, 6, 10, 12, 14])
def test_a_killed_run_resumes_to_the_same_bits(finished, headed, store, tmp_path, step):
    """Killed in each stage and at each switch: what is loaded are the heads of the stage before it."""
    run = killed_and_resumed(headed, store, tmp_path / "killed", step)
    assert same_weights(run, finished)
    extra = [[record.get("extra_loss") for record in records_of(path, "training")] for path in (run, finished)]
    assert extra[0] == extra[1]


def test_a_checkpoint_holds_the_heads_of_its_stage_and_none_afterwards(finished, plain):
    for step, heads in ((6, 2), (10, 1), (14, 2), (20, 0)):
        names = names_in(finished, step)
        found = {name for name in names if "extra_heads" in name}
        assert len(found) == heads * 4, step  # the matrix, two moments and the count of steps
        assert names - found == names_in(plain, step)


def test_heads_that_stay_are_gone_on_with_and_fresh_ones_begin_at_zero(headed, store):
    state = build_state(headed, store, ALONE)
    first, second = state.lm.extra_heads.layers
    for layer in (first, second):
        layer.weight.grad = torch.ones_like(layer.weight)
    state.optimizers[-1].step()
    known = state.optimizers[-1].state[first.weight]
    state.set_extra_heads(1)
    assert list(state.lm.extra_heads.layers) == [first]
    assert state.optimizers[-1].state[first.weight] is known
    state.set_extra_heads(2)
    assert state.lm.extra_heads.layers[0] is first
    assert not state.lm.extra_heads.layers[1].weight.any()
    state.set_extra_heads(0)
    owned = {weight for optimizer in state.optimizers for group in optimizer.param_groups for weight in group["params"]}
    assert owned == set(state.model.parameters())
    assert set(state.lm.state_dict()) == {f"model.{name}" for name in state.model.state_dict()}


@pytest.mark.error(n=4)
def test_parts_of_a_step_add_up(headed, store):
    gradients = []
    for accumulate in (1, 4):
        recipe = changed(headed, "train", accumulate=accumulate)
        state = build_state(recipe, store, ALONE)
        for number, layer in enumerate(state.lm.extra_heads.layers, 1):
            torch.nn.init.constant_(layer.weight, 0.01 * number)
        window = recipe.windows(store.train).read(store.train.tokens, 0)
        accumulate_gradients(state, recipe.train, recipe.schedule.step_at(0), window)
        gradients.append([parameter.grad for parameter in state.lm.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("expand", ["sequence", "batch"])
@pytest.mark.parametrize("mode", ["full", "output"])
def test_windows_are_those_without_heads_and_so_many_latents_more(recipe, store, expand, mode):
    """No target is missing, and no token is read at another step than without."""
    stages = [{"ratio": 0.5, "bag_size": 4, "mode": mode, "extra_heads": 2}]
    tokens = store.train.tokens
    text = np.tile(tokens.read(0, len(tokens)), 2).tobytes()
    ours, theirs = (
        WindowPlan(of_stages(recipe, these).schedule, 4, 16, len(tokens), 1, expand)
        for these in (stages, without_heads(stages))
    )
    assert ours.raw_tokens() == theirs.raw_tokens()
    for step in (0, 9, 10, 19):
        longer, window = ours.read(tokens, step), theirs.read(tokens, step)
        assert torch.equal(longer[:, : window.shape[1]], window)
        more = longer.shape[1] - window.shape[1]
        assert more == (0 if step >= 10 else 2 if mode == "output" else 8)
        assert longer[0].numpy().tobytes() in text


def test_ordinary_rows_and_drawn_sizes_have_windows_as_long_as_their_heads_ask(recipe, store):
    """The row of single tokens in a step of bags too: its heads are asked for the tokens after the next."""
    stages = [{"ratio": 1.0, "bag_size": {4: 1, 2: 1}, "ordinary_rows": 0.25, "extra_heads": 2}]
    plan, tokens = of_stages(recipe, stages).windows(store.train), store.train.tokens
    text = np.tile(tokens.read(0, len(tokens)), 2).tobytes()
    for step in range(8):
        window, bag_size = plan.read(tokens, step), plan.schedule.bag_size_at(step)
        assert window.shape == (4, bag_size * (16 + 2 + 1))
        singles = window[3][window[3] != IGNORE_INDEX]
        assert len(singles) == 16 + 2 + 1
        assert all(row.numpy().tobytes() in text for row in (*window[:3], singles))
        lm = SuperposedLM(make_model("llama", 300), extra_heads=2)
        alone = lm(singles.unsqueeze(0), extra_heads_weight=0.3)
        torch.testing.assert_close(lm(window[3:], bag_size, extra_heads_weight=0.3).loss, alone.loss)


def test_a_stream_cuts_the_windows_that_a_plan_would():
    rows = [[place % 97 for place in range(start, start + 50)] for start in range(0, 20_000, 50)]
    stages = [StageArgs(0.5, bag_size=4, ordinary_rows=0.25, extra_heads=2), StageArgs(0.3, extra_heads=1)]
    schedule = Schedule(10, stages=stages)
    place = 0
    for step, batch in enumerate(WindowStream(rows, schedule, rows=4, latents=8)):
        computed = schedule.step_at(step)
        latents = 8 + computed.extra_heads
        for number, row in enumerate(batch["input_ids"]):
            bags = computed.bag_size > 1 and number < 3
            known = row[row != IGNORE_INDEX].tolist()
            length = 4 * (latents + 1) if bags else latents + 1
            assert known == [(place + i) % 97 for i in range(length)], (step, number)
            place += 8 * 4 if bags else 8


@pytest.mark.filterwarnings("ignore")
def test_blocks_are_compiled_before_the_first_step_whatever_heads_a_stage_has(headed, store, tmp_path, monkeypatch):
    compiled, counts = counted_compilations(monkeypatch), []
    run = tmp_path / "run"
    with pytest.raises(KilledError):
        train(changed(headed, "train", compile=True), store, run, listener=killed_after(8))
    train(
        changed(headed, "train", compile=True), store, run, resume=True, listener=lambda _: counts.append(len(compiled))
    )
    assert counts[1:] == [counts[1]] * len(counts[1:])
    torch.compiler.reset()
    extra = [record.get("extra_loss") for record in records_of(run, "training")]
    assert [value is None for value in extra] == [False] * 14 + [True] * 6
