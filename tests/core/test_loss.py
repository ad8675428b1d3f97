import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from superpose import (
    IGNORE_INDEX,
    bag_weights,
    count_rows,
    linear_multi_hot_cross_entropy,
    multi_hot_cross_entropy,
)

V, D = 7, 3


def reference(logits, targets, weights):
    """The formula, one row at a time, in float64: losses [N] and which rows count."""
    losses, counted = [], []
    for z, y in zip(logits.double(), targets, strict=True):
        valid = [(w, t) for w, t in zip(weights.tolist(), y.tolist(), strict=True) if t != IGNORE_INDEX]
        mass = sum(w for w, _ in valid)
        counted.append(mass > 0)
        if mass > 0:
            losses.append(torch.logsumexp(z, 0) - sum(w * z[t] for w, t in valid) / mass)
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
    rows, bag_size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    ids = st.one_of(st.just(IGNORE_INDEX), st.integers(0, V - 1))
    targets = torch.tensor(draw(st.lists(ids, min_size=rows * bag_size, max_size=rows * bag_size)))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=bag_size, max_size=bag_size))
    return targets.view(rows, bag_size), torch.tensor(weights)


reductions = st.sampled_from(["mean", "sum", "none"])


@pytest.mark.error(n=4)
@given(bags(), reductions)
def test_equals_the_formula(bag, reduction):
    targets, weights = bag
    logits = torch.randn(len(targets), V, dtype=torch.float64, requires_grad=True)
    expected = reduced(*reference(logits, targets, weights), reduction)
    loss = multi_hot_cross_entropy(logits, targets, weights, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(loss)
    torch.testing.assert_close(
        *(torch.autograd.grad((value * upstream).sum(), logits)[0] for value in (loss, expected))
    )


@pytest.mark.error(n=4)
@given(bags(), reductions, st.integers(1, 7), st.booleans())
def test_through_the_head_equals_whole_logits(bag, reduction, chunk_rows, with_bias):
    targets, weights = bag
    hidden = torch.randn(len(targets), D, dtype=torch.float64, requires_grad=True)
    head = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [leaf for leaf in (hidden, head, bias) if leaf is not None]
    expected = multi_hot_cross_entropy(F.linear(hidden, head, bias), targets, weights, reduction=reduction)
    loss = linear_multi_hot_cross_entropy(
        hidden, head, targets, weights, bias, reduction=reduction, chunk_rows=chunk_rows
    )
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(loss)
    for ours, theirs in zip(
        torch.autograd.grad((loss * upstream).sum(), leaves),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_by_finite_differences(reduction):
    torch.manual_seed(0)
    targets = torch.tensor([[0, 0, 5], [1, IGNORE_INDEX, 2], [IGNORE_INDEX] * 3, [6, 3, 4]])
    weights = bag_weights(3, "power")
    logits = torch.randn(4, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: multi_hot_cross_entropy(z, targets, weights, reduction=reduction), logits)
    hidden = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    head = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_multi_hot_cross_entropy(h, w, targets, weights, b, reduction=reduction, chunk_rows=3),
        (hidden, head, bias),
    )


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


@given(st.integers(1, 40), st.integers(1, 8))
def test_one_target_a_row_is_ordinary_cross_entropy(rows, chunk_rows):
    hidden, head = torch.randn(rows, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    targets = torch.randint(0, V, (rows,))
    targets[0] = IGNORE_INDEX
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="sum")
    for shaped in (targets, targets[:, None]):
        loss = linear_multi_hot_cross_entropy(hidden, head, shaped, reduction="sum", chunk_rows=chunk_rows)
        torch.testing.assert_close(loss, expected)


@pytest.mark.error(n=4)
@pytest.mark.parametrize("loss", [multi_hot_cross_entropy, None])
def test_a_batch_without_a_target_is_zero_not_nan(loss):
    hidden = torch.randn(4, V, requires_grad=True)
    targets = torch.full((4, 3), IGNORE_INDEX)
    value = (
        loss(hidden, targets)
        if loss
        else linear_multi_hot_cross_entropy(hidden, torch.eye(V, requires_grad=True), targets)
    )
    value.backward()
    assert value.item() == 0
    assert (hidden.grad == 0).all()


@pytest.mark.error(n=4)
@given(bags(), st.data())
def test_cutting_a_step_into_parts_changes_nothing(bag, data):
    targets, weights = bag
    cut = data.draw(st.integers(0, len(targets)))
    hidden = torch.randn(len(targets), D, dtype=torch.float64)
    head = torch.randn(V, D, dtype=torch.float64)
    whole = linear_multi_hot_cross_entropy(hidden, head, targets, weights)
    parts = sum(
        linear_multi_hot_cross_entropy(hidden[part], head, targets[part], weights, reduction="sum")
        for part in (slice(0, cut), slice(cut, None))
        if len(targets[part])
    )
    torch.testing.assert_close(whole, parts / count_rows(targets, weights).clamp(min=1))


@pytest.mark.error(n=3)
def test_one_head_product_for_the_whole_bag_and_never_all_logits():
    """Counts matrix products and the largest tensor, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        flops = largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
                a, b = args[-2:]
                self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    rows, width, vocab_size, bag_size, chunk_rows = 64, 8, 256, 16, 8
    hidden = torch.randn(rows, width, requires_grad=True)
    head = torch.randn(vocab_size, width, requires_grad=True)
    targets = torch.randint(0, vocab_size, (rows, bag_size))
    with Watch() as watch:
        linear_multi_hot_cross_entropy(hidden, head, targets, chunk_rows=chunk_rows).backward()
    assert watch.flops == 3 * 2 * rows * width * vocab_size
    assert watch.largest <= vocab_size * max(chunk_rows, width)
    with Watch() as watch, torch.no_grad():
        linear_multi_hot_cross_entropy(hidden, head, targets, chunk_rows=chunk_rows)
    assert watch.flops == 2 * rows * width * vocab_size


def test_a_frozen_head_costs_no_gradient_work():
    hidden = torch.randn(8, D, requires_grad=True)
    head = torch.randn(V, D)
    targets = torch.randint(0, V, (8, 2))
    linear_multi_hot_cross_entropy(hidden, head, targets).backward()
    expected = torch.autograd.grad(multi_hot_cross_entropy(hidden @ head.T, targets), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    torch.manual_seed(0)
    hidden, head = torch.randn(256, 32).to(dtype), (0.1 * torch.randn(512, 32)).to(dtype)
    targets = torch.randint(0, 512, (256, 4))
    exact = multi_hot_cross_entropy(hidden.double() @ head.double().T, targets)
    loss = linear_multi_hot_cross_entropy(hidden, head, targets, chunk_rows=16)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-3


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_runs_the_products_in_its_dtype(reduction):
    torch.manual_seed(0)
    hidden = torch.randn(64, 32, requires_grad=True)
    head = (0.1 * torch.randn(512, 32)).requires_grad_()
    bias = torch.randn(512, requires_grad=True)
    targets = torch.randint(0, 512, (64, 4))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_multi_hot_cross_entropy(hidden, head, targets, bias=bias, reduction=reduction).mean()
    loss.backward()
    exact = multi_hot_cross_entropy(hidden.double() @ head.double().T + bias.double(), targets)
    assert 0 < abs(loss.item() - exact.item()) < 1e-2
    assert hidden.grad.dtype == head.grad.dtype == bias.grad.dtype == torch.float32


def test_weights_of_the_paper():
    assert bag_weights(4).tolist() == pytest.approx([0.25] * 4)
    assert bag_weights(3, "power").tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    ratio = bag_weights(3, "exponential")
    assert (ratio[1] / ratio[0]).item() == pytest.approx(math.exp(-1))
    assert bag_weights(3, "first").tolist() == [1, 0, 0]
    assert bag_weights(2, [3, 1]).tolist() == [0.75, 0.25]


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
    with pytest.raises(ValueError, match="choose one of"):
        multi_hot_cross_entropy(logits, targets, reduction="average")
