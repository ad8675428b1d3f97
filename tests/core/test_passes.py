import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose.core.passes import passes_for

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9))  # n, S, V


def block(shape, dtype, seed, with_bias):
    """Logits [n, V], bias, places [n, S], factor [n, 1] and what is taken off at the places [n, S]."""
    n, bag_size, vocab_size = shape
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(n, vocab_size, generator=generator)).to(dtype)
    bias = torch.randn(vocab_size, generator=generator) if with_bias else None
    places = torch.randint(0, vocab_size, (n, bag_size), generator=generator)
    at_token = torch.rand(n, vocab_size, generator=generator)
    return logits, bias, places, torch.rand(n, 1, generator=generator), at_token.gather(1, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shapes, st.integers(0, 9), st.sampled_from([0.0, 3.0]), st.booleans())
def test_the_passes_are_their_formulas(dtype, shape, seed, softcap, with_bias):
    logits, *rest = block(shape, dtype, seed, with_bias)
    check_formulas(passes_for(logits), (logits, *rest), softcap, seed)


def check_formulas(passes, operands, softcap, seed):
    """Of a form of the passes, against float64, element by element; with an odd seed some targets are not owned."""
    logits, bias, places, factor, at_targets = operands
    dtype = logits.dtype
    capped = logits.double() if bias is None else logits.double() + bias
    slope = torch.ones_like(capped)
    if softcap:
        slope = 1 - (capped / softcap).tanh().square()
        capped = softcap * (capped / softcap).tanh()
    owned = torch.rand(places.shape) < 0.7 if seed % 2 else None

    work = passes.work_for(logits, torch.float32, softcap)
    picked, top, normalizer = passes.read_logits(logits, work, bias, softcap, places, owned)
    expected = capped.gather(1, places) * (1 if owned is None else owned)
    torch.testing.assert_close(picked.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(top.double(), capped.amax(1, keepdim=True), rtol=1e-5, atol=1e-5)
    exponentials = (capped - capped.amax(1, keepdim=True)).exp()
    torch.testing.assert_close(normalizer.double(), exponentials.sum(1, keepdim=True), rtol=1e-5, atol=1e-5)

    passes.write_gradient(logits, work, bias, softcap, top, factor, places, at_targets)
    gradient = factor * exponentials
    gradient.scatter_(1, places, gradient.gather(1, places) - at_targets)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.double(), gradient * slope, rtol=rounding, atol=max(1e-5, rounding / 100))
