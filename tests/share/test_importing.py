import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from superpose.data.config import prepare
from superpose.data.prepare import prepare_store
from superpose.errors import UserError
from superpose.share import export, import_model
from superpose.train.loop import train
from superpose.train.recipe_file import load_recipe, with_settings, write_recipe
from superpose.train.step import build_state
from tests.train.test_loop import ALONE, changed, weights
from tiny_models import tiny_config


@pytest.fixture
def base(recipe, tmp_path):
    path = tmp_path / "base.toml"
    write_recipe(changed(recipe, "train", latents=32), path)
    return path


def test_an_exported_model_is_trained_on(exported, run, base, tmp_path):
    """Export, import, two steps of training: they start from the run's weights, on the run's tokens."""
    taken = import_model(exported, tmp_path / "on.toml", base)
    assert load_recipe(tmp_path / "on.toml") == taken
    assert (taken.train.latents, taken.superposition.bag_size) == (16, 4)
    short = with_settings(taken, "train", steps=2, warmup_steps=0)
    store = prepare(short.data)
    assert store.vocab_size == 300
    started = dict(build_state(short, store, ALONE).model.named_parameters())
    assert all(tensor.equal(started[name]) for name, tensor in weights(run).items())
    result = train(short, store, tmp_path / "on")
    assert result["steps"] == 2
    assert not weights(tmp_path / "on")["lm_head.weight"].equal(weights(run)["lm_head.weight"])


def test_without_a_recipe_training_is_ordinary(exported, tmp_path):
    taken = import_model(exported, tmp_path / "on.toml")
    assert taken.schedule.boundaries == ()
    assert not taken.schedule.ends_in_superposition
    text = (tmp_path / "on.toml").read_text()
    for line in ("ratio = 0.0", "latents = 16", 'corpus = "python"', "lr = 0.002", "steps = 3000"):
        assert line in text


def test_any_family_is_taken_in_or_refused_by_name(exported, tmp_path):
    """A state-space model has no longest row; a wrapper has a text model; a tokenizer may be larger than its model."""

    def saved(family, vocab_size=300, **wrapper):
        config = tiny_config(family)
        config.vocab_size = vocab_size
        directory = tmp_path / f"{family}-{vocab_size}"
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(exported / name, directory / name)
        if wrapper:
            (directory / "config.json").write_text(json.dumps({**wrapper, "text_config": config.to_dict()}))
        return directory

    assert import_model(saved("mamba"), tmp_path / "mamba.toml").train.latents == 128
    with pytest.raises(UserError, match="reads more than text; its text model is 'gemma3_text'"):
        import_model(saved("gemma3_text", model_type="gemma3"), tmp_path / "gemma3.toml")
    with pytest.raises(
        UserError, match="has 290 entries but the tokenizer 300; take the tokenizer it was trained with"
    ):
        import_model(saved("llama", vocab_size=290), tmp_path / "llama.toml")
    bert = saved("bert")
    config = (bert / "config.json").read_text()
    (bert / "config.json").write_text(config.replace('"is_decoder": true', '"is_decoder": false'))
    with pytest.raises(UserError, match="looks ahead"):
        import_model(bert, tmp_path / "bert.toml")


def test_a_model_of_bags_is_taken_in_and_named(run, tmp_path):
    export(run, tmp_path / "bags", checkpoint=8, bags=True)
    import_model(tmp_path / "bags", tmp_path / "on.toml")
    assert "It predicts bags of 4 tokens" in (tmp_path / "on.toml").read_text()


def test_a_prepared_store_needs_the_model_s_tokenizer(exported, recipe, data_args, corpus, tmp_path):
    for name, tokenizer in (("own", str(exported)), ("other", "bytes")):
        asked = data_args.model_copy(update={"tokenizer": tokenizer, "vocab_size": 1024}).preparation
        prepare_store(asked, tmp_path / name)
        data = {"corpus": str(tmp_path / name)}
        write_recipe(recipe.model_validate({**recipe.model_dump(), "data": data}), tmp_path / f"{name}.toml")
    taken = import_model(exported, tmp_path / "on.toml", tmp_path / "own.toml")
    assert (taken.data.corpus, taken.data.tokenizer) == (str(tmp_path / "own"), "")
    with pytest.raises(UserError, match=r"another tokenizer than the model's; prepare its text again"):
        import_model(exported, tmp_path / "off.toml", tmp_path / "other.toml")


def test_what_cannot_be_trained_on_is_refused(exported, tmp_path):
    def harmed(name, harm):
        path = shutil.copytree(exported, tmp_path / name)
        harm(path)
        return path

    def overwrite(name, change):
        def harm(path):
            file = path / name
            file.write_text(change(file.read_text()))

        return harm

    def lose_a_tensor(path):
        tensors = load_file(path / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    def break_a_number(path):
        tensors = load_file(path / "model.safetensors")
        tensors["lm_head.weight"][0, 0] = torch.nan
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    def pickled(path):
        (path / "model.safetensors").rename(path / "pytorch_model.bin")

    for name, harm, message in (
        ("no-config", lambda path: (path / "config.json").unlink(), "no config.json"),
        ("bert", overwrite("config.json", lambda text: text.replace('"llama"', '"bart-x"')), "bart-x"),
        ("pickle", pickled, r"no weights \(\*\.safetensors\)"),
        ("no-tokenizer", lambda path: (path / "tokenizer.json").unlink(), "tokenizer"),
        ("lost", lose_a_tensor, "not hold all weights"),
        ("nan", break_a_number, "not finite"),
        ("cut", lambda path: (path / "model.safetensors").write_bytes(b"12345678"), "cannot be loaded"),
        ("no-end", overwrite("tokenizer_config.json", lambda text: "{}"), "end_of_text"),
    ):
        with pytest.raises(UserError, match=message):
            import_model(harmed(name, harm), tmp_path / "on.toml")
        assert not (tmp_path / "on.toml").exists()
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        import_model(exported, tmp_path / "mine.toml")
    with pytest.raises(UserError, match=r"ends in \.toml"):
        import_model(exported, tmp_path / "recipe.json")
    assert (tmp_path / "mine.toml").read_text() == "mine"
