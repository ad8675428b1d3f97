import json
from importlib.util import find_spec

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import text_streams
from superpose.data.text_streams import Stream, is_stream, keep, open_stream, texts_of
from superpose.errors import UserError

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")

texts = st.lists(st.none() | st.text(max_size=12), max_size=40)


class Records:
    """Records that can be read again, and break off once where they are told to."""

    def __init__(self, texts, breaks_at=None):
        self.texts, self.breaks_at = texts, breaks_at

    def __iter__(self):
        for number, text in enumerate(self.texts):
            if number == self.breaks_at:
                self.breaks_at = None
                raise ConnectionError("reset by peer")
            yield {"id": number, "text": text}


class Resumable(Records):
    """As datasets does it: a state is that of the record that was given last."""

    place = 0

    def __iter__(self):
        for number, record in enumerate(super().__iter__()):
            if number >= self.place:
                self.place = number + 1
                yield record

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def stream(records, has_state=False):
    return Stream("stream:mine", records, "", has_state)


def kept(folder):
    return [
        text
        for file in sorted(folder.glob("*.arrow"))
        for text in pa.ipc.open_stream(file.read_bytes()).read_all()["text"].to_pylist()
    ]


@given(texts, st.integers(1, 40), st.integers(0, 40), st.sampled_from([Records, Resumable]))
def test_what_is_kept_is_what_is_streamed_however_often_it_breaks_off(tmp_path_factory, texts, most, breaks_at, kind):
    folder = tmp_path_factory.mktemp("kept")
    job = (folder, stream(kind(texts, breaks_at), kind is Resumable), "text", most)
    if breaks_at < len(texts):
        with pytest.raises(UserError, match=r"stream:mine broke off \(ConnectionError: reset by peer\)"):
            keep(job)
        if kind is Resumable:  # another process starts anew
            job = (folder, stream(Resumable(texts), True), "text", most)
    keep(job)
    assert kept(folder) == texts
    before = sorted(folder.iterdir())
    keep(job)  # whole, and left as it is
    assert sorted(folder.iterdir()) == before


def test_a_file_holds_no_more_than_it_should(tmp_path):
    keep((tmp_path, stream(Records(["x" * 50] * 100)), "text", 500))
    sizes = [pa.ipc.open_stream(file.read_bytes()).read_all().num_rows for file in sorted(tmp_path.glob("*.arrow"))]
    assert sizes == [10] * 10


@pytest.mark.parametrize("kind", [Records, Resumable])
def test_a_stream_that_says_something_else_is_not_gone_on_with(tmp_path, kind):
    texts = [f"text {number}" for number in range(100)]
    folder = tmp_path / "streams" / "0"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="broke off"):
        keep((folder, stream(kind(texts, 60), kind is Resumable), "text", 100))
    changed = [f"other {number}" for number in range(100)]
    with pytest.raises(UserError, match=rf"says something else at record \d+ than .*remove {tmp_path} and start again"):
        keep((folder, stream(kind(changed), kind is Resumable), "text", 100))


class Skips(Resumable):
    def load_state_dict(self, state):
        self.place = state["place"] + 3 * (state["place"] > 0)


class Refuses(Resumable):
    def load_state_dict(self, state):
        if state["place"]:
            raise KeyError("epoch")
        super().load_state_dict(state)


@pytest.mark.parametrize("kind", [Skips, Refuses])
def test_a_state_that_leads_elsewhere_is_not_believed(tmp_path, kind):
    """What waits in a buffer is in no state: the records before it are read again instead."""
    texts = [f"text {number}" for number in range(100)]
    with pytest.raises(UserError, match="broke off"):
        keep((tmp_path, stream(kind(texts, 60), True), "text", 100))
    keep((tmp_path, stream(kind(texts), True), "text", 100))
    assert kept(tmp_path) == texts


@pytest.mark.parametrize("content", ['{"records": -1}', '{"records": "7"}', "[]", '{"records": 1, "state": 3}'])
def test_a_mark_that_was_altered_is_named(tmp_path, content):
    folder = tmp_path / "streams" / "0"
    folder.mkdir(parents=True)
    (folder / "00000.json").write_text(content)
    with pytest.raises(UserError, match=r"00000.json (was altered|holds no JSON object)"):
        keep((folder, stream(Records(["a", "b"])), "text", 100))


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"body": "x", "id": 1}], "stream:mine, record 0 has no 'text'; its fields are 'body', 'id': name one with"),
        ([{"text": "x"}, {"text": 3}], "stream:mine, record 1 holds int in 'text', expected text"),
        (["x"], r"stream:mine gives str, expected records; map it to \{\"text\": ...\}"),
        (iter([{"text": "x"}]), "stream:mine is an iterator, which can be read only once"),
    ],
)
def test_records_without_text_are_refused(records, said):
    with pytest.raises(UserError, match=said):
        list(texts_of(open_stream("stream:mine", {"mine": records}), "text"))


def test_streams_are_known_by_name_and_by_what_they_begin_with():
    first, second = [{"text": "x"}], [{"text": "y"}]
    assert open_stream("stream:a", {"a": first}).identity == open_stream("stream:a", {"a": list(first)}).identity
    assert open_stream("stream:a", {"a": first}).identity != open_stream("stream:a", {"a": second}).identity
    with pytest.raises(UserError, match=r"source stream:b is none of the streams that were given \(a\)"):
        open_stream("stream:b", {"a": first})
    assert is_stream("datasets:name")
    assert not is_stream("s3://datasets:name")


def test_a_name_of_a_hub_is_one_of_three_parts_or_fewer():
    for location in ("datasets:", "datasets:a:b:c:d", "datasets::x"):
        with pytest.raises(UserError, match="expected datasets:NAME, datasets:NAME:CONFIG or "):
            open_stream(location, {})


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder that datasets streams, in three files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text_streams._from_hub.cache_clear()
    (tmp_path / "data").mkdir()
    texts = [f"document {number}: größer" for number in range(300)]
    for shard in range(3):
        lines = [json.dumps({"text": text}) for text in texts[shard * 100 : (shard + 1) * 100]]
        (tmp_path / "data" / f"train-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return f"datasets:{tmp_path / 'data'}", texts


@needs_datasets
def test_what_datasets_streams_is_kept_shard_by_shard(saved, tmp_path):
    location, texts = saved
    opened = open_stream(location, {})
    assert opened.shards == 3
    assert list(texts_of(opened, "text")) == texts
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        keep((tmp_path / str(number), opened.shard(number), "text", 500))
        marks = sorted((tmp_path / str(number)).glob("0*.json"))
        # A reading that ended here goes on by the state of datasets.
        for file in (tmp_path / str(number)).iterdir():
            if file.name > marks[2].name:
                file.unlink()
        assert json.loads(marks[2].read_text())["state"] is not None
        text_streams._from_hub.cache_clear()
        keep((tmp_path / str(number), open_stream(location, {}).shard(number), "text", 500))
        assert kept(tmp_path / str(number)) == texts[number * 100 : (number + 1) * 100]


@needs_datasets
def test_files_that_were_written_again_are_another_stream(saved, tmp_path):
    location, _ = saved
    before = open_stream(location, {}).identity
    text_streams._from_hub.cache_clear()
    assert open_stream(location, {}).identity == before
    text_streams._from_hub.cache_clear()
    (tmp_path / "data" / "train-1.jsonl").write_text('{"text": "other"}\n')
    assert open_stream(location, {}).identity != before


@needs_datasets
def test_what_datasets_cannot_stream_is_said_in_a_sentence(saved):
    location, _ = saved
    for wrong, said in [
        (f"{location}::nowhere", "Bad split: nowhere. Available splits"),
        (f"{location}:config", "BuilderConfig 'config' not found"),
        ("datasets:nobody/nothing", "Hub"),
    ]:
        with pytest.raises(UserError, match=said) as raised:
            open_stream(wrong, {})
        assert str(raised.value).startswith(f"{wrong} cannot be streamed (")


def test_a_field_that_is_no_text_is_refused(tmp_path):
    records = [{"\ud8af": "text"}]
    with pytest.raises(UserError, match=r"a field named .* cannot be kept; name another"):
        keep((tmp_path, stream(records), "\ud8af", 10))
