import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from superpose.errors import UserError
from superpose.evaluate.models import load_models
from superpose.evaluate.texts import own_texts, read_text
from superpose.files import write_json


def test_documents_are_read_until_there_are_enough(tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in ["één", "", "zwei", "three", "four"]))
    text = read_text("short", str(path), "body", 7)
    assert text.documents == ("één", "zwei")
    assert text.sizes.tolist() == [5, 4]
    assert read_text("short", str(path), "body", 1e6).documents == ("één", "zwei", "three", "four")


def test_what_cannot_be_read_is_counted(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "one"}\n{"text": "tw\n{"title": "three"}\n{"text": "four"}\n')
    text = read_text("some", str(path), "text", 1e6)
    assert text.documents == ("one", "four")
    assert {reason: count.count for reason, count in text.dropped.items()} == {"records": 1, "no_text": 1}
    assert text.dropped["records"].bytes == len('{"text": "tw\n')
    assert read_text("some", str(path), "text", 3).dropped == {}  # what is not read is not judged


def test_a_store_gives_the_text_it_held_out(store, corpus):
    text = read_text("mine", str(store.path), "text", 1e6)
    assert len(text.documents) == store.val.documents
    assert text.sizes.sum() == store.val.bytes
    whole = corpus.read_text()
    assert all(document in whole for document in text.documents)
    assert len(read_text("mine", str(store.path), "text", 1).documents) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokens.bin", np.arange(20, dtype=np.uint16).tobytes(), "holds tokens; give text"),
        ("empty.txt", b"", "holds no text"),
        ("bytes.txt", b"\xf0\x9f\x00\xff" * 9, "holds no text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text("t", str(tmp_path / name), "text", 1e6)


def test_runs_on_the_same_text_share_what_they_held_out(run, tmp_path):
    (one,) = load_models([run], "cpu")
    other = replace(one, name="other")
    (text,) = own_texts([one, other, replace(one, run=None)], 1e6)
    assert text.name == "held-out"
    with pytest.raises(UserError, match="--text mine=texts/"):
        own_texts([replace(one, run=None)], 1e6)


def test_a_store_that_is_gone_or_is_anothers(run, store, tmp_path):
    (one,) = load_models([run], "cpu")
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "config.json", place)
    gone, anothers = (store.fingerprint, tmp_path / "gone"), ("another", store.path)
    for fingerprint, path in (gone, anothers):
        write_json(place / "store.json", {"fingerprint": fingerprint, "path": str(path)})
        with pytest.raises(UserError, match=r"no longer whole where .*, so it cannot .* with --text"):
            own_texts([replace(one, run=place)], 1e6)


def test_runs_on_different_text_are_both_asked(run, store, tmp_path):
    (one,) = load_models([run], "cpu")
    shutil.copytree(store.path, tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text()) | {"fingerprint": "another"}
    write_json(tmp_path / "store" / "manifest.json", manifest)
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    write_json(tmp_path / "run" / "store.json", {"fingerprint": "another", "path": str(tmp_path / "store")})
    both = own_texts([one, replace(one, name="other", run=tmp_path / "run")], 1e6)
    assert [text.name for text in both] == ["held-out of one", "held-out of other"]


def test_a_name_that_cannot_be_written_is_refused(corpus):
    with pytest.raises(UserError, match=r"--text \\udcff=.*: the name is not in UTF-8; give another"):
        read_text("\udcff", str(corpus), "text", 1000)
