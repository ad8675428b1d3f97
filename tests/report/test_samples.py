import json
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch

from superpose.models.load import load_with_tokenizer
from superpose.report import samples
from superpose.report.samples import samples_of


@pytest.fixture
def moved(compared, tmp_path):
    """The comparison, to be written into a directory of the test; its runs stay where they are."""
    _, comparison = compared
    return comparison, tmp_path


def test_both_models_go_on_with_a_held_out_text_by_greedy_choice(moved, store):
    comparison, directory = moved
    made = samples_of(comparison, directory)
    assert list(made.texts) == ["the text itself", "ordinary", comparison.tst_label]
    pool = comparison.runs[0].directory.parent
    for key, written in zip(made.runs, [*made.texts.values()][1:], strict=True):
        model, tokenizer = load_with_tokenizer(pool / key / "model")
        assert made.prompt + made.texts["the text itself"] in tokenizer.decode(store.val.tokens.read(0, 2000))
        ids = tokenizer(made.prompt)["input_ids"]
        for _ in range(16 - len(ids)):  # what its context has room for
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert tokenizer.decode(ids) == made.prompt + written


def test_they_are_made_once_and_kept_for_the_same_runs(moved):
    comparison, directory = moved
    made = samples_of(comparison, directory)
    with mock.patch.object(samples, "load_with_tokenizer", side_effect=AssertionError("a model was loaded")):
        assert samples_of(comparison, directory) == made
    other = replace(comparison, runs=tuple(run for run in comparison.runs if run.seed == 2))
    assert samples_of(other, directory).runs != made.runs
    assert samples_of(comparison, directory) == made


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "superpose samples 1", "texts": 3}'])
def test_a_file_that_was_altered_is_made_again(moved, content):
    comparison, directory = moved
    made = samples_of(comparison, directory)
    (directory / "samples.json").write_text(content)
    assert samples_of(comparison, directory) == made
    assert json.loads((directory / "samples.json").read_text())["prompt"] == made.prompt


def test_what_keeps_them_from_being_made_is_a_sentence(moved, tmp_path_factory):
    comparison, directory = moved
    pool = tmp_path_factory.mktemp("pool")
    for run in comparison.runs:
        shutil.copytree(run.directory, pool / run.directory.name, dirs_exist_ok=True)
    runs = tuple(replace(run, directory=pool / run.directory.name) for run in comparison.runs)
    large = replace(comparison, runs=tuple(replace(r, result=r.result | {"parameters": 10**9}) for r in runs))
    assert "1,000,000,000 parameters" in samples_of(large, directory).note
    for run in runs:
        shutil.rmtree(run.directory / "model")
    assert samples_of(replace(comparison, runs=runs), directory).note.startswith("No sample texts: ")
    for run in runs:
        (run.directory / "store.json").write_text('{"path": "gone", "fingerprint": ""}')
    without = samples_of(replace(comparison, runs=runs), directory)
    assert "no longer whole" in without.note
    assert without.texts == {}
    assert not (directory / "samples.json").exists()
