import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from superpose import copies
from superpose.errors import UserError
from superpose.evaluate.workflow import evaluate
from superpose.files import read_json
from superpose.models.load import on_this_machine
from superpose.share import export, generate, import_model
from superpose.share import exporting as module
from superpose.train.loop import train
from tests.train.test_loop import KilledError, changed, killed_after


def tensors(directory):
    """All tensors in a directory's files of weights, by name."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        inside = load_file(file)
        assert not found.keys() & inside.keys()
        found |= inside
    return found


def same(left, right):
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def loaded(directory):
    return AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tied(recipe, store, tmp_path_factory):
    """A finished run of a model whose head is its embedding."""
    path = tmp_path_factory.mktemp("tied") / "tied"
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    train(changed(recipe, "model", architecture="gpt2", config=config), store, path)
    return path


@pytest.fixture(scope="module")
def stopped(recipe, store, tmp_path_factory):
    """A run that was killed in recovery, after its checkpoint of step 12."""
    path = tmp_path_factory.mktemp("stopped") / "stopped"
    with pytest.raises(KilledError):
        train(recipe, store, path, listener=killed_after(13))
    return path


@pytest.mark.parametrize("which", ["run", "tied"])
@pytest.mark.parametrize("size", ["5GB", "10KB"])
def test_the_round_trip_is_exact(which, size, request, tmp_path):
    """Tied heads and untied ones, in one file and in several: to the bit, by transformers alone, there and back."""
    source = request.getfixturevalue(which)
    export(source, tmp_path / "out", max_shard_size=size)
    sharded = size == "10KB"
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == sharded
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == sharded
    assert same(tensors(tmp_path / "out"), tensors(source / "model"))
    model = loaded(tmp_path / "out")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (which == "tied")
    model.save_pretrained(tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(source / "model"))
    ids = torch.arange(16).reshape(1, 16)
    assert model(ids).logits.equal(loaded(source / "model")(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.decode(tokenizer("the alpha of omega")["input_ids"]) == "the alpha of omega"
    assert model.generate(ids[:, :8], max_new_tokens=4, do_sample=False).shape == (1, 12)


def test_the_configuration_knows_nothing_of_superposition(run, tmp_path):
    export(run, tmp_path / "out")
    config = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(config) == read_json(run / "model" / "config.json")
    assert not any(word in config.lower() for word in ("superpos", "bag", "ratio"))


def test_a_checkpoint_holds_the_model_of_its_step(run, tmp_path):
    """That of the last step is the final model; an earlier one is another."""
    export(run, tmp_path / "last", checkpoint=20)
    export(run, tmp_path / "before", checkpoint=18)
    assert same(tensors(tmp_path / "last"), tensors(run / "model"))
    assert not same(tensors(tmp_path / "before"), tensors(run / "model"))
    assert read_json(tmp_path / "last" / "config.json") == read_json(run / "model" / "config.json")


def test_the_average(run, tmp_path):
    facts = export(run, tmp_path / "final", average=True)
    export(run, tmp_path / "last", checkpoint=20, average=True)
    assert same(tensors(tmp_path / "final"), tensors(run / "model-average"))
    assert same(tensors(tmp_path / "last"), tensors(run / "model-average"))
    assert not same(tensors(tmp_path / "last"), tensors(run / "model"))
    assert facts.val_loss == read_json(run / "result.json")["average_val_loss"]


def test_a_run_that_has_none_has_no_average(tied, tmp_path):
    for checkpoint in (None, 20):
        with pytest.raises(UserError, match=r"no average"):
            export(tied, tmp_path / "out", checkpoint=checkpoint, average=True)


def test_a_run_that_was_stopped(stopped, store, tmp_path):
    with pytest.raises(UserError, match=r"not finished; --checkpoint exports one of its checkpoints: 8, 9, 12"):
        export(stopped, tmp_path / "out")
    facts = export(stopped, tmp_path / "out", checkpoint=12)
    assert (facts.step, facts.steps, facts.energy, facts.val_loss) == (12, 20, None, None)
    assert loaded(tmp_path / "out").config.vocab_size == store.vocab_size
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (store.tokenizer_path / "tokenizer.json").read_bytes()
    moved = shutil.copytree(stopped, tmp_path / "moved")
    (moved / "store.json").write_text('{"path": "no/such", "fingerprint": "x"}')
    with pytest.raises(UserError, match=r"no longer whole where"):
        export(moved, tmp_path / "another", checkpoint=12)


def test_a_model_of_bags_is_refused_or_marked(recipe, store, run, tmp_path):
    with pytest.raises(UserError, match=r"in superposition at step 8: its model predicts bags of 4 .* --bags"):
        export(run, tmp_path / "out", checkpoint=8)
    ended = tmp_path / "ended"
    train(changed(recipe, "superposition", ratio=1.0), store, ended)
    with pytest.raises(UserError, match=r"in superposition at step 20"):
        export(ended, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(ended, tmp_path / "out", bags=True)
    card = (tmp_path / "out" / "README.md").read_text().split("---\n")[2].strip()
    assert card.startswith("**This model cannot generate text: it stopped in superposition and predicts bags of 4 tok")
    assert read_json(tmp_path / "out" / "superpose.json")["predicts"] == "bags of 4 tokens"
    assert "superpos" not in (tmp_path / "out" / "config.json").read_text()
    with pytest.raises(UserError, match=r"--bags is for models that predict bags"):
        export(run, tmp_path / "other", bags=True)


def test_what_is_in_the_way_stays(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link", "full/..", "."):
        with pytest.raises(UserError, match=r"is there already; give a new directory"):
            export(run, tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").exists()


def test_a_kill_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    """The last file fails after all the others are written."""

    def killed(path, text):
        assert (path.parent / "model.safetensors").exists()
        raise KilledError

    monkeypatch.setattr(module, "write_text", killed)
    with pytest.raises(KilledError):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_checkpoint_is_not_exported(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    shard = next((copy / "checkpoints" / "step-00000018").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"step-00000018 cannot be used: its shard-.* was altered"):
        export(copy, tmp_path / "out", checkpoint=18)
    with pytest.raises(UserError, match=r"no checkpoint of step 5; those it holds: 8, 18, 20"):
        export(copy, tmp_path / "out", checkpoint=5, bags=True)
    with pytest.raises(UserError, match=r"has 20 steps"):
        export(copy, tmp_path / "out", checkpoint=21)
    with pytest.raises(UserError, match=r"expected a size such as 5GB"):
        export(copy, tmp_path / "out", max_shard_size="big")
    with pytest.raises(UserError, match=r"is not a run"):
        export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("checkpoint", [None, 20])
def test_a_configuration_that_asks_for_code_of_others_is_refused(run, tmp_path, checkpoint):
    altered = shutil.copytree(run, tmp_path / "altered")
    config = altered / "model" / "config.json"
    config.write_text(json.dumps({**read_json(config), "attn_implementation": "someone/kernel"}))
    with pytest.raises(UserError, match="attn_implementation is 'someone/kernel', code of others"):
        export(altered, tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_model_goes_to_a_remote_place_and_comes_back_from_there(run, exported, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    place = "memory://bucket/models/mine"
    export(run, place)
    names = {name.rpartition("/")[2] for name in memory.find("/bucket/models/mine")}
    assert names == {"config.json", "superpose.json", "README.md", *(file.name for file in exported.iterdir())}
    assert "# mine" in memory.cat("/bucket/models/mine/README.md").decode()
    copy = on_this_machine(place)
    assert same(tensors(copy), tensors(exported))
    assert generate(place, "the", 4, temperature=0) == generate(exported, "the", 4, temperature=0)
    taken = import_model(place, tmp_path / "on.toml")
    assert taken.model.init_from == str(copy)
    here, there = evaluate([exported, place], {}, ["brackets"], limit=4).tasks[0].models
    assert here.right == there.right
    with pytest.raises(UserError, match=f"{place} is there already"):
        export(run, place)


def test_a_remote_model_that_is_not_whole_or_altered_is_refused(run, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    place = "memory://bucket/model"
    export(run, place)
    weights = bytearray(memory.cat("/bucket/model/model.safetensors"))
    weights[-1] ^= 1
    memory.pipe("/bucket/model/model.safetensors", bytes(weights))
    with pytest.raises(UserError, match=r"memory://bucket/model/model.safetensors was altered or is not whole"):
        generate(place, "the", 2)
    memory.rm("/bucket/model/config.json")
    with pytest.raises(UserError, match=r"memory://bucket/model holds no config.json; give the place of a whole model"):
        generate(place, "the", 2)


def test_what_an_interrupted_export_left_is_no_model_and_is_gone_on_with(run, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    send = copies._send

    def dies(file, location):
        if file.name == "config.json":
            raise KeyboardInterrupt
        send(file, location)

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_send", dies)
        with pytest.raises(KeyboardInterrupt):
            export(run, "memory://bucket/model")
    with pytest.raises(UserError, match=r"holds no config.json"):
        generate("memory://bucket/model", "the", 2)
    export(run, "memory://bucket/model")
    assert generate("memory://bucket/model", "the", 2)


def test_a_tokenizer_that_the_kind_of_model_changes_is_named(run, exported, tmp_path, monkeypatch):
    assert "AutoTokenizer.from_pretrained" in (exported / "README.md").read_text()
    assert "tokenizer" not in read_json(exported / "superpose.json")
    compared = []
    monkeypatch.setattr(module, "difference", lambda own, at: compared.append((own, at)) or "Other reads 'a' as [1]")
    assert export(run, tmp_path / "named").tokenizer == "Other reads 'a' as [1]"
    card = (tmp_path / "named" / "README.md").read_text()
    assert "tokenizer = PreTrainedTokenizerFast.from_pretrained(" in card
    assert "AutoTokenizer would not give the tokens of training: Other reads 'a' as" in card
    assert compared[0][0].end_of_text == AutoTokenizer.from_pretrained(exported).eos_token_id


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{}", r"model/tokenizer.json is not a tokenizer"),
        ("config.json", {"eos_token_id": [0, 1]}, r"eos_token_id is \[0, 1\], expected a token's number"),
        ("config.json", {"eos_token_id": -1}, r"eos_token_id is -1, expected a token's number"),
    ],
)
def test_a_damaged_tokenizer_or_end_of_text_is_one_sentence(run, tmp_path, name, content, said):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "model" / name
    file.write_text(content if isinstance(content, str) else json.dumps(read_json(file) | content))
    with pytest.raises(UserError, match=said):
        export(tmp_path / "run", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
