import json
import shutil

import numpy as np
import pytest

from superpose.copies import write_folder
from superpose.data.config import DataArgs, prepare, vocabulary_size
from superpose.data.store import TokenStore, is_store
from superpose.errors import UserError


@pytest.fixture
def copied(store, tmp_path):
    """A copy of the store, to be broken."""
    shutil.copytree(store.path, tmp_path / "store")
    return tmp_path / "store"


def test_ids_fit_the_vocabulary_and_take_two_bytes(store):
    tokens = store.train.tokens
    assert store.manifest["dtype"] == "<u2"
    assert int(tokens.read(0, len(tokens)).max()) < store.vocab_size == 300
    assert (store.path / "train-00000.tokens").stat().st_size == 2 * len(tokens)


def test_the_manifest_says_what_made_it(store):
    assert {"superpose", "tokenizers"} == set(store.manifest["versions"])
    assert "documents.jsonl" in store.manifest["preparation"]["sources"][0]["location"]
    for side in ("train", "val"):
        assert f"{getattr(store, side).documents:,} documents" in store.describe()


@pytest.mark.parametrize("name", ["train-00000.tokens", "val-00000.tokens", "train-00000.offsets", "manifest.json"])
def test_a_file_that_is_cut_short_is_named_and_never_opened(copied, name):
    whole = (copied / name).read_bytes()
    for cut in (b"", whole[:-3]):
        (copied / name).write_bytes(cut)
        with pytest.raises(UserError, match=name):
            TokenStore.open(copied)
    (copied / name).unlink()
    with pytest.raises(UserError, match=name):
        TokenStore.open(copied)


@pytest.mark.parametrize("name", ["train-00000.tokens", "val-00000.offsets", "tokenizer/tokenizer.json"])
def test_an_altered_file_is_found_by_its_checksum(copied, name):
    assert TokenStore.open(copied).verify() == []
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (problem, *_) = TokenStore.open(copied).verify()
    assert f"{name} was altered" in problem


def test_an_id_outside_the_vocabulary_is_never_read(copied):
    path = copied / "train-00000.tokens"
    tokens = np.fromfile(path, "<u2")
    tokens[1000] = 300
    tokens.tofile(path)
    store = TokenStore.open(copied)
    store.train.tokens.read(0, 1000)
    with pytest.raises(UserError, match=r"train-00000\.tokens holds token 300"):
        store.train.tokens.read(990, 20)


def test_a_store_of_another_version_is_refused(copied):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace("superpose tokens 3", "superpose tokens 9"))
    with pytest.raises(UserError, match="superpose tokens 9"):
        TokenStore.open(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"splits": {}},
        {"splits": {"train": {"shards": []}, "val": {"shards": []}}},
        {"splits": {"train": {"shards": [{"name": "../train-00000"}]}}},
        {"splits": {"train": {"shards": [{"name": "train-00000", "tokens": "many"}]}}},
        {"vocab_size": "large"},
        {"dtype": "object"},
        {"sha256": []},
        {"fingerprint": None, "end_of_text": None},
    ],
)
def test_a_manifest_that_was_altered_is_one_sentence(copied, change):
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"manifest\.json"):
        TokenStore.open(copied).verify()


@pytest.mark.parametrize("name", ["tokenizer/pytorch_model.bin", "tokenizer/evil.py", "tokenizer/../x.json", "../x"])
def test_a_tokenizer_is_no_code_and_lies_inside(copied, name):
    file = copied / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sha256"][name] = "0"
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was altered: sha256"):
        TokenStore.open(copied)


def test_an_account_that_does_not_add_up_is_altered(copied):
    file = copied / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["accounts"][0]["train"]["bytes"] += 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"was altered: accounts\.0.*-1 bytes are unaccounted for"):
        TokenStore.open(copied)


@pytest.mark.parametrize("name", ["accounts", "preparation"])
def test_what_is_told_of_a_store_is_checked_too(copied, name):
    file = copied / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: "many"}))
    with pytest.raises(UserError, match=f"was altered: {name}"):
        TokenStore.open(copied)


@pytest.fixture(scope="module")
def named(documents, tmp_path_factory):
    """A store of two named sources."""
    folder = tmp_path_factory.mktemp("named")
    lines = documents.read_text().splitlines(keepends=True)[:400]
    (folder / "code.jsonl").write_text("".join(lines[:100]))
    (folder / "web.jsonl").write_text("".join(lines[100:]))
    corpus = {"code": str(folder / "code.jsonl"), "web": [str(folder / "web.jsonl")]}
    return prepare(DataArgs(corpus=corpus, tokenizer="bytes", val_fraction=0.1))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-00000.sources", lambda ids: ids[:-1], r"train-00000\.sources has \d+ bytes"),
        ("train-00000.sources", lambda ids: 1 - ids, r"tokens of the source code, its manifest says"),
        ("val-00000.sources", lambda ids: ids + 1, r"tokens of the source code, its manifest says"),
    ],
    ids=["cut", "swapped", "unknown"],
)
def test_numbers_of_sources_that_were_altered_are_not_opened(named, tmp_path, file, change, message):
    shutil.copytree(named.path, tmp_path / "store")
    path = tmp_path / "store" / file
    change(np.fromfile(path, "<u2")).astype("<u2").tofile(path)
    with pytest.raises(UserError, match=message):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize(
    "sources", [["code"], ["code", "../web"], "code", None, ["code", "web", "math"]], ids=lambda given: repr(given)
)
def test_names_of_sources_that_were_altered_are_one_sentence(named, tmp_path, sources):
    shutil.copytree(named.path, tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sources": sources}))
    with pytest.raises(UserError, match="was altered: "):
        TokenStore.open(tmp_path / "store")


def test_a_named_store_in_a_remote_place_keeps_its_sources(named, memory, monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    write_folder(named.path, "memory://bucket/named", ["manifest.json"])
    opened = TokenStore.open("memory://bucket/named")
    assert opened.sources == named.sources == ("code", "web")
    for name, source in named.train.sources.items():
        assert np.array_equal(opened.train.sources[name].starts, source.starts)


@pytest.fixture
def remote(store, memory, monkeypatch, tmp_path):
    """The store in a remote place."""
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    write_folder(store.path, "memory://bucket/store", ["manifest.json"])
    return "memory://bucket/store"


def test_a_store_in_a_remote_place_is_the_same_store(store, remote):
    opened = prepare(DataArgs(corpus=remote))
    assert opened.fingerprint == store.fingerprint
    assert opened.verify() == []
    for side in ("train", "val"):
        mine, other = getattr(store, side), getattr(opened, side)
        assert np.array_equal(mine.tokens.read(0, len(mine.tokens)), other.tokens.read(0, len(other.tokens)))
        assert np.array_equal(mine.offsets, other.offsets)
    assert vocabulary_size(DataArgs(corpus=remote)) == store.vocab_size
    with pytest.raises(UserError, match=f"{remote} is prepared already, so data.seed cannot apply"):
        prepare(DataArgs(corpus=remote, seed=3))


def test_a_store_that_is_not_whole_is_none(remote, memory):
    memory.rm("/bucket/store/manifest.json")
    assert not is_store(remote)
    with pytest.raises(UserError, match=r"memory://bucket/store holds no manifest.json; give the place of a whole"):
        TokenStore.open(remote)


@pytest.mark.parametrize("name", ["train-00000.tokens", "val-00000.offsets", "tokenizer/tokenizer.json"])
def test_an_altered_or_missing_file_of_a_remote_store_is_named(remote, memory, name):
    content = bytearray(memory.cat(f"/bucket/store/{name}"))
    content[len(content) // 2] ^= 1
    memory.pipe(f"/bucket/store/{name}", bytes(content))
    with pytest.raises(UserError, match=f"{remote}/{name} was altered or is not whole"):
        TokenStore.open(remote)
    memory.rm(f"/bucket/store/{name}")
    with pytest.raises(UserError, match=f"{remote}/{name} is not there"):
        TokenStore.open(remote)


def test_a_remote_manifest_leads_nowhere_else(remote, memory):
    manifest = json.loads(memory.cat("/bucket/store/manifest.json"))
    manifest["sha256"]["../../outside"] = "0"
    memory.pipe("/bucket/store/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match=f"{remote}/manifest.json was altered: sha256"):
        TokenStore.open(remote)
    memory.pipe("/bucket/store/manifest.json", b"{}")
    with pytest.raises(UserError, match=f"{remote}/manifest.json has format None"):
        TokenStore.open(remote)
