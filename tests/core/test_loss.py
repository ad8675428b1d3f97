import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose import IGNORE_INDEX, bag_weights, multi_hot_cross_entropy

V = 7


def reference(logits, targets, weights, z_loss=0.0, variant="mce"):
    """The formula, one position at a time, in float64: losses [N] and which of them count."""
    losses, counted = [], []
    for z, y in zip(logits.double(), targets, strict=True):
        valid = [(w, t) for w, t in zip(weights.tolist(), y.tolist(), strict=True) if t != IGNORE_INDEX]
        mass = sum(w for w, _ in valid)
        counted.append(mass > 0)
        if mass > 0:
            lse = torch.logsumexp(z, 0)
            if variant == "mce":
                bag = sum(w * z[t] for w, t in valid) / mass
            else:
                bag = torch.log(sum(w * torch.exp(z[t]) for w, t in valid) / mass)
            losses.append(lse - bag + z_loss * lse**2)
        else:
            losses.append(0 * z.sum())
    return torch.stack(losses), torch.tensor(counted)


def reduced(losses, counted, reduction):
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / max(1, int(counted.sum()))


@st.composite
def bags(draw):
    """Targets [N, S] with ignored and duplicated ones, and weights [S] of which some are zero."""
    positions, bag_size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    ids = st.one_of(st.just(IGNORE_INDEX), st.integers(0, V - 1))
    targets = torch.tensor(draw(st.lists(ids, min_size=positions * bag_size, max_size=positions * bag_size)))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=bag_size, max_size=bag_size))
    return targets.view(positions, bag_size), torch.tensor(weights)


reductions = st.sampled_from(["mean", "sum", "none"])


@pytest.mark.error(n=4)
@given(bags(), reductions, st.sampled_from([0.0, 0.1]))
def test_equals_the_formula(bag, reduction, z_loss):
    targets, weights = bag
    logits = torch.randn(len(targets), V, dtype=torch.float64, requires_grad=True)
    expected = reduced(*reference(logits, targets, weights, z_loss), reduction)
    loss = multi_hot_cross_entropy(logits, targets, weights, reduction=reduction, z_loss=z_loss)
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(loss)
    torch.testing.assert_close(
        *(torch.autograd.grad((value * upstream).sum(), logits)[0] for value in (loss, expected))
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_by_finite_differences(reduction):
    torch.manual_seed(0)
    targets = torch.tensor([[0, 0, 5], [1, IGNORE_INDEX, 2], [IGNORE_INDEX] * 3, [6, 3, 4]])
    weights = bag_weights(3, "power")
    logits = torch.randn(4, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: multi_hot_cross_entropy(z, targets, weights, reduction=reduction), logits)


@pytest.mark.error(n=4)
def test_duplicated_targets_keep_their_weight():
    logits = torch.randn(1, V, dtype=torch.float64)
    twice = multi_hot_cross_entropy(logits, torch.tensor([[3, 3, 1]]))
    log_p = logits.log_softmax(-1)[0]
    torch.testing.assert_close(twice, -(2 * log_p[3] + log_p[1]) / 3)


@pytest.mark.error(n=2)
@pytest.mark.parametrize("bag_size", [1, 4, 16])
def test_at_initialisation_a_bag_costs_log_vocabulary_whatever_its_size(bag_size):
    targets = torch.randint(0, 1000, (64, bag_size))
    loss = multi_hot_cross_entropy(torch.zeros(64, 1000), targets)
    assert loss.item() == pytest.approx(math.log(1000), rel=1e-5)


@pytest.mark.error(n=2)
def test_floor_is_the_entropy_of_the_target():
    targets = torch.tensor([[0, 1, 2, 3]])
    logits = torch.full((1, V), -1e4)
    logits[0, :4] = 0
    assert multi_hot_cross_entropy(logits, targets).item() == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.error(n=4)
def test_a_batch_without_a_target_is_zero_not_nan():
    logits = torch.randn(4, V, requires_grad=True)
    value = multi_hot_cross_entropy(logits, torch.full((4, 3), IGNORE_INDEX), z_loss=1.0)
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_weights_of_the_paper():
    assert bag_weights(4).tolist() == pytest.approx([0.25] * 4)
    assert bag_weights(3, "power").tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    ratio = bag_weights(3, "exponential")
    assert (ratio[1] / ratio[0]).item() == pytest.approx(math.exp(-1))
    assert bag_weights(3, "first").tolist() == [1, 0, 0]
    assert bag_weights(2, [3, 1]).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("weighting", ["uniform", "power", "exponential", "first", [3.0, 0.0, 1.0]])
def test_weights_made_on_a_device_are_those_made_on_the_host(weighting, monkeypatch):
    host = bag_weights(3, weighting)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *of, device, **named: empty(*of, **named))
    assert torch.equal(bag_weights(3, weighting, "cuda"), host)


def test_weights_are_one_graph_under_a_compiler():
    compiled = torch.compile(lambda: bag_weights(3, "power", "meta") + 1, fullgraph=True, backend="eager")
    assert compiled().shape == (3,)


@pytest.mark.parametrize("weighting", ["powr", [1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_wrong_weightings_are_refused(weighting):
    with pytest.raises(ValueError, match=r"choose|give|must"):
        bag_weights(2, weighting)


def test_shapes_that_do_not_belong_together_are_refused():
    logits, targets = torch.zeros(4, V), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="do not belong"):
        multi_hot_cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match="one weight for each place"):
        multi_hot_cross_entropy(logits, targets, torch.ones(3))
    with pytest.raises(ValueError, match="reduction is 'average'; choose one of"):
        multi_hot_cross_entropy(logits, targets, reduction="average")


@given(bags(), reductions, st.sampled_from([0.0, 0.1, 0.3, 1.0]), st.sampled_from([0.0, 0.1]))
def test_label_smoothing_spreads_a_share_over_the_vocabulary(bag, reduction, share, z_loss):
    """(1 - e) times the cross-entropy plus e times the mean of -log p, position by position in float64."""
    targets, weights = bag
    logits = torch.randn(len(targets), V, dtype=torch.float64, requires_grad=True)
    losses, counted = reference(logits, targets, weights, 0.0)
    flat = torch.stack([-z.log_softmax(0).mean() + 0 * z.sum() for z in logits])
    lse = logits.logsumexp(-1)
    smoothed = ((1 - share) * losses + share * flat + z_loss * lse**2) * counted
    expected = reduced(smoothed, counted, reduction)
    loss = multi_hot_cross_entropy(logits, targets, weights, reduction=reduction, z_loss=z_loss, label_smoothing=share)
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(loss)
    torch.testing.assert_close(
        *(torch.autograd.grad((value * upstream).sum(), logits, retain_graph=True)[0] for value in (loss, expected))
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_smoothing_of_one_target_is_transformers(share):
    smoother = pytest.importorskip("transformers.trainer_pt_utils").LabelSmoother(share)
    logits, targets = torch.randn(2, 5, V, dtype=torch.float64), torch.randint(V, (2, 5))
    targets[0, :2] = IGNORE_INDEX
    expected = smoother({"logits": logits}, targets.clone())
    loss = multi_hot_cross_entropy(logits, targets, label_smoothing=share)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # the smoother adds up in float32
