"""Next-token loss on held-out text, whole, by document and by position.

    documents -> tokens, each ended by the end of text -> rows -> nats of every token -> sums

Rows are those of validation during training (`superpose.train.validation`): joined documents, every token but the very
first predicted once, with as much context as its row has. It is always the next token, never a bag.
Shapes: N tokens, L latents, D documents, P buckets of positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from superpose.core.fold import IGNORE_INDEX
from superpose.errors import UserError
from superpose.evaluate.intervals import Floats, ratio
from superpose.evaluate.models import EvaluatedModel
from superpose.evaluate.texts import HeldOut
from superpose.files import file_sha256
from superpose.results.intervals import Interval
from superpose.train.validation import next_token_rows

# Numbers of logits computed at a time.
_LOGITS = 2**24


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a held-out set.

    Attributes:
        position_nats, position_tokens: the loss of each document's tokens, its end of text included, and how many were
            predicted, by `buckets` of position: float64 [D, P].
        bytes: UTF-8 bytes of each document, float64 [D].
        vocabulary: identifies the tokenizer: tokens of different ones are not comparable.
    """

    text: HeldOut
    position_nats: Floats
    position_tokens: Floats
    bytes: Floats
    vocabulary: str

    @property
    def nats(self) -> Floats:
        """Of each document [D]."""
        nats: Floats = self.position_nats.sum(axis=1)
        return nats

    @property
    def tokens(self) -> Floats:
        """Of each document [D]."""
        tokens: Floats = self.position_tokens.sum(axis=1)
        return tokens

    @property
    def loss(self) -> Interval:
        """Nats per token."""
        return ratio(self.nats, self.tokens)

    @property
    def bits_per_byte(self) -> Interval:
        return ratio(self.nats / math.log(2), self.bytes)

    @property
    def document_bits_per_byte(self) -> Floats:
        """Of each document [D]."""
        return self.nats / math.log(2) / self.bytes

    @property
    def by_position(self) -> list[Interval]:
        """Nats per token in each bucket that has tokens."""
        used = np.flatnonzero(self.position_tokens.sum(axis=0))
        return [ratio(self.position_nats[:, place], self.position_tokens[:, place]) for place in used]


def score_text(subject: EvaluatedModel, text: HeldOut, latents: int) -> TextScore:
    """Predicts a held-out set with a model.

    Args:
        latents: length of a row; at most what the model was made for.

    Raises:
        UserError: the text is a single token, or the model's predictions are not finite.
    """
    ids, offsets = tokenize(subject, text)
    if len(ids) < 2:
        raise UserError(f"{text.name} has a single token, and the first is not predicted; give more text")
    losses = token_losses(subject.model, ids, latents)
    if not np.isfinite(losses).all():
        raise UserError(f"{subject.name} predicts numbers that are not finite on {text.name}; its weights are broken")
    sizes = np.array([len(document.encode()) for document in text.documents], dtype=np.float64)
    return TextScore(text, *_sums(losses, offsets, latents), sizes, _vocabulary(subject))


def tokenize(subject: EvaluatedModel, text: HeldOut) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """All documents one after another as preparation writes them: ids int64 [N], and offsets int64 [D + 1]."""
    tokenizer = subject.text_tokenizer
    encodings = tokenizer.tokenizer.encode_batch_fast(list(text.documents), add_special_tokens=False)
    documents = [[*encoding.ids, tokenizer.end_of_text] for encoding in encodings]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return torch.tensor([token for document in documents for token in document]), offsets


@torch.no_grad()
def token_losses(model: Any, tokens: Tensor, latents: int) -> Floats:
    """Nats of every token but the first, float64 [N - 1], by a model of transformers, in rows of `latents`.

    Args:
        tokens: int64 [N].
    """
    rows = next_token_rows(tokens, latents)
    at_a_time = max(1, _LOGITS // (latents * model.config.vocab_size))
    losses = []
    for batch in torch.split(rows, at_a_time):
        batch = batch.to(model.device)
        # Filling comes after all text of its row, so a causal model's predictions of text never see it.
        logits = model(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).logits
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none", ignore_index=IGNORE_INDEX
        )
        losses.append(loss.double().cpu())
    return torch.cat(losses)[: len(tokens) - 1].numpy()


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
    starts = [first for first, _ in buckets(latents)]
    shape = len(offsets) - 1, len(starts)
    place = np.arange(len(losses))
    # Loss n is of token n + 1, which its row predicts from n % latents + 1 tokens.
    document = np.searchsorted(offsets, place + 1, side="right") - 1
    bucket = np.searchsorted(starts, place % latents + 1, side="right") - 1
    cell, cells = document * shape[1] + bucket, shape[0] * shape[1]
    nats, tokens = (
        np.bincount(cell, weights, cells).reshape(shape).astype(np.float64)
        for weights in (losses, np.ones(len(losses)))
    )
    return nats, tokens


def _vocabulary(subject: EvaluatedModel) -> str:
    return file_sha256(subject.model_directory / "tokenizer.json")
