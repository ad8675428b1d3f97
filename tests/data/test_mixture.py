import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose import IGNORE_INDEX, Schedule, StageArgs, split_window
from superpose.core.draws import random_bits
from superpose.data.mixture import RowShares, exact_shares
from superpose.data.sources import SourceTokens, sources_of
from superpose.data.stream import WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan
from superpose.errors import UserError


@st.composite
def shares(draw, most=6):
    parts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=most))
    return {f"s{number}": Fraction(part, sum(parts)) for number, part in enumerate(parts)}


@settings(max_examples=20)
@given(shares(), st.integers(0, 10**9))
def test_after_any_number_of_rows_each_source_has_its_share(given, count):
    rows = RowShares(given).rows(count)
    assert sum(rows.values()) == count
    most = {1: Fraction(0), 2: Fraction(1, 2), 3: Fraction(1)}.get(len(given), Fraction(2))
    for name, share in given.items():
        error = abs(rows[name] - share * count)
        assert error <= most if len(given) < 3 else error < most


@settings(max_examples=20)
@given(shares())
def test_a_row_has_one_source_and_each_source_its_rows_in_turn(given):
    split, seen = RowShares(given), Counter()
    for row in range(60):
        name, number = split.place(row)
        assert number == seen[name]
        seen[name] += 1
        assert split.rows(row + 1) == {name: seen[name] for name in given}


def test_many_small_sources_beside_a_large_one_keep_their_shares():
    """The tree that is deepest: shares that halve each time."""
    halved = {f"s{number}": Fraction(1, 2 ** min(number + 1, 11)) for number in range(12)}
    split = RowShares(halved)
    for count in range(0, 5000, 37):
        assert all(abs(split.rows(count)[name] - share * count) < 2 for name, share in halved.items())


@st.composite
def texts(draw):
    """A text of numbered tokens, and whose its documents are."""
    documents = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=3, max_size=30))
    origins = np.array([0, 1, 2, *(origin for origin, _ in documents)], dtype=np.uint16)
    lengths = [1, 2, 3, *(length for _, length in documents)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    size = int(offsets[-1])
    return TokenArray([np.arange(size // 2), np.arange(size // 2, size)], ["a", "b"], size), origins, offsets


@settings(max_examples=20)
@given(texts(), st.integers(0, 200), st.integers(1, 200))
def test_a_source_is_read_as_if_its_documents_were_all_there_is(text, start, length):
    tokens, origins, offsets = text
    for number, source in enumerate(sources_of(["a", "b", "c"], origins, offsets, [0, 0, 0]).values()):
        alone = np.concatenate(
            [np.arange(offsets[at], offsets[at + 1]) for at in range(len(origins)) if origins[at] == number]
        )
        view = SourceTokens(tokens, source)
        assert len(view) == len(alone) == source.num_tokens
        assert source.documents == (origins == number).sum()
        assert np.array_equal(view.read(start, length), alone[np.arange(start, start + length) % len(alone)])


@pytest.fixture
def sources():
    offsets = np.array([0, 10, 40, 100])
    return sources_of(["code", "web"], np.array([0, 1, 0]), offsets, [70, 30])


def test_without_a_mixture_the_shares_are_those_of_the_tokens(sources):
    assert exact_shares(None, sources, "it") == {"code": Fraction(7, 10), "web": Fraction(3, 10)}


def test_shares_are_the_decimal_numbers_a_person_wrote(sources):
    assert exact_shares({"web": 0.1, "code": 0.9}, sources, "it") == {"code": Fraction(9, 10), "web": Fraction(1, 10)}
    assert exact_shares({"code": 0, "web": 1}, sources, "it") == {"web": Fraction(1)}
    assert exact_shares({"web": 1.0}, sources, "it") == {"web": Fraction(1)}
    thirds = exact_shares({"web": 1 / 3, "code": 2 / 3}, sources, "it")
    assert sum(thirds.values()) == 1


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"web": 0.5, "code": 0.4}, r"the shares of mixture add up to 0\.9, not 1 \(web 0\.5, code 0\.4\)"),
        ({"web": 2, "code": -1}, "mixture gives web a share of 2; expected 0 to 1"),
        ({"web": float("nan"), "code": 1}, "gives web a share of nan"),
        ({"web": True}, "gives web a share of True"),
        ({"web": "all"}, "gives web a share of 'all'"),
        ({}, "add up to 0, not 1"),
        ("web", "mixture is 'web'; give each source its share"),
    ],
    ids=["too little", "too much", "nan", "a flag", "text", "nothing", "no table"],
)
def test_shares_that_are_none_are_refused_where_a_stage_is_described(mixture, message):
    with pytest.raises(ValueError, match=message):
        StageArgs(0.5, mixture=mixture)


def test_a_source_that_the_text_does_not_have_is_named_with_those_it_has(sources):
    with pytest.raises(UserError, match="stage 1's mixture names the source 'math'; the text has code, web"):
        exact_shares({"web": 0.5, "math": 0.5}, sources, "stage 1's mixture")


def test_a_source_without_text_has_no_share(sources):
    empty = {**sources, "math": sources_of(["math"], np.array([]), np.array([0]), [0])["math"]}
    assert exact_shares(None, empty, "it") == exact_shares(None, sources, "it")
    with pytest.raises(UserError, match=r"it gives math a share of 0\.5, and there is no text of it"):
        exact_shares({"math": 0.5, "web": 0.5}, empty, "it")


def test_a_text_without_names_cannot_be_mixed():
    schedule = Schedule(2, stages=[StageArgs(1.0, mixture={"web": 1.0})])
    with pytest.raises(UserError, match="the mixture of stage 1 shares out named sources, and the text has none; name"):
        WindowPlan(schedule, 2, 4, 100, 1)


def test_a_stream_cannot_be_mixed():
    schedule = Schedule(2, stages=[StageArgs(0.5, mixture={"web": 1.0})])
    with pytest.raises(UserError, match="the mixture of a stage would be ignored"):
        WindowStream([[1, 2, 3]], schedule, 1, 4)


NAMES = ("code", "web", "math")


MIXTURES = [None, {"web": 1.0}, {"code": 0.3, "web": 0.7}, {"math": 0.25, "code": 0.25, "web": 0.5}]
UNEVEN = [
    {"bag_size": {4: 1, 2: 1}},
    {"bag_size": 4, "ordinary_rows": 0.5},
    {"bag_size": {3: 1, 1: 2}, "bag_size_end": {1: 1}, "ordinary_rows": 0.5, "mode": "input"},
]
"""Stages whose rows are not all as long."""


@st.composite
def schedules(draw, uneven):
    """Runs of up to three stages that differ in bags and mixtures, and of what is left."""
    ratios = draw(st.lists(st.sampled_from([0.2, 0.3]), max_size=2))
    left = draw(st.sampled_from([0.2, round(1 - sum(ratios), 1)]))
    stages = []
    for ratio in (*ratios, left):
        even = {"bag_size": draw(st.integers(1, 4)), "mode": draw(st.sampled_from(["full", "input", "output"]))}
        bags = draw(st.sampled_from([even, *UNEVEN])) if uneven else even
        mixture = draw(st.sampled_from(MIXTURES))
        stages.append(StageArgs(ratio, mixture=mixture, **bags))
    if all(stage.mixture is None for stage in stages):
        stages[-1] = replace(stages[-1], mixture=MIXTURES[2])
    return Schedule(draw(st.integers(5, 16)), stages=stages, seed=draw(st.integers(0, 3)))


@st.composite
def mixed_plans(draw, documents="either"):
    """Plans over a text of three sources whose tokens are their own places, the text, and whose each token is."""
    aligned = draw(st.booleans()) if documents == "either" else documents == "aligned"
    schedule, expand = draw(schedules(uneven=not aligned)), draw(st.sampled_from(["sequence", "batch"]))
    even = not any(stage.ordinary_rows for stage in schedule.stages)
    rows, latents = draw(st.integers(1, 4) if even else st.sampled_from([2, 4])), draw(st.integers(1, 4))
    if expand == "batch":
        latents = math.lcm(*(stage.raw_tokens_per_latent for stage, _ in schedule.counts()))
    step = rows * latents * max(stage.raw_tokens_per_latent for stage in schedule.stages)
    lengths = [step, step, step, *draw(st.lists(st.integers(1, 2 * step), max_size=20))]
    origins = np.array([0, 1, 2, *(draw(st.integers(0, 2)) for _ in lengths[3:])])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sources = sources_of(NAMES, origins, offsets, [0, 0, 0])
    size, seed = int(offsets[-1]), draw(st.integers(0, 9))
    plan = WindowPlan(schedule, rows, latents, size, seed, expand, offsets if aligned else None, sources)
    return plan, TokenArray([np.arange(size)], ["text"], size), np.repeat(origins, lengths)


def rows_of(plan, tokens, step):
    """What each row of a step feeds into the model."""
    computed = plan.schedule.step_at(step)
    inputs, _ = split_window(plan.read(tokens, step), computed.bag_size, computed.mode)
    return [row[row != IGNORE_INDEX].tolist() for row in inputs.flatten(1)]


def unmixed(schedule):
    return Schedule(schedule.total_steps, stages=[replace(stage, mixture=None) for stage in schedule.args])


@pytest.mark.error(n=9)
@settings(max_examples=20)
@given(mixed_plans())
def test_each_source_has_its_share_of_a_stage_and_no_row_is_of_two(case):
    """Of the rows of each length, where they are of several."""
    plan, tokens, origins = case
    for stage in plan.schedule.stages:
        shares = exact_shares(stage.mixture, plan.sources, "it")
        seen = {}
        for step in range(stage.start, stage.stop):
            for row in rows_of(plan, tokens, step):
                (origin,) = set(origins[row].tolist())
                of_length = seen.setdefault(len(row) if plan.offsets is None else 0, Counter())
                of_length[NAMES[origin]] += 1
                assert all(abs(of_length[name] - shares.get(name, 0) * of_length.total()) < 1 for name in NAMES)


@pytest.mark.error(n=9)
@settings(max_examples=20)
@given(mixed_plans("joined"))
def test_no_token_of_a_source_is_read_twice_before_all_of_it_were(case):
    """Over switches between mixtures, between bags and single tokens, and from pass to pass."""
    plan, tokens, origins = case
    counts = np.zeros(len(tokens), dtype=int)
    for step in range(plan.schedule.total_steps):
        for row in rows_of(plan, tokens, step):
            for token in row:
                assert counts[token] == counts[origins == origins[token]].min()
                counts[token] += 1
        assert counts.sum() == plan.raw_tokens(step + 1)
    for number, name in enumerate(NAMES):
        read = counts[origins == number]
        assert plan.source_epochs[name] == pytest.approx(read.mean())
        assert read.max() - read.min() <= 1


@settings(max_examples=20)
@given(mixed_plans("aligned"))
def test_a_bag_of_aligned_documents_is_of_one_document_and_begins_where_it_may(case):
    plan, tokens, _ = case
    for step in range(plan.schedule.total_steps):
        stage = plan.schedule.stage_at(step)
        inputs, _ = split_window(plan.read(tokens, step), stage.bag_size, stage.mode)
        for bag in inputs.reshape(-1, stage.raw_tokens_per_latent).tolist():
            filled = [token for token in bag if token != IGNORE_INDEX]
            (document,) = {int(np.searchsorted(plan.offsets, token, "right")) - 1 for token in filled}
            assert (filled[0] - int(plan.offsets[document])) % stage.raw_tokens_per_latent == 0
            assert filled == list(range(filled[0], filled[0] + len(filled)))


@settings(max_examples=20)
@given(mixed_plans())
def test_a_source_that_is_all_there_is_is_read_as_a_text_of_its_own(case):
    """Element by element what a plan over this source alone reads."""
    plan, tokens, _ = case
    stages = [replace(stage, mixture={"web": 1.0}) for stage in plan.schedule.args]
    if (left := 1 - sum(Fraction(str(stage.ratio)) for stage in stages)) > 0:
        stages.append(StageArgs(float(left), mixture={"web": 1.0}))
    plan = replace(plan, schedule=Schedule(plan.schedule.total_steps, stages=stages))
    web = plan.sources["web"]
    alone = WindowPlan(
        unmixed(plan.schedule),
        plan.rows,
        plan.latents,
        web.num_tokens,
        random_bits(plan.seed, "source", "web"),
        plan.expand,
        None if plan.offsets is None else web.offsets,
    )
    for step in range(plan.schedule.total_steps):
        assert torch.equal(plan.read(tokens, step), alone.read(SourceTokens(tokens, web), step))
    assert plan.source_epochs["web"] == alone.epochs
    assert plan.unfilled == alone.unfilled


@settings(max_examples=20)
@given(mixed_plans())
def test_without_a_mixture_names_change_nothing(case):
    plan, tokens, _ = case
    named = replace(plan, schedule=unmixed(plan.schedule))
    plain = replace(named, sources=None)
    for step in range(plan.schedule.total_steps):
        assert torch.equal(named.read(tokens, step), plain.read(tokens, step))
    assert named.source_epochs == {}
    assert named == plain


@pytest.mark.error(n=9)
@settings(max_examples=20)
@given(mixed_plans(), st.data())
def test_ranks_share_a_mixed_step_however_many_they_are(case, data):
    plan, tokens, _ = case
    step = data.draw(st.integers(0, plan.schedule.total_steps - 1))
    whole = plan.read(tokens, step)
    again = replace(plan)  # which has read nothing before
    for world_size in (size for size in range(1, 5) if len(whole) % size == 0):
        parts = [again.read(tokens, step, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts), whole)


@settings(max_examples=20)
@given(mixed_plans(), st.integers(1, 20))
def test_a_longer_mixed_run_begins_with_the_steps_of_a_shorter_one(case, more):
    plan, tokens, _ = case
    long = replace(plan, schedule=plan.schedule.lengthened(plan.schedule.total_steps + more))
    if len(long.schedule.stages) == len(plan.schedule.stages):  # else what is left is longer, and the last stage is not
        for step in range(plan.schedule.total_steps):
            assert torch.equal(long.read(tokens, step), plan.read(tokens, step))


def test_seeds_read_a_source_in_different_orders(sources):
    tokens, schedule = (
        TokenArray([np.arange(100)], ["text"], 100),
        Schedule(2, stages=[StageArgs(1.0, mixture={"code": 1.0})]),
    )
    first = [WindowPlan(schedule, 2, 4, 100, seed, sources=sources).read(tokens, 0) for seed in (1, 2)]
    assert not torch.equal(*first)


def test_a_source_that_is_shorter_than_what_a_step_reads_of_it_is_refused(sources):
    def plan(*mixtures):
        bags, rest = (StageArgs(0.5, bag_size=s, mixture=shares) for s, shares in zip((4, 1), mixtures, strict=True))
        return WindowPlan(Schedule(10, stages=[bags, rest]), 4, 4, 100, 1, sources=sources)

    with pytest.raises(UserError, match="the source web has 30 tokens but a step of stage 1 reads 64 of it"):
        plan({"web": 1.0}, None)
    assert plan({"code": 1.0}, {"web": 1.0}).source_epochs == {"code": 320 / 70, "web": 80 / 30}
