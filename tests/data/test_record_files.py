import gzip
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import record_files
from superpose.data.account import Dropped
from superpose.data.record_files import read_json_lines

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=20)


def lines(texts):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gb18030", "utf-7"])
@given(texts, st.integers(2, 300), st.booleans())
def test_records_in_any_encoding_whatever_the_chunks(tmp_path_factory, encoding, texts, size, last_end):
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    content = lines(texts)
    file.write_bytes((content if last_end else content[:-1]).encode(encoding))
    assert list(read_json_lines(str(file), "text", encoding, most=size)) == texts


@given(texts, st.data())
def test_every_line_is_read_by_one_part(tmp_path_factory, texts, data):
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    content = lines(texts).encode()
    file.write_bytes(content)
    inner = data.draw(st.lists(st.integers(1, len(content)), max_size=4, unique=True).map(sorted))
    cuts = [0, *(cut for cut in inner if cut < len(content)), len(content)]
    parts = [
        list(read_json_lines(str(file), "text", "utf-8", "", start, stop)) for start, stop in itertools.pairwise(cuts)
    ]
    assert [text for part in parts for text in part] == texts


def test_a_record_across_damage_is_broken_and_those_around_it_are_not(tmp_path):
    """Three members; the second, which is damaged, holds the end of a record and the beginning of another."""
    content = lines(f"number {number}" for number in range(30)).encode()
    cuts = (0, 305, 612, len(content))
    members = [bytearray(gzip.compress(content[start:stop])) for start, stop in itertools.pairwise(cuts)]
    members[1][-6] ^= 1  # its checksum
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(b"".join(members))
    found = list(read_json_lines(str(file), "text", "utf-8", "gz"))
    reasons = [drop.reason for drop in found if isinstance(drop, Dropped)]
    assert reasons == ["records", "compression", "records"]
    whole = content[: cuts[1]].count(b"\n"), content[cuts[2] :].count(b"\n") - 1
    assert [text for text in found if isinstance(text, str)] == [
        f"number {number}" for number in (*range(whole[0]), *range(30 - whole[1], 30))
    ]


def test_a_line_without_end_is_no_record_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "_LONGEST_LINE", 1000)
    file = tmp_path / "a.jsonl"
    long = json.dumps({"text": "x" * 5000})
    file.write_text(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n')
    for part in (
        read_json_lines(str(file), "text", "utf-8", "", 0, file.stat().st_size),
        read_json_lines(str(file), "text", "utf-8", most=100),
    ):
        found = list(part)
        assert [text for text in found if isinstance(text, str)] == ["a", "b"]
        assert sum(drop.bytes for drop in found if isinstance(drop, Dropped)) in (len(long), len(long) + 1)
