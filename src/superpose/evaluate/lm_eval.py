"""Tasks of lm-eval, the Language Model Evaluation Harness: the paper's eight, and any in a local folder.

Our own tasks can be written as such a folder, YAML and JSON lines, which lm-eval reads without a network.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from superpose.errors import UserError
from superpose.evaluate.models import EvaluatedModel
from superpose.evaluate.scores import TaskScore
from superpose.evaluate.tasks import TASKS, Item
from superpose.files import write_text

PAPER = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "mmlu", "openbookqa", "piqa", "winogrande")
"""The tasks of the paper's tables, as lm-eval calls them."""

PREFIX = "superpose_"
"""Starts the names of our own tasks in lm-eval, where others have a `copy` too."""

# Parts of a name of an error's class or module that tell that something was to be fetched.
_FETCHING = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "datasets", "fsspec")


def expect_lm_eval(tasks: Sequence[str]) -> None:
    """A UserError, before any work, if lm-eval is needed and not installed."""
    if tasks and find_spec("lm_eval") is None:
        raise UserError(
            f"{', '.join(tasks)} {'are tasks' if len(tasks) > 1 else 'is a task'} of lm-eval, which is not installed "
            f"(our own tasks, {', '.join(TASKS)}, need nothing); pip install 'superpose[evaluate]'"
        )


def answer_by_lm_eval(
    evaluated: EvaluatedModel, task: str, include: Path | None = None, limit: int | None = None
) -> TaskScore:
    """Lets lm-eval ask a model a task's questions, without examples; a UserError if it has no such task of choices.

    Args:
        task: a task or a group of tasks; of a group, the questions of all its tasks count alike.
        include: a folder of tasks in YAML, beside lm-eval's own.
        limit: at most so many questions, of a group's tasks each.
    """
    # What they tell on the way is not for the one who asked; what fails is said below, in a sentence.
    for name in ("lm_eval", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _manager(include)
    if task not in manager.all_tasks:
        raise UserError(f"lm-eval has no task {task!r}; list its tasks with: lm-eval ls tasks")
    try:
        results = simple_evaluate(
            model=HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer, batch_size=16),
            tasks=[task],
            num_fewshot=0,
            limit=limit,
            bootstrap_iters=0,
            task_manager=manager,
        )
    except Exception as error:
        if not _fetches(error):
            raise
        raise UserError(
            f"the questions of {task} could not be fetched ({type(error).__name__}); they come from the Hugging Face "
            f"hub, so connect to it, or set HF_HOME to a cache that holds them"
        ) from None
    by_task = results["samples"].values()
    samples = [sample for of_one in by_task for sample in sorted(of_one, key=lambda one: int(one["doc_id"]))]
    if not samples or not all("acc" in sample for sample in samples):
        raise UserError(f"{task} does not count right answers, so it cannot be shown here; run it with lm-eval itself")
    right = np.array([sample["acc"] == 1 for sample in samples])
    normalized = np.array([sample.get("acc_norm", np.nan) for sample in samples], dtype=np.float64)
    # One response is the likelihood of one choice.
    chance = float(np.mean([1 / len(sample["filtered_resps"]) for sample in samples]))
    return TaskScore(task, chance, right, None if np.isnan(normalized).any() else normalized == 1)


def write_tasks(folder: Path, items: Mapping[str, Sequence[Item]]) -> None:
    """Writes questions of ours as tasks of lm-eval: `lm-eval run --include_path FOLDER --tasks superpose_copy ...`.

    A task is a YAML file and its questions in JSON lines; the first names the second by its whole path.
    """
    template = Template(files("superpose.evaluate").joinpath("lm_eval.yaml").read_text("utf-8"))
    for name, questions in items.items():
        file = folder.resolve() / f"{name}.jsonl"
        write_text(file, "".join(json.dumps(asdict(item)) + "\n" for item in questions))
        task = template.substitute(name=PREFIX + name, title=TASKS[name].title, file=json.dumps(str(file)))
        write_text(folder / f"{name}.yaml", task)


@lru_cache(maxsize=1)
def _manager(include: Path | None) -> Any:
    """All tasks by name; looking through lm-eval's own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include and str(include))


def _fetches(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, comes of fetching something."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(_FETCHING):
            return True
        error = error.__cause__ or error.__context__
    return False
