"""Preparation from and to places elsewhere: the same store as from files on this machine, whatever is killed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from superpose.data import prepare as module
from superpose.data import stream_parts
from superpose.data.config import DataArgs, prepare
from superpose.data.prepare import Preparation, prepare_store, train_on_sources
from superpose.data.readers import Source
from superpose.data.store import TokenStore
from superpose.errors import UserError
from tests.data.test_text_streams import Records, needs_datasets, saved  # noqa: F401  # a fixture
from tests.s3 import needs_s3, running

TEXTS = [f"Document {number}: größer, 漢字 {number * number}.\n\nIts end.\n" for number in range(400)]


def preparation(*locations, **settings):
    return Preparation(
        tuple(Source(location) for location in locations),
        **{"tokenizer": "bytes", "val_fraction": 0.1, **settings},
    )


def objects():
    """Files of all kinds, by name."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    table, parquet, arrow = pa.table({"text": TEXTS}), pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet, row_group_size=50)
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    ids = np.concatenate([[*text.encode(), 256] for text in TEXTS]).astype("<u2")
    return {
        "a.txt": "\n\n".join(TEXTS).encode(),
        "wide.txt": "\n\n".join(TEXTS).encode("utf-16"),
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.parquet": parquet.getvalue().to_pybytes(),
        "a.arrow": arrow.getvalue().to_pybytes(),
        "ids.bin": ids.tobytes(),
        "saved/data-00000-of-00001.arrow": arrow.getvalue().to_pybytes(),
        "saved/state.json": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}',
    }


@pytest.fixture
def here(tmp_path):
    """The files on this machine."""
    for name, content in objects().items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
    return tmp_path / "here"


@pytest.mark.parametrize(
    "name", [name for name in objects() if "/" not in name] + ["saved", "a.*", "[aw]*.txt", "**/*.arrow"]
)
def test_a_remote_source_makes_the_same_store(name, here, memory, tmp_path, monkeypatch):
    monkeypatch.setattr("superpose.data.readers.RANGE", 5000)
    for file, content in objects().items():
        memory.pipe(f"/bucket/{file}", content)
    stores = [
        prepare_store(preparation(f"{place}/{name}"), tmp_path / str(number), processes=1)
        for number, place in enumerate((here, "memory://bucket"))
    ]
    assert stores[0].fingerprint == stores[1].fingerprint
    accounts = [store.manifest["accounts"] for store in stores]
    for (account,) in accounts:
        assert account.pop("source").endswith(name)
    assert accounts[0] == accounts[1]


def test_an_object_that_was_changed_is_noticed(memory, tmp_path):
    memory.pipe("/bucket/a.jsonl", objects()["a.jsonl"])
    before = prepare_store(preparation("memory://bucket/a.jsonl"), processes=1)
    assert prepare_store(preparation("memory://bucket/a.jsonl"), processes=1).path == before.path
    time.sleep(0.01)
    memory.pipe("/bucket/a.jsonl", objects()["a.jsonl"].replace(b"Document 7:", b"Document x:"))
    after = prepare_store(preparation("memory://bucket/a.jsonl"), processes=1)
    assert after.path != before.path
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("where", ["memory", "here"])
def test_a_source_that_changes_while_it_is_prepared_is_noticed(where, here, memory, tmp_path, monkeypatch):
    content = objects()["a.jsonl"]
    memory.pipe("/bucket/a.jsonl", content)
    gather = module.gather

    def changes(*arguments):
        memory.pipe("/bucket/a.jsonl", content.upper())
        (here / "a.jsonl").write_bytes(content.upper())
        return gather(*arguments)

    monkeypatch.setattr(module, "gather", changes)
    source = "memory://bucket/a.jsonl" if where == "memory" else str(here / "a.jsonl")
    with pytest.raises(UserError, match="was changed while the text was prepared; start again"):
        prepare_store(preparation(source), tmp_path / "store", processes=1)
    assert not (tmp_path / "store").exists()


def test_a_place_that_fails_costs_no_text(here, memory, tmp_path, monkeypatch):
    """Its error is not taken for damage, of which a little would be dropped."""
    for name in ("a.parquet", "a.arrow", "a.jsonl.gz", "a.txt", "ids.bin"):
        memory.pipe(f"/bucket/{name}", objects()[name])
    from fsspec.implementations.memory import MemoryFile

    read = MemoryFile.read
    reads = []

    def fails(self, *arguments):
        reads.append(1)
        if len(reads) == limit:
            raise ConnectionResetError("reset by peer")
        return read(self, *arguments)

    monkeypatch.setattr("superpose.data.readers.RANGE", 5000)
    monkeypatch.setattr(MemoryFile, "read", fails)
    for name in ("a.parquet", "a.arrow", "a.jsonl.gz", "a.txt", "ids.bin"):
        settings = preparation(f"memory://bucket/{name}", max_damaged=1.0)
        limit, failed, reads = 0, 0, []
        whole = prepare_store(settings, tmp_path / name / "whole", processes=1).fingerprint
        for limit in range(1, len(reads) + 1, max(1, len(reads) // 8)):
            reads = []
            out = tmp_path / name / str(limit)
            try:
                prepare_store(settings, out, processes=1)
            except UserError as error:
                failed += "cannot be reached (reset by peer)" in str(error)
                assert not out.exists()
            assert prepare_store(settings, out, processes=1).fingerprint == whole
        assert failed > 1


def test_a_store_is_prepared_into_a_remote_place_and_trained_from_there(here, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    place = "memory://bucket/store"
    made = prepare_store(preparation(str(here / "a.jsonl")), place, processes=1)
    assert prepare(DataArgs(corpus=place)).fingerprint == made.fingerprint
    assert prepare_store(preparation(str(here / "a.jsonl")), place, processes=1).fingerprint == made.fingerprint
    with pytest.raises(UserError, match=f"{place} exists and holds something else"):
        prepare_store(preparation(str(here / "a.parquet"), seed=2), place, processes=1)


@pytest.mark.parametrize("breaks_at", [None, 250])
def test_streams_of_the_caller_make_the_store_that_their_text_makes(here, tmp_path, monkeypatch, breaks_at):
    monkeypatch.setattr(stream_parts, "RANGE", 2000)
    expected = prepare_store(preparation(str(here / "a.parquet")), tmp_path / "expected", processes=1)
    records = Records(TEXTS, breaks_at)
    settings = preparation("stream:mine")
    if breaks_at:
        with pytest.raises(UserError, match=r"stream:mine broke off \(ConnectionError: reset by peer\)"):
            prepare_store(settings, tmp_path / "store", streams={"mine": records})
    store = prepare_store(settings, tmp_path / "store", streams={"mine": records})
    assert store.fingerprint == expected.fingerprint
    (account,), (other,) = store.manifest["accounts"], expected.manifest["accounts"]
    assert account | {"source": ""} == other | {"source": ""}
    assert sorted(file.name for file in (tmp_path / "store").iterdir())[0] == "manifest.json"
    with pytest.raises(UserError, match="none of the streams that were given"):
        prepare_store(settings, tmp_path / "other")


def test_a_tokenizer_is_trained_on_a_remote_source(here, memory):
    memory.pipe("/bucket/a.txt", objects()["a.txt"])
    ours, theirs = (
        train_on_sources((Source(place),), 300, processes=1) for place in (str(here / "a.txt"), "memory://bucket/a.txt")
    )
    assert ours.tokenizer.to_str() == theirs.tokenizer.to_str()


@needs_datasets
def test_what_datasets_streams_makes_the_store_that_its_files_make(saved, tmp_path):  # noqa: F811
    location, _ = saved
    folder = location.removeprefix("datasets:")
    by_files = prepare_store(preparation(folder), tmp_path / "files", processes=2)
    streamed = prepare_store(preparation(location), tmp_path / "streamed", processes=2)
    assert streamed.fingerprint == by_files.fingerprint
    assert prepare(DataArgs(corpus=location, tokenizer="bytes", val_fraction=0.1)).fingerprint


def prepared_by_another(out, *sources):
    command = [sys.executable, "-m", "superpose", "prepare", *sources, "--tokenizer", "bytes", "--val-fraction", "0.1"]
    return subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@needs_s3
def test_a_preparation_on_s3_survives_kills_of_itself_and_of_the_server(tmp_path, monkeypatch):
    """From objects to a store in S3: the server killed once, itself at several points, it ends in the same store."""
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"text": f"Document {number}: " + "word " * 300}) + "\n" for number in range(6_000)]
    files = {f"bucket/texts/{part}.jsonl": "".join(lines[part::3]).encode() for part in range(3)}
    with running() as server:
        server.put(files)
        source, out = "s3://bucket/texts/*.jsonl", "s3://bucket/store"
        whole = prepared_by_another(tmp_path / "whole", source)
        began = time.monotonic()
        _, said = whole.communicate()
        assert whole.returncode == 0, said
        took = time.monotonic() - began
        expected = TokenStore.open(tmp_path / "whole").fingerprint
        stopped = prepared_by_another(out, source)
        time.sleep(took * 0.4)
        server.kill()
        _, said = stopped.communicate()
        assert stopped.returncode == 2, said
        assert said.startswith("superpose: s3://bucket/")
        assert "cannot be reached" in said
        assert said.count("\n") == 1
        server.start()
        server.put(files)
        for share in (0.5, 0.7, 0.85):
            killed = prepared_by_another(out, source)
            time.sleep(took * share)
            os.killpg(killed.pid, signal.SIGKILL)
            killed.communicate()
        left = list((tmp_path / "cache" / "stores").iterdir())
        assert left, "it was killed before it began"
        last = prepared_by_another(out, source)
        _, said = last.communicate()
        assert last.returncode == 0, said
        monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "another"))
        opened = TokenStore.open(out)
        assert opened.fingerprint == expected
        assert opened.verify() == []
