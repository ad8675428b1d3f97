"""Tokens on disk: memory-mapped, with document boundaries and a manifest that says what they are.

    STORE/manifest.json       format, corpus, tokenizer hash, and for each split counts and checksums
    STORE/tokenizer/          as Hugging Face saves it
    STORE/train.tokens        uint16 or uint32, by vocabulary, little-endian; documents one after another,
    STORE/val.tokens          each ended by the end-of-text token
    STORE/train.offsets       uint64: where each document starts, and where the last one ends
    STORE/val.offsets

A store is written aside and renamed when whole. Stores are kept in a cache by the hash of all that went in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from superpose.data.sources import PYTHON_SOURCES, Corpus, Document, collect
from superpose.data.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from superpose.data.tokens import TokenArray
from superpose.errors import UserError
from superpose.files import read_json, whole_directory, write_json

_FORMAT = 1
_BATCH_DOCUMENTS = 512

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""


class DataArgs(BaseModel):
    """What text to train on, and how it is tokenized."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: Annotated[str, Field(min_length=1)] = PYTHON_SOURCES
    """`python` (the Python sources installed on this machine), a text file, or a folder of text files."""
    max_megabytes: Annotated[float, Field(gt=0)] = 32
    """Size of the training side, in 10^6 bytes of text."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of the documents that is held out."""
    val_megabytes: Annotated[float, Field(gt=0)] = 0.5
    """Size of the held-out side that is evaluated, in 10^6 bytes of text."""
    vocab_size: Annotated[int, Field(ge=257)] = 1024
    """Entries of the byte-level BPE tokenizer that is trained on the corpus."""


@dataclass(frozen=True)
class Split:
    """One side of a store."""

    tokens: TokenArray
    """All documents one after another."""
    offsets: npt.NDArray[np.uint64]
    """Start of each document and end of the last, [documents + 1]."""
    bytes: int
    """UTF-8 bytes of the text, ends of documents not counted."""

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TokenStore:
    """An opened store; `TokenStore.open` checks that it is whole."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Opens a store and maps its tokens.

        Raises:
            UserError: a file is missing, of another size than the manifest says, or of an unknown format.
        """
        manifest = read_json(path / "manifest.json")
        if manifest.get("format") != _FORMAT:
            raise UserError(
                f"{path / 'manifest.json'} has format {manifest.get('format')!r}, this version reads {_FORMAT}; "
                f"delete {path} so that it is made again"
            )
        store = cls(path, manifest)
        _ = store.train, store.val
        return store

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def val(self) -> Split:
        return self._split("val")

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def end_of_text(self) -> int:
        return int(self.manifest["end_of_text"])

    @property
    def fingerprint(self) -> str:
        """Identifies tokens and tokenizer; equal for equal text and settings."""
        return str(self.manifest["fingerprint"])

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer"

    def verify(self) -> None:
        """Compares every file with its checksum.

        Raises:
            UserError: one was altered.
        """
        for name, checksum in self.manifest["sha256"].items():
            if _sha256(self.path / name) != checksum:
                raise UserError(
                    f"{self.path / name} was altered since it was written; delete {self.path} and start again"
                )

    def _split(self, side: str) -> Split:
        counts = self.manifest["splits"][side]
        return Split(
            TokenArray(
                [self._map(f"{side}.tokens", self.manifest["dtype"], counts["tokens"])],
                [str(self.path / f"{side}.tokens")],
                self.vocab_size,
            ),
            self._map(f"{side}.offsets", "<u8", counts["documents"] + 1),
            counts["bytes"],
        )

    def _map(self, name: str, dtype: str, length: int) -> npt.NDArray[Any]:
        path = self.path / name
        expected = length * np.dtype(dtype).itemsize
        actual = path.stat().st_size if path.is_file() else 0
        if actual != expected:
            raise UserError(
                f"{path} has {actual} bytes, its manifest says {expected}; delete {self.path} and start again"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(length,))


def prepare(args: DataArgs, progress: Progress = lambda what, share: None) -> TokenStore:
    """Collects the corpus, trains the tokenizer and writes the store, or opens the one made before of the same text.

    Raises:
        UserError: the corpus cannot be read or is too small.
    """
    progress("collecting text", 0)
    corpus = collect(args.corpus, int(args.max_megabytes * 1e6), args.val_fraction, int(args.val_megabytes * 1e6))
    key = hashlib.sha256(f"{_FORMAT} {corpus.fingerprint} {args.vocab_size}".encode()).hexdigest()
    path = cache_directory() / "stores" / key[:16]
    if not (path / "manifest.json").exists():
        progress("training the tokenizer", 0)
        write_store(path, corpus, train_tokenizer(corpus.train, args.vocab_size), key, progress)
    return TokenStore.open(path)


def cache_directory() -> Path:
    """`$SUPERPOSE_CACHE`, or `superpose` in the user's cache directory."""
    if chosen := os.environ.get("SUPERPOSE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superpose"


def write_store(
    path: Path, corpus: Corpus, tokenizer: Tokenizer, fingerprint: str, progress: Progress = lambda what, share: None
) -> None:
    """Tokenizes both sides of a corpus, on all cores, into a new store at `path`."""
    vocab_size = tokenizer.get_vocab_size()
    # Where a text spells out a special token, it is text: only we end documents.
    tokenizer.encode_special_tokens = True
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None  # train_tokenizer made it
    dtype = "<u2" if vocab_size <= 2**16 else "<u4"
    with whole_directory(path) as aside:
        save_tokenizer(tokenizer, aside / "tokenizer")
        splits = {
            "val": _write_split(aside, "val", corpus.val, tokenizer, end_of_text, dtype, progress),
            "train": _write_split(aside, "train", corpus.train, tokenizer, end_of_text, dtype, progress),
        }
        files = sorted(file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file())
        write_json(
            aside / "manifest.json",
            {
                "format": _FORMAT,
                "fingerprint": fingerprint,
                "corpus": corpus.name,
                "repeated_documents": corpus.repeated,
                "unreadable_files": corpus.unreadable,
                "vocab_size": vocab_size,
                "end_of_text": end_of_text,
                "dtype": dtype,
                "splits": splits,
                "sha256": {name: _sha256(aside / name) for name in files},
            },
        )


def _write_split(
    directory: Path,
    side: str,
    documents: list[Document],
    tokenizer: Tokenizer,
    end_of_text: int,
    dtype: str,
    progress: Progress,
) -> dict[str, int]:
    offsets = [0]
    with (directory / f"{side}.tokens").open("wb") as file:
        for first in range(0, len(documents), _BATCH_DOCUMENTS):
            progress(f"tokenizing {side}", first / len(documents))
            texts = [document.text for document in documents[first : first + _BATCH_DOCUMENTS]]
            # encode_batch runs on all cores.
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                ids = np.array([*encoding.ids, end_of_text], dtype=dtype)
                file.write(ids.tobytes())
                offsets.append(offsets[-1] + len(ids))
    np.array(offsets, dtype="<u8").tofile(directory / f"{side}.offsets")
    return {"tokens": offsets[-1], "documents": len(documents), "bytes": sum(document.size for document in documents)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
