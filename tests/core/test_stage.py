import json
from collections import Counter
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose import Schedule, StageArgs, cost
from superpose.core.embed import Pooling
from superpose.core.loss import Weighting, bag_shares

_weights = st.dictionaries(st.sampled_from([1, 2, 3, 8]), st.integers(1, 4), min_size=1)


@st.composite
def stages(draw):
    """A stage of any kind that is served, a quarter of the steps long or less."""
    mode = draw(st.sampled_from(["full", "input", "output"]))
    size = draw(st.integers(1, 9) | _weights)
    settings = {"bag_size": size, "mode": mode}
    largest = max(size) if isinstance(size, dict) else size
    if isinstance(size, dict) and draw(st.booleans()):
        settings["bag_size_end"] = end = draw(_weights)
        largest = max(largest, *end)
    if largest > 1 and mode != "input":
        named = st.sampled_from([name for name in get_args(Weighting) if name != "first"])
        numbers = st.nothing() if isinstance(size, dict) else st.just(tuple(range(size, 0, -1)))
        settings["weighting"] = draw(named | numbers)
        settings["weighting_end"] = draw(st.none() | named | numbers)
    if largest > 1 and mode != "output":
        settings["pooling"] = draw(st.sampled_from(get_args(Pooling)))
        settings["ordinary_rows"] = draw(st.sampled_from([0.0, 0.25, 0.5]))
    return StageArgs(draw(st.sampled_from([0.1, 0.2, 0.25])), **settings)


schedules = st.builds(
    lambda steps, args, seed: Schedule(steps, stages=args, seed=seed),
    st.integers(40, 300),
    st.lists(stages(), min_size=1, max_size=4),
    st.integers(0, 3),
)


@pytest.mark.error(n=8)
@given(schedules)
def test_what_a_step_computes_is_its_stages_and_all_counts_agree(schedule):
    raw, sizes = Fraction(0), Counter()
    for number in range(schedule.total_steps):
        step, stage = schedule.step_at(number), schedule.stage_at(number)
        assert step == schedule.step_at(number)
        assert step.bag_size == schedule.bag_size_at(number)
        assert step.bag_size in stage.sizes
        assert (step.number, step.phase, step.mode, step.pooling) == (number, stage.phase, stage.mode, stage.pooling)
        if stage.weighting_end is not None and step.bag_size > 1:
            assert sum(step.weighting) == pytest.approx(1)
            assert len(step.weighting) == step.bag_size
        ordinary = Fraction(step.ordinary_rows) if step.bag_size > 1 else 0
        bag = 1 if step.mode == "output" else step.bag_size
        raw += 8 * (ordinary + (1 - ordinary) * bag)
        sizes[stage.start, step.bag_size] += 1
        if number in (0, 17, schedule.total_steps - 1):
            assert schedule.raw_tokens(8, number + 1) == raw
    assert sizes == Counter({(stage.start, stage.largest): count for stage, count in schedule.counts() if count})
    flops = cost(schedule, 8, lambda stage: 10 * stage.largest).flops
    assert flops == sum(80 * size * count for (_, size), count in sizes.items())


@given(schedules)
def test_it_is_the_same_from_its_plain_form(schedule):
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    schedule.check_same(schedule.to_dict())
    longer = schedule.lengthened(2 * schedule.total_steps)
    longer.check_same(schedule.to_dict())
    shared = range(longer.recovers_at)
    assert [longer.step_at(step) for step in shared] == [schedule.step_at(step) for step in shared]


@given(
    st.integers(20, 2000),
    st.lists(st.tuples(st.integers(1, 16), st.sampled_from([0.0, 0.1, 0.25])), max_size=3),
    st.sampled_from(["full", "output"]),
    st.sampled_from(get_args(Weighting)),
)
def test_the_short_form_is_the_list_of_its_stages(steps, parts, mode, weighting):
    short = Schedule(steps, [size for size, _ in parts], [ratio for _, ratio in parts], mode, weighting)
    listed = [
        StageArgs(ratio, bag_size=size, mode=mode, weighting=weighting if size > 1 else "uniform")
        for size, ratio in parts
        if ratio
    ]
    assert short == Schedule(steps, stages=listed)
    assert short.in_short
    assert Schedule(steps, stages=listed).in_short == (not listed)


def test_weights_go_linearly_from_one_end_of_the_stage_to_the_next_stage():
    args = StageArgs(0.5, bag_size=3, mode="output", weighting=[4, 2, 2], weighting_end=[3, 1, 0])
    schedule = Schedule(20, stages=[args])
    for step in range(10):
        begin, end = bag_shares(3, (4, 2, 2)), bag_shares(3, (3, 1, 0))
        expected = [b + (e - b) * step / 10 for b, e in zip(begin, end, strict=True)]
        assert schedule.step_at(step).weighting == pytest.approx(expected)
    assert schedule.step_at(10).weighting == "uniform"  # recovery


def test_sizes_are_drawn_as_often_as_they_weigh_and_the_weights_go_over_the_stage():
    args = StageArgs(1.0, bag_size={8: 3, 2: 1}, bag_size_end={1: 1})
    sizes = [Schedule(8000, stages=[args], seed=1).bag_size_at(step) for step in range(8000)]
    for quarter, share_of_8 in enumerate([0.75 * 7 / 8, 0.75 * 5 / 8, 0.75 * 3 / 8, 0.75 / 8]):
        drawn = sizes[2000 * quarter : 2000 * (quarter + 1)]
        assert drawn.count(8) / 2000 == pytest.approx(share_of_8, abs=0.03)
        assert drawn.count(8) == pytest.approx(3 * drawn.count(2), abs=200)
    other = Schedule(8000, stages=[args], seed=2)
    assert sizes != [other.bag_size_at(step) for step in range(8000)]
    with pytest.raises(ValueError, match="the run began by"):
        other.check_same(Schedule(8000, stages=[args], seed=1).to_dict())


def test_a_stage_of_one_size_does_not_depend_on_the_seed():
    assert Schedule(10, 4, 0.5) == Schedule(10, stages=[StageArgs(0.5, bag_size=4)], seed=7)


def test_phases_are_named_by_their_bags():
    args = [StageArgs(0.2), StageArgs(0.2, bag_size=4), StageArgs(0.2)]
    schedule = Schedule(10, stages=args)
    assert [stage.phase for stage in schedule.stages] == ["ordinary", "superposition", "recovery", "recovery"]
    assert schedule.recovers_at == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 2}, "ratio is 2"),
        ({"bag_size": 0}, "bag_size is 0"),
        ({"bag_size": {}}, "no size any weight"),
        ({"bag_size": {4: 0}}, "no size any weight"),
        ({"bag_size": {0: 1}}, "a size of 0"),
        ({"bag_size": {"x": 1}}, "a size of 'x'"),
        ({"bag_size": {4: -1}}, "a weight of -1"),
        ({"bag_size": 4, "bag_size_end": {1: 1}}, "bag_size_end is"),
        ({"bag_size": {4: 1}, "bag_size_end": 1}, "bag_size_end is 1"),
        ({"bag_size": 4, "mode": "both"}, "mode is 'both'"),
        ({"bag_size": 4, "pooling": "sum"}, "pooling is 'sum'"),
        ({"bag_size": 4, "weighting": "linear"}, "weighting is 'linear'"),
        ({"bag_size": 4, "weighting": [1, 2]}, "2 weights for bags of 4"),
        ({"bag_size": 4, "weighting": 5}, "weighting is 5"),
        ({"bag_size": 1, "weighting": ["a"]}, "weighting is"),
        ({"bag_size": 4, "weighting_end": [1]}, "1 weights for bags of 4"),
        ({"bag_size": {4: 1, 2: 1}, "weighting": [1, 2]}, "2 weights for bags of 4"),
        ({"bag_size": 1, "weighting": "power"}, "would be ignored"),
        ({"bag_size": 4, "mode": "input", "weighting": "power"}, "would be ignored"),
        ({"bag_size": 4, "ordinary_rows": 1}, "less than 1"),
        ({"bag_size": 4, "ordinary_rows": "a"}, "ordinary_rows is 'a'"),
        ({"bag_size": 1, "ordinary_rows": 0.5}, "no rows with any"),
        ({"bag_size": 4, "mode": "output", "ordinary_rows": 0.5}, "no rows with any"),
        ({"bag_size": 2, "ordinary_rows": 0.5, "weighting": [0, 1]}, "is 0, but it is what ordinary_rows predict"),
        ({"bag_size": 1, "pooling": "sqrt"}, "would be ignored"),
        ({"bag_size": 4, "mode": "output", "pooling": "sqrt"}, "would be ignored"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_in_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        StageArgs(**{"ratio": 0.5, **settings})
    assert "\n" not in str(caught.value)


def test_stages_beside_the_short_form_are_refused():
    with pytest.raises(ValueError, match="leave out bag_size"):
        Schedule(10, 4, 0.5, stages=[StageArgs(0.5, bag_size=2)])
    with pytest.raises(ValueError, match="has its own weighting"):
        Schedule(10, stages=[StageArgs(0.5, bag_size=2)]).weighted("power")


def test_ordinary_rows_are_whole_rows():
    stage = Schedule(10, stages=[StageArgs(0.5, bag_size=2, ordinary_rows=1 / 3)]).stages[0]
    assert stage.ordinary_of(12) == 4
    with pytest.raises(ValueError, match=r"is 2\.66667 of 8 rows"):
        stage.ordinary_of(8)
