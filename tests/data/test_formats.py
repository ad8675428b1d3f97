import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from superpose.data.formats import Format, format_of
from superpose.errors import UserError

RECORDS = b"".join(json.dumps({"text": f"number {number}"}).encode() + b"\n" for number in range(5))


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a", "b"]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("TRAIN.JSONL", RECORDS, Format("json")),
        ("a.Json.GZ", gzip.compress(RECORDS, mtime=0), Format("json", "gz")),
        ("a.txt", RECORDS, Format("text")),
        ("part-00000", RECORDS, Format("json")),
        ("RC_2011-01.zst", zstd(RECORDS), Format("json", "zst")),
        ("notes.zst", zstd(b"notes\nof mine\n"), Format("text", "zst")),
        ("notes", gzip.compress(b"notes", mtime=0), Format("text", "gz")),
        ("notes.txt", gzip.compress(b"notes", mtime=0), Format("text", "gz")),
        ("README", b"plain\n", Format("text")),
        ("A.PARQUET", parquet(), Format("parquet")),
        ("0001.data", parquet(), Format("parquet")),
        ("parts.txt", b"PAR1 is how Parquet begins", Format("text")),
        ("cache", b"ARROW1\0\0rest", Format("arrow")),
        ("a.ARROW", b"", Format("arrow")),
        ("TOKENS.BIN", b"\1\0\2\0", Format("tokens")),
        ("empty.gz", b"", Format("text", "gz")),
        ("indexed.zst", b"\x50\x2a\x4d\x18\1\0\0\0x" + zstd(b"text"), Format("text", "zst")),
    ],
)
def test_a_file_is_what_it_begins_as(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert format_of(str(tmp_path / name), "text", alone=True) == expected


@pytest.mark.parametrize("index", ["data.idx", "data.IDX"])
def test_tokens_beside_an_index_are_megatrons(tmp_path, index):
    (tmp_path / "data.bin").touch()
    (tmp_path / index).touch()
    assert format_of(str(tmp_path / "data.bin"), "text", alone=True) == Format("megatron")
    assert format_of(str(tmp_path / index), "text", alone=True) == Format("megatron")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.zst"])
def test_a_name_that_contradicts_what_is_in_the_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not compressed")
    with pytest.raises(UserError, match="does not begin as such a file does; if it is not compressed, rename it"):
        format_of(str(tmp_path / name), "text", alone=False)


@pytest.mark.parametrize("start", [b"BZh91AY", b"PK\x03\x04", b"GGUF", b"\x93NUMPY\x01\x00", b"\xfd7zXZ\0"])
def test_another_programs_file_is_named_where_it_is_all_there_is(tmp_path, start):
    (tmp_path / "a.data").write_bytes(start + np.arange(99).tobytes())
    with pytest.raises(UserError, match="which is not read here; give its text"):
        format_of(str(tmp_path / "a.data"), "text", alone=True)
    assert format_of(str(tmp_path / "a.data"), "text", alone=False) == Format("text")
