import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml

from superpose.compare.comparison import Comparison, Trained
from superpose.evaluate.evaluation import Document, Evaluation, ModelFigures, Task, TaskFigures, Text, TextFigures
from superpose.files import read_json
from superpose.models.load import load_model
from superpose.results.intervals import Interval
from superpose.results.tables import plain
from superpose.runs.disk import open_run
from superpose.share import export
from superpose.share.card import model_card
from superpose.share.facts import gather


def gathered(path, step=20, averaged=False):
    return gather(open_run(path), load_model(path / "model"), step, averaged)


@pytest.fixture(scope="module")
def facts(run):
    return gathered(run)


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def table(card):
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))


def test_it_tells_what_the_run_tells(run, store, facts):
    card, result = model_card("one", facts), read_json(run / "result.json")
    rows = table(card)
    assert rows["data"] == "documents.jsonl"
    assert rows["its size"].startswith(f"{len(store.train.tokens):,} tokens, {store.train.documents:,} documents")
    assert rows["schedule"] == "bags of 4 in steps 1 to 8 (ratio 0.4); next token in steps 9 to 20"
    assert rows["raw tokens read"] == f"{result['raw_tokens']:,} ({result['epochs']:.2f} epochs)"
    assert rows["latents computed"] == f"{result['latents']:,}"
    assert rows["training FLOPs"] == f"{result['flops']:.3e}"
    assert rows["hours of training"] == f"{result['seconds'] / 3600:.3g}"
    assert rows["energy"].startswith(f"{result['energy']['kwh']:.3g} kWh")
    assert rows["validation loss, nats per token"] == f"{result['val_loss']:.4f}"
    assert rows["bits per byte"] == f"{result['val_bits_per_byte']:.4f}"
    assert f"torch {result['versions']['torch']}" in card.replace("\\", "")
    assert f"{result['parameters']:,} parameters" in card
    assert "2605.06546" in card
    assert "cannot generate" not in card


def test_its_front_matter(facts):
    assert front_matter(model_card("one", facts)) == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "superpose", "token-superposition"],
    }
    given = front_matter(model_card("one", facts, "apache-2.0", ["en", "no"]))
    assert (given["license"], given["language"]) == ("apache-2.0", ["en", "no"])
    ordinary = front_matter(model_card("one", replace(facts, stages=((1, 0, 20),))))
    assert ordinary["tags"] == ["llama", "superpose"]


def test_what_comes_from_outside_is_text(facts):
    evil = '"]\n---\n# <script>alert(1)</script> | [x](y) `z` ☃\x7f\x00'
    text = replace(facts.text, sources=(evil,), fingerprint=evil)
    harmed = replace(facts, text=text, started_from=evil, comparison=evil, versions={"torch": evil})
    harmed = replace(harmed, evaluation=((evil, evil, evil),))
    card = model_card(evil, harmed, evil, [evil])
    matter = front_matter(card)
    assert "<script>" in matter["license"]
    assert len(matter["language"]) == 1
    body = card.split("---\n", 2)[2]
    shown = re.sub(r"```python\n.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[x|(?<!\\)`z", shown)
    assert len([line for line in body.splitlines() if line.startswith("# ")]) == 1
    # Each row keeps its cells: what stands in them cannot end one.
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in shown.splitlines() if line.startswith("| "))


def test_a_fact_that_is_not_known_is_left_out(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "store.json").write_text(json.dumps({"path": "gone", "fingerprint": "abc"}))
    result = read_json(copy / "result.json")
    for name in ("energy", "versions", "epochs"):
        del result[name]
    (copy / "result.json").write_text(json.dumps(result))
    card = model_card("copy", gathered(copy))
    rows = table(card)
    assert rows["data"] == "documents.jsonl"
    assert rows["its fingerprint"] == "abc"
    assert not {"its size", "energy"} & rows.keys()
    assert "epochs" not in card
    assert "Trained with" not in card
    assert "held-out" not in card
    assert "None" not in card


def test_a_checkpoint_s_card_tells_of_its_step(run):
    """What was measured at the step, and nothing of the end."""
    measured = next(record for record in open_run(run).validations if record.step == 10)
    facts = gathered(run, step=10)
    assert facts.spent == {
        "raw_tokens": measured.raw_tokens,
        "latents": measured.latents,
        "flops": measured.flops,
        "seconds": measured.seconds,
    }
    assert (facts.val_loss, facts.energy, facts.versions) == (measured.val_loss, None, None)
    assert table(model_card("ten", facts))["schedule"].endswith("next token in steps 9 to 10")
    assert "at step 10 of 20 steps" in model_card("ten", facts)
    unmeasured = gathered(run, step=18)
    assert (unmeasured.spent, unmeasured.val_loss) == (None, None)
    assert "## Results" not in model_card("x", unmeasured)
    assert gathered(run, step=10, averaged=True).val_loss is None


def test_modes_are_told_apart(facts):
    assert "predicted the token after each" in model_card("x", replace(facts, mode="input"))
    assert "read single tokens and predicted" in model_card("x", replace(facts, mode="output"))


def test_the_comparison_it_is_part_of_is_in_it(run, recipe, tmp_path):
    result = read_json(run / "result.json")
    arms = [("ordinary", result["val_loss"] + 0.5), ("tst", result["val_loss"])]
    pool, folder = tmp_path / "pool", tmp_path / "named"
    trained = [
        Trained(arm, 1, 20, recipe.train.lr, shutil.copytree(run, pool / arm), {**result, "val_loss": loss})
        for arm, loss in arms
    ]
    comparison = Comparison(recipe, tuple(trained))
    comparison.write(folder)
    (folder / "tst").symlink_to("../pool/tst")
    assert plain(comparison.verdict()) in model_card("x", gathered(folder / "tst"))
    # A run that merely lies there is no part of it.
    shutil.copytree(run, folder / "stranger")
    assert "Compared" not in model_card("x", gathered(folder / "stranger"))
    (folder / "comparison.json").write_text("{}")
    assert "Compared" not in model_card("x", gathered(folder / "tst"))


def evaluation(*names):
    """Of some models, as `superpose evaluate` writes it."""
    figures = {"loss": Interval(4.56789, 4.5, 4.625), "bits_per_byte": Interval(3.0), "tokens": 9, "by_position": []}
    documents = {"document_nats": [9.0], "document_tokens": [9]}
    facts = {"path": "p", "model": "llama", "parameters": 1, "context": None, "vocabulary": 300}
    text = Text(
        name="store",
        documents=[Document(starts="a", bytes=9)],
        models=[TextFigures(name=name, **figures, **documents) for name in names],
    )
    answers = [TaskFigures(name=name, accuracy=Interval(0.25), right=[1]) for name in names]
    task = Task(name="next_word", chance=0.5, items=1, models=answers)
    models = [ModelFigures(name=name, **facts) for name in names]
    return Evaluation(models=models, latents=16, texts=[text], tasks=[task], versions={})


def test_its_evaluation_is_in_it_if_it_is_there(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")

    def told(record, step=20, averaged=False):
        (copy / "evaluation.json").write_text(json.dumps(record))
        return gathered(copy, step, averaged).evaluation

    assert "Evaluation" not in model_card("x", gathered(copy))
    whole = evaluation("copy").model_dump()
    assert told(whole)[0] == ("store", "nats per token", "4.568 (4.5 to 4.625)")
    card = model_card("x", gathered(copy))
    assert "| store | nats per token | 4.568 (4.5 to 4.625) |\n| store | bits per byte | 3 |" in card
    assert "| next\\_word | share right | 0.25 |" in card
    # One model alone is this run's, whatever it is called; of several that of its name; of several of its name none.
    assert told(evaluation("another").model_dump()) == told(whole)
    both = evaluation("a/one", "a/copy")
    both.texts[0].models[0].loss = Interval(1.0)
    assert told(both.model_dump())[0][2].startswith("4.568")
    assert told(evaluation("a/copy", "b/copy").model_dump()) == ()
    no_number = json.loads(json.dumps(whole).replace("4.56789", "NaN"))
    for other in (no_number, {"texts": 3}, [], "text", {"tasks": [{"a": {}}, 4]}):
        assert told(other) == ()
        assert "Evaluation" not in model_card("x", gathered(copy))
    (copy / "evaluation.json").write_text("not JSON")
    assert gathered(copy).evaluation == ()
    # It is of the model the run ended with, and of no other.
    assert told(whole, step=10) == told(whole, averaged=True) == ()


def test_its_lines_load_the_model(run, tmp_path, monkeypatch):
    export(run, tmp_path / "it's one")
    card = (tmp_path / "it's one" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["model"].num_parameters() == read_json(run / "result.json")["parameters"]
    assert names["tokenizer"]("alpha")["input_ids"]


def test_superpose_json_tells_no_paths(run, tmp_path):
    export(run, tmp_path / "out")
    text = (tmp_path / "out" / "superpose.json").read_text() + (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path.parent) not in text
    known = json.loads(text.split("---\n")[0])
    assert (known["format"], known["predicts"], known["step"]) == ("superpose export 1", "next token", 20)
