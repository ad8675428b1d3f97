import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose import Schedule

schedules = st.builds(
    lambda steps, parts, mode: Schedule(steps, [s for s, _ in parts], [r / 100 for _, r in parts], mode),
    st.integers(200, 5000),
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 30)), min_size=1, max_size=3),
    st.sampled_from(["full", "input", "output"]),
)


@pytest.mark.error(n=8)
@given(schedules)
def test_all_answers_agree_with_each_other(schedule):
    sizes = [schedule.bag_size_at(step) for step in range(schedule.total_steps)]
    for stage in schedule.stages:
        assert set(sizes[stage.start : stage.stop]) == {stage.bag_size}
    assert schedule.boundaries == tuple(stage.start for stage in schedule.stages if stage.start)
    assert sum(stage.steps for stage in schedule.stages) == schedule.total_steps
    per_step = [1 if schedule.stage_at(step).mode == "output" else size for step, size in enumerate(sizes)]
    for until in (0, 1, schedule.total_steps // 2, schedule.total_steps):
        assert schedule.raw_tokens(7, until) == 7 * sum(per_step[:until])


@pytest.mark.error(n=12)
def test_raw_tokens_are_the_papers():
    # arXiv 2605.06546, Table 1: 2M latents a step; 42B tokens ordinary and 105B with s 6, r 0.3, at 20,000 steps.
    latents = 2 * 2**20
    ordinary, tst = Schedule(20_000), Schedule(20_000, 6, 0.3)
    assert round(ordinary.raw_tokens(latents) / 1e9) == 42
    assert round(tst.raw_tokens(latents) / 1e9) == 105
    assert tst.raw_tokens(latents) == (1 + 0.3 * 5) * ordinary.raw_tokens(latents)


def test_output_mode_reads_no_more_than_an_ordinary_run():
    assert Schedule(100, 4, 0.5, "output").raw_tokens(8) == Schedule(100).raw_tokens(8)


@pytest.mark.error(n=8)
def test_the_boundary_follows_the_final_number_of_steps():
    assert Schedule(1000, 4, 0.3).boundaries == (300,)
    assert Schedule(2000, 4, 0.3).boundaries == (600,)
    assert Schedule(10, 4, 0.25).boundaries == (3,)  # a half rounds up


def test_stages_are_read_from_text():
    schedule = Schedule.parse("8:0.1, 4:0.1,2:0.1", 1000)
    assert [schedule.bag_size_at(step) for step in (0, 99, 100, 200, 299, 300)] == [8, 8, 4, 2, 2, 1]
    assert schedule == Schedule(1000, (8, 4, 2), (0.1, 0.1, 0.1))
    assert schedule.boundaries == (100, 200, 300)  # and not 299 by binary rounding of 0.1 + 0.1 + 0.1
    assert Schedule.parse("", 10).boundaries == ()


def test_knows_whether_recovery_follows():
    assert Schedule(10, 4, 1.0).ends_in_superposition
    assert not Schedule(10, 4, 0.9).ends_in_superposition
    assert not Schedule(10).ends_in_superposition


def test_phases_have_the_papers_names():
    assert [stage.phase for stage in Schedule(10, 4, 0.3).stages] == ["superposition", "recovery"]
    assert [stage.phase for stage in Schedule(10).stages] == ["ordinary"]


def test_is_frozen_and_hashable():
    schedule = Schedule(10, [4, 2], [0.2, 0.2])
    assert hash(schedule) == hash(Schedule(10, (4, 2), (0.2, 0.2)))
    with pytest.raises(AttributeError):
        schedule.total_steps = 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "total_steps"),
        ((True,), "total_steps"),
        ((10, 0, 0.5), "bag_size"),
        ((10, 2.0, 0.5), "bag_size"),
        ((10, 4, 1.5), "ratio"),
        ((10, 4, float("nan")), "ratio"),
        ((10, 4, 0.01), "less than one step"),
        ((10, (4, 2), (0.6, 0.6)), "more than 1"),
        ((10, (4, 2), 0.5), "one ratio for each"),
        ((10, 4, 0.5, "both"), "mode"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


@pytest.mark.parametrize("text", ["8", "8:x", "a:0.1", "8:0.1:2"])
def test_wrong_text_is_refused(text):
    with pytest.raises(ValueError, match="BAG_SIZE:RATIO"):
        Schedule.parse(text, 100)


def test_steps_that_do_not_exist_have_no_phase():
    for step in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            Schedule(10, 4, 0.5).bag_size_at(step)


any_schedules = schedules | st.builds(
    lambda steps, size, ratio, mode: Schedule(steps, size, max(ratio, 1 / steps) if ratio else ratio, mode),
    st.integers(1, 10**6),
    st.integers(1, 64),
    st.floats(0, 1) | st.sampled_from([0, 1]),
    st.sampled_from(["full", "input", "output"]),
)


@given(any_schedules)
def test_a_schedule_is_the_same_from_its_plain_form(schedule):
    """By way of JSON too, to the last bit of its ratios, and its own check agrees."""
    stored = schedule.to_dict()
    for form in (stored, json.loads(json.dumps(stored))):
        again = Schedule.from_dict(form)
        assert again == schedule
        assert again.stages == schedule.stages
        schedule.check_same(form)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        "4:0.3",
        {},
        {"total_steps": 10},
        {**Schedule(10).to_dict(), "lr": 1.0},
        {**Schedule(10).to_dict(), "total_steps": "10"},
        {**Schedule(10).to_dict(), "total_steps": None},
        {**Schedule(10).to_dict(), "total_steps": 10.0},
        {**Schedule(10, 4, 0.5).to_dict(), "bag_size": "4"},
        {**Schedule(10, 4, 0.5).to_dict(), "bag_size": [4, None]},
        {**Schedule(10, 4, 0.5).to_dict(), "ratio": None},
        {**Schedule(10, 4, 0.5).to_dict(), "ratio": [0.5, 0.5]},
        {**Schedule(10, 4, 0.5).to_dict(), "ratio": float("nan")},
        {**Schedule(10, 4, 0.5).to_dict(), "mode": ["full"]},
    ],
)
def test_what_is_no_schedule_is_refused_in_a_sentence(stored):
    with pytest.raises(ValueError, match=r"expected total_steps, bag_size|give|choose") as caught:
        Schedule.from_dict(stored)
    assert "\n" not in str(caught.value)


@pytest.mark.error(n=8)
@given(schedules, st.integers(1, 20_000))
def test_a_longer_run_keeps_its_switches(schedule, steps):
    bags = list(schedule.stages[: len(schedule.args)])
    end = bags[-1].stop if bags else 0
    if steps < end:
        with pytest.raises(ValueError, match=f"superposition ends at {end}"):
            schedule.lengthened(steps)
        return
    longer = schedule.lengthened(steps)
    assert longer.total_steps == steps
    assert list(longer.stages[: len(longer.args)]) == bags
    longer.check_same(schedule.to_dict())
    schedule.check_same(longer.to_dict())


@pytest.mark.error(n=8)
def test_a_schedule_that_moves_the_switch_is_refused_with_both_named():
    began = Schedule(20, 4, 0.4)
    two_stages = Schedule(20, (4, 2), (0.2, 0.2))
    for other in (Schedule(40, 4, 0.4), Schedule(20, 2, 0.4), Schedule(20, 4, 0.4, "input"), Schedule(20), two_stages):
        with pytest.raises(ValueError, match="the run began by") as caught:
            other.check_same(began.to_dict())
        assert str(began) in str(caught.value)
        assert str(other) in str(caught.value)
    with pytest.raises(ValueError, match="is no schedule"):
        began.check_same({"steps": 20})


def test_a_run_of_uniform_weights_does_not_go_on_by_others():
    stored = Schedule(10, 4, 0.5).to_dict()
    with pytest.raises(ValueError, match="the run began by"):
        Schedule(10, 4, 0.5, weighting="power").check_same(stored)
    del stored["weighting"]  # as it was written before weights were part of a schedule
    Schedule(10, 4, 0.5, weighting="power").check_same(stored)
