"""Runs of stages that differ in more than their bag size, and runs in short, which are what they were."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from superpose import IGNORE_INDEX, Schedule, StageArgs
from superpose.errors import UserError
from superpose.train.config import SuperpositionArgs
from superpose.train.loop import train
from superpose.train.recipe_file import load_recipe, override, recipe_toml
from superpose.train.records import read_metrics
from superpose.train.step import accumulate_gradients, build_state
from tests.train.test_loop import ALONE, changed, killed_and_resumed, same_weights

BEFORE = Path(__file__).with_name("before_stages.json")
"""Of runs in short, by the code of before stages were described: SHA-256 of what they read, and loss by loss."""

SHORT = {
    "tst": {},
    "stages": {"bag_size": [8, 4], "ratio": [0.25, 0.25]},
    "input": {"mode": "input"},
    "output": {"mode": "output"},
    "power": {"weighting": "power", "bag_size": 8},
    "numbers": {"weighting": [4.0, 3.0, 2.0, 1.0]},
    "expand": {"expand": "batch"},
    "aligned": {"documents": "aligned"},
    "single_stage": {"bag_size": [4, 1], "ratio": [0.25, 0.25]},
}
ALL = [
    {"ratio": 0.4, "bag_size": {"4": 2, "2": 1}, "bag_size_end": {"2": 1, "1": 1}, "weighting": "power",
     "pooling": "sqrt", "ordinary_rows": 0.25},
    {"ratio": 0.3, "bag_size": 3, "mode": "output", "weighting": [1.0, 0.5, 0.25], "weighting_end": [1.0, 0.5, 0.0]},
]  # fmt: skip


@pytest.fixture(scope="module")
def staged(recipe):
    return changed(recipe, "superposition", bag_size=4, ratio=0.3, stages=ALL)


@pytest.fixture(scope="module")
def finished(staged, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("staged") / "whole"
    train(staged, store, run)
    return run


@pytest.mark.parametrize("kind", SHORT)
def test_a_run_in_short_is_what_it_was_before_stages_were_described(recipe, store, tmp_path, kind):
    before = json.loads(BEFORE.read_text())[kind]
    recipe = changed(recipe, "superposition", **SHORT[kind])
    plan = recipe.windows(store.train)
    read = b"".join(plan.read(store.train.tokens, step).numpy().tobytes() for step in range(20))
    assert hashlib.sha256(read).hexdigest() == before["read"]
    train(changed(recipe, "train", eval_every=20), store, tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "training"]
    # The last bits depend on the processor; `checks/bits.py` compares them on one.
    assert [r.get("loss", r.get("bag_loss")) for r in records] == pytest.approx(before["losses"], abs=2e-4)


def test_the_same_stages_described_give_the_same_bits(recipe, store, tmp_path):
    short = changed(recipe, "superposition", bag_size=[8, 4], ratio=[0.25, 0.25], mode="full", weighting="power")
    stages = [{"ratio": 0.25, "bag_size": size, "weighting": "power"} for size in (8, 4)]
    described = changed(recipe, "superposition", stages=stages, bag_size=4, ratio=0.3)
    for name, one in {"short": short, "described": described}.items():
        train(one, store, tmp_path / name)
    assert same_weights(tmp_path / "short", tmp_path / "described")


def test_records_have_the_bag_size_of_their_step_and_count_what_it_reads(finished, staged):
    schedule, raw = staged.schedule, 0
    for record in read_metrics(finished / "metrics.jsonl"):
        if record["kind"] != "training":
            continue
        step = schedule.step_at(record["step"] - 1)
        assert (record["bag_size"], record["phase"]) == (step.bag_size, step.phase)
        assert ("bag_loss" in record) == (step.bag_size > 1)
        ordinary = 1 if step.ordinary_rows and step.bag_size > 1 else 0
        raw += 16 * (ordinary + (4 - ordinary) * (1 if step.mode == "output" else step.bag_size))
        assert record["raw_tokens"] == raw
    assert len({schedule.bag_size_at(step) for step in range(8)}) > 1
    assert json.loads((finished / "result.json").read_text())["latents"] == 20 * 4 * 16


@pytest.mark.parametrize("step", [5, 11])
def test_a_killed_run_goes_on_to_the_bit(finished, staged, store, tmp_path, step):
    assert same_weights(finished, killed_and_resumed(staged, store, tmp_path / "run", step))


def test_a_mean_over_steps_is_over_those_of_the_last_ones_bag_size(finished, staged, store, tmp_path):
    train(changed(staged, "train", log_every=4, checkpoint_every=20, eval_every=20), store, tmp_path / "run")
    each = {r["step"]: r for r in read_metrics(finished / "metrics.jsonl") if r["kind"] == "training"}
    first = next(r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "training")
    alike = [each[n] for n in range(1, 5) if each[n]["bag_size"] == first["bag_size"]]
    assert first["step"] == 4
    assert 0 < len(alike) < 4
    losses = [record.get("loss", record.get("bag_loss")) for record in alike]
    assert first.get("loss", first.get("bag_loss")) == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_a_mixed_step_is_the_mean_over_all_its_positions(staged, store):
    """Against the definition in float64: each row on its own, bags with their weights, single tokens with none."""
    step_args = {"ratio": 0.5, "bag_size": 3, "weighting": "power", "pooling": "sqrt", "ordinary_rows": 0.25}
    recipe = changed(staged, "superposition", stages=[step_args])
    state, plan, step = build_state(recipe, store, ALONE), recipe.windows(store.train), recipe.schedule.step_at(0)
    state.model.double()
    window = plan.read(store.train.tokens, 0)
    total, count = 0.0, 0
    shares = torch.tensor([6 / 11, 3 / 11, 2 / 11], dtype=torch.float64)
    table, model = state.model.get_input_embeddings().weight, state.model
    for row in window.view(4, 17, 3):
        bags = [bag[bag != IGNORE_INDEX] for bag in row]
        vectors = torch.stack([table[bag].sum(0) / len(bag) ** 0.5 for bag in bags[:-1]])
        logits = model(inputs_embeds=vectors[None]).logits[0]
        for place, bag in enumerate(bags[1:]):
            losses = F.cross_entropy(logits[place].expand(len(bag), -1), bag, reduction="none")
            total = total + (losses @ shares if len(bag) == 3 else losses.sum())
            count += 1
    assert sum(len(bag[bag != IGNORE_INDEX]) == 1 for row in window.view(4, 17, 3) for bag in row) == 17
    assert count == 4 * 16
    expected = torch.autograd.grad(total / count, table)[0]
    loss, _ = accumulate_gradients(state, recipe.train, step, window)
    # Weights of a bag are float32.
    torch.testing.assert_close(loss.double(), (total / count).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(table.grad, expected, rtol=1e-5, atol=1e-9)


def test_a_mixed_step_does_not_depend_on_how_it_is_cut(staged, store):
    gradients = []
    for accumulate in (1, 2, 4):
        recipe = changed(staged, "train", accumulate=accumulate)
        state = build_state(recipe, store, ALONE)
        state.model.double()
        window = recipe.windows(store.train).read(store.train.tokens, 0)
        accumulate_gradients(state, recipe.train, recipe.schedule.step_at(0), window)
        gradients.append([parameter.grad for parameter in state.model.parameters()])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_recipe_with_stages_is_written_and_read_back(staged, tmp_path):
    text = recipe_toml(staged)
    assert text.count("[[superposition.stages]]") == 2
    (tmp_path / "recipe.toml").write_text(text)
    again = load_recipe(tmp_path / "recipe.toml")
    assert again == staged
    assert again.schedule == staged.schedule
    assert override(again, ["train.lr=1e-3"]).superposition == staged.superposition
    assert not again.ordinary().superposition.stages


@pytest.mark.parametrize(
    ("override_text", "message"),
    [
        ("superposition.bag_size=4", "superposition.bag_size would be ignored"),
        ("superposition.ratio=0.3", "superposition.ratio would be ignored"),
        ("superposition.mode=output", "superposition.mode would be ignored"),
        ("superposition.documents=aligned", "rows differ in length"),
        ("superposition.variant=hinge", "no loss for ordinary_rows"),
        ("superposition.stages=3", "write a table"),
        ("superposition.stages=[1]", "stage 1: 1 is no stage"),
        ("superposition.stages=[{ratio=0.1, bags=4}]", "stage 1: .* is no stage; expected ratio, and any of bag_size"),
        ("superposition.stages=[{ratio=0.6},{ratio=0.6}]", "add up to more than 1"),
        ("superposition.stages=[{ratio=0.5, bag_size=4, ordinary_rows=0.3}]", r"is 1\.2 of 4 rows"),
        ("superposition.stages=[{ratio=0.5, bag_size={4=1, 2='x'}}]", "a weight of 'x'"),
    ],
)
def test_what_would_be_ignored_or_is_wrong_is_said_in_a_sentence(staged, override_text, message):
    with pytest.raises(UserError, match=message) as caught:
        override(staged, [override_text])
    assert "\n" not in str(caught.value)


def test_drawn_sizes_in_the_short_form_are_told_where_they_belong(recipe):
    with pytest.raises(UserError, match=r"described stage's: give superposition\.stages=") as caught:
        override(recipe, ["superposition.bag_size={4=1,2=3}"])
    (text,) = re.findall(r"give (superposition\.stages=\S+ \S+ \S+)", str(caught.value))
    made = override(recipe.model_copy(update={"superposition": SuperpositionArgs()}), [text.rstrip(",")])
    assert made.schedule.args == (StageArgs(0.3, bag_size={4: 1, 2: 3}),)


def test_a_file_that_gives_both_forms_is_refused(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text("[superposition]\nbag_size = 4\n[[superposition.stages]]\nratio = 0.1\n")
    with pytest.raises(UserError, match=r"both\.toml: superposition\.stages says what each stage is"):
        load_recipe(path)


def test_compiling_computes_each_bag_size_once(staged, store, tmp_path, monkeypatch):
    from superpose.train import loop

    sizes = []
    true = loop.accumulate_gradients
    monkeypatch.setattr(loop, "accumulate_gradients", lambda *a: (sizes.append(a[2].bag_size), true(*a))[1])
    monkeypatch.setattr("superpose.train.step.blocks", lambda model: [])
    train(changed(staged, "train", compile=True, eval_every=20, checkpoint_every=20), store, tmp_path / "run")
    drawn = {staged.schedule.bag_size_at(step) for step in range(8)}
    assert isinstance(staged.schedule.stages[0].bag_size, Mapping)
    assert sizes == [*sorted(drawn, reverse=True), 3, 1]


def test_a_schedule_of_stages_is_what_a_recipe_gives(staged):
    assert staged.schedule == Schedule(20, stages=[StageArgs.from_dict(stage) for stage in ALL], seed=1)
