import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose import Schedule, split_window
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan, permute
from superpose.errors import UserError


@st.composite
def plans(draw):
    """Plans over a corpus that may be read once or many times."""
    steps = draw(st.integers(1, 20))
    parts = draw(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.4])), min_size=1, max_size=2))
    mode = draw(st.sampled_from(["full", "input", "output"]))
    try:
        schedule = Schedule(steps, [s for s, _ in parts], [r for _, r in parts], mode)
    except ValueError:
        schedule = Schedule(steps)
    rows, latents = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    smallest = rows * latents * max(stage.raw_tokens_per_latent for stage in schedule.stages)
    return WindowPlan(schedule, rows, latents, draw(st.integers(smallest, 40 * smallest)), draw(st.integers(0, 9)))


def token_array(size):
    """A corpus whose tokens are their own places, in two shards."""
    places = np.arange(size)
    return TokenArray([places[: size // 3], places[size // 3 :]], ["a", "b"], size)


def inputs_read(plan, step):
    """Places in the corpus that a step's windows feed into the model, in the order of the rows."""
    stage, _ = plan.starts(step)
    window = plan.read(token_array(plan.num_tokens), step)
    inputs, targets = split_window(window, stage.bag_size, stage.mode)
    width = 1 if targets.dim() == inputs.dim() == 2 or stage.mode == "input" else stage.bag_size
    last = inputs.reshape(*inputs.shape[:2], -1)[..., -1:]
    following = (last + 1 + torch.arange(width)) % plan.num_tokens
    assert torch.equal(targets.reshape(*targets.shape[:2], -1), following)
    return inputs.flatten().tolist()


@pytest.mark.error(n=9)
@given(plans())
def test_no_token_is_read_twice_before_all_were_read(plan):
    order = [place for step in range(plan.schedule.total_steps) for place in inputs_read(plan, step)]
    assert len(order) == plan.raw_tokens
    counts = np.zeros(plan.num_tokens, dtype=int)
    for place in order:
        assert counts[place] == counts.min()
        counts[place] += 1


@pytest.mark.error(n=9)
@given(plans())
def test_recovery_goes_on_where_superposition_stopped(plan):
    """Stages take consecutive stretches of the stream: what a stage reads begins at the end of the one before."""
    place = 0
    for stage in plan.schedule.stages:
        starts = np.concatenate([plan.starts(step)[1] for step in range(stage.start, stage.stop)])
        width = stage.raw_tokens_per_latent * plan.latents
        assert sorted(starts) == [place + i * width for i in range(len(starts))]
        place += len(starts) * width
    assert place == plan.raw_tokens


@given(plans())
def test_a_step_is_a_pure_function(plan):
    again = WindowPlan(plan.schedule, plan.rows, plan.latents, plan.num_tokens, plan.seed)
    last = plan.schedule.total_steps - 1
    assert np.array_equal(again.starts(last)[1], plan.starts(last)[1])


def test_seeds_read_in_different_orders():
    first = [WindowPlan(Schedule(10), 4, 8, 10_000, seed).read(token_array(10_000), 0) for seed in (1, 2)]
    assert not torch.equal(*first)


def test_rows_of_a_batch_come_from_all_over_the_stretch():
    plan = WindowPlan(Schedule(100), 16, 8, 100_000, 1)
    _, starts = plan.starts(0)
    assert starts.max() - starts.min() > plan.raw_tokens / 2


@pytest.mark.error(n=9)
def test_phase_one_rows_are_s_times_longer():
    plan = WindowPlan(Schedule(10, 4, 0.5), 2, 8, 10_000, 1)
    tokens = token_array(10_000)
    assert plan.read(tokens, 4).shape == (2, 4 * 9)
    assert plan.read(tokens, 5).shape == (2, 9)


@given(st.integers(1, 600), st.integers(0, 2**64 - 1))
def test_permutations_are_permutations(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


def test_a_corpus_smaller_than_a_step_is_refused():
    with pytest.raises(UserError, match="one step reads 256"):
        WindowPlan(Schedule(10, 4, 0.5), 8, 8, 255, 1)
