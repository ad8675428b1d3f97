"""Which documents are used, on which side, and in which order: decided from their fingerprints alone.

    fingerprints of all documents -> drop repeats -> hold out -> shuffle -> mix and cap -> places in the store

A document's fingerprint is a hash of its text without regard to white space. It decides everything:
documents with one fingerprint are one document (of variants in white space the one with the least hash of its
exact text is kept); a fingerprint below `val_fraction` of all possible ones is held out, so a text can never be on
both sides nor change sides when the corpus grows; and a permutation of the fingerprints, chosen by the seed, is the
order. Nothing depends on paths, on how files are cut into parts, or on which worker read them first.

Forty bytes a document are held at a time, whatever its length.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from superpose.errors import UserError

INDEX = np.dtype([("key", "<u8"), ("twin", "<u8"), ("exact", "<u8"), ("size", "<u4")])
"""What is kept of a document: 128 bits of its fingerprint, 64 of its exact text, and its size in bytes."""

_LARGEST = 2**32 - 1


def index_entry(document: str | npt.NDArray[np.int64]) -> tuple[int, int, int, int]:
    """A document's line in the index; tokens count 4 bytes each until they are decoded, white space alone none.

    Raises:
        UserError: the document has 4 GiB or more.
    """
    if isinstance(document, str):
        exact, plain = document.encode(), " ".join(document.split()).encode()
        size = len(exact) if plain else 0  # white space alone is no document
    else:
        exact = plain = document.astype("<i8").tobytes()
        size = 4 * len(document)
    if size > _LARGEST:
        raise UserError(f"a document has {size:,} bytes; cut those of 4 GiB and more")
    fingerprint = hashlib.sha256(plain).digest()
    return (
        int.from_bytes(fingerprint[:8], "big"),
        int.from_bytes(fingerprint[8:16], "big"),
        int.from_bytes(hashlib.sha256(exact).digest()[:8], "big"),
        size,
    )


@dataclass(frozen=True)
class Side:
    """Documents of one side of the store, in their order."""

    documents: npt.NDArray[np.int64]
    """Numbers of the documents, counted over all parts."""
    sizes: npt.NDArray[np.int64]
    """Their bytes."""


@dataclass(frozen=True)
class Selection:
    """What goes into a store, and what was left out."""

    train: Side
    val: Side
    documents: int
    """Different ones that were found."""
    repeats: npt.NDArray[np.int64]
    """Numbers of the documents that are another one's repeats."""
    beyond_train: npt.NDArray[np.int64]
    """Of the training side, what the mixture or the cap had no use for."""
    beyond_val: npt.NDArray[np.int64]
    """Of the held-out side, what was not kept."""


def select(
    index: npt.NDArray[np.void],
    sources: npt.NDArray[np.int64],
    weights: Sequence[float] | None,
    max_bytes: float,
    val_fraction: float,
    val_bytes: float,
    seed: int,
) -> Selection:
    """Chooses and orders documents.

    Args:
        index: of all documents, dtype `INDEX`.
        sources: number of each document's source.
        weights: share of the bytes each source is to have. The source that is the shortest for its share gives
            all it has; of the others, what comes later in the order is left out. None: all of every source.
        max_bytes: of the training side.
        val_fraction: share of the documents that is held out.
        val_bytes: of the held-out side that is kept; the rest of it is not trained on.
        seed: of the order.
    """
    sizes = index["size"].astype(np.int64)
    candidates = np.flatnonzero(sizes > 0)
    # By fingerprint, then by exact text, then by place: variants of one document stand together, the first is kept.
    candidates = candidates[
        np.lexsort((index["exact"][candidates], index["twin"][candidates], index["key"][candidates]))
    ]
    key, twin = index["key"][candidates], index["twin"][candidates]
    first = np.ones(len(candidates), dtype=bool)
    first[1:] = (key[1:] != key[:-1]) | (twin[1:] != twin[:-1])
    kept = candidates[first]
    kept = kept[np.argsort(_shuffled(index["key"][kept], seed), kind="stable")]

    held_out = _held_out(index["key"][kept], val_fraction)
    train = _taken(kept[~held_out], sizes, sources, weights, max_bytes)
    val = _taken(kept[held_out], sizes, sources, weights, val_bytes)
    return Selection(
        Side(train, sizes[train]),
        Side(val, sizes[val]),
        documents=len(kept),
        repeats=candidates[~first],
        beyond_train=np.setdiff1d(kept[~held_out], train),
        beyond_val=np.setdiff1d(kept[held_out], val),
    )


def _held_out(keys: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out: those of the least keys, below `fraction` of all possible ones.

    Where so few documents fall on one side that it is empty, the next one in the order of the keys goes there.
    """
    held_out = keys < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    if len(keys) > 1 and fraction > 0 and not held_out.any():
        held_out[np.argmin(keys)] = True
    if len(keys) > 1 and held_out.all():
        held_out[np.argmax(keys)] = False
    return held_out


def _taken(
    documents: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    weights: Sequence[float] | None,
    max_bytes: float,
) -> npt.NDArray[np.int64]:
    """The first documents of each source, as many as its share has room for, all in the order they came in."""
    if weights is None:
        sources, weights = np.zeros_like(sources), [1.0]
    shares = np.array(weights, dtype=float) / sum(weights)
    origin = sources[documents]
    available = np.bincount(origin, weights=sizes[documents], minlength=len(shares))
    total = min(max_bytes, float((available / shares).min()))
    taken = np.zeros(len(documents), dtype=bool)
    for source, share in enumerate(shares):
        of_source = np.flatnonzero(origin == source)
        taken[of_source] = np.cumsum(sizes[documents[of_source]]) <= total * share * (1 + 1e-9)
        taken[of_source[:1]] = True  # a document that is larger than the share is better than none
    return documents[taken]


def _shuffled(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """A permutation of the 64-bit numbers, chosen by the seed (splitmix64's finaliser)."""
    offset = int.from_bytes(hashlib.sha256(f"order {seed}".encode()).digest()[:8], "little")
    mixed = keys + np.uint64(offset)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
