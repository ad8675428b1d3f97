"""Damage of any kind, anywhere: what is read is kept, repeated, dropped for a reason or beyond the size asked for."""

import gzip
import json
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superpose.data.account import Account, Count, expect_little_damage
from superpose.data.prepare import Preparation, prepare_store
from superpose.data.readers import Source
from superpose.errors import UserError

ODD = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4)
TEXTS = [f"document {number} says {number * number % 97} and é\n\n" * (1 + number % 3) for number in range(60)]
fresh = count()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here outlives the machine."""
    monkeypatch.setattr("superpose.files.sync", lambda path: None)


def damaged(content, damage):
    """Some bytes written over others."""
    content = bytearray(content)
    for place, noise in damage:
        start = int(place * max(0, len(content) - len(noise)))
        content[start : start + len(noise)] = noise
    return bytes(content)


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def prepared(folder, name, content, **settings):
    """The store and the account of a file."""
    folder = folder / str(next(fresh))
    folder.mkdir()
    (folder / name).write_bytes(content)
    settings = {"tokenizer": "bytes", "val_fraction": 0.2, "max_damaged": 1.0} | settings
    store = prepare_store(Preparation((Source(str(folder / name)),), **settings), folder / "store", 1)
    (account,) = store.accounts
    assert account.balance == 0
    assert account.train.bytes == store.train.bytes
    assert account.val.bytes == store.val.bytes
    assert (account.train.count, account.val.count) == (store.train.documents, store.val.documents)
    return account


a_few = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
@a_few
@given(damage=ODD, size=st.integers(1500, 9000), limit=st.sampled_from([500, 1e9]))
def test_of_text_every_byte_of_the_file_is_in_the_sum(tmp_path, suffix, compress, damage, size, limit):
    content = damaged("".join(TEXTS).encode(), damage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superpose.data.readers.RANGE", size)
        patch.setattr("superpose.data.readers.PIECE", 300)
        patch.setattr("superpose.data.encodings._STRETCH", 700)
        account = prepared(tmp_path, f"a.txt{suffix}", compress(content), max_bytes=limit, val_bytes=limit)
    assert account.read == len(content)
    assert (account.beyond_train.bytes > 0) == (limit == 500)


@a_few
@given(damage=ODD, size=st.integers(900, 9000))
def test_of_records_every_text_and_every_broken_line_is(tmp_path, damage, size):
    content = damaged(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in [*TEXTS, "", " \n"]), damage)
    expected = 0
    for line in content.splitlines(keepends=True) if b"\r" not in content else content.split(b"\n"):
        try:
            text = json.loads(line).get("text")
            expected += len((text or "").encode("utf-8", "replace"))
        except (ValueError, AttributeError):
            expected += -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superpose.data.readers.RANGE", size)
        account = prepared(tmp_path, "a.jsonl", content)
    broken = account.dropped.get("records", Count())
    assert account.read - broken.bytes == expected + broken.count
    assert broken.count <= 2 * len(damage)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@a_few
@given(number=st.integers(0, 5), place=st.floats(0, 1), noise=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_a_damaged_member_costs_itself(tmp_path, suffix, compress, number, place, noise, cut):
    texts = ["".join(f"{part} {line} {line * line}\n\n" for line in range(100)).encode() for part in range(6)]
    members = [compress(text) for text in texts]
    was = members[number]
    members[number] = damaged(was, [(place, noise)]) if not cut else was[: int(place * (len(was) - 1))]
    if number == 0:  # which has to be known for what it is
        members[0] = was[:8] + members[0][8:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("superpose.data.readers.PIECE", 300)
        account = prepared(tmp_path, f"a.txt{suffix}", b"".join(members))
    lost = account.dropped.get("compression", Count())
    if lost.count:
        assert lost.count == 1
        assert lost.bytes == len(members[number])
        assert account.read == sum(map(len, texts)) - len(texts[number]) + lost.bytes
    elif suffix == ".gz":  # what has no checksum may be read otherwise
        assert account.read == sum(map(len, texts)) - (0 if members[number] else len(texts[number]))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@a_few
@given(place=st.floats(0.1, 0.9), noise=st.binary(min_size=1, max_size=4))
def test_of_columns_a_result_or_a_sentence(tmp_path, name, place, noise):
    table = pa.table({"text": TEXTS})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=10, write_page_checksum=True)
    else:
        with pa.ipc.new_file(tmp_path / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=10)
    content = damaged((tmp_path / name).read_bytes(), [(place, noise)])
    try:
        account = prepared(tmp_path, name, content)
    except UserError as error:
        assert name in str(error)  # noqa: PT017
        return
    assert account.train.count + account.val.count + account.repeated.count <= len(TEXTS)


def test_a_damaged_row_group_costs_that_group(tmp_path):
    table = pa.table({"id": range(60), "text": TEXTS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, write_page_checksum=True, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[content.index(b"document 34 ") + 3] ^= 1
    account = prepared(tmp_path, "a.parquet", bytes(content))
    assert account.train.count + account.val.count == 50
    assert account.dropped["columns"].count == 1
    assert "row group 3" in account.dropped["columns"].first
    size = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(3).column(1).total_uncompressed_size
    assert account.dropped["columns"].bytes == size


def test_tokens_count_with_their_header_and_ends(tmp_path):
    ids = np.random.default_rng(0).integers(1, 257, 4000).astype("<u2")
    ids[::100] = 0
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    # Of tokens the store counts the text they stand for, and the account what they take in the file.
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    source = Source(str(tmp_path / "a.bin"))
    (account,) = prepare_store(Preparation((source,), tokenizer="bytes"), tmp_path / "store", 1).accounts
    assert account.read == 1024 + 8000
    assert account.dropped["framing"].bytes == 1024 + 2 * 40


def test_more_damage_than_is_allowed_is_refused_with_what_to_do(tmp_path):
    content = "".join(TEXTS).encode("utf-8").replace("é".encode(), b"\xe9")
    with pytest.raises(UserError, match=r"a\.txt: 100\.00% of it is damaged.*first:.*if it is not in utf-8, name"):
        prepared(tmp_path, "a.txt", content, max_damaged=0.01)


def test_the_share_is_of_what_was_read():
    some = Count(count=1, bytes=99)
    account = Account(
        source="a",
        read=100,
        train=some,
        val=Count(),
        repeated=Count(),
        beyond_train=Count(),
        beyond_val=Count(),
        dropped={"odd_bytes": Count(count=1, bytes=1)},
    )
    expect_little_damage(account, 0.01, "utf-8")
    with pytest.raises(UserError, match=r"1\.00% of it is damaged"):
        expect_little_damage(account, 0.009, "utf-8")
