from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose.models.build import ModelArgs, build_config, build_model
from superpose.train.optim import (
    Average,
    OptimArgs,
    Optimizer,
    build_optimizers,
    clip_gradients,
    learning_rate,
    set_rates,
)
from tests.conftest import make_model


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_updates_each_parameter_once(family, name):
    model = make_model(family)
    optimizers = build_optimizers(OptimArgs(optimizer=name), model)
    updated = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(updated) == sorted(id(parameter) for parameter in model.parameters())


def test_warmup_stable_decay():
    args = OptimArgs(lr=1.0, warmup_steps=4, decay_ratio=0.25)
    rates = [learning_rate(args, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:15] == [1.0] * 11
    assert rates[15:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@given(st.integers(0, 50), st.floats(0, 0.5), st.integers(100, 300))
def test_the_rate_is_never_zero_nor_above_the_peak(warmup_steps, decay_ratio, total_steps):
    args = OptimArgs(lr=3.0, warmup_steps=warmup_steps, decay_ratio=decay_ratio)
    rates = [learning_rate(args, step, total_steps) for step in range(total_steps)]
    assert all(0 < rate <= 3 for rate in rates)
    assert max(rates) == 3


def test_only_matrices_decay(family):
    model = make_model(family)
    decayed, kept = build_optimizers(OptimArgs(), model)[0].param_groups
    assert decayed["weight_decay"] > 0 == kept["weight_decay"]
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() < 2 for parameter in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_cosine_goes_down_to_its_end():
    args = OptimArgs(lr=1.0, warmup_steps=4, lr_schedule="cosine", min_lr_ratio=0.1)
    rates = [learning_rate(args, step, 24) for step in range(24)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)
    assert all(after < before for before, after in pairwise(rates[4:]))
    assert 0.1 < rates[-1] < 0.11


def test_after_a_boundary_the_rate_may_rise_again():
    plain, again = OptimArgs(lr=1.0, warmup_steps=2), OptimArgs(lr=1.0, warmup_steps=2, rewarm_steps=4)
    assert [learning_rate(again, step, 100, (50,)) for step in range(50, 55)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    for step in [*range(50), *range(54, 100)]:
        assert learning_rate(again, step, 100, (50,)) == learning_rate(plain, step, 100)


def test_muon_takes_the_matrices_inside_the_blocks(family):
    model = make_model(family)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = build_optimizers(OptimArgs(optimizer="muon"), model)
    inside = [names[parameter] for group in muon.param_groups for parameter in group["params"]]
    outside = [names[parameter] for group in adamw.param_groups for parameter in group["params"]]
    assert sorted(inside + outside) == sorted(names.values())
    assert all(name.startswith(("model.layers.", "transformer.h.")) for name in inside)
    left = [name for name in outside if dict(model.named_parameters())[name].dim() == 2]
    assert all("embed" in name or "head" in name or ".wte." in name or ".wpe." in name for name in left)


def stepped(model, name, factor, lr=1e-2):
    """Every parameter after one step at a learning rate, by name, from gradients that do not depend on the rate."""
    args = OptimArgs(lr=1.0, optimizer=name, embedding_lr_factor=factor, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizers = build_optimizers(args, model)
    set_rates(optimizers, lr)
    for optimizer in optimizers:
        optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_embedding_and_head_have_a_learning_rate_of_their_own(family, name):
    """They move by what they would at their rate, and all else, tables of positions too, by what it did before."""
    plain, own, at_its_rate = (
        stepped(make_model(family), name, *settings) for settings in ((1.0,), (0.25,), (1.0, 0.25e-2))
    )
    tables = {name for name in plain if name.endswith((".wte.weight", "embed_tokens.weight", "lm_head.weight"))}
    assert len(tables) == (1 if family == "gpt2" else 2)  # which ties them
    for parameter, moved in own.items():
        expected = at_its_rate[parameter] if parameter in tables else plain[parameter]
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-8, msg=parameter)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_with_a_rate_of_its_own_each_parameter_is_updated_once(family, name):
    model = make_model(family)
    optimizers = build_optimizers(OptimArgs(lr=2.0, optimizer=name, embedding_lr_factor=0.5), model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    updated = [id(p) for group in groups for p in group["params"]]
    assert sorted(updated) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups if "lr_factor" in group} == {1.0, 2.0}  # for schedulers that scale it
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert all(parameter.dim() >= 2 for parameter in decayed)


def test_per_layer_embeddings_go_with_the_embedding():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "head_dim": 8, "num_kv_shared_layers": 0}
    small |= {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 50}
    model = build_model(build_config(ModelArgs(architecture="gemma3n_text", config=small), 50, 16, 0))
    (adamw,) = build_optimizers(OptimArgs(embedding_lr_factor=0.5), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    slower = {names[p] for group in adamw.param_groups if group["lr_factor"] == 0.5 for p in group["params"]}
    assert slower == {"model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"}  # the head is tied


@given(st.floats(0.01, 0.99), st.integers(1, 6))
def test_the_average_is_exponential(decay, steps):
    model = torch.nn.Linear(3, 2)
    average = Average(model, decay)
    expected = model.weight.detach().double().clone()
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.tensors["weight"].double(), expected, rtol=1e-4, atol=1e-5)
    trained = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight, average.tensors["weight"])
    assert torch.equal(model.weight, trained)


@given(st.floats(0, 3))
def test_clipping_keeps_the_direction(largest):
    model = torch.nn.Linear(4, 4)
    model(torch.randn(8, 4)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    whole = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    norm = clip_gradients(list(model.parameters()), largest)
    torch.testing.assert_close(norm, whole)
    factor = min(1.0, largest / float(whole)) if largest else 1.0
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-3, atol=1e-5)
