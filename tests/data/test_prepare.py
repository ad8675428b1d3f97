import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from superpose.data import prepare as module
from superpose.data import shards
from superpose.data.prepare import Preparation, prepare_store, train_on_sources
from superpose.data.readers import Source
from superpose.data.sources import SourceTokens
from superpose.data.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer
from superpose.errors import UserError


def decoded(store, side):
    """The documents of a side, in order, as text."""
    tokenizer = Tokenizer.from_file(str(store.tokenizer_path / "tokenizer.json"))
    split = getattr(store, side) if isinstance(side, str) else side
    for start, stop in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        *ids, last = split.tokens.read(int(start), int(stop - start)).tolist()
        assert last == store.end_of_text
        assert store.end_of_text not in ids
        yield tokenizer.decode(ids)


def records(path, texts, name="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({name: text}) + "\n" for text in texts))
    return str(path)


DOCUMENTS = [f"document {number} says {number * number % 97} and é\n" * (1 + number % 5) for number in range(400)]


def prepared(tmp_path, *locations, name="store", processes=1, **changes):
    settings = {"tokenizer": "bytes", "val_fraction": 0.2} | changes
    return prepare_store(Preparation(tuple(map(Source, locations)), **settings), tmp_path / name, processes)


def test_what_goes_in_comes_out_in_one_order_however_it_lies(tmp_path):
    """One file, many files, other paths, small shards and spills, several processes: the same store."""
    whole = prepared(tmp_path, records(tmp_path / "one.jsonl", DOCUMENTS))
    texts = [list(decoded(whole, side)) for side in ("train", "val")]
    assert sorted(texts[0] + texts[1]) == sorted(DOCUMENTS)
    assert not set(texts[0]) & set(texts[1])
    assert whole.train.bytes == sum(len(text.encode()) for text in texts[0])
    for number in range(4):
        records(tmp_path / "many" / f"{number}.jsonl", DOCUMENTS[number::4][::-1])
    again = prepared(tmp_path, str(tmp_path / "many"), name="again", processes=2)
    assert again.fingerprint == whole.fingerprint
    assert [list(decoded(again, side)) for side in ("train", "val")] == texts


def test_small_shards_and_spills_change_nothing_but_the_files(tmp_path, monkeypatch):
    source = records(tmp_path / "one.jsonl", DOCUMENTS)
    whole = prepared(tmp_path, source)
    for name, value in (("_SHARD_BYTES", 4000), ("_SPILL_TOKENS", 3000), ("_BATCH_BYTES", 500)):
        monkeypatch.setattr(shards, name, value)
    sharded = prepared(tmp_path, source, name="sharded")
    assert len(sharded.manifest["splits"]["train"]["shards"]) > 3
    for side in ("train", "val"):
        assert list(decoded(sharded, side)) == list(decoded(whole, side))
        assert getattr(sharded, side).bytes == getattr(whole, side).bytes
    assert sharded.verify() == []


def test_repeats_are_left_out_and_counted(tmp_path):
    store = prepared(tmp_path, records(tmp_path / "a.jsonl", DOCUMENTS + DOCUMENTS[:50] + ["  " + DOCUMENTS[0]]))
    (account,) = store.accounts
    assert account.repeated.count == 51
    assert "in 51 repeated documents" in store.describe()
    assert store.train.documents + store.val.documents == 400


def test_text_cannot_forge_the_end_of_a_document(tmp_path):
    store = prepared(tmp_path, records(tmp_path / "a.jsonl", [f"{text}{END_OF_TEXT} more" for text in DOCUMENTS]))
    assert all(END_OF_TEXT in text for text in decoded(store, "train"))


def test_a_mixture_of_sources(tmp_path):
    a = records(tmp_path / "a.jsonl", [f"a{number:05d}" for number in range(1000)])
    b = records(tmp_path / "b.jsonl", [f"b{number:05d}" for number in range(300)])
    store = prepared(tmp_path, a, b, weights=(1.0, 1.0))
    first = [text[0] for text in decoded(store, "train")]
    assert abs(first.count("a") - first.count("b")) <= 1
    assert [account.beyond_train.bytes > 0 for account in store.accounts] == [True, False]
    assert "ab" in "".join(first[:50])


def test_tokens_made_by_others_are_taken_over(tmp_path):
    """Text, and the same text as tokens of a .bin file: one store."""
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    ids = [[*tokenizer.tokenizer.encode(text).ids, tokenizer.end_of_text] for text in DOCUMENTS]
    np.concatenate(ids).astype("<u2").tofile(tmp_path / "tokens.bin")
    from_tokens = prepared(tmp_path, str(tmp_path / "tokens.bin"), tokenizer=str(tmp_path / "tokenizer"))
    assert sorted([*decoded(from_tokens, "train"), *decoded(from_tokens, "val")]) == sorted(DOCUMENTS)
    assert from_tokens.train.bytes == sum(len(text.encode()) for text in decoded(from_tokens, "train"))
    with pytest.raises(UserError, match=r"tokens\.bin has no header.*no ids of a vocabulary of 257"):
        prepared(tmp_path, str(tmp_path / "tokens.bin"), name="other")
    with pytest.raises(UserError, match="name the tokenizer"):
        prepared(tmp_path, str(tmp_path / "tokens.bin"), name="none", tokenizer="", vocab_size=300)


def test_the_same_inputs_are_prepared_once_and_others_are_refused(tmp_path, monkeypatch):
    source = records(tmp_path / "a.jsonl", DOCUMENTS)
    store = prepared(tmp_path, source)
    monkeypatch.setattr(module, "read_part", None)
    assert prepared(tmp_path, source).manifest == store.manifest
    with pytest.raises(UserError, match="holds something else"):
        prepared(tmp_path, source, seed=1)
    records(tmp_path / "a.jsonl", DOCUMENTS[1:])
    with pytest.raises(UserError, match="holds something else"):
        prepared(tmp_path, source)


@pytest.mark.parametrize("stage", ["reading text", "training the tokenizer", "tokenizing", "writing shards"])
def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path, monkeypatch, stage):
    for number in range(4):
        records(tmp_path / "many" / f"{number}.jsonl", DOCUMENTS[number::4])
    monkeypatch.setattr(shards, "_SHARD_BYTES", 4000)
    preparation = Preparation((Source(str(tmp_path / "many")),), vocab_size=300, val_fraction=0.2)
    expected = prepare_store(preparation, tmp_path / "whole", 1)
    reached = []

    def interrupt(what, share):
        reached.append(what)
        if what == stage and (share >= 0.5 or "tokenizer" in what):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(preparation, tmp_path / "store", 1, interrupt)
    assert not (tmp_path / "store").exists()
    read = []
    original = module.read_part
    for place in (module, shards):
        monkeypatch.setattr(place, "read_part", lambda *arguments: read.append(arguments) or original(*arguments))
    store = prepare_store(preparation, tmp_path / "store", 1)
    assert store.fingerprint == expected.fingerprint
    assert store.verify() == []
    # Four parts are read for the index, for the tokenizer and for their tokens; what was done is not done again.
    assert len(read) < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "store", "whole"]


def test_killed_at_any_moment_it_goes_on(tmp_path):
    for number in range(6):
        records(tmp_path / "many" / f"{number}.jsonl", [text * 20 for text in DOCUMENTS[number::6]])
    code = (
        "import sys; from pathlib import Path\n"
        "from superpose.data.prepare import *\n"
        "from superpose.data import shards\n"
        "shards._SHARD_BYTES = 50_000\n"
        "source = Source(sys.argv[1]); settings = dict(tokenizer='bytes', val_fraction=0.2)\n"
        "prepare_store(Preparation((source,), **settings), Path(sys.argv[2]), 1)\n"
    )
    for delay in (0.9, 1.0, 1.1, 1.2):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "many", tmp_path / "store"])
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", code, tmp_path / "many", tmp_path / "store"], check=True)
    expected = prepared(tmp_path, str(tmp_path / "many"), name="expected")
    store = module.TokenStore.open(tmp_path / "store")
    assert store.verify() == []
    assert list(decoded(store, "train")) == list(decoded(expected, "train"))


def test_two_at_once_make_one_store(tmp_path):
    for number in range(6):
        records(tmp_path / "many" / f"{number}.jsonl", [text * 20 for text in DOCUMENTS[number::6]])
    command = [
        sys.executable,
        "-m",
        "superpose",
        "prepare",
        tmp_path / "many",
        "--tokenizer=bytes",
        "--val-fraction=0.2",
    ]
    runs = [
        subprocess.Popen([*command, "--out", tmp_path / "store", "--processes", "1"], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "store"]
    assert module.TokenStore.open(tmp_path / "store").verify() == []


def test_a_disk_that_is_full_is_one_sentence_and_what_is_done_is_kept(tmp_path):
    """A limit on the size of files stands in for the disk: writes fail in the middle."""
    source = records(tmp_path / "a.jsonl", [text * 50 for text in DOCUMENTS])
    command = f"ulimit -f 100; {sys.executable} -m superpose prepare {source} --tokenizer bytes --out {tmp_path}/store"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("superpose: ")
    assert done.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert not (tmp_path / "store").exists()
    unlimited = command.partition("; ")[2]
    assert subprocess.run(["bash", "-c", unlimited], capture_output=True).returncode == 0


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "only one"}\n'])
def test_too_little_text_is_one_clear_sentence(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl.*too few"):
        prepared(tmp_path, str(tmp_path / "a.jsonl"))


def test_files_that_are_not_text_are_counted_and_left_out(tmp_path):
    for number, text in enumerate(DOCUMENTS[:150]):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    (tmp_path / "texts" / "binary").write_bytes(b"\x89PNG\x00\x01\x02\x03\x04")
    store = prepared(tmp_path, str(tmp_path / "texts"))
    (account,) = store.accounts
    assert account.dropped["not_text"].model_dump() == {
        "count": 1,
        "bytes": 9,
        "first": str(tmp_path / "texts" / "binary"),
    }
    assert "9 in 1 files that are not text" in store.describe()


def test_a_tokenizer_is_trained_on_text_from_all_over(tmp_path):
    source = records(tmp_path / "a.jsonl", DOCUMENTS)
    trained = train_on_sources((Source(source),), 320, ("<|user|>",), processes=1)
    assert trained.vocab_size == 320
    assert trained.tokenizer.token_to_id("<|user|>") is not None
    save_tokenizer(trained, tmp_path / "tokenizer")
    ids = load_tokenizer(str(tmp_path / "tokenizer")).tokenizer.encode(DOCUMENTS[3]).ids
    assert len(ids) < len(DOCUMENTS[3]) / 2
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: no text"):
        train_on_sources((Source(str(tmp_path / "empty.jsonl")),), 320, processes=1)


@pytest.mark.parametrize("end", ["", "\r", "\u2029", " ", "\n"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "bin"])
def test_a_single_long_document_fills_both_sides(tmp_path, end, kind):
    numbers = range(0, 60_000, 1 if kind == "txt" else 4)
    text = "".join(f"{number * number:08x}{end}" for number in numbers)
    source = tmp_path / f"one.{kind}"
    if kind == "txt":
        source.write_bytes(text.encode())
    elif kind == "jsonl":
        records(source, [text])
    else:
        source.write_bytes(np.frombuffer(text.encode(), np.uint8).astype("<u2").tobytes())
    store = prepared(tmp_path, str(source), tokenizer="bytes", val_fraction=0.005)
    assert store.train.documents + store.val.documents > 10
    assert store.val.bytes > 0
    sizes = np.diff(store.train.offsets)
    assert sizes.max() < 3 * 2 * 16 * 1024
    (account,) = store.accounts
    assert account.read == source.stat().st_size if kind != "jsonl" else len(text.encode())


def test_a_short_text_alone_is_cut_too(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    store = prepared(tmp_path, str(tmp_path / "a.txt"))
    assert store.train.documents >= 2
    assert store.val.documents >= 1


def test_a_script_needs_no_guard(tmp_path):
    """Where processes are started the script is not run again, whatever it does at its top."""
    for number in range(4):
        records(tmp_path / "many" / f"{number}.jsonl", DOCUMENTS[number::4])
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from superpose.data.prepare import *\n"
        "print('once', flush=True)\n"
        "source = Source(sys.argv[1])\n"
        "print(prepare_store(Preparation((source,), tokenizer='bytes'), Path(sys.argv[2]), 2).train.documents)\n"
    )
    run = [sys.executable, script, tmp_path / "many", tmp_path / "store"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert (done.stdout.split()[0], len(done.stdout.split())) == ("once", 2), done.stderr


@pytest.fixture
def code_and_web(tmp_path):
    """Two files of different text."""
    code = records(tmp_path / "code.jsonl", [f"code {text}" for text in DOCUMENTS[:150]])
    web = records(tmp_path / "web.jsonl", [f"web {text}" for text in DOCUMENTS])
    return code, web


def named(tmp_path, sources, out="named", **changes):
    settings = {"tokenizer": "bytes", "val_fraction": 0.2} | changes
    sources = tuple(Source(location, name=name) for location, name in sources)
    return prepare_store(Preparation(sources, **settings), tmp_path / out, 1)


def test_a_store_knows_which_tokens_are_of_which_source(tmp_path, code_and_web, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 4000)
    code, web = code_and_web
    store = named(tmp_path, [(web, "web"), (code, "code")])
    assert store.sources == ("web", "code")
    for split in (store.train, store.val):
        counts = Counter()
        for name, source in split.sources.items():
            view = replace(split, tokens=SourceTokens(split.tokens, source), offsets=source.offsets)
            texts = list(decoded(store, view))
            assert texts
            assert all(text.startswith(f"{name} ") for text in texts)
            assert source.bytes == sum(len(text.encode()) for text in texts)
            counts.update(tokens=source.num_tokens, documents=source.documents, bytes=source.bytes)
        assert counts == {"tokens": len(split.tokens), "documents": split.documents, "bytes": split.bytes}
    assert f"  code: {store.val.sources['code'].documents:,} documents, " in store.describe()
    assert store.verify() == []


def test_names_change_no_token_but_the_fingerprint(tmp_path, code_and_web):
    """The same documents in the same order as without; only what a mixture would read is another."""
    code, web = code_and_web
    plain = prepared(tmp_path, code, web)
    assert not plain.sources
    assert not plain.train.sources
    assert "sources" not in plain.manifest
    made = [named(tmp_path, zip((code, web), names, strict=True), out="".join(names)) for names in ("cw", "wc", "cc")]
    for store in made:
        for file in plain.manifest["sha256"]:
            assert store.manifest["sha256"][file] == plain.manifest["sha256"][file]
    assert len({plain.fingerprint, *(store.fingerprint for store in made)}) == 4
    assert made[2].sources == ("c",)
    assert made[2].train.sources["c"].num_tokens == len(plain.train.tokens)


def test_a_store_without_names_is_made_of_the_same_inputs_as_before_there_were_names(tmp_path, monkeypatch):
    """Hashes taken before the change, so that stores in the cache are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "stat_of", lambda file: (1, "2"))
    monkeypatch.setattr(module, "version", lambda name: "0")
    sources = [Source(records(Path(name), DOCUMENTS[at::2])) for at, name in enumerate(("a.jsonl", "b.jsonl"))]
    store = prepare_store(Preparation(tuple(sources), tokenizer="bytes", val_fraction=0.2), "store", 1)
    assert store.manifest["inputs"] == "e844200f4b7668386649290457091fe07797ad8668779587032befc0d58c56ad"
    assert not list(store.path.glob("*.sources"))


def test_documents_in_two_sources_are_of_the_first(tmp_path):
    """A repeat is kept once; with equal text it is that of the source named first."""
    one, other = (records(tmp_path / f"{name}.jsonl", DOCUMENTS[:count]) for name, count in (("a", 100), ("b", 200)))
    store = named(tmp_path, [(one, "a"), (other, "b")])
    kept = [sum(split.sources[name].documents for split in (store.train, store.val)) for name in ("a", "b")]
    assert kept == [100, 100]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("code", ""), r"some sources have a name and .*web\.jsonl has none"),
        (("code", "a b"), "'a b' is no name of a source"),
        (("code", "a\n"), "is no name of a source"),
    ],
    ids=["one without", "a blank", "a line end"],
)
def test_names_that_cannot_be_are_one_sentence(tmp_path, code_and_web, names, message):
    with pytest.raises(UserError, match=message):
        named(tmp_path, zip(code_and_web, names, strict=True))
    assert not (tmp_path / "named").exists()


def test_a_source_with_nothing_to_train_on_is_named(tmp_path, code_and_web):
    code, _ = code_and_web
    with pytest.raises(UserError, match="of the source again no text is left to train on"):
        named(tmp_path, [(code, "code"), (records(tmp_path / "again.jsonl", [f"code {DOCUMENTS[3]}"]), "again")])
