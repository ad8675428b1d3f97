import copy
import json
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from superpose import IGNORE_INDEX, Schedule, StageArgs, window_length
from superpose.data import stream as module
from superpose.data.stream import PlannedWindows, RowReader, WindowStream
from superpose.data.tokens import TokenArray
from superpose.data.windows import WindowPlan
from superpose.errors import UserError

LATENTS = 3


class Resumable(IterableDataset):
    """Rows with a state, as datasets streams them; a `leaky` one loses some rows on resuming, as its shuffle buffer."""

    def __init__(self, rows, leaky=0):
        self.rows, self.leaky, self.at, self.read = rows, leaky, 0, 0

    def __iter__(self):
        start, self.at = self.at, 0
        for number, row in enumerate(self.rows[start:], start):
            self.now = number + 1
            self.read += 1
            yield row

    def state_dict(self):
        return {"at": self.now}

    def load_state_dict(self, state):
        self.at = state["at"] + self.leaky


@st.composite
def schedules(draw):
    parts = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=3))
    steps = sum(count for _, count in parts) + draw(st.integers(0 if parts else 1, 4))
    mode = draw(st.sampled_from(["full", "input", "output"]))
    if mode == "output" or draw(st.booleans()):
        return Schedule(steps, [size for size, _ in parts], [count / steps for _, count in parts], mode)
    mixed = [
        StageArgs(count / steps, bag_size={size: 1, 2: 1}, mode=mode, ordinary_rows=0.5 * draw(st.booleans()))
        for size, count in parts
    ]
    return Schedule(steps, stages=mixed, seed=draw(st.integers(0, 3)))


def rows_for(schedule, rows, lengths, seed=0):
    """Rows of these lengths in turn, as many as all steps read."""
    most = schedule.raw_tokens(rows * LATENTS) + 8 * window_length(LATENTS, 5, "full")
    tokens = np.random.default_rng(seed).integers(0, 1000, most).tolist()
    made, place = [], 0
    while place < most:
        length = lengths[len(made) % len(lengths)]
        made.append(tokens[place : place + length])
        place += length
    return made


def reference(schedule, rows, source):
    """Windows [rows, length] of each step, one token after another."""
    text, place, steps = list(chain.from_iterable(source)), 0, []
    for step in range(schedule.total_steps):
        stage = schedule.step_at(step)
        length = window_length(LATENTS, stage.bag_size, stage.mode)
        windows = []
        for row in range(rows):
            if stage.bag_size > 1 and row >= rows * (1 - stage.ordinary_rows):
                windows.append([IGNORE_INDEX] * length)
                windows[-1][:: stage.bag_size] = text[place : place + LATENTS + 1]
                place += LATENTS
                continue
            windows.append(text[place : place + length])
            place += LATENTS * (1 if stage.mode == "output" else stage.bag_size)
        steps.append(windows)
    return steps


def windows_of(batches):
    return [batch["input_ids"].tolist() for batch in batches]


lengths = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)


@pytest.mark.error(n=9)
@given(schedules(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), lengths)
def test_steps_read_the_text_in_its_order_each_token_once(schedule, per, accumulate, world_size, lengths):
    rows = 2 * per * accumulate * world_size
    source = rows_for(schedule, rows, lengths)
    streams = [
        WindowStream(source, schedule, rows, LATENTS, accumulate, rank, world_size) for rank in range(world_size)
    ]
    read = [list(stream) for stream in streams]
    expected = reference(schedule, rows, source)
    for step, windows in enumerate(expected):
        parts = [read[rank][step * accumulate + part] for rank in range(world_size) for part in range(accumulate)]
        assert list(chain.from_iterable(windows_of(parts))) == windows
        assert {part["bag_size"] for part in parts} == {schedule.bag_size_at(step)}
    inputs = [
        [t for t in window[: LATENTS * schedule.step_at(step).raw_tokens_per_latent] if t != IGNORE_INDEX]
        for step, windows in enumerate(expected)
        for window in windows
    ]
    tokens = list(chain.from_iterable(inputs))
    assert tokens == list(chain.from_iterable(source))[: len(tokens)]
    assert len(tokens) == streams[0].raw_tokens()


@pytest.mark.error(n=9)
@given(schedules(), st.integers(1, 2), st.integers(1, 2), lengths, st.data())
def test_going_on_at_any_pass_is_to_the_token(schedule, per, accumulate, lengths, data):
    """By the source's own state, or by reading it again; through JSON, and after several checkpoints."""
    rows = 2 * per * accumulate
    source = rows_for(schedule, rows, lengths)
    whole = windows_of(WindowStream(source, schedule, rows, LATENTS, accumulate))
    stops = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=1, max_size=4)))
    for make in (lambda: source, lambda: Resumable(source), lambda: (row for row in source)):
        stream, read = WindowStream(make(), schedule, rows, LATENTS, accumulate), []
        for stop in stops:
            while stream.position < stop:
                if data.draw(st.booleans()):
                    stream.state_dict()  # changes nothing
                read.append(stream.read())
            state = json.loads(json.dumps(stream.state_dict()))
            stream = WindowStream(make(), schedule, rows, LATENTS, accumulate)
            stream.load_state_dict(state)
        assert windows_of([*read, *stream]) == whole


@given(schedules(), lengths, st.data())
def test_going_on_with_more_processes_or_fewer(schedule, lengths, data):
    source, step = rows_for(schedule, 4, lengths), data.draw(st.integers(0, schedule.total_steps))
    one = WindowStream(source, schedule, 4, LATENTS, accumulate=2)
    for _ in range(2 * step):
        one.read()
    both = [WindowStream(source, schedule, 4, LATENTS, rank=rank, world_size=2) for rank in range(2)]
    for stream in both:
        stream.load_state_dict(one.state_dict())
    assert windows_of(one) == windows_of(chain.from_iterable(zip(*both, strict=True)))


@pytest.mark.error(n=9)
@given(schedules(), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.data())
def test_a_plan_in_turn_is_the_plan_by_number(schedule, per, accumulate, world_size, data):
    rows = 2 * per * accumulate * world_size
    tokens = TokenArray([np.arange(10_000)], ["text"], 10_000)
    plan = WindowPlan(schedule, rows, LATENTS, 10_000, seed=data.draw(st.integers(0, 3)))
    ranks = [PlannedWindows(plan, tokens, accumulate, rank, world_size) for rank in range(world_size)]
    stop = data.draw(st.integers(0, len(ranks[0])))
    read = [[windows.read() for _ in range(stop)] for windows in ranks]
    for rank, windows in enumerate(ranks):
        again = PlannedWindows(plan, tokens, accumulate, rank, world_size)
        again.load_state_dict(json.loads(json.dumps(windows.state_dict())))
        read[rank] += again
        assert windows_of(read[rank][stop:]) == windows_of(windows)
    for step in range(schedule.total_steps):
        parts = [of_rank[step * accumulate + part] for of_rank in read for part in range(accumulate)]
        assert list(chain.from_iterable(windows_of(parts))) == plan.read(tokens, step).tolist()
        assert {part["bag_size"] for part in parts} == {schedule.bag_size_at(step)}


def test_the_source_s_own_state_is_what_is_gone_on_by():
    schedule, source = Schedule(12, 4, 0.5), [[number] * 5 for number in range(1000)]
    stream = WindowStream(Resumable(source), schedule, 2, LATENTS)
    whole = windows_of(WindowStream(source, schedule, 2, LATENTS))
    for _ in range(9):
        stream.read()
    state = stream.state_dict()
    again = WindowStream(Resumable(source), schedule, 2, LATENTS)
    again.load_state_dict(state)
    assert windows_of(again) == whole[9:]
    assert again.source.read < 20 < state["read"]


@pytest.mark.error(n=9)
def test_a_source_whose_state_is_not_all_of_it_is_read_again(monkeypatch):
    schedule, source = Schedule(12, 4, 0.5), [[number] * 5 for number in range(1000)]
    whole = windows_of(WindowStream(source, schedule, 2, LATENTS))
    stream = WindowStream(Resumable(source, leaky=3), schedule, 2, LATENTS)
    for _ in range(7):
        stream.read()
    state = stream.state_dict()
    warned = []
    monkeypatch.setattr(module.logger, "warning", lambda *message: warned.append(message))
    again = WindowStream(Resumable(source, leaky=3), schedule, 2, LATENTS)
    again.load_state_dict(state)
    assert windows_of(again) == whole[7:]
    assert len(warned) == 1
    other = [[number + 1] * 5 for number in range(1000)]
    for changed in (other, source[:10], Resumable(other)):
        with pytest.raises(UserError, match=r"holds other rows after its first .* shuffled by the same seed"):
            WindowStream(changed, schedule, 2, LATENTS).load_state_dict(state)


def test_rows_of_all_kinds():
    kinds = [[1, 2], (3, 4), np.array([5, 6], dtype=np.uint16), torch.tensor([7, 8]), {"input_ids": [9, 10]}]
    kinds.append({"input_ids": [0, 11, 12], "attention_mask": [0, 1, 1]})
    kinds.append({"input_ids": [13, 14], "labels": [13, -100]})
    (batch,) = WindowStream(kinds, Schedule(1), 1, 13)
    assert batch["input_ids"].tolist() == [list(range(1, 15))]
    assert batch["target_mask"].tolist() == [[True] * 13 + [False]]
    assert batch["input_ids"].dtype == torch.int64


def test_what_cannot_be_read_is_said():
    with pytest.raises(UserError, match="3 rows of 3 latents cannot be shared out evenly among 2 processes"):
        WindowStream([], Schedule(1), 3, LATENTS, world_size=2)
    with pytest.raises(UserError, match="rank is 2 of 2 processes"):
        WindowStream([], Schedule(1), 2, LATENTS, rank=2, world_size=2)
    with pytest.raises(UserError, match=r"ended at step 1 of 9, after 2 rows; give more text or fewer steps"):
        list(WindowStream([[1] * 3, [2] * 3], Schedule(9), 1, LATENTS))
    with pytest.raises(ValueError, match="row 1 of mine holds the token id 7; expected 0 or more, and less than"):
        list(WindowStream([[1], [7]], Schedule(1), 1, LATENTS, reader=RowReader("mine", 5)))
    state = WindowStream([[1]], Schedule(9, 2, 0.4), 2, LATENTS).state_dict()
    with pytest.raises(UserError, match="cut by rows 2, not 4; give the same"):
        WindowStream([[1]], Schedule(9, 2, 0.4), 4, LATENTS).load_state_dict(state)
    with pytest.raises(ValueError, match="give the schedule it began by"):
        WindowStream([[1]], Schedule(9, 3, 0.4), 2, LATENTS).load_state_dict(state)


def test_a_data_loader_of_torch(monkeypatch):
    source, schedule = [[number] * 5 for number in range(100)], Schedule(6, 4, 0.5)
    loader = DataLoader(WindowStream(source, schedule, 2, LATENTS), batch_size=None)
    assert windows_of(loader) == windows_of(WindowStream(source, schedule, 2, LATENTS))
    monkeypatch.setattr(module, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(UserError, match="num_workers is 2, and each would read all of the stream"):
        list(WindowStream(source, schedule, 2, LATENTS))


def test_a_stream_of_the_datasets_library():
    """Tokenized on the way, in several shards; the state of a shuffled one may lack its buffer."""
    library = pytest.importorskip("datasets")
    rows = [{"text": "ab" * (number % 7 + 1) + chr(97 + number % 26)} for number in range(300)]
    table = library.Dataset.from_list(rows)
    schedule = Schedule(12, 4, 0.5)

    def make(shuffled):
        made = table.to_iterable_dataset(num_shards=3)
        made = made.shuffle(seed=3, buffer_size=20) if shuffled else made
        return made.map(lambda row: {"input_ids": list(row["text"].encode())}, remove_columns=["text"])

    for shuffled in (False, True):
        whole = windows_of(WindowStream(make(shuffled), schedule, 2, LATENTS))
        for stop in (2, 6, 9):
            stream = WindowStream(make(shuffled), schedule, 2, LATENTS)
            for _ in range(stop):
                stream.read()
            again = WindowStream(make(shuffled), schedule, 2, LATENTS)
            again.load_state_dict(copy.deepcopy(stream.state_dict()))
            assert windows_of(again) == windows_of(stream) == whole[stop:]


@pytest.mark.filterwarnings("ignore")  # of torch, that torchdata asks for
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stateful_data_loader(workers):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    source, schedule = [[number] * 5 for number in range(100)], Schedule(6, 4, 0.5)

    def make():
        stream = WindowStream(Resumable(source), schedule, 2, LATENTS)
        return loaders.StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    whole = windows_of(make())
    for stop in range(1, 6):
        loader = make()
        rest = iter(loader)
        read = [next(rest) for _ in range(stop)]
        again = make()
        again.load_state_dict(loader.state_dict())
        assert windows_of([*read, *again]) == whole
