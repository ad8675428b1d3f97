"""What a run measures: validation that is always next-token, and its records as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from superpose.core.fold import IGNORE_INDEX
from superpose.core.model import SuperposedLM
from superpose.data.store import Split
from superpose.errors import UserError
from superpose.files import write_text
from superpose.train.distributed import Ranks, reshard


class Validation(NamedTuple):
    """Next-token loss on held-out text.

    Attributes:
        loss: nats per token.
        bits_per_byte: the same in bits per UTF-8 byte of text; unlike the loss it can be compared between
            tokenizers. Predicting the ends of documents is part of it.
    """

    loss: float
    bits_per_byte: float


@torch.no_grad()
def evaluate(lm: SuperposedLM, split: Split, latents: int, rows: int, ranks: Ranks) -> Validation:
    """Next-token loss over a whole split, every token but the first predicted once, in rows of `latents`.

    It does not know of bags: in either phase it measures the model that training is to end with. Ranks take turns at
    the batches; each computes as many, since a sharded model is computed by all or none.
    """
    training = lm.training
    lm.eval()
    total = torch.zeros((), dtype=torch.float64)
    tokens = torch.from_numpy(split.tokens.read(0, len(split.tokens)))
    batches = torch.split(next_token_rows(tokens, latents), rows)
    for turn in range(0, len(batches), ranks.world_size):
        number = turn + ranks.rank
        batch = batches[number] if number < len(batches) else torch.full_like(batches[0][:1], IGNORE_INDEX)
        total += lm(batch.to(ranks.device), bag_size=1, normalizer=1.0).cross_entropy.double().cpu()
    nats_of_all = float(ranks.total(total))
    reshard(lm)
    lm.train(training)
    nats = nats_of_all / (len(split.tokens) - 1)
    return Validation(nats, nats_of_all / math.log(2) / split.bytes)


def next_token_rows(tokens: Tensor, latents: int) -> Tensor:
    """Rows that predict every token but the first once, each with as much context as its row has.

    Args:
        tokens: a whole text, int64 [N], two tokens or more.

    Returns:
        Rows of latents + 1 tokens that overlap by one, int64 [rows, latents + 1]; the last is filled with
        `IGNORE_INDEX`.
    """
    count = -(-(len(tokens) - 1) // latents)
    padded = torch.full((count * latents + 1,), IGNORE_INDEX)
    padded[: len(tokens)] = tokens
    return padded.unfold(0, latents + 1, latents)


@contextmanager
def metrics_log(path: Path, first_step: int, origin: Path | None = None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that appends a record to a JSON-lines file.

    A run that resumes at `first_step` drops what it recorded after the checkpoint of that step, and one that
    starts drops everything. One that takes over from another run keeps what that one recorded, in `origin`.
    """
    kept = [record for record in read_metrics(origin or path) if record["step"] <= first_step] if first_step else []
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    with path.open("a", encoding="utf-8") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()

        yield write


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut short by a crash is left out.

    Raises:
        UserError: a line is JSON, but no record.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise UserError(f"{path}, line {number}: no record of a step, so the file was altered; take the line out")
        records.append(record)
    return records
