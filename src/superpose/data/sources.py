"""Where text comes from: files into documents, deduplicated, in one order on every machine, some held out.

    files -> decode -> fingerprint -> drop repeats -> sort by fingerprint -> hold out -> cap

A document's fingerprint is the SHA-256 of its text without regard to white space. It decides everything else:
two documents with one fingerprint are one document; the order of fingerprints is a shuffle that needs no seed
and does not depend on paths; and a fingerprint below `val_fraction` of all possible ones is held out, so a
text can never be on both sides, nor change sides when the corpus grows.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from superpose.errors import UserError

PYTHON_SOURCES = "python"
"""Names the default corpus: the Python sources installed on this machine."""

# A corpus of fewer files is cut into pieces, so that some can be held out and their order shuffled.
_FEW_FILES = 100
_PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Document:
    fingerprint: str
    text: str

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """Documents of both sides, each in the order of their fingerprints, and what was left out on the way."""

    name: str
    train: list[Document]
    val: list[Document]
    repeated: int
    unreadable: int

    @property
    def fingerprint(self) -> str:
        """Identifies the text of both sides to the letter, white space included."""
        digest = hashlib.sha256()
        for side in (self.train, self.val):
            digest.update(b"".join(hashlib.sha256(document.text.encode()).digest() for document in side) + b"/")
        return digest.hexdigest()


def collect(source: str, max_bytes: int, val_fraction: float, val_bytes: int) -> Corpus:
    """Reads a corpus.

    Args:
        source: `PYTHON_SOURCES`, or a text file, or a folder whose text files are read, subfolders included.
        max_bytes: size of the training side; what comes later in the order is left out.
        val_fraction: share of the documents held out for validation.
        val_bytes: size of the held-out side that is kept; the rest of what is held out is not trained on.

    Raises:
        UserError: there is nothing to read, or too little to hold any of it out.
    """
    paths = list(_python_files() if source == PYTHON_SOURCES else _files_below(Path(source)))
    name = "Python sources of this machine" if source == PYTHON_SOURCES else str(source)
    seen: dict[str, str] = {}
    count = unreadable = 0
    for text in _texts(paths):
        if text is None:
            unreadable += 1
        elif text.strip():
            count += 1
            seen.setdefault(_fingerprint(text), text)
    documents = [Document(fingerprint, text) for fingerprint, text in sorted(seen.items())]
    limit = int(val_fraction * 2**64)
    held_out = [document for document in documents if int(document.fingerprint[:16], 16) < limit]
    train = _capped((document for document in documents if int(document.fingerprint[:16], 16) >= limit), max_bytes)
    if not train or not held_out:
        raise UserError(
            f"{name}: {len(documents)} different documents of text were found in {len(paths)} files, "
            f"too few to train on some and hold out others; give a larger file or folder"
        )
    return Corpus(name, train, _capped(held_out, val_bytes), count - len(seen), unreadable)


def _python_files() -> Iterator[Path]:
    """Python sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    yield from (path for path in _walk(library, ".py") if "site-packages" not in path.parts[len(library.parts) :])
    for packages in sorted({paths["purelib"], paths["platlib"]}):
        yield from _walk(Path(packages), ".py")


def _files_below(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        yield from _walk(source)
    else:
        raise UserError(
            f"corpus {source} does not exist; give a text file, a folder of text files, or '{PYTHON_SOURCES}'"
        )


def _walk(top: Path, suffix: str = "") -> Iterator[Path]:
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffix) and not name.startswith(".") and path.is_file():
                yield path


def _texts(paths: list[Path]) -> Iterator[str | None]:
    """The documents in some files, None for each file that is not UTF-8 text."""
    few = len(paths) < _FEW_FILES
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); make it readable or leave it out") from None
        except UnicodeDecodeError:
            yield None
            continue
        if "\0" in text:
            yield None
        elif few:
            yield from _pieces(text)
        else:
            yield text


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at blank lines (at line ends where there are none) into pieces of about `_PIECE_BYTES`."""
    separator = r"(?<=\n)(?=[^\n])" if not re.search(r"\n\s*\n", text) else r"(?<=\n\n)(?=[^\n])"
    piece: list[str] = []
    size = 0
    for part in re.split(separator, text):
        piece.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _fingerprint(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _capped(documents: Iterable[Document], max_bytes: int) -> list[Document]:
    """The first documents, up to `max_bytes` in all; the first one in any case."""
    kept: list[Document] = []
    total = 0
    for document in documents:
        total += document.size
        if kept and total > max_bytes:
            break
        kept.append(document)
    return kept
