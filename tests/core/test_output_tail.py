"""Weights of an output bag that fall to the next token alone: multi-token prediction on the model's own head."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from superpose import IGNORE_INDEX, SuperposedLM, count_positions, window_length
from superpose.core.loss import multi_hot_cross_entropy
from tests.conftest import make_model

V, LATENTS = 50, 5
BEGIN, END = (1.0, 0.5, 0.25), (1.0, 0.5, 0.0)


def window_of(bag_size, rows=3):
    generator = torch.Generator().manual_seed(bag_size)
    return torch.randint(0, V, (rows, window_length(LATENTS, bag_size, "output")), generator=generator)


def written_out(model, window, weights):
    """The weighted mean of ordinary cross-entropies of the next token, the one after it and so on, in float64.

    A latent's weights are scaled to sum to 1 over the targets it has; one that has none of any weight is not counted.
    """
    inputs = window[:, : -len(weights)]
    logits = model(inputs_embeds=model.get_input_embeddings()(inputs.clamp(min=0))).logits
    total, counted = 0.0, 0
    for row in range(len(window)):
        for j in range(inputs.shape[1]):
            targets = window[row, j + 1 : j + 1 + len(weights)].tolist()
            known = [(w, t) for w, t in zip(weights, targets, strict=True) if t != IGNORE_INDEX and w > 0]
            if not known or inputs[row, j] == IGNORE_INDEX:
                continue
            log_p = logits[row, j].log_softmax(0)
            total = total - sum(w * log_p[t] for w, t in known) / sum(w for w, _ in known)
            counted += 1
    return total / counted, counted


@pytest.mark.error(n=4)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("padding", [0, 1, 2, 4])
def test_the_loss_is_the_weighted_mean_of_predictions_further_ahead(share, padding):
    """At the end of a row a latent may have lost the targets of weight and kept one that weighs nothing."""
    weights = [a + (b - a) * share for a, b in zip(BEGIN, END, strict=True)]
    model = make_model("llama").double()
    window = window_of(3)
    if padding:
        window[0, -padding:] = IGNORE_INDEX
        window[1, -3:-2] = IGNORE_INDEX
        window[2, -3:-1] = IGNORE_INDEX  # the last latent is left with the token of the least weight alone
    ours = SuperposedLM(model, weights)(window, 3, "output")
    expected, counted = written_out(model, window, weights)
    assert ours.positions == counted
    torch.testing.assert_close(ours.loss, expected, rtol=1e-7, atol=0)  # weights are float32, as 0.175 is to a digit
    parameters = list(model.parameters())
    for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours.loss, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@given(st.integers(2, 4), st.integers(0, 3))
def test_targets_that_weigh_nothing_are_as_if_they_were_not_there(bag_size, more):
    """So a tail that has come down to [1, 0.5, 0] goes on as one of [1, 0.5], and one of [1, 0] as recovery."""
    lm = SuperposedLM(make_model("llama").double())
    window = window_of(bag_size + more)
    weights = [2.0**-place for place in range(bag_size)]
    lm.weighting = weights + [0.0] * more
    longer = lm(window, bag_size + more, "output")
    lm.weighting = weights
    shorter = lm(window[:, : window_length(LATENTS, bag_size, "output")], bag_size, "output")
    torch.testing.assert_close(longer.loss, shorter.loss, rtol=1e-12, atol=1e-14)
    lm.weighting = [1.0] + [0.0] * (bag_size + more - 1)
    alone = lm(window, bag_size + more, "output")
    lm.weighting = "uniform"
    ordinary = lm(window[:, : LATENTS + 1])
    torch.testing.assert_close(alone.loss, ordinary.loss, rtol=1e-12, atol=1e-14)
    assert alone.positions == ordinary.positions


def test_a_target_of_no_weight_gets_no_gradient():
    targets = torch.tensor([[1, 2, 3], [4, 5, IGNORE_INDEX], [IGNORE_INDEX, IGNORE_INDEX, 6]])
    weights = torch.tensor([1.0, 0.5, 0.0])
    logits = torch.randn(3, V, dtype=torch.float64, requires_grad=True)
    loss = multi_hot_cross_entropy(logits, targets, weights, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    probabilities = logits.detach().softmax(dim=-1)
    assert count_positions(targets, weights) == 2
    torch.testing.assert_close(gradient[0, 3], probabilities[0, 3])  # as a token that is no target at all
    assert not gradient[2].any()


def test_scaled_weights_are_those_of_a_sum_of_cross_entropies():
    """modded-nanogpt adds them up as they are: the same direction, 1 + 0.5 + 0.25 times as long."""
    model = make_model("llama").double()
    window = window_of(3)
    logits = model(input_ids=window[:, :-3]).logits.flatten(0, 1)
    added = sum(w * F.cross_entropy(logits, window[:, 1 + i :][:, :LATENTS].flatten()) for i, w in enumerate(BEGIN))
    torch.testing.assert_close(1.75 * SuperposedLM(model, BEGIN)(window, 3, "output").loss, added)
