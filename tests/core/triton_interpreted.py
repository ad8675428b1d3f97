"""Tests of the kernels as Triton's interpreter runs them on the CPU; test_triton_passes.py starts them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose import linear_multi_hot_cross_entropy
from superpose.core import passes, sweep, triton_passes
from tests.core.test_linear_loss import leaves, options, whole_logits
from tests.core.test_loss import V, bags
from tests.core.test_passes import block, check_formulas

FUSED = passes.Passes(triton_passes.read_logits, triton_passes.write_gradient)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of few entries are several blocks, and the interpreter is quick."""
    monkeypatch.setattr(triton_passes, "BLOCK", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=20)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 50)),
    st.integers(0, 9),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([5, 100]),
    st.booleans(),
)
def test_the_kernels_are_their_formulas(dtype, shape, seed, softcap, scale, with_bias):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_passes, "BLOCK", 16)
        check_formulas(FUSED, block(shape, dtype, seed, scale, with_bias), softcap, scale)


@pytest.mark.parametrize("vocab_size", [1, 4095, 4096, 4097, 9001])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_the_blocks_that_a_gpu_gets(vocab_size, softcap):
    check_formulas(FUSED, block((2, 3, vocab_size), torch.bfloat16, 0, 5, True), softcap, 5)


def read(logits, places=None):
    places = torch.zeros(len(logits), 1, dtype=torch.long) if places is None else places
    return FUSED.read_logits(logits, None, 0.0, places, torch.float32, True)


def test_rows_may_be_apart_and_what_is_between_stays(small_blocks):
    room = torch.randn(3, 48)
    before = room.clone()
    places, logits = torch.tensor([[0, 39], [3, 3], [39, 1]]), room[:, :40]
    picked, top, normalizer = read(logits, places)
    torch.testing.assert_close(top + normalizer.log(), before[:, :40].logsumexp(1, keepdim=True))
    assert torch.equal(room, before)  # reading changes nothing
    FUSED.write_gradient(logits, None, 0.0, picked, top, 1 / normalizer, places, torch.zeros(3, 2))
    torch.testing.assert_close(logits, before[:, :40].softmax(1))
    assert torch.equal(room[:, 40:], before[:, 40:])


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # to infinity, whose exponential is 0
@pytest.mark.parametrize("odd", [float("-inf"), -3e38, 3e38])
def test_logits_at_the_ends_of_the_numbers(odd, small_blocks):
    logits = torch.randn(2, 41)
    logits[0, 0] = logits[1, 40] = odd
    logits[1, 4:8] = odd
    _, top, normalizer = read(logits)
    torch.testing.assert_close(top + normalizer.log(), logits.logsumexp(1, keepdim=True))


def test_a_logit_that_is_no_number_is_seen(small_blocks):
    logits = torch.randn(2, 41)
    logits[1, 5] = torch.nan
    _, top, normalizer = read(logits)
    assert (top + normalizer.log()).isnan().squeeze(1).tolist() == [False, True]


def test_a_shard_without_vocabulary():
    logits, places = torch.empty(2, 0), torch.zeros(2, 3, dtype=torch.long)
    fused, plain = (form.read_logits(logits, None, 0.0, places, torch.float32, True) for form in (FUSED, passes.PLAIN))
    assert all(torch.equal(a, b) for a, b in zip(fused, plain, strict=True))
    picked, top, normalizer = fused
    assert FUSED.write_gradient(logits, None, 0.0, picked, top, normalizer, places, picked) is None


@settings(max_examples=25)
@given(bags(), options, st.integers(1, 7), st.booleans(), st.integers(0, 2), st.booleans())
def test_the_loss_on_the_kernels_equals_whole_logits(bag, options, chunk, with_bias, padding, aligned):
    """Ignored targets, tokens that occur twice, weights, a cap, z-loss, a bias, padding and cut rows, all together."""
    targets, weights = bag
    double = leaves(len(targets), V + padding)[: 3 if with_bias else 2]
    options = {**options, "vocab_size": V if padding else None}
    single = [leaf.detach().float().requires_grad_() for leaf in double]

    def loss_and_gradients(function, leaves, **more):
        hidden, head, bias = [*leaves, None][:3]
        loss = function(hidden, head, targets, weights, bias=bias, **options, **more).sum()
        return [loss.double(), *(gradient.double() for gradient in torch.autograd.grad(loss, leaves))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_passes, "BLOCK", 16)
        patch.setattr(sweep, "passes_for", lambda _: FUSED)
        if aligned:
            patch.setattr(sweep, "_missing_rows", lambda *_: 3)
        found = loss_and_gradients(linear_multi_hot_cross_entropy, single, chunk_positions=chunk)
    for one, other in zip(found, loss_and_gradients(whole_logits, double), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_they_are_taken_on_a_gpu_where_triton_is(monkeypatch):
    on_gpu = type("Logits", (), {"is_cuda": True, "dtype": torch.bfloat16})
    assert passes.passes_for(on_gpu) == FUSED
    assert passes.passes_for(type("Logits", (), {"is_cuda": True, "dtype": torch.float64})) is passes.PLAIN
    assert passes.passes_for(torch.empty(1, 1)) is passes.PLAIN
    monkeypatch.setattr(passes.importlib.util, "find_spec", lambda _: None)
    passes._fused.cache_clear()
    assert passes.passes_for(on_gpu) is passes.PLAIN
    passes._fused.cache_clear()
