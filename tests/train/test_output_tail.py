"""A tail of output bags whose weights fall to the next token: a run by stages, against the loop written out."""

import json
import re
import textwrap
import tomllib

import pytest
import torch
from torch.nn import functional as F

from superpose.train.config import Recipe
from superpose.train.loop import train
from superpose.train.optim import build_optimizers, clip_gradients, learning_rate
from superpose.train.recipe_file import load_recipe
from superpose.train.records import read_metrics
from superpose.train.step import build_state
from tests.documented import ROOT
from tests.train.test_loop import ALONE, changed, killed_and_resumed, same_weights, weights

STAGES = [
    {"ratio": 0.2, "bag_size": 4},
    {"ratio": 0.3, "bag_size": 3, "mode": "output", "weighting": [1, 0.5, 0.25], "weighting_end": [1, 0.5, 0]},
    {"ratio": 0.2, "bag_size": 2, "mode": "output", "weighting": [1, 0.5], "weighting_end": [1, 0]},
]
"""The switches are at steps 4, 10 and 14 of 20."""


def shares_at(step):
    """By hand: from weights scaled to sum to 1 to weights scaled to sum to 1."""
    if 4 <= step < 10:
        done = (step - 4) / 6
        return [4 / 7 + (2 / 3 - 4 / 7) * done, 2 / 7 + (1 / 3 - 2 / 7) * done, (1 - done) / 7]
    return [2 / 3 + (step - 10) / 12, (1 - (step - 10) / 4) / 3] if 10 <= step < 14 else [1]


@pytest.fixture(scope="module")
def tailed(recipe):
    return changed(recipe, "superposition", bag_size=4, ratio=0.3, stages=STAGES)


@pytest.fixture(scope="module")
def finished(tailed, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("tail") / "whole"
    train(tailed, store, run)
    return run


@pytest.mark.error(n=4)
def test_a_run_is_the_loop_written_out(tailed, finished, store):
    """Whole logits, and for each distance a cross-entropy of its own."""
    args, latents = tailed.train, 16
    model, plan = build_state(tailed, store, ALONE).model, tailed.windows(store.train)
    optimizers, losses = build_optimizers(args, model), []
    for step in range(20):
        window = plan.read(store.train.tokens, step)
        if step < 4:
            vectors = model.get_input_embeddings()(window[:, : 4 * latents].unflatten(1, (latents, 4))).mean(dim=2)
            targets = window[:, 4:].unflatten(1, (latents, 4)).unbind(2)
            shares = [0.25] * 4
        else:
            shares = shares_at(step)
            assert window.shape[1] == latents + len(shares)
            vectors = model.get_input_embeddings()(window[:, :latents])
            targets = [window[:, 1 + i : 1 + i + latents] for i in range(len(shares))]
        logits = model(inputs_embeds=vectors).logits.flatten(0, 1)
        loss = sum(s * F.cross_entropy(logits, t.flatten()) for s, t in zip(shares, targets, strict=True))
        loss.backward()
        losses.append(loss.item())
        clip_gradients(list(model.parameters()), args.grad_clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, step, 20)
            optimizer.step()
            optimizer.zero_grad()
    records = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "training"]
    assert [record.get("bag_loss", record.get("loss")) for record in records] == pytest.approx(losses, abs=1e-5)
    assert ["loss" in record for record in records] == [False] * 14 + [True] * 6  # a tail's is no next-token loss
    ours = weights(finished)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.error(n=12)
def test_a_tail_reads_and_computes_what_ordinary_steps_do(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["raw_tokens"] == (4 * 4 + 16) * 4 * 16
    assert result["latents"] == 20 * 4 * 16


@pytest.mark.error(n=9)
@pytest.mark.parametrize("step", [6, 10, 12])
def test_a_killed_run_resumes_to_the_same_bits(tailed, finished, store, tmp_path, step):
    assert same_weights(finished, killed_and_resumed(tailed, store, tmp_path / "killed", step))


def test_the_recipe_of_the_tail_is_the_one_of_the_docs():
    schedule = load_recipe("cpu-tiny-tail").schedule
    assert [(stage.steps, stage.largest, stage.mode) for stage in schedule.stages] == [
        *((900, 4, "full"), (300, 3, "output"), (300, 2, "output"), (1500, 1, "full")),
    ]
    for step, shares in ((900, [4 / 7, 2 / 7, 1 / 7]), (1200, [2 / 3, 1 / 3]), (1350, [5 / 6, 1 / 6])):
        assert list(schedule.step_at(step).weighting) == pytest.approx(shares)
    page = (ROOT / "docs" / "multi_token.md").read_text(encoding="utf-8")
    shown = re.search(r"(?m)(^    \[\[superposition.*?\n)\nThat is the recipe", page, re.DOTALL)[1]
    assert Recipe.model_validate(tomllib.loads(textwrap.dedent(shown))) == load_recipe("cpu-tiny-tail")
