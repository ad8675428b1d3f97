"""Next-token loss on held-out text, whole, by document and by position; and answers to questions, by likelihood.

    documents -> tokens, each ended by the end of text -> rows -> nats of every token -> sums
    questions -> each choice after its context         -> rows -> nats of every choice -> the likeliest

Rows are those of validation during training (`superpose.train.step`): joined documents, every token but the very
first predicted once, with as much context as its row has. It is always the next token, never a bag.
Shapes: N tokens, L latents, D documents, P buckets of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from superpose.core.fold import IGNORE_INDEX
from superpose.errors import UserError
from superpose.evaluate.intervals import Bools, Floats
from superpose.evaluate.models import EvaluatedModel
from superpose.evaluate.tasks import Item
from superpose.evaluate.texts import HeldOut
from superpose.train.step import next_token_rows

Told = Callable[[float], None]
"""Told which share of a text or of a task's choices is done, after each batch."""

# Numbers of logits computed at a time.
_LOGITS = 2**24
# Choices computed together.
_CHOICES = 64


def _untold(share: float) -> None:
    """Nobody listens."""


def score_text(evaluated: EvaluatedModel, text: HeldOut, latents: int, told: Told = _untold) -> tuple[Floats, Floats]:
    """Predicts a held-out set with a model, in rows of `latents`; a UserError if its predictions are not finite.

    Returns:
        The loss of each document's tokens in nats, its end of text included, and how many tokens were predicted, both
        by `buckets` of position: float64 [D, P].
    """
    ids, offsets = tokenize(evaluated, text)
    if len(ids) < 2:
        raise UserError(f"{text.name} has a single token, and the first is not predicted; give more text")
    return _sums(_finite(token_losses(evaluated.model, ids, latents, told), evaluated, text.name), offsets, latents)


def tokenize(evaluated: EvaluatedModel, text: HeldOut) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """All documents one after another as preparation writes them: ids int64 [N], and offsets int64 [D + 1]."""
    tokenizer = evaluated.text_tokenizer
    documents = [np.append(ids, tokenizer.end_of_text) for ids in tokenizer.encode(text.documents)]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return torch.from_numpy(np.concatenate(documents).astype(np.int64)), offsets


def token_losses(model: Any, tokens: Tensor, latents: int, told: Told = _untold) -> Floats:
    """Nats of every token [N] but the first, float64 [N - 1], by a model of transformers, in rows of `latents`."""
    at_a_time = max(1, _LOGITS // (latents * model.config.vocab_size))
    batches = torch.split(next_token_rows(tokens, latents), at_a_time)
    losses = []
    for number, rows in enumerate(batches, start=1):
        losses.append(row_losses(model, rows).flatten())
        told(number / len(batches))
    return torch.cat(losses)[: len(tokens) - 1].numpy()


@torch.no_grad()
def row_losses(model: Any, rows: Tensor) -> Tensor:
    """Nats of every token of each row but the first, float64 [B, L] on the CPU; those of `IGNORE_INDEX` are 0."""
    rows = rows.to(model.device)
    # Filling comes after all text of its row, so a causal model's predictions of text never see it.
    logits = model(input_ids=rows[:, :-1].clamp(min=0), use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none", ignore_index=IGNORE_INDEX)
    return losses.cpu().double().view(len(rows), -1)


def buckets(latents: int) -> list[tuple[int, int]]:
    """Positions 1, 2-3, 4-7, ... as first and last: how many tokens of context a prediction has.

    The last bucket ends with `latents`; where less than half a bucket would be left for it, the one before takes that.
    """
    starts = [2**power for power in range(latents.bit_length())]
    if len(starts) > 1 and latents - starts[-1] + 1 < starts[-1] // 2:
        starts.pop()
    return [(first, after - 1) for first, after in pairwise([*starts, latents + 1])]


def _sums(losses: Floats, offsets: npt.NDArray[np.int64], latents: int) -> tuple[Floats, Floats]:
    """Sums and counts of losses by document and bucket of position [D, P]."""
    # Loss n is of token n + 1, which its row predicts from n % latents + 1 tokens.
    token = np.arange(1, len(losses) + 1)
    bins = offsets, [first for first, _ in buckets(latents)] + [latents + 1]
    places = token, (token - 1) % latents + 1
    return np.histogram2d(*places, bins, weights=losses)[0], np.histogram2d(*places, bins)[0]


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


def answer(evaluated: EvaluatedModel, task: str, items: Sequence[Item], told: Told = _untold) -> TaskScore:
    """Lets a model answer questions; as lm-eval's multiple choice does, so that both find the same."""
    pairs = [(item.context, choice) for item in items for choice in item.choices]
    nats = iter(_finite(continuation_nats(evaluated, pairs, told), evaluated, task))
    right, right_by_byte = [], []
    for item in items:
        losses = np.array([next(nats) for _ in item.choices])
        sizes = np.array([len(choice.encode()) for choice in item.choices])
        right.append(int(losses.argmin()) == item.answer)
        right_by_byte.append(int((losses / sizes).argmin()) == item.answer)
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    return TaskScore(task, chance, np.array(right), np.array(right_by_byte))


def continuation_nats(evaluated: EvaluatedModel, pairs: Sequence[tuple[str, str]], told: Told = _untold) -> Floats:
    """How unlikely a model finds each continuation of each context, in nats: float64 [pairs].

    The two are tokenized as one text; tokens beyond those of the context alone are the continuation's. What does not
    fit into the model's context is left out at the start.
    """
    rows = [_row(evaluated, context, continuation) for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    nats = np.empty(len(rows))
    for start in range(0, len(order), _CHOICES):
        places = order[start : start + _CHOICES]
        filled = pad_sequence([rows[place][0] for place in places], batch_first=True, padding_value=IGNORE_INDEX)
        losses = row_losses(evaluated.model, filled).numpy()
        for place, of_row in zip(places, losses, strict=True):
            ids, length = rows[place]
            nats[place] = of_row[max(0, len(ids) - 1 - length) : len(ids) - 1].sum()
        told(min(1.0, (start + _CHOICES) / len(order)))
    return nats


def _row(evaluated: EvaluatedModel, context: str, continuation: str) -> tuple[Tensor, int]:
    """Token ids of both together, and how many of them, at the end, are the continuation's."""
    whole = evaluated.tokenizer(context + continuation)["input_ids"]
    length = len(whole) - len(evaluated.tokenizer(context)["input_ids"])
    if length < 1:
        raise UserError(f"{evaluated.name}: its tokenizer leaves nothing of {continuation!r} after {context[-20:]!r}")
    longest = (evaluated.context or len(whole)) + 1  # the last token is only predicted
    return torch.tensor(whole[-longest:]), length


def _finite(losses: Floats, evaluated: EvaluatedModel, on: str) -> Floats:
    if not np.isfinite(losses).all():
        raise UserError(f"{evaluated.name} predicts numbers that are not finite on {on}; its weights are broken")
    return losses
