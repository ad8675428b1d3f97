"""An evaluation: what several models make of the same texts and tasks, side by side, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from superpose.errors import UserError
from superpose.evaluate.choice import TaskScore, answer
from superpose.evaluate.intervals import PairedShares, paired_shares, ratio, wilson
from superpose.evaluate.lm_eval import answer_by_lm_eval
from superpose.evaluate.models import EvaluatedModel
from superpose.evaluate.scores import TextScore, buckets, score_text
from superpose.evaluate.tasks import TASKS, own_items
from superpose.evaluate.texts import HeldOut
from superpose.results.intervals import Interval

MOST_LATENTS = 2048
"""Length of a row, where models were made for more and nothing else is asked for."""

Progress = Callable[[str], None]
"""Told what is being done."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one or several models; scores are in the models' order.

    Attributes:
        subjects: facts of each model.
        latents: length of the rows that text was predicted in.
        texts: of each held-out set, each model's score.
        tasks: of each task, each model's answers.
    """

    subjects: tuple[dict[str, Any], ...]
    latents: int
    texts: tuple[tuple[TextScore, ...], ...]
    tasks: tuple[tuple[TaskScore, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(subject["name"] for subject in self.subjects)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON, with an interval for each figure and differences to the first model."""
        return {
            "models": list(self.subjects),
            "latents": self.latents,
            "texts": [self._text(scores) for scores in self.texts],
            "tasks": [self._task(scores) for scores in self.tasks],
            "versions": {name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")},
        }

    def _text(self, scores: Sequence[TextScore]) -> dict[str, Any]:
        first = scores[0]
        models: list[dict[str, Any]] = []
        for name, score in zip(self.names, scores, strict=True):
            models.append(
                {
                    "name": name,
                    "loss": asdict(score.loss),
                    "bits_per_byte": asdict(score.bits_per_byte),
                    "tokens": int(score.tokens.sum()),
                    "by_position": [
                        {"first": low, "last": high, "tokens": int(count), "loss": asdict(loss)}
                        for (low, high), count, loss in zip(
                            buckets(self.latents), score.position_tokens.sum(axis=0), score.by_position, strict=False
                        )
                    ],
                    "document_nats": score.nats.tolist(),
                    "document_tokens": score.tokens.astype(int).tolist(),
                }
            )
            if score is not first:
                models[-1]["minus_first"] = asdict(bits_difference(first, score))
                differences = position_differences(first, score) or []
                for place, difference in zip(models[-1]["by_position"], differences, strict=False):
                    place["minus_first"] = asdict(difference)
        return {
            "name": first.text.name,
            "documents": [
                {"starts": opening(text), "bytes": int(size)}
                for text, size in zip(first.text.documents, first.bytes, strict=True)
            ],
            "models": models,
        }

    def _task(self, scores: Sequence[TaskScore]) -> dict[str, Any]:
        first = scores[0]
        models = []
        for name, score in zip(self.names, scores, strict=True):
            record: dict[str, Any] = {"name": name, "accuracy": asdict(accuracy(score))}
            if score.right_by_byte is not None:
                record["accuracy_by_byte"] = asdict(accuracy(score, by_byte=True))
            if score is not first:
                record["minus_first"] = asdict(task_difference(first, score))
            record["right"] = [int(right) for right in score.right]
            models.append(record)
        return {"name": first.task, "chance": first.chance, "items": len(first.right), "models": models}


def evaluate(
    subjects: Sequence[EvaluatedModel],
    texts: Sequence[HeldOut],
    tasks: Sequence[str],
    latents: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
    progress: Progress = lambda what: None,
) -> Evaluation:
    """Scores models on texts and tasks.

    Args:
        tasks: names of our own, else of lm-eval's.
        latents: length of a row; by default the shortest of the models' contexts, and at most `MOST_LATENTS`.
        limit: questions of a task at most.
        include: a folder of further tasks for lm-eval.

    Raises:
        UserError: a row is longer than a model's context, or a text or task cannot be scored.
    """
    contexts = {subject.name: subject.context for subject in subjects if subject.context is not None}
    shortest = min(contexts, key=lambda name: contexts[name] or 0, default=None)
    length = latents or min(MOST_LATENTS, contexts[shortest] or MOST_LATENTS if shortest else MOST_LATENTS)
    if shortest is not None and length > (contexts[shortest] or length):
        raise UserError(f"--latents is {length}, but {shortest} was made for {contexts[shortest]}; lower it")
    by_text = []
    for text in texts:
        scores = []
        for subject in subjects:
            progress(f"{subject.name}: {text.name}")
            scores.append(score_text(subject, text, length))
        by_text.append(tuple(scores))
    by_task = []
    for task in tasks:
        items = own_items(task, limit) if task in TASKS else None
        answers = []
        for subject in subjects:
            progress(f"{subject.name}: {task}")
            answers.append(
                answer_by_lm_eval(subject, task, include, limit) if items is None else answer(subject, task, items)
            )
        by_task.append(tuple(answers))
    return Evaluation(tuple(subject.facts for subject in subjects), length, tuple(by_text), tuple(by_task))


def accuracy(score: TaskScore, by_byte: bool = False) -> Interval:
    """Share of right answers."""
    right = score.right_by_byte if by_byte else score.right
    assert right is not None
    return wilson(int(right.sum()), len(right))


def task_difference(first: TaskScore, second: TaskScore) -> PairedShares:
    """Second minus first, question by question."""
    return paired_shares(first.right, second.right)


def bits_difference(first: TextScore, second: TextScore) -> Interval:
    """Bits per byte, second minus first, paired by document; tokenizers may differ."""
    return ratio((second.nats - first.nats) / math.log(2), first.bytes)


def position_differences(first: TextScore, second: TextScore) -> list[Interval] | None:
    """Nats per token by position, second minus first, paired by document; None where the two have other tokens."""
    if first.vocabulary != second.vocabulary:
        return None
    used = np.flatnonzero(first.position_tokens.sum(axis=0))
    return [ratio(second.position_nats[:, p] - first.position_nats[:, p], first.position_tokens[:, p]) for p in used]


def opening(document: str) -> str:
    """A document's first words, to know it by; what a terminal would obey is left out."""
    words = " ".join("".join(character if character.isprintable() else " " for character in document[:200]).split())
    return words if len(words) <= 40 else words[:39] + "…"
