import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.train.optim import OptimArgs, build_optimizers, learning_rate
from tests.conftest import make_model


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
