import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from superpose.errors import UserError
from superpose.generate import generate, load_model
from superpose.train.loop import train


@pytest.fixture(scope="module")
def finished(recipe, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    train(recipe, store, run)
    return run


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_neither_run_nor_asked_about(finished, tmp_path, monkeypatch, name):
    """transformers would ask at the terminal, and run it after a y."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    model = tmp_path / "run" / "model"
    (model / "evil.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    settings = json.loads((model / name).read_text())
    named = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    settings |= {"auto_map": {**named, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    settings |= {"model_type": "evil"} if name == "config.json" else {"tokenizer_class": "Evil"}
    (model / name).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


def test_weights_in_a_pickle_are_not_read(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    (tmp_path / "run" / "model" / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(UserError, match=r"cannot be loaded.*safetensors"):
        load_model(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("change", [{"bos_token_id": "a"}, {"max_position_embeddings": "many"}])
def test_settings_beside_a_model_that_were_altered_end_in_a_sentence(finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "run")
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / "run" / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"model cannot (be loaded|generate)"):
        generate(*load_model(tmp_path / "run"), "the", 2, 0.8, 0.9, 0, lambda piece: None)


def test_a_prompt_that_is_no_text(finished):
    with pytest.raises(UserError, match="not UTF-8"):
        generate(*load_model(finished), "\udcff", 2, 0.8, 0.9, 0, lambda piece: None)


def test_weights_that_are_missing_are_not_made_up(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not hold all weights of its model: lm_head\.weight"):
        load_model(tmp_path / "run")
