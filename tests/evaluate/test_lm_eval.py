import json
from importlib.util import find_spec

import numpy as np
import pytest

from superpose.errors import UserError
from superpose.evaluate.lm_eval import PAPER, PREFIX, _fetches, answer_by_lm_eval, expect_lm_eval, write_tasks
from superpose.evaluate.scores import answer
from superpose.evaluate.tasks import TASKS
from tests.conftest import make_model
from tests.evaluate.evaluated import evaluated

here = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture
def small(tmp_path):
    # lm-eval asks which class it is, so this one is of transformers.
    return evaluated(make_model("llama", vocab_size=257).eval(), tmp_path)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_what_is_missing_is_said():
    expect_lm_eval([])
    with pytest.raises(UserError, match=r"piqa, mmlu are tasks of lm-eval.*pip install 'superpose\[evaluate\]'"):
        expect_lm_eval(["piqa", "mmlu"])


def test_a_folder_of_tasks_holds_the_questions(tmp_path):
    items = {name: TASKS[name].items(5) for name in TASKS}
    write_tasks(tmp_path / "tasks", items)
    for name in TASKS:
        lines = (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["choices"] for line in lines] == [list(item.choices) for item in items[name]]
        yaml = (tmp_path / "tasks" / f"{name}.yaml").read_text()
        assert f"task: {PREFIX}{name}\n" in yaml
        assert str(tmp_path / "tasks" / f"{name}.jsonl") in yaml


def test_errors_of_fetching_are_known_through_what_they_led_to():
    error = RuntimeError("could not load")
    error.__cause__ = ConnectionError("no route")
    assert _fetches(error)
    assert not _fetches(ValueError("of something else"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all our tasks, and a group of two."""
    path = tmp_path_factory.mktemp("tasks")
    write_tasks(path, {name: TASKS[name].items(40) for name in TASKS})
    (path / "both.yaml").write_text(f"group: both\ntask:\n  - {PREFIX}copy\n  - {PREFIX}brackets\n")
    return path


@here
@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_finds_the_same(small, name, folder):
    theirs = answer_by_lm_eval(small, PREFIX + name, folder)
    ours = answer(small, name, TASKS[name].items(40))
    assert np.array_equal(theirs.right, ours.right)
    assert np.array_equal(theirs.right_by_byte, ours.right_by_byte)
    assert theirs.chance == ours.chance
    limited = answer_by_lm_eval(small, PREFIX + name, folder, limit=7)
    assert np.array_equal(limited.right, ours.right[:7])


@here
@pytest.mark.filterwarnings("ignore")
def test_a_group_counts_the_questions_of_all_its_tasks(small, folder):
    both = answer_by_lm_eval(small, "both", folder)
    expected = sum(int(answer(small, name, TASKS[name].items(40)).right.sum()) for name in ("copy", "brackets"))
    assert (len(both.right), int(both.right.sum())) == (80, expected)


@here
@pytest.mark.filterwarnings("ignore")
def test_the_papers_tasks_are_lm_evals_and_need_the_hub(small, monkeypatch, tmp_path):
    from lm_eval.tasks import TaskManager

    assert set(PAPER) <= set(TaskManager().all_tasks)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"questions of boolq could not be fetched.*Hugging Face hub.*HF_HOME"):
        answer_by_lm_eval(small, "boolq")
    with pytest.raises(UserError, match="lm-eval has no task 'riddles'"):
        answer_by_lm_eval(small, "riddles")
