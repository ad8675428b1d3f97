import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from superpose import SuperposedLM
from superpose.data.store import Split
from superpose.data.tokens import TokenArray
from superpose.errors import UserError
from superpose.train.distributed import Ranks
from superpose.train.loop import train
from superpose.train.optim import Optimizer, learning_rate
from superpose.train.records import Training, read_records
from superpose.train.step import build_state, optimizer_step, validate
from tests.conftest import MODELS, make_model
from tests.train.test_loop import ALONE, changed, killed_and_resumed, same_weights, weights


@pytest.mark.error(n=7)
def test_validation_is_next_token_over_every_token():
    model = make_model("llama").train()
    tokens = np.random.default_rng(0).integers(0, 50, 83).astype(np.uint16)
    split = Split(TokenArray([tokens], ["tokens"], 50), np.array([0, 83]), bytes=200)
    validation = validate(SuperposedLM(model), split, latents=16, rows=2, ranks=Ranks(0, 1, torch.device("cpu")))
    total = 0.0
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        for start in range(0, 82, 16):
            row = ids[start : start + 17]
            logits = model(input_ids=row[None, :-1]).logits[0]
            total += float(F.cross_entropy(logits, row[1:], reduction="sum"))
    assert validation.loss == pytest.approx(total / 82, rel=1e-5)
    assert validation.bits_per_byte == pytest.approx(total / math.log(2) / 200, rel=1e-5)
    assert model.training


def test_weights_depend_on_the_seed_alone(recipe, store):
    torch.manual_seed(77)
    first = build_state(recipe, store, ALONE).tensors
    second = build_state(changed(recipe, "train", steps=30, lr=1.0), store, ALONE).tensors
    other = build_state(changed(recipe, "train", seed=2), store, ALONE).tensors
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_parameter_has_one_optimizer_and_moves(recipe, store, name):
    recipe = changed(recipe, "train", optimizer=name)
    state = build_state(recipe, store, ALONE)
    before = {key: parameter.detach().clone() for key, parameter in state.model.named_parameters()}
    window = recipe.windows(store.train).read(store.train.tokens, 0)
    optimizer_step(state, recipe.train, recipe.schedule.stage_at(0), window, 1e-2)
    for key, parameter in state.model.named_parameters():
        owners = [
            optimizer
            for optimizer in state.optimizers
            for group in optimizer.param_groups
            if any(parameter is known for known in group["params"])
        ]
        assert owners == [state.optimizer_of(parameter)]
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("settings", [{"optimizer": "muon"}, {"lr_schedule": "cosine"}, {"rewarm_steps": 4}])
def test_other_ways_to_optimize_train(recipe, store, tmp_path, settings):
    assert train(changed(recipe, "train", **settings), store, tmp_path / "run")["val_loss"] < math.log(300)


def test_stages_and_embeddings_have_a_share_of_the_rate_and_a_resumed_run_the_same(recipe, store, tmp_path):
    """Stopped in the blend of two stages' rates; the records are those of the pure functions, the weights those of a
    run that was not stopped."""
    stage = {"ratio": 0.4, "bag_size": 4, "lr_factor": 0.25, "lr_blend_steps": 6}
    mine = changed(recipe, "superposition", ratio=0.3, stages=[stage])
    mine = changed(mine, "train", embedding_lr_factor=0.5)
    args, schedule = mine.train, mine.schedule
    train(mine, store, tmp_path / "whole")
    records = read_records(tmp_path / "whole" / "metrics.jsonl", Training)
    rates = [
        learning_rate(args, step, 20, schedule.boundaries) * schedule.step_at(step).lr_factor for step in range(20)
    ]
    assert [record.lr for record in records] == rates
    assert [record.embedding_lr for record in records] == [rate * 0.5 for rate in rates]
    assert rates[7] == args.lr * 0.25
    assert rates[7] < rates[10] < rates[14] == args.lr
    assert same_weights(tmp_path / "whole", killed_and_resumed(mine, store, tmp_path / "stopped", 11))
    with pytest.raises(UserError, match=r"superposition\.stages"):
        train(
            changed(mine, "superposition", stages=[{**stage, "lr_factor": 0.5}]),
            store,
            tmp_path / "stopped",
            resume=True,
        )


def test_the_optimizer_is_reset_at_the_switch_and_nowhere_else(recipe, store, tmp_path):
    """A run of one phase is the same with the setting and without; one of two is not."""
    recipe = changed(recipe, "train", steps=12)
    for name, settings in (("ordinary", recipe.ordinary()), ("switched", recipe)):
        for reset in (False, True):
            train(changed(settings, "train", reset_optimizer=reset), store, tmp_path / f"{name}-{reset}")
        assert same_weights(tmp_path / f"{name}-False", tmp_path / f"{name}-True") == (name == "ordinary")


def test_averaged_weights_are_exported_beside_the_others(recipe, store, tmp_path):
    result = train(changed(recipe, "train", average=0.8), store, tmp_path / "run")
    plain = train(recipe, store, tmp_path / "plain")
    assert result["val_loss"] == plain["val_loss"], "training itself knows nothing of the average"
    assert result["average_val_loss"] != result["val_loss"]
    from transformers import AutoModelForCausalLM

    averaged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model-average")
    assert not torch.equal(averaged.lm_head.weight, weights(tmp_path / "run")["lm_head.weight"])


def test_training_goes_on_from_a_model(recipe, store, tmp_path):
    """Continued pre-training starts at the loss where the model was left, and says nothing of log(vocabulary)."""
    first = train(recipe, store, tmp_path / "first")
    settings = recipe.model_dump()
    settings["model"] = {"init_from": str(tmp_path / "first" / "model")}
    settings["data"].update(tokenizer=str(tmp_path / "first" / "model"), vocab_size=1024)
    records = []
    again = type(recipe).model_validate(settings)
    train(again, store, tmp_path / "second", listener=records.append)
    begun = next(record for record in records if record["kind"] == "validation")
    assert begun["val_loss"] == pytest.approx(first["val_loss"], abs=1e-6)
    assert not any(record["kind"] == "warning" for record in records)
    stored = json.loads((tmp_path / "second" / "config.json").read_text())
    assert type(recipe).model_validate(stored) == again


def test_activations_computed_twice_change_no_bit(recipe, store, tmp_path):
    train(recipe, store, tmp_path / "kept")
    train(changed(recipe, "train", checkpoint_activations=True), store, tmp_path / "computed")
    assert same_weights(tmp_path / "kept", tmp_path / "computed")


def counted_compilations(monkeypatch):
    """A list that grows with each graph that is compiled of a block."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_block(self, backend=backend))
    return compiled


@pytest.mark.filterwarnings("ignore")
def test_blocks_are_compiled_once_for_both_phases(recipe, store, tmp_path, monkeypatch):
    """The compiler sees one shape: whatever it compiles it compiles before the first step, and counts apart."""
    compiled, counts = counted_compilations(monkeypatch), []

    def listener(record):
        if record["kind"] in ("training", "validation"):
            counts.append(len(compiled))

    result = train(changed(recipe, "train", compile=True), store, tmp_path / "run", listener=listener)
    assert result["compile_seconds"] > 0
    # Validation has rows of its own, without gradients: it may compile one graph more, in either phase the same.
    assert counts[0] >= 1
    after_validation = counts[1]
    assert counts[1:] == [after_validation] * len(counts[1:])
    torch._dynamo.reset()


@pytest.mark.error(n=11)
def test_experts_are_watched_in_both_phases(recipe, store, tmp_path):
    experts = changed(
        recipe,
        "model",
        architecture="qwen3_moe",
        config={"hidden_size": 16, "num_hidden_layers": 1, **MODELS["qwen3_moe"]},
    )
    records = []
    train(experts, store, tmp_path / "run", listener=records.append)
    training = [record for record in records if record["kind"] == "training"]
    assert {record["phase"] for record in training} == {"superposition", "recovery"}
    for record in training:
        assert record["router_loss"] >= 1.9  # 2 of 4 experts, evenly
        assert record["expert_load_max"] >= 1 >= record["expert_load_min"] >= 0
