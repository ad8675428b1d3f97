"""Heads that predict further ahead: against the method written out, with whole logits and ordinary cross-entropies."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from superpose import IGNORE_INDEX, SuperposedLM, SuperposedParts, window_length
from superpose.core.extra_heads import ExtraHeads
from superpose.models.build import model_flops_per_latent
from tests.conftest import make_model

V, D = 50, 16


def drawn(heads, seed=0):
    """Heads as they are after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in heads.layers:
            layer.weight.copy_(0.2 * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    return heads


def with_heads(family, count, dtype=torch.float64, **settings):
    lm = SuperposedLM(make_model(family).to(dtype), extra_heads=count, **settings)
    drawn(lm.extra_heads)
    return lm


def window_of(latents, bag_size, mode="full", rows=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, V, (rows, window_length(latents, bag_size, mode)), generator=generator)


def targets_of(row, latent, ahead, bag_size, mode):
    """The tokens that head `ahead` is asked for at a latent of a row, by their places: head 0 is the model's own."""
    if mode == "output":
        return row[latent + ahead + 1 : latent + ahead + 1 + bag_size]
    bag = row[(latent + ahead + 1) * bag_size : (latent + ahead + 2) * bag_size]
    return bag[:1] if mode == "input" else bag


def written_out(lm, window, bag_size, mode, latents, weight):
    """Row by row, latent by latent, target by target: the loss, and the mean of the heads' losses."""
    table, matrix = lm.model.get_input_embeddings().weight, lm.model.get_output_embeddings().weight
    stride = 1 if mode == "output" else bag_size
    totals, counted = [0.0] * (1 + len(lm.extra_heads)), 0
    for row in window.tolist():
        bags = [[t for t in row[j * stride : (j + 1) * stride] if t != IGNORE_INDEX] for j in range(latents)]
        vectors = torch.stack([table[bag].mean(0) if bag else torch.zeros_like(table[0]) for bag in bags])
        hidden = lm.decoder()(inputs_embeds=vectors.unsqueeze(0)).last_hidden_state[0]
        for j in range(latents):
            for ahead in range(len(totals)):
                state = hidden[j]
                if ahead:
                    state = state + lm.extra_heads.layers[ahead - 1].weight @ state
                known = [t for t in targets_of(row, j, ahead, bag_size, mode) if t != IGNORE_INDEX]
                # What a latent is asked for later is not asked of one that is empty, here or there.
                if (
                    not known
                    or not bags[j]
                    or not [t for t in row[(j + ahead) * stride : (j + ahead + 1) * stride] if t != IGNORE_INDEX]
                ):
                    continue
                log_p = (matrix @ state).log_softmax(0)
                totals[ahead] = totals[ahead] - log_p[known].mean()
                counted += ahead == 0
    own, *others = (total / max(counted, 1) for total in totals)
    mean = sum(others) / len(others)
    return own + weight * mean, mean


@pytest.mark.error(n=6)
@pytest.mark.parametrize(("bag_size", "mode"), [(1, "full"), (3, "full"), (3, "input"), (3, "output")])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_the_method_written_out(bag_size, mode, padded):
    latents, count = 4, 2
    lm = with_heads("llama", count)
    window = window_of(latents + count, bag_size, mode)
    if padded:
        window[0, -bag_size - 2 :] = IGNORE_INDEX
        window[1, :bag_size] = IGNORE_INDEX
        window[2, bag_size + 1] = IGNORE_INDEX
    output = lm(window, bag_size, mode, extra_heads_weight=0.3)
    expected, mean = written_out(lm, window, bag_size, mode, latents, 0.3)
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.extra_loss, mean, rtol=1e-10, atol=1e-12)
    parameters = list(lm.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (output.loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.error(n=1)
@pytest.mark.parametrize("mode", ["full", "input", "output"])
def test_a_head_predicts_what_the_model_predicts_so_many_latents_later(mode):
    """And sees none of it: no gradient of a head's loss reaches a token it is asked for."""
    latents, bag_size, count = 3, 2, 2
    lm = SuperposedLM(make_model("llama"), extra_heads=count)
    window = torch.arange(window_length(latents + count, bag_size, mode)).unsqueeze(0)  # each token its own embedding
    lm(window, bag_size, mode, extra_heads_weight=1.0).extra_loss.backward()
    stride = 1 if mode == "output" else bag_size
    seen = lm.model.get_input_embeddings().weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert seen == list(range(latents * stride))


@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from(["full", "input", "output"]))
def test_without_weight_the_loss_is_the_models_own(count, bag_size, mode):
    """A head of weight 0 moves nothing but its own count of tokens read."""
    latents = 3
    lm = with_heads("llama", count)
    window = window_of(latents + count, bag_size, mode)
    own = SuperposedLM(lm.model)(window[:, : window_length(latents, bag_size, mode)], bag_size, mode)
    output = lm(window, bag_size, mode, extra_heads_weight=0.0)
    assert torch.equal(output.loss, own.loss)
    assert torch.equal(output.cross_entropy, own.cross_entropy)


def test_a_fresh_head_predicts_what_the_model_does(family):
    """No random number is drawn for it, and its first loss is the model's own of a latent later."""
    before = torch.get_rng_state()
    lm = SuperposedLM(make_model(family), extra_heads=2)
    hidden = torch.randn(2, 3, D)
    assert torch.equal(lm.extra_heads(hidden), hidden.repeat(2, 1, 1))
    torch.manual_seed(0)
    make_model(family)
    torch.set_rng_state(before)
    ExtraHeads(3, torch.zeros(V, D))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.error(n=11)
@pytest.mark.parametrize("bag_size", [1, 4])
def test_every_head_learns_from_the_first_step(family, bag_size):
    lm = SuperposedLM(make_model(family), extra_heads=2)
    assert lm.check() == []
    lm(window_of(6, bag_size), bag_size, extra_heads_weight=0.3).loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in lm.extra_heads.parameters())
    assert [name for name, parameter in lm.named_parameters() if parameter.grad is None] == []


@pytest.mark.error(n=7)
def test_the_model_holds_nothing_of_its_heads(family, tmp_path):
    model = make_model(family)
    names = set(model.state_dict())
    lm = SuperposedLM(model, extra_heads=2)
    lm(window_of(6, 4), 4, extra_heads_weight=0.3).loss.backward()
    assert set(model.state_dict()) == names
    assert "head" not in str(sorted(set(model.config.to_dict()) - set(make_model(family).config.to_dict())))
    lm.set_extra_heads(0)
    assert set(lm.state_dict()) == {f"model.{name}" for name in names}
    torch.testing.assert_close(lm(window_of(6, 1)).loss, SuperposedLM(model)(window_of(6, 1)).loss)


@pytest.mark.parametrize("variant", ["mce", "mce_alt"])
def test_other_heads_and_losses_have_extra_heads_too(variant):
    """Whole logits, a cap, a z-loss, label smoothing: what the model's own loss has is that of a head."""
    model, count = make_model("llama").double(), 2
    smoothing = 0.1 if variant == "mce" else 0.0
    linear = SuperposedLM(model, variant=variant, z_loss=0.1, label_smoothing=smoothing, extra_heads=count)
    parts = replace(linear.parts(), softcap=5.0, extra_heads=drawn(linear.extra_heads))
    window = window_of(4 + count, 3)
    hidden, *_ = parts.hidden_states(window[:, :12].unflatten(1, (4, 3)))
    expected = [
        replace(parts, backbone=lambda vectors, state=state: state, extra_heads=None)(
            window[:, 3 * (i + 1) :][:, : 3 * 5], 3
        )
        for i, state in enumerate(parts.extra_heads(hidden).chunk(count))
    ]
    # The backbone's output is given, so a window that starts later has the targets of later latents.
    output = parts.output(window, 3, extra_heads_weight=0.5)
    torch.testing.assert_close(output.extra_loss, sum(expected) / count, rtol=1e-10, atol=1e-12)


@pytest.mark.error(n=4)
def test_accumulation_changes_nothing():
    lm = with_heads("qwen3_moe", 2, torch.float32)
    window = window_of(6, 4, rows=4)
    window[0, 12:] = IGNORE_INDEX
    whole = lm(window, 4, extra_heads_weight=0.3)
    parts = [lm(part, 4, normalizer=whole.positions, extra_heads_weight=0.3) for part in window.split(1)]
    torch.testing.assert_close(sum(part.extra_loss for part in parts), whole.extra_loss)
    heads = list(lm.extra_heads.parameters())
    ours = torch.autograd.grad(sum(part.extra_loss for part in parts), heads)
    for one, other in zip(ours, torch.autograd.grad(whole.extra_loss, heads), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.error(n=12)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_flops_of_heads_are_what_pytorch_counts(family):
    """Of the heads' own matrices and of the unembedding, which each of them multiplies by once more."""
    lm, latents, rows = SuperposedLM(make_model(family), extra_heads=2), 32, 3
    hidden = torch.randn(rows, latents, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        F.linear(lm.extra_heads(hidden), lm.model.get_output_embeddings().weight).sum().backward()
    more = model_flops_per_latent(lm.model, latents, extra_heads=2) - model_flops_per_latent(lm.model, latents)
    assert more * rows * latents == counter.get_total_flops()


def test_a_number_of_heads_is_gone_on_with():
    lm = with_heads("llama", 3)
    first, second, _ = lm.extra_heads.layers
    lm.set_extra_heads(2)
    assert list(lm.extra_heads.layers) == [first, second]
    lm.set_extra_heads(3)
    assert list(lm.extra_heads.layers[:2]) == [first, second]
    assert not lm.extra_heads.layers[2].weight.any()


def test_heads_are_not_left_out_in_silence():
    lm = SuperposedLM(make_model("llama"), extra_heads=1)
    with pytest.raises(ValueError, match="leave out 1 extra head"):
        lm(window_of(4, 2), 2)
    with torch.no_grad():  # as in evaluation
        lm(window_of(4, 1))
    with pytest.raises(ValueError, match="give a number of 0 or more"):
        lm(window_of(4, 2), 2, extra_heads_weight=-1.0)
    with pytest.raises(ValueError, match="holds nothing to read"):
        lm(window_of(1, 2), 2, extra_heads_weight=0.3)
    with pytest.raises(ValueError, match="there are none"):
        SuperposedLM(lm.model)(window_of(4, 2), 2, extra_heads_weight=0.3)
    for count in (-1, 1.0, True):
        with pytest.raises(ValueError, match="whole number of heads"):
            SuperposedLM(lm.model, extra_heads=count)


@pytest.mark.error(n=11)
def test_compiled_it_is_the_same_and_an_annealed_weight_compiles_nothing_again():
    lm = with_heads("llama", 2)
    window = window_of(6, 4)
    expected = [lm(window, 4, extra_heads_weight=weight).loss for weight in (0.3, 0.2, 0.1)]
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(lm, backend=counter)
    for weight, loss in zip((0.3, 0.2, 0.1), expected, strict=True):
        torch.testing.assert_close(compiled(window, 4, extra_heads_weight=torch.tensor(weight)).loss, loss)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_parts_of_ones_own_have_heads():
    embedding, matrix = torch.nn.Embedding(V, D), torch.nn.Linear(D, V, bias=False)
    loss_of = SuperposedParts(embedding, lambda x: x, matrix, extra_heads=ExtraHeads(2, matrix.weight))
    output = loss_of.output(window_of(5, 3), 3, extra_heads_weight=1.0)
    assert torch.equal(loss_of(window_of(5, 3), 3, extra_heads_weight=1.0), output.cross_entropy + output.extra_loss)
