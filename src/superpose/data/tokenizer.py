"""A byte-level BPE tokenizer, trained on the spot and saved as Hugging Face saves its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from superpose.data.sources import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Ends every document."""

# Merges settle long before: more text costs time and changes rare entries only.
_TRAINING_BYTES = 16 * 2**20


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text can be encoded, and decoding gives it back exactly.

    Args:
        documents: their first 16 MiB are trained on.
        vocab_size: entries, the 256 bytes and the end of text included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(documents, _TRAINING_BYTES), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, model_max_length: int | None = None) -> None:
    """Writes a directory that `AutoTokenizer.from_pretrained` loads."""
    from transformers import PreTrainedTokenizerFast

    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )
    fast.save_pretrained(directory)


def _first_bytes(documents: Iterable[Document], limit: int) -> Iterator[str]:
    total = 0
    for document in documents:
        if total >= limit:
            return
        total += document.size
        yield document.text
