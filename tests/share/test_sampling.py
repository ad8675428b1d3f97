import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from superpose.errors import UserError
from superpose.models.load import load_with_tokenizer
from superpose.runs.disk import model_directory
from superpose.share import export, sample
from superpose.train.loop import train
from tests.train.test_loop import KilledError, changed, killed_after


def loaded(place):
    return load_with_tokenizer(model_directory(place))


@pytest.fixture
def say(run):
    model, tokenizer = loaded(run)

    def call(prompt="the", max_new_tokens=8, temperature=1.0, top_p=1.0, seed=0):
        pieces = []
        sample(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed, pieces.append)
        return "".join(pieces)

    return call


def greedy(model, tokenizer, prompt, count):
    """The likeliest token, again and again."""
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_temperature_0_takes_the_likeliest_token_whatever_the_seed(run, say):
    expected = greedy(*loaded(run), "the alpha", 8)
    assert say("the alpha", temperature=0.0) == say("the alpha", temperature=0.0, seed=7) == expected
    assert len(expected) > len("the alpha")


def test_a_prompt_is_read_as_training_read_it(run):
    """Whatever is put around text by the tokenizer that is given."""
    model, tokenizer = loaded(run)
    prompts = []
    model.register_forward_hook(lambda module, args, kwargs, out: prompts.append(kwargs["input_ids"]), with_kwargs=True)
    expected = tokenizer("the alpha")["input_ids"]
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer("the alpha")["input_ids"] == [tokenizer.eos_token_id, *expected, tokenizer.eos_token_id]
    tokenizer.split_special_tokens = False
    sample(model, tokenizer, "the alpha", 1, 0.0, 1.0, 0, lambda text: None)
    assert prompts[0].tolist() == [expected]
    prompts.clear()
    sample(model, tokenizer, f"the{end}", 1, 0.0, 1.0, 0, lambda text: None)
    assert tokenizer.eos_token_id not in prompts[0]


def test_a_seed_decides_what_is_sampled(say):
    said = [say(seed=seed) for seed in range(6)]
    assert said == [say(seed=seed) for seed in range(6)]
    assert len(set(said)) > 1


def test_the_share_to_sample_from_and_the_temperature_narrow_it(say):
    """What is left of a tiny share, or of a tiny temperature, is the likeliest token."""
    likeliest = say(temperature=0.0)
    assert {say(top_p=1e-6, seed=seed) for seed in range(4)} == {likeliest}
    assert {say(temperature=1e-6, seed=seed) for seed in range(4)} == {likeliest}
    assert len({say(temperature=5.0, seed=seed) for seed in range(4)}) > 1


def test_text_comes_while_it_is_computed(run):
    """The prompt before the first token, and what follows piece by piece: not all of it at the end."""
    model, tokenizer = loaded(run)
    computed = 0

    def count(*ignored):
        nonlocal computed
        computed += 1

    model.register_forward_hook(count)
    pieces = []
    # Words that end are shown; the head is made to choose between a few of them.
    words = [tokenizer(" is")["input_ids"][0], tokenizer(" the")["input_ids"][0]]
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.copy_(torch.where(torch.isin(torch.arange(len(weight)), torch.tensor(words))[:, None], weight, -9.0))
    model.register_forward_hook(lambda module, inputs, output: only(output, words))
    sample(model, tokenizer, "the alpha ", 8, 1.0, 1.0, 0, lambda text: pieces.append((computed, text)))
    shown = [(when, text) for when, text in pieces if text]
    assert shown[0][0] == 0
    assert "".join(text for _, text in shown).startswith("the alpha ")
    assert len({when for when, _ in shown}) > 4
    assert shown[1][0] < 8 == computed


def only(output, words):
    """Leaves these tokens alone to choose from."""
    kept = torch.full_like(output.logits, -torch.inf)
    kept[..., words] = output.logits[..., words]
    output.logits = kept
    return output


def test_a_hugging_face_directory_says_what_its_run_says(run, exported):
    for seed in (0, 1):
        said = []
        for place in (run, exported):
            pieces = []
            sample(*loaded(place), "the", 6, 1.0, 1.0, seed, pieces.append)
            said.append("".join(pieces))
        assert said[0] == said[1]


def test_no_more_than_the_context_holds(run, say):
    """What is not limited fills the context: 16 positions, of which the prompt takes one."""
    model, tokenizer = loaded(run)
    lengths = []
    model.register_forward_hook(lambda module, inputs, output: lengths.append(output.logits.shape[1]))
    sample(model, tokenizer, "the", None, 0.0, 1.0, 0, lambda text: None)
    assert len(tokenizer("the")["input_ids"]) == 1
    assert len(lengths) == 15
    assert say("", 4, seed=1)
    with pytest.raises(UserError, match="trained on 16; shorten the prompt"):
        say("the", 16)


def test_a_tokenizer_without_end_of_text(run):
    model, tokenizer = loaded(run)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of text to start from; give a prompt"):
        sample(model, tokenizer, "", 4, 0.0, 1.0, 0, print)


def test_a_model_without_a_context_length(run):
    """Such as Bloom, whose positions are told by their distance."""
    tokenizer = loaded(run)[1]
    config = AutoConfig.for_model("bloom", vocab_size=300, hidden_size=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="--max-new-tokens"):
        sample(model, tokenizer, "the", None, 0.0, 1.0, 0, print)
    lengths = []
    model.register_forward_hook(lambda module, inputs, output: lengths.append(output.logits.shape[1]))
    sample(model, tokenizer, "the", 3, 0.0, 1.0, 0, lambda text: None)
    assert 1 <= len(lengths) <= 3


def test_what_cannot_generate_is_refused(run, exported, recipe, store, tmp_path):
    def copied(name, **files):
        path = shutil.copytree(exported, tmp_path / name)
        for file, text in files.items():
            (path / f"{file}.json").write_text(text) if text else (path / f"{file}.json").unlink()
        return path

    export(run, tmp_path / "bags", checkpoint=8, bags=True)
    with pytest.raises(UserError, match="predicts bags of 4 tokens, not the next token"):
        loaded(tmp_path / "bags")
    pickle = copied("pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights"):
        loaded(pickle)
    with pytest.raises(UserError, match="holds no tokenizer"):
        loaded(copied("mute", tokenizer="{}"))
    with pytest.raises(UserError, match="cannot be loaded"):
        loaded(copied("strange", config='{"model_type": "no-such"}'))
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a run"):
            loaded(place)
    ended, stopped = tmp_path / "ended", tmp_path / "stopped"
    train(changed(recipe, "superposition", ratio=1.0), store, ended)
    with pytest.raises(UserError, match="ended inside superposition"):
        loaded(ended)
    with pytest.raises(KilledError):
        train(recipe, store, stopped, listener=killed_after(3))
    with pytest.raises(UserError, match="is not finished; go on with: superpose train"):
        loaded(stopped)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_neither_run_nor_asked_about(run, tmp_path, monkeypatch, name):
    """transformers would ask at the terminal, and run it after a y."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model"
    (model / "evil.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    settings = json.loads((model / name).read_text())
    named = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    settings |= {"auto_map": {**named, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    settings |= {"model_type": "evil"} if name == "config.json" else {"tokenizer_class": "Evil"}
    (model / name).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="loaded") if name == "config.json" else nullcontext():
        loaded(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


def test_weights_in_a_pickle_are_not_read(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    (tmp_path / "run" / "model" / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(UserError, match="safetensors"):
        loaded(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("change", [{"bos_token_id": "a"}, {"max_position_embeddings": "many"}])
def test_settings_beside_a_model_that_were_altered_end_in_a_sentence(run, tmp_path, change):
    shutil.copytree(run, tmp_path / "run")
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / "run" / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"model cannot (be loaded|generate)"):
        sample(*loaded(tmp_path / "run"), "the", 2, 0.8, 0.9, 0, lambda piece: None)


def test_a_prompt_that_is_no_text(run):
    with pytest.raises(UserError, match="not UTF-8"):
        sample(*loaded(run), "\udcff", 2, 0.8, 0.9, 0, lambda piece: None)


def test_weights_that_are_missing_are_not_made_up(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not hold all weights of its model: lm_head\.weight"):
        loaded(tmp_path / "run")
