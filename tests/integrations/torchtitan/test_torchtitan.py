"""TorchTitan in one process on the CPU: what it reads, counts and computes, and that it goes on where it stopped."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("torchtitan")

from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchtitan.components.checkpointer import BaseCheckpointManager, CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss, MSELoss
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.config import ConfigManager
from torchtitan.models.common import Embedding, ScaledDotProductAttention
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.tools.logging import logger
from transformers import AutoModelForCausalLM

from superpose import Schedule, count_positions, embed_bags, multi_hot_cross_entropy, split_window
from superpose.core.loss import bag_weights
from superpose.core.stage import StageArgs
from superpose.data.sources import sources_of
from superpose.data.windows import WindowPlan
from superpose.integrations.torchtitan import config_registry
from superpose.integrations.torchtitan.embedding import BagEmbedding
from superpose.integrations.torchtitan.loader import HeldOutLoader, StoreLoader
from superpose.integrations.torchtitan.loss import MultiHotLoss, mark_positions
from superpose.integrations.torchtitan.trainer import Superposition, superposed
from superpose.models.build import build_config, build_model
from superpose.train.loop import train
from superpose.train.recipe_file import load_recipe
from superpose.train.records import read_metrics
from tests.integrations.torchtitan.runs import ROOT, config_of, run, trainer_of
from tests.train.test_loop import changed

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchTitan's and PyTorch's own

STEPS, SWITCH, ROWS, LATENTS = 10, 4, 4, 16
SMALL = {
    "training.steps": STEPS,
    "superposition.ratio": SWITCH / STEPS,
    "training.seq_len": LATENTS,
    "training.local_batch_size": ROWS,
}


def losses(metrics):
    return [record["loss"] for record in metrics.records]


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A run that was never stopped, and its folder with every second step's checkpoint and the final model."""
    out = tmp_path_factory.mktemp("whole")
    checkpoint = CheckpointManager.Config(enable=True, interval=2, keep_latest_k=0, last_save_in_hf=True)
    settings = {"checkpoint": checkpoint, "validator.enable": True, "validator.freq": 2, "validator.steps": -1}
    return run(config_of(store, out, **SMALL, **settings)), out


# The whole way


STAGES = [
    {"ratio": 0.2, "bag_size": 4, "weighting": "power"},
    {"ratio": 0.2, "bag_size": 4, "weighting": [1.0, 1.0, 0.0, 0.0]},
    {"ratio": 0.2, "bag_size": 2, "mode": "output"},
]
ALL = [
    {
        **{"ratio": 0.3, "bag_size": {4: 2, 2: 1, 1: 1}, "bag_size_end": {4: 1, 2: 2}, "weighting": "power"},
        **{"pooling": "sqrt", "ordinary_rows": 0.25, "lr_factor": 2.0, "lr_blend_steps": 2},
    },
    {
        **{"ratio": 0.3, "bag_size": 3, "weighting": [3.0, 2.0, 1.0], "weighting_end": [1.0, 0.5, 0.0]},
        **{"pooling": "power", "lr_factor": 0.5, "lr_blend_steps": 3},
    },
]
SUPERPOSED = {
    "one stage": {},
    "lists": {"bag_size": (4, 2), "ratio": (0.2, 0.2), "weighting": "power"},
    "stages": {"bag_size": 4, "ratio": 0.3, "stages": STAGES},
    "more rows": {"expand": "batch"},
    "all of a stage": {"bag_size": 4, "ratio": 0.3, "stages": ALL},
}
"""Settings of superposition, as recipes write them."""


@pytest.mark.parametrize("given", SUPERPOSED)
def test_losses_and_weights_are_those_of_superposes_own_trainer(recipe, store, tmp_path, given):
    recipe = changed(recipe, "superposition", **SUPERPOSED[given])
    own = {name: getattr(recipe.superposition, name) for name in Superposition.__dataclass_fields__}
    train(recipe, store, tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "training"]
    args = recipe.train
    torch.manual_seed(args.seed)
    start = build_model(build_config(recipe.model, store.vocab_size, args.latents, store.end_of_text))
    start.save_pretrained(tmp_path / "start")
    config = config_of(
        store,
        tmp_path / "titan",
        **{
            "model_spec": config_registry._llama("tiny", start.config, ScaledDotProductAttention.Config()),
            "training.steps": args.steps,
            "training.seq_len": args.latents,
            "training.local_batch_size": args.batch_size,
            "superposition": Superposition(**own),
            "optimizer": config_registry._adamw(args),
            "lr_scheduler.warmup_steps": args.warmup_steps,
            # TorchTitan's first step of the decay has the full rate still.
            "lr_scheduler.decay_ratio": (args.decay_steps(args.steps) + 1) / args.steps,
            "dataloader.seed": args.seed,
            "checkpoint": CheckpointManager.Config(
                enable=True,
                interval=100,
                initial_load_path=str(tmp_path / "start"),
                initial_load_in_hf=True,
                last_save_in_hf=True,
            ),
        },
    )
    metrics = run(config)
    assert losses(metrics) == pytest.approx([r.get("bag_loss", r.get("loss")) for r in records], rel=1e-5)
    assert [r["raw_tokens"] for r in metrics.records] == [r["raw_tokens"] for r in records]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    theirs = final_model(tmp_path / "titan", start.config, args.steps).state_dict()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.error(n=9)
def test_a_run_goes_on_by_the_schedule_it_began_by(whole, store, tmp_path):
    _, out = whole
    stored = json.loads((out / "checkpoint/step-2/superpose.json").read_text())
    assert Schedule.from_dict(stored["schedule"]) == Schedule(STEPS, 4, SWITCH / STEPS)
    assert not (out / f"checkpoint/step-{STEPS}/superpose.json").exists(), "the final model is an ordinary one"
    shutil.copytree(out / "checkpoint/step-6", tmp_path / "checkpoint/step-6")
    again = {**SMALL, "checkpoint.enable": True, "checkpoint.load_step": 6, "checkpoint.interval": 100}
    again["checkpoint.last_save_model_only"] = False
    for name, other in {"bag_size": 2, "ratio": 0.5, "weighting": "power"}.items():
        with pytest.raises(ValueError, match="the run began by Schedule"):
            run(config_of(store, tmp_path, **again | {f"superposition.{name}": other}))
    rows = {"superposition.expand": "batch", "loss.num_chunks": 1}
    with pytest.raises(ValueError, match=r"superposition\.expand 'sequence'"):
        run(config_of(store, tmp_path, **again | rows))
    # Earlier versions stored none.
    (tmp_path / "checkpoint/step-6/superpose.json").unlink()
    assert losses(run(config_of(store, tmp_path, **again))) == losses(whole[0])[6:]


def final_model(out, config, step):
    """The model TorchTitan wrote in Hugging Face's format; it writes no config."""
    config.save_pretrained(out / f"checkpoint/step-{step}")
    return AutoModelForCausalLM.from_pretrained(out / f"checkpoint/step-{step}")


@pytest.mark.error(n=9)
@pytest.mark.parametrize("stop", [2, SWITCH, 6])
def test_a_run_goes_on_exactly_where_it_stopped(stop, whole, store):
    metrics, out = whole
    settings = {"checkpoint.enable": True, "checkpoint.load_step": stop, "checkpoint.interval": 100}
    resumed = run(config_of(store, out, **SMALL, **settings, **{"checkpoint.last_save_model_only": False}))
    assert resumed.records[0]["step"] == stop + 1
    assert losses(resumed) == losses(metrics)[stop:]
    assert [r["seen"] for r in resumed.records] == [r["seen"] for r in metrics.records][stop:]


STAGED = {"superposition.stages": tuple(map(StageArgs.from_dict, ALL)), "superposition.ratio": 0.3}
DESCRIBED = SMALL | STAGED


@pytest.mark.error(n=9)
def test_a_run_of_described_stages_goes_on_exactly_where_it_stopped(store, tmp_path):
    """At steps 2 (sizes are drawn, some rows are ordinary) and 5 (weights and learning rate are changing)."""
    checkpoint = CheckpointManager.Config(enable=True, interval=1, keep_latest_k=0, last_save_model_only=False)
    settings = {**DESCRIBED, "checkpoint": checkpoint}
    metrics = run(config_of(store, tmp_path, **settings))
    for stop in (2, 5):
        again = {"checkpoint.load_step": stop, "checkpoint.interval": 100}
        assert losses(run(config_of(store, tmp_path, **settings, **again))) == losses(metrics)[stop:]


@pytest.mark.error(n=4)
def test_parts_of_a_step_make_the_step(whole, store, tmp_path):
    settings = {**SMALL, "training.local_batch_size": 1, "training.global_batch_size": ROWS}
    assert losses(run(config_of(store, tmp_path, **settings))) == pytest.approx(losses(whole[0]), rel=1e-5)
    described = losses(run(config_of(store, tmp_path, **DESCRIBED)))
    assert losses(run(config_of(store, tmp_path, **settings | STAGED))) == pytest.approx(described, rel=1e-5)


@pytest.mark.error(n=2)
def test_the_first_loss_is_that_of_a_guess(whole):
    # TorchTitan's head starts with logits of unit variance, half a nat above log V.
    assert losses(whole[0])[0] == pytest.approx(torch.tensor(2048.0).log().item() + 0.5, rel=0.05)


@pytest.mark.error(n=12)
def test_latents_are_counted_and_raw_tokens_beside_them(whole):
    for record in whole[0].records:
        step = record["step"]
        assert record["seen"] == step * ROWS * LATENTS
        assert record["raw_tokens"] == (step + 3 * min(step, SWITCH)) * ROWS * LATENTS
    validated = [step for step in range(1, STEPS + 1) if step == 1 or step % 2 == 0]
    for record in whole[0].records:
        if record["step"] - 1 not in validated:
            assert record["counted"] == ROWS * LATENTS


@pytest.mark.error(n=7)
def test_evaluation_asks_for_the_next_token_in_both_phases(whole, store):
    metrics, out = whole
    config = config_of(store, out, **SMALL, **{"checkpoint.enable": True, "checkpoint.load_only": True})
    tokens = store.val.tokens.read(0, len(store.val.tokens))
    rows = (len(tokens) - 1) // LATENTS // ROWS * ROWS
    window = torch.from_numpy(tokens[: rows * LATENTS + 1])
    for step in (2, 6):
        config.checkpoint.load_step = step
        with trainer_of(config) as trainer:
            trainer.checkpointer.load(step=step)
            (model,) = trainer.model_parts
            model._skip_lm_head = False
            with torch.no_grad():
                logits = model(window[:-1].view(rows, LATENTS), torch.arange(LATENTS).repeat(rows, 1))
        expected = F.cross_entropy(logits.flatten(0, 1), window[1:])
        assert metrics.validations[step] == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_saved_is_torchtitans_own_model(whole, store, tmp_path):
    config = config_of(store, tmp_path, **SMALL)
    plain = config.model_spec.model
    with torch.device("meta"):
        ours = plain.build().state_dict()
        plain.tok_embeddings = Embedding.Config(num_embeddings=2048, embedding_dim=64)
        theirs = plain.build().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}
    from transformers import LlamaConfig

    model = final_model(
        whole[1],
        LlamaConfig(
            vocab_size=2048,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
        ),
        STEPS,
    )
    tokens = store.val.tokens.read(0, len(store.val.tokens))
    rows = (len(tokens) - 1) // LATENTS // ROWS * ROWS
    window = torch.from_numpy(tokens[: rows * LATENTS + 1])
    with torch.no_grad():
        logits = model(window[:-1].view(rows, LATENTS)).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), window[1:])
    assert whole[0].validations[STEPS] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.error(n=11)
def test_the_compiled_body_has_one_shape(store, tmp_path):
    settings = {"compile.enable": True, "compile.backend": "eager", "compile.components": ["model"]}
    torch._dynamo.reset()
    graphs = [record["graphs"] for record in run(config_of(store, tmp_path, **SMALL, **settings)).records]
    assert graphs[0] > 0
    assert graphs[-1] == graphs[0]


def test_a_cuda_graph_is_recorded_anew_at_the_switch(store, tmp_path, monkeypatch):
    recorded = []
    config = config_of(store, tmp_path, **SMALL, **{"training.disable_cuda_graphs": False})
    with trainer_of(config) as trainer:
        monkeypatch.setattr(
            "superpose.integrations.torchtitan.trainer.wrap_with_cuda_graph",
            lambda function: recorded.append(trainer.step) or function,
        )
        trainer.train()
    assert recorded == [SWITCH + 1]


def test_a_first_loss_far_from_a_guess_is_warned_of(store, tmp_path):
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger.addHandler(handler)
    try:
        config = config_of(store, tmp_path / "good", **SMALL | {"training.steps": 5})
        run(config)
        assert not [w for w in warnings if "first loss" in w]
        config = config_of(store, tmp_path / "bad", **SMALL | {"training.steps": 5})
        config.model_spec.model.lm_head.param_init = {"weight": torch.nn.init.normal_}
        run(config)
    finally:
        logger.removeHandler(handler)
    assert [w for w in warnings if "check the model's initialisation" in w]


@pytest.mark.parametrize("mode", ["input", "output"])
def test_one_side_alone_may_be_superposed(mode, store, tmp_path):
    metrics = run(config_of(store, tmp_path, **SMALL, **{"superposition.mode": mode}))
    assert losses(metrics)[-1] < losses(metrics)[0]
    assert metrics.records[-1]["seen"] == STEPS * ROWS * LATENTS


def test_the_weighting_reaches_loss_and_loader(store, tmp_path):
    config = config_of(store, tmp_path, **SMALL | {"superposition.weighting": "first"})
    with trainer_of(config) as trainer:
        _, labels = trainer.dataloader.read(0)
        logits = torch.randn(*labels.shape[:2], 300)
        trainer.step = 1
        with mock.patch("torchtitan.trainer.Trainer.train_step"):
            trainer.train_step(iter(()))
        loss, _ = trainer.loss_fn.loss_fn(logits, labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels[..., 0].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# The parts


bags = st.integers(1, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.one_of(st.just(-100), st.integers(0, 12)), min_size=size, max_size=size), min_size=1, max_size=9
    )
)


@pytest.mark.error(n=4)
@given(
    targets=bags,
    weighting=st.sampled_from(["uniform", "power", "first"]),
    cut=st.integers(0, 9),
    z_loss=st.sampled_from([0.0, 0.01]),
)
def test_a_step_is_divided_by_its_positions_as_torchtitan_counts_them(targets, weighting, cut, z_loss):
    targets = torch.tensor(targets).unsqueeze(0)
    weights = bag_weights(targets.shape[-1], weighting)
    labels = mark_positions(targets, weights)
    counted = (labels != -100).sum()
    assert counted == targets.shape[-1] * count_positions(targets, weights)
    logits = torch.randn(*targets.shape[:2], 13, dtype=torch.float64)
    reference = logits.clone().requires_grad_()
    expected = multi_hot_cross_entropy(reference, targets, weights, z_loss=z_loss)
    expected.backward()
    logits.requires_grad_()
    loss_fn = MultiHotLoss.Config(weighting=weighting, z_loss=z_loss).build()
    parts = [(logits[:, :cut], labels[:, :cut]), (logits[:, cut:], labels[:, cut:])]
    total = sum(loss_fn(z, y, counted.clamp(min=1))[0] for z, y in parts if y.numel())
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(logits.grad, reference.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_single_tokens_it_is_torchtitans_cross_entropy(dtype):
    logits, labels = torch.randn(2, 8, 50).to(dtype), torch.randint(50, (2, 8))
    labels[0, :3] = -100
    results = []
    for config in (MultiHotLoss.Config(), CrossEntropyLoss.Config()):
        leaf = logits.clone().requires_grad_()
        loss, _ = config.build()(leaf, labels, torch.tensor(13))
        loss.backward()
        results.append((loss, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_z_loss_is_of_training_in_both_phases_and_not_of_validation():
    logits, labels = torch.randn(2, 8, 50, dtype=torch.float64), torch.randint(50, (2, 8))
    labels[0, :3] = -100
    loss_fn = MultiHotLoss.Config(z_loss=0.01, weighting="power").build()
    ours, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, _ = loss_fn(ours, labels, torch.tensor(13))
    loss.backward()
    multi_hot_cross_entropy(reference, labels, z_loss=0.01).backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-6, atol=1e-9)
    validation, _ = loss_fn(logits, labels, torch.tensor(13))
    assert validation.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item())
    assert loss.item() > validation.item() + 0.01


def test_half_precision_logits_are_summed_in_float32():
    logits, targets = torch.randn(1, 64, 5000).bfloat16(), torch.randint(5000, (1, 64, 4))
    loss, _ = MultiHotLoss.Config().build()(logits, targets, torch.tensor(64 * 4))
    truth = multi_hot_cross_entropy(logits.double(), targets)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.error(n=5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bags_are_averaged_and_single_tokens_looked_up(dtype):
    embedding = BagEmbedding.Config(num_embeddings=30, embedding_dim=8).build().to(dtype)
    bags = torch.randint(30, (3, 5, 4))
    bags[0, 0, 1:], bags[1, 1] = -100, -100
    assert torch.equal(embedding(bags), embed_bags(bags, embedding.weight))
    assert torch.equal(embedding(bags[..., 0].clamp(min=0)), embedding.weight[bags[..., 0].clamp(min=0)])


@pytest.mark.parametrize("expand", ["sequence", "batch"])
def test_the_rows_of_described_stages_are_those_of_the_recipe(expand, store):
    """Drawn sizes, ordinary rows and shares of sources: two ranks in two parts read what `superpose train` does."""
    half = len(store.train.offsets) // 2
    origins = (np.arange(len(store.train.offsets) - 1) >= half).astype(int)
    sources = sources_of(("web", "code"), origins, store.train.offsets, (1, 1))
    stage = StageArgs(
        0.5, bag_size={4: 1, 2: 1}, ordinary_rows=0.25, mixture={"web": 0.75, "code": 0.25}, weighting="power"
    )
    schedule = Schedule(STEPS, stages=[stage], seed=3)
    whole = WindowPlan(schedule, 8, LATENTS, len(store.train.tokens), 3, expand, sources=sources)
    config = StoreLoader.Config(dataset_path=str(store.path), schedule=schedule, rows=8, seed=3, expand=expand)
    named = SimpleNamespace(train=replace(store.train, sources=sources), end_of_text=store.end_of_text)
    place = {"dp_world_size": 2, "seq_len": LATENTS, "local_batch_size": 2}
    with mock.patch("superpose.integrations.torchtitan.loader.open_store", return_value=named):
        loaders = [config.build(dp_rank=rank, **place) for rank in range(2)]
    assert len({schedule.bag_size_at(step) for step in range(5)}) == 2
    for step in range(STEPS):
        computed = schedule.step_at(step)
        inputs, targets = split_window(whole.read(store.train.tokens, step), computed.bag_size, computed.mode)
        read = [loader.read(2 * step + part) for loader in loaders for part in range(2)]
        assert torch.equal(torch.cat([batch["input"] for batch, _ in read]), inputs)
        labels = torch.cat([labels for _, labels in read])
        assert torch.equal(labels.masked_fill(labels < 0, -100), targets)


@pytest.mark.error(n=1)
@pytest.mark.parametrize("order", ["joined", "aligned"])
def test_ranks_and_parts_share_a_step_out(order, store):
    """Bag j's targets are bag j + 1, and whoever reads them, the rows of a step are the same."""

    def rows(ranks, rows_at_once, step):
        read = []
        for rank in range(ranks):
            config = StoreLoader.Config(
                dataset_path=str(store.path),
                schedule=Schedule(STEPS, 4, 0.4),
                rows=8,
                documents=order,
                attention="document",
            )
            loader = config.build(dp_world_size=ranks, dp_rank=rank, seq_len=LATENTS, local_batch_size=rows_at_once)
            for part in range(loader.parts):
                inputs, labels = loader.read(step * loader.parts + part)
                read += [(i.tolist(), p.tolist(), y.tolist()) for i, p, y in zip(*inputs.values(), labels, strict=True)]
        return read

    for step in (0, 3, 4, 9):
        whole = rows(1, 8, step)
        assert rows(2, 2, step) == whole
        assert rows(4, 1, step) == whole
        for inputs, positions, labels in whole:
            inputs, labels = torch.tensor(inputs), torch.tensor(labels)
            missing = labels.masked_fill(labels < 0, -100)
            assert torch.equal(inputs[1:], missing[:-1])
            assert positions[0] == 0
        assert inputs.dim() == (2 if step < 4 else 1)


def test_the_loader_goes_on_with_other_ranks_and_parts(store):
    def loader(ranks, rows_at_once):
        config = StoreLoader.Config(dataset_path=str(store.path), schedule=Schedule(STEPS, 4, 0.4), rows=8)
        return config.build(dp_world_size=ranks, dp_rank=0, seq_len=LATENTS, local_batch_size=rows_at_once)

    first = loader(1, 8)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    batches.close()
    second = loader(2, 2)
    second.load_state_dict(first.state_dict())
    inputs, _ = next(iter(second))
    assert torch.equal(inputs["input"], first.read(3)[0]["input"][:2])


def test_held_out_rows_are_read_once_by_one_rank(store):
    seen = Counter()
    for rank in range(2):
        config = HeldOutLoader.Config(dataset_path=str(store.path))
        loader = config.build(dp_world_size=2, dp_rank=rank, seq_len=LATENTS, local_batch_size=3)
        for inputs, labels in loader:
            assert torch.equal(inputs["input"][:, 1:], labels[:, :-1])
            seen.update(tuple(row) for row in inputs["input"].tolist())
    rows = (len(store.val.tokens) - 1) // LATENTS // 6 * 6
    tokens = store.val.tokens.read(0, rows * LATENTS)
    assert seen == Counter(map(tuple, tokens.reshape(rows, LATENTS).tolist()))


# The configs


@pytest.mark.parametrize("name", ["270m", "600m", "3b", "10b-a1b"])
def test_the_papers_models_are_those_of_the_recipes(name):
    recipe = load_recipe(f"paper-{name}")
    config = getattr(config_registry, f"superpose_{name.replace('-', '_')}")()
    with torch.device("meta"):
        ours = config.model_spec.model.build()
        theirs = AutoModelForCausalLM.from_config(build_config(recipe.model, 128256, recipe.train.latents, 128001))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    settings, train_args = recipe.superposition, recipe.train
    for name in (each.name for each in fields(Superposition)):
        assert getattr(config.superposition, name) == getattr(settings, name), name
    assert config.training.steps == train_args.steps
    assert config.training.seq_len == train_args.latents
    assert config.training.global_batch_size == train_args.batch_size
    assert config.compile.enable == train_args.compile
    assert (config.activation_checkpoint is not None) == train_args.checkpoint_activations
    assert config.checkpoint.interval == train_args.checkpoint_every
    assert config.lr_scheduler.warmup_steps == train_args.warmup_steps
    assert config.lr_scheduler.decay_ratio == train_args.decay_ratio
    rope = config.model_spec.model.layers[0].attention.rope
    assert rope.theta == theirs.config.rope_parameters["rope_theta"]
    assert ours.norm.eps == theirs.config.rms_norm_eps
    for group in config.optimizer.param_groups:
        kwargs = group.optimizer_kwargs
        assert kwargs["lr"] == train_args.lr
        assert kwargs["betas"] == train_args.betas
        assert kwargs["weight_decay"] == (0.0 if "norm" in group.pattern else train_args.weight_decay)


def test_the_command_line_sets_our_fields():
    config = ConfigManager().parse_args(
        [
            *("--module", "superpose.integrations.torchtitan", "--config", "superpose_270m"),
            *("--superposition.bag_size", "8", "--superposition.ratio", "0.25", "--superposition.weighting", "power"),
            *("--superposition.expand", "batch", "--loss.loss_fn.z_loss", "1e-4"),
            *("--dataloader.dataset_path", "stores/dclm", "--dataloader.documents", "aligned"),
            *("--training.steps", "500", "--loss.num_chunks", "4"),
        ]
    )
    assert config.superposition == Superposition(bag_size=8, ratio=0.25, weighting="power", expand="batch")
    assert config.loss.loss_fn.z_loss == 1e-4
    assert (config.dataloader.dataset_path, config.dataloader.documents) == ("stores/dclm", "aligned")
    assert (config.training.steps, config.loss.num_chunks) == (500, 4)


def test_any_decoder_of_torchtitan_can_be_superposed(store, tmp_path):
    config = superposed(llama3_debugmodel(), Superposition(bag_size=2, ratio=0.4), str(store.path))
    for layer in config.model_spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    ours = config_of(store, tmp_path)
    config.metrics, config.dump_folder = ours.metrics, str(tmp_path)
    config.training.steps, config.training.seq_len, config.training.local_batch_size = 5, 16, 2
    config.validator.enable, config.checkpoint.enable = False, False
    metrics = run(config)
    assert [record["bag_size"] for record in metrics.records] == [2, 2, 1, 1, 1]
    assert isinstance(config.loss, ChunkedLossWrapper.Config)


class OwnRates(LRSchedulersContainer):
    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataloader.dataset_path": None}, "give --dataloader.dataset_path"),
        ({"superposition.ratio": 1.5}, "between 0 and 1"),
        ({"superposition.stages": (StageArgs(0.3, bag_size=4),), "superposition.bag_size": 8}, "leave out bag_size"),
        ({"superposition.stages": (StageArgs(0.3, bag_size=4, extra_heads=1),)}, "stage 1: extra_heads is not served"),
        (
            {
                "superposition.stages": (StageArgs(0.3, bag_size={4: 1, 2: 1}),),
                "training.disable_cuda_graphs": False,
            },
            r"stage 1: .* set training\.disable_cuda_graphs",
        ),
        (
            {"superposition.stages": (StageArgs(0.3, bag_size=4, lr_factor=2.0),), "lr_scheduler": OwnRates.Config()},
            "OwnRates.Config know no lr_factor",
        ),
        ({"superposition.expand": "batch", "training.seq_len": 60}, "multiple of the bag size times loss.num_chunks"),
        ({"superposition.expand": "batch", "parallelism.pipeline_parallel_degree": 2}, "rows have two lengths"),
        ({"loss.loss_fn.z_loss": -1.0}, "z_loss is -1.0"),
        ({"checkpoint": BaseCheckpointManager.Config()}, "no place for the schedule"),
        ({"parallelism.spmd_backend": "full_dtensor"}, "choose spmd_types or partial_dtensor"),
        ({"model_spec.model.vocab_size": 10}, "prepare the text with the model's tokenizer"),
        ({"loss": MSELoss.Config()}, "choose TorchTitan's cross-entropy"),
        ({"model_spec.model.tok_embeddings": Embedding.Config(num_embeddings=2048, embedding_dim=64)}, "takes no bags"),
        ({"dataloader": llama3_debugmodel().dataloader}, "make it with `superposed`"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings, message, store, tmp_path):
    config = config_of(store, tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        config.build()


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"ordinary_rows": 0.3}, r"is 2\.4 of 8 rows"), ({"mixture": {"web": 1.0}}, "mixture of stage 1")],
)
def test_what_the_text_or_the_batch_cannot_give_is_one_sentence(setting, message, store, tmp_path):
    config = config_of(store, tmp_path, **{"superposition.stages": (StageArgs(0.3, bag_size=4, **setting),)})
    with pytest.raises(ValueError, match=message):
        run(config)


def test_a_config_without_a_language_model_is_refused():
    config = llama3_debugmodel()
    config.model_spec = None
    with pytest.raises(ValueError, match="nothing to put bags into"):
        superposed(config)


def test_a_held_out_side_too_small_is_one_sentence(store):
    config = HeldOutLoader.Config(dataset_path=str(store.path))
    with pytest.raises(ValueError, match="hold out more"):
        config.build(dp_world_size=1, dp_rank=0, seq_len=2048, local_batch_size=10**6)


def test_the_example_trains_through_the_switch(store, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "examples/torchtitan_cpu.py"]
    command += ["--module", "superpose.integrations.torchtitan", "--config", "superpose_debug"]
    command += ["--dataloader.dataset_path", str(store.path), "--dump_folder", str(tmp_path / "out")]
    command += ["--training.steps", "10", "--metrics.disable_color_printing"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert "step 4: recovery begins, bag size 1" in output
    assert "step: 10  loss:" in output


def test_the_pages_sample_makes_a_config():
    page = (ROOT / "docs/torchtitan.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(code, "documentation", "exec"), names)  # our own text
    config = names["my_8b"]()
    assert config.superposition == Superposition(bag_size=6, ratio=0.3)
    assert config.dataloader.dataset_path == "stores/dclm"
    assert isinstance(config.model_spec.model.tok_embeddings, BagEmbedding.Config)
