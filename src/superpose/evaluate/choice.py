"""Answering by likelihood: of several continuations, a model chooses the one it finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from superpose.core.fold import IGNORE_INDEX
from superpose.errors import UserError
from superpose.evaluate.intervals import Bools, Floats
from superpose.evaluate.models import EvaluatedModel
from superpose.evaluate.scores import row_losses
from superpose.evaluate.tasks import Item

# Sequences computed together.
_ROWS = 64


@dataclass(frozen=True)
class TaskScore:
    """Which questions of a task a model answers rightly.

    Attributes:
        task: its name.
        chance: share of right answers of one who guesses.
        right: bool [items], by the likelihood of the continuation as a whole.
        right_by_byte: the same by its likelihood per byte, which does not favour short ones; None if the task has none.
    """

    task: str
    chance: float
    right: Bools
    right_by_byte: Bools | None


def answer(evaluated: EvaluatedModel, task: str, items: Sequence[Item]) -> TaskScore:
    """Lets a model answer questions; as lm-eval's multiple choice does, so that both find the same.

    Raises:
        UserError: the model's predictions are not finite.
    """
    pairs = [(item.context, choice) for item in items for choice in item.choices]
    nats = iter(continuation_nats(evaluated, pairs))
    right, right_by_byte = [], []
    for item in items:
        losses = np.array([next(nats) for _ in item.choices])
        if not np.isfinite(losses).all():
            raise UserError(f"{evaluated.name} predicts numbers that are not finite on {task}; its weights are broken")
        sizes = np.array([len(choice.encode()) for choice in item.choices])
        right.append(int(losses.argmin()) == item.answer)
        right_by_byte.append(int((losses / sizes).argmin()) == item.answer)
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    return TaskScore(task, chance, np.array(right), np.array(right_by_byte))


def continuation_nats(evaluated: EvaluatedModel, pairs: Sequence[tuple[str, str]]) -> Floats:
    """How unlikely a model finds each continuation of each context, in nats: float64 [pairs].

    The two are tokenized as one text; tokens beyond those of the context alone are the continuation's. What does not
    fit into the model's context is left out at the start.
    """
    rows = [_row(evaluated, context, continuation) for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    nats = np.empty(len(rows))
    for start in range(0, len(order), _ROWS):
        places = order[start : start + _ROWS]
        filled = pad_sequence([rows[place][0] for place in places], batch_first=True, padding_value=IGNORE_INDEX)
        losses = row_losses(evaluated.model, filled).numpy()
        for place, of_row in zip(places, losses, strict=True):
            ids, length = rows[place]
            nats[place] = of_row[max(0, len(ids) - 1 - length) : len(ids) - 1].sum()
    return nats


def _row(evaluated: EvaluatedModel, context: str, continuation: str) -> tuple[Tensor, int]:
    """Token ids of both together, and how many of them, at the end, are the continuation's."""
    whole = evaluated.tokenizer(context + continuation)["input_ids"]
    length = len(whole) - len(evaluated.tokenizer(context)["input_ids"])
    if length < 1:
        raise UserError(f"{evaluated.name}: its tokenizer leaves nothing of {continuation!r} after {context[-20:]!r}")
    longest = (evaluated.context or len(whole)) + 1  # the last token is only predicted
    return torch.tensor(whole[-longest:]), length
