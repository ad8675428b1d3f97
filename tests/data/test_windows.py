import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpose import IGNORE_INDEX, Schedule, StageArgs, split_window, window_length
from superpose.data.permute import permute
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan
from superpose.errors import UserError


@st.composite
def plans(draw, expand="sequence"):
    """Plans over a corpus that may be read once or many times."""
    steps = draw(st.integers(1, 20))
    parts = draw(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.4])), min_size=1, max_size=2))
    mode = draw(st.sampled_from(["full", "input", "output"]))
    try:
        schedule = Schedule(steps, [s for s, _ in parts], [r for _, r in parts], mode)
    except ValueError:
        schedule = Schedule(steps)
    rows, latents = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    if expand == "batch":
        latents = math.lcm(*(stage.raw_tokens_per_latent for stage in schedule.stages)) * draw(st.integers(1, 2))
    smallest = rows * latents * max(stage.raw_tokens_per_latent for stage in schedule.stages)
    return WindowPlan(
        schedule, rows, latents, draw(st.integers(smallest, 40 * smallest)), draw(st.integers(0, 9)), expand
    )


@st.composite
def uneven_plans(draw, expand="sequence"):
    """Plans whose rows differ in length: bag sizes are drawn, or some rows are ordinary."""
    steps, rows = draw(st.integers(4, 24)), draw(st.integers(1, 4))
    weights = st.dictionaries(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), min_size=1)
    stages = []
    for ratio in draw(st.lists(st.sampled_from([0.25, 0.5]), min_size=1, max_size=2)):
        sizes, mode = draw(weights), draw(st.sampled_from(["full", "input", "output"]))
        ordinary = draw(st.integers(0, rows - 1)) if mode != "output" and max(sizes) > 1 else 0
        end = draw(st.none() | weights)
        share = ordinary / rows
        stages.append(StageArgs(ratio, bag_size=sizes, bag_size_end=end, mode=mode, ordinary_rows=share))
    schedule = Schedule(steps, stages=stages, seed=draw(st.integers(0, 9)))
    latents = draw(st.integers(1, 5)) if expand == "sequence" else 12 * draw(st.integers(1, 2))
    smallest = rows * latents * max(stage.raw_tokens_per_latent for stage in schedule.stages)
    size = draw(st.integers(smallest, 20 * smallest))
    return WindowPlan(schedule, rows, latents, size, draw(st.integers(0, 9)), expand)


def token_array(size):
    """A corpus whose tokens are their own places, in two shards."""
    places = np.arange(size)
    return TokenArray([places[: size // 3], places[size // 3 :]], ["a", "b"], size)


def inputs_read(plan, step):
    """Places in the corpus that a step's windows feed into the model, in the order of the rows."""
    computed = plan.schedule.step_at(step)
    window = plan.read(token_array(plan.num_tokens), step)
    inputs, targets = split_window(window, computed.bag_size, computed.mode)
    width = 1 if targets.dim() == inputs.dim() == 2 or computed.mode == "input" else computed.bag_size
    inputs, targets = (part.reshape(*part.shape[:2], -1) for part in (inputs, targets))
    of_bags = len(inputs) - computed.ordinary_of(len(inputs))
    following = (inputs[:of_bags, :, -1:] + 1 + torch.arange(width)) % plan.num_tokens
    assert torch.equal(targets[:of_bags], following)
    single, after = inputs[of_bags:], targets[of_bags:]
    assert torch.equal(after[..., 0], (single[..., 0] + 1) % plan.num_tokens)
    assert (single[..., 1:] == IGNORE_INDEX).all()
    assert (after[..., 1:] == IGNORE_INDEX).all()
    return inputs[inputs != IGNORE_INDEX].tolist()


@pytest.mark.error(n=9)
@given(plans() | uneven_plans() | uneven_plans(expand="batch"))
def test_no_token_is_read_twice_before_all_were_read(plan):
    order = [place for step in range(plan.schedule.total_steps) for place in inputs_read(plan, step)]
    assert len(order) == plan.raw_tokens()
    counts = np.zeros(plan.num_tokens, dtype=int)
    for place in order:
        assert counts[place] == counts.min()
        counts[place] += 1


@pytest.mark.error(n=9)
@given(plans())
def test_recovery_goes_on_where_superposition_stopped(plan):
    """Stages take consecutive stretches of the stream: what a stage reads begins at the end of the one before.

    The last one chooses among the windows that are left of a pass.
    """
    place = 0
    for stage in plan.schedule.stages:
        starts = np.concatenate([plan.starts(step)[1] for step in range(stage.start, stage.stop)])
        width = stage.raw_tokens_per_latent * plan.latents
        windows = [place + i * width for i in range(len(starts))]
        if stage is plan.schedule.stages[-1]:
            end_of_pass = (place // plan.num_tokens + 1) * plan.num_tokens
            first_pass = -(-(end_of_pass - place) // width)
            assert len(set(starts)) == len(starts)
            assert all(start % width == place % width and start >= place for start in starts.tolist())
            assert max(starts[:first_pass]) < end_of_pass
        else:
            assert sorted(starts) == windows
        place += len(starts) * width
    assert place == plan.raw_tokens()


@given(plans(), st.integers(1, 20))
def test_a_longer_ordinary_run_begins_with_the_steps_of_a_shorter_one(plan, more):
    short = replace(plan, schedule=Schedule(plan.schedule.total_steps))
    long = replace(plan, schedule=Schedule(plan.schedule.total_steps + more))
    for step in range(plan.schedule.total_steps):
        assert np.array_equal(short.starts(step)[1], long.starts(step)[1])


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
    assert starts.max() - starts.min() > plan.raw_tokens() / 2


@pytest.mark.error(n=9)
def test_phase_one_rows_are_s_times_longer():
    plan = WindowPlan(Schedule(10, 4, 0.5), 2, 8, 10_000, 1)
    tokens = token_array(10_000)
    assert plan.read(tokens, 4).shape == (2, 4 * 9)
    assert plan.read(tokens, 5).shape == (2, 9)


@pytest.mark.error(n=9)
@given(plans() | uneven_plans(), st.data())
def test_ranks_share_a_step_however_many_they_are(plan, data):
    step = data.draw(st.integers(0, plan.schedule.total_steps - 1))
    tokens = token_array(plan.num_tokens)
    whole = plan.read(tokens, step)
    for world_size in (size for size in range(1, 5) if len(whole) % size == 0):
        parts = [plan.read(tokens, step, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts), whole)


def test_rows_that_cannot_be_shared_out_are_refused():
    plan = WindowPlan(Schedule(10), 4, 8, 10_000, 1)
    with pytest.raises(UserError, match=r"train\.batch_size: 4 rows"):
        plan.read(token_array(10_000), 0, 0, 3)


@given(plans(expand="batch"))
def test_more_rows_instead_of_longer_ones_read_the_same_text(plan):
    """A step reads as many tokens and computes as many latents as with longer rows, and so does the run."""
    longer = replace(plan, expand="sequence")
    assert plan.raw_tokens() == longer.raw_tokens() == plan.schedule.raw_tokens(plan.rows * plan.latents)
    for stage in plan.schedule.stages:
        rows, latents = plan.shape(stage)
        assert rows * latents == plan.rows * plan.latents
        if stage.raw_tokens_per_latent > 1:
            assert rows == plan.rows * stage.bag_size
        window = plan.read(token_array(plan.num_tokens), stage.start)
        assert window.shape == (rows, window_length(latents, stage.bag_size, stage.mode))
    order = [place for step in range(plan.schedule.total_steps) for place in inputs_read(plan, step)]
    counts = np.bincount(order, minlength=plan.num_tokens)
    assert counts.max() - counts.min() <= 1


def test_rows_that_cannot_be_cut_for_a_batch_are_refused():
    with pytest.raises(UserError, match=r"train\.latents as a multiple"):
        WindowPlan(Schedule(10, 4, 0.5), 2, 6, 10_000, 1, "batch")


@st.composite
def aligned_plans(draw):
    """Plans over documents of one to a dozen tokens, read once or several times."""
    plan = draw(plans(expand=draw(st.sampled_from(["sequence", "batch"]))))
    lengths = []
    while sum(lengths) < plan.num_tokens:
        lengths.append(min(draw(st.integers(1, 12)), plan.num_tokens - sum(lengths)))
        if len(lengths) > 40:  # hypothesis draws no more than so much
            lengths.append(plan.num_tokens - sum(lengths))
    return replace(plan, offsets=np.concatenate([[0], np.cumsum([n for n in lengths if n])]))


def bags_read(plan, step):
    """Bags of places that a step feeds into the model, and the targets of the last of each row."""
    stage = plan.schedule.stage_at(step)
    window = plan.read(token_array(plan.num_tokens), step)
    inputs, _ = split_window(window, stage.bag_size, stage.mode)
    return inputs.reshape(*inputs.shape[:2], -1)


@pytest.mark.error(n=5)
@given(aligned_plans())
def test_every_document_starts_a_new_bag(plan):
    starts = set(plan.offsets[:-1].tolist())
    for step in range(plan.schedule.total_steps):
        stage = plan.schedule.stage_at(step)
        for bag in bags_read(plan, step).flatten(0, 1).tolist():
            held = [place for place in bag if place != IGNORE_INDEX]
            assert held == list(range(held[0], held[0] + len(held)))  # never empty, never across
            assert bag[len(held) :] == [IGNORE_INDEX] * (len(bag) - len(held))
            assert not starts & set(held[1:])
            if len(held) < len(bag):
                assert held[-1] + 1 in plan.offsets
        assert stage.raw_tokens_per_latent > 1 or (bags_read(plan, step) != IGNORE_INDEX).all()


@pytest.mark.error(n=9)
@pytest.mark.error(n=12)
@given(aligned_plans())
def test_aligned_documents_are_read_once_a_pass_and_counted_as_they_are(plan):
    """Each token at most once more than any other, but for fewer than a bag at a switch; counts are exact."""
    counts = np.zeros(plan.num_tokens, dtype=int)
    for step in range(plan.schedule.total_steps):
        bags = bags_read(plan, step)
        np.add.at(counts, bags[bags != IGNORE_INDEX].numpy(), 1)
        if step + 1 in plan.schedule.boundaries:
            assert counts.sum() == plan.raw_tokens(step + 1)
    assert counts.sum() == plan.raw_tokens()
    largest = max(stage.bag_size for stage in plan.schedule.stages)
    skipped = largest * len(plan.schedule.stages)
    assert counts.max() - np.sort(counts)[min(skipped, len(counts) - 1)] <= 1
    places = plan.schedule.raw_tokens(plan.rows * plan.latents)
    single = sum(stage.steps for stage in plan.schedule.stages if stage.raw_tokens_per_latent == 1)
    in_bags = places - single * plan.rows * plan.latents
    assert plan.unfilled == pytest.approx((places - counts.sum()) / in_bags if in_bags else 0)


@given(st.integers(1, 600), st.integers(0, 2**64 - 1))
def test_permutations_are_permutations(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


def test_a_corpus_smaller_than_a_step_is_refused():
    with pytest.raises(UserError, match="one step reads 256"):
        WindowPlan(Schedule(10, 4, 0.5), 8, 8, 255, 1)


@pytest.mark.parametrize("settings", [{"bag_size": {2: 1, 1: 1}}, {"bag_size": 2, "ordinary_rows": 0.5}], ids=str)
def test_rows_of_different_lengths_and_aligned_documents_are_refused(settings):
    schedule = Schedule(10, stages=[StageArgs(0.5, **settings)])
    with pytest.raises(UserError, match="rows differ in length"):
        WindowPlan(schedule, 2, 4, 1000, 1, offsets=np.arange(0, 1001, 10))
