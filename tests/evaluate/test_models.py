import shutil
from pathlib import Path

import pytest

from superpose.data.tokenizer import save_tokenizer, train_tokenizer
from superpose.errors import UserError
from superpose.evaluate.models import _names, load_models


def test_a_run_and_its_hugging_face_directory_are_the_same_model(run):
    whole, directory = load_models([run, run / "model"], "cpu")
    assert (whole.name, directory.name) == ("one", "model")
    assert whole.run == run
    assert directory.run is None
    assert whole.facts.parameters == directory.facts.parameters > 0
    assert whole.context == directory.context == 16
    assert whole.text_tokenizer.tokenizer.to_str() == directory.text_tokenizer.tokenizer.to_str()
    assert not whole.model.training


def test_names_are_the_shortest_that_differ():
    assert _names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert _names([Path("/a/one/model"), Path("/a/two/model")]) == ["one/model", "two/model"]


def test_names_are_as_they_were_typed(tmp_path, monkeypatch):
    """Not those of where a link leads to: runs of a comparison are links into a pool of hashes."""
    (tmp_path / "40b9b0431279d813").mkdir()
    (tmp_path / "tst").symlink_to("40b9b0431279d813")
    monkeypatch.chdir(tmp_path / "tst")
    assert _names([".", "../tst", "s3://bucket/model"]) == [".", "tst", "model"]


def test_what_cannot_be_evaluated(run, tmp_path):
    with pytest.raises(UserError, match="given twice"):
        load_models([run, run], "cpu")
    with pytest.raises(UserError, match="gpt2 is not there; give a finished run's directory"):
        load_models([Path("no/gpt2")], "cpu")
    with pytest.raises(UserError, match="not a run"):
        load_models([tmp_path], "cpu")
    with pytest.raises(UserError, match="--device is 'nowhere'"):
        load_models([run], "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(run / "model", broken)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_models([broken], "cpu")


def test_a_tokenizer_of_another_model(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    tokenizer = train_tokenizer([" ".join(map(str, range(3000)))], 500)
    save_tokenizer(tokenizer, other)
    with pytest.raises(UserError, match="has 500 entries and the model predicts 300"):
        load_models([other], "cpu")
