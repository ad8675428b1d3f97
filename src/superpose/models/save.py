"""A model as a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor


def save_model(
    directory: Path,
    model: Any,
    tokenizer_files: Iterable[tuple[str, bytes]],
    weights: dict[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Writes weights, configuration and tokenizer into a directory there is.

    Args:
        model: of transformers.
        tokenizer_files: names and contents.
        weights: those to write in place of the model's, by its names.
        max_shard_size: of a file of weights.
    """
    from transformers.utils import logging as transformers_logging

    # First, so that none of them takes the place of one of the model's files.
    for name, content in tokenizer_files:
        (directory / name).write_bytes(content)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(directory, state_dict=weights, max_shard_size=max_shard_size)
