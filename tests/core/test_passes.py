import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose.core.passes import passes_for

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9))  # n, S, V


def block(shape, dtype, seed, scale, with_bias):
    """Logits [n, V], bias, places [n, S], factor [n, 1] and what is taken off at the places [n, S]."""
    n, bag_size, vocab_size = shape
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(n, vocab_size, generator=generator)).to(dtype)
    bias = torch.randn(vocab_size, generator=generator) if with_bias else None
    places = torch.randint(0, vocab_size, (n, bag_size), generator=generator)
    at_token = torch.rand(n, vocab_size, generator=generator)
    return logits, bias, places, torch.rand(n, 1, generator=generator), at_token.gather(1, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shapes, st.integers(0, 9), st.sampled_from([0.0, 3.0]), st.sampled_from([5, 100]), st.booleans())
def test_the_passes_are_their_formulas(dtype, shape, seed, softcap, scale, with_bias):
    logits, *rest = block(shape, dtype, seed, scale, with_bias)
    check_formulas(passes_for(logits), (logits, *rest), softcap, scale)


def check_formulas(passes, operands, softcap, scale):
    """Of a form of the passes, against float64, element by element; `scale` is of the logits."""
    logits, bias, places, factor, at_targets = operands
    dtype = logits.dtype
    capped = logits.double() if bias is None else logits.double() + bias
    slope = torch.ones_like(capped)
    if softcap:
        slope = 1 - (capped / softcap).tanh().square()
        capped = softcap * (capped / softcap).tanh()

    read_logits, write_gradient = passes
    picked, point, normalizer = read_logits(logits, bias, softcap, places, torch.float32, True)
    torch.testing.assert_close(picked.double(), capped.gather(1, places), rtol=1e-5, atol=1e-5)
    exponentials = (capped - point).exp()
    torch.testing.assert_close(normalizer.double(), exponentials.sum(1, keepdim=True), rtol=1e-5, atol=1e-5)

    factor = factor / normalizer
    multiplier = write_gradient(logits, bias, softcap, picked, point, factor, places, at_targets)
    gradient = factor * exponentials
    gradient.scatter_(1, places, gradient.gather(1, places) - at_targets)
    ours = logits.double() * (1 if multiplier is None else multiplier)
    torch.testing.assert_close(ours, gradient * slope, rtol=torch.finfo(dtype).eps, atol=4e-7 * scale)
