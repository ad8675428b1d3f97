"""From chosen documents to shards, by way of spills: steps 3 and 4 of `superpose.data.prepare`.

    part -> tokens of its chosen documents, sorted by place -> spill          one process a part
    stretch of places <- the documents of these places <- all spills          one process a shard

Both find what an earlier, interrupted preparation finished, and leave it.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from superpose.data.account import Dropped
from superpose.data.readers import Part, read_part
from superpose.data.tokenizer import TextTokenizer, load_tokenizer, save_tokenizer
from superpose.errors import UserError
from superpose.files import file_sha256, read_json, whole_directory, whole_file, write_json

# Text of a shard: larger ones take more memory to gather, smaller ones are more files.
_SHARD_BYTES = 64 * 2**20
# Text given to the tokenizer at a time, and tokens of a part that are held before they are spilled.
_BATCH_BYTES = 2**20
_SPILL_TOKENS = 2**24

_SPILLED = np.dtype([("place", "<u8"), ("start", "<u8"), ("tokens", "<u8"), ("bytes", "<u8")])
"""A spilled document: its place in the store, where its tokens start in the spill, how many, of how many bytes."""

Job = tuple[int, Part, npt.NDArray[np.int64]]
"""A part's number, the part, and for each of its documents its place in the store, or -1."""


class Shard(NamedTuple):
    name: str
    first: int
    """Its documents are those of places `first` to `stop - 1`, validation first."""
    stop: int
    origins: npt.NDArray[np.uint16] | None = None
    """Number of each document's named source."""


def chosen_documents(
    part: Part, places: npt.NDArray[np.int64], end_of_text: int | None
) -> Iterator[tuple[int, str | npt.NDArray[np.int64]]]:
    """The documents of a part that have a place, with it."""
    wanted = int(np.flatnonzero(places >= 0)[-1]) + 1
    documents = (found for found in read_part(part, end_of_text) if not isinstance(found, Dropped))
    for place, document in zip(places[:wanted].tolist(), documents, strict=False):
        if place >= 0:
            if not len(document):
                raise UserError(f"{part.files[0]} was changed while it was being prepared; start again")
            yield place, document


def keep_tokenizer(tokenizer: TextTokenizer, work: Path) -> None:
    write_json(work / "end_of_text.json", {"token": tokenizer.end_of_text_token})
    with whole_directory(work / "tokenizer") as aside:
        save_tokenizer(tokenizer, aside)


def kept_tokenizer(work: Path) -> TextTokenizer:
    """The tokenizer of a preparation."""
    return _loaded(work, (work / "tokenizer" / "tokenizer.json").stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(work: Path, written: int) -> TextTokenizer:
    return load_tokenizer(str(work / "tokenizer"), str(read_json(work / "end_of_text.json")["token"]))


def spill(work: Path, dtype: str, job: Job) -> None:
    """Step 3: tokenizes the chosen documents of a part."""
    number, part, places = job
    done = work / "spill" / f"{number:06d}.done"
    if done.exists():
        return
    tokenizer = kept_tokenizer(work)
    held: list[tuple[int, npt.NDArray[Any], int]] = []
    tokens = runs = 0
    for place, ids, size in _tokenized(tokenizer, part, places):
        outside = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
        if len(outside):
            raise UserError(
                f"{part.files[0]} holds token {int(outside[0])}, but the tokenizer has {tokenizer.vocab_size}; "
                f"name the tokenizer it was made with"
            )
        held.append((place, ids.astype(dtype), size))
        tokens += len(ids)
        if tokens >= _SPILL_TOKENS:
            _write_run(work / "spill" / f"{number:06d}-{runs:04d}", held, dtype)
            held, tokens, runs = [], 0, runs + 1
    if held:
        _write_run(work / "spill" / f"{number:06d}-{runs:04d}", held, dtype)
    done.touch()


def _tokenized(
    tokenizer: TextTokenizer, part: Part, places: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
    """Place, ids and bytes of each chosen document."""
    batch: list[tuple[int, str]] = []
    held = 0
    byte_ids, words = tokenizer.byte_ids, tokenizer.words
    for place, document in chosen_documents(part, places, tokenizer.end_of_text):
        if isinstance(document, str) and byte_ids is not None:
            content = document.encode()
            yield place, byte_ids[np.frombuffer(content, np.uint8)], len(content)
        elif isinstance(document, str) and words is not None:
            yield place, words.encode(document), len(document.encode())
        elif isinstance(document, str):
            batch.append((place, document))
            held += len(document)
            if held >= _BATCH_BYTES:
                yield from _encoded(tokenizer, batch)
                batch, held = [], 0
        else:
            yield place, document, len(tokenizer.tokenizer.decode(document.tolist()).encode())
    yield from _encoded(tokenizer, batch)


def _encoded(tokenizer: TextTokenizer, batch: list[tuple[int, str]]) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
    for (place, text), ids in zip(batch, tokenizer.encode([text for _, text in batch]), strict=True):
        yield place, ids, len(text.encode())


def _write_run(path: Path, documents: list[tuple[int, npt.NDArray[Any], int]], dtype: str) -> None:
    documents.sort(key=itemgetter(0))
    index = np.zeros(len(documents), dtype=_SPILLED)
    index["place"] = [place for place, _, _ in documents]
    index["tokens"] = [len(ids) for _, ids, _ in documents]
    index["start"][1:] = np.cumsum(index["tokens"])[:-1]
    index["bytes"] = [size for _, _, size in documents]
    with whole_file(path.with_suffix(".tokens")) as aside, aside.open("wb") as file:
        for _, ids, _ in documents:
            file.write(ids.tobytes())
    with whole_file(path.with_suffix(".index")) as aside:
        aside.write_bytes(index.tobytes())


def origins_of(names: tuple[str, ...], jobs: list[Job], held_out: int) -> npt.NDArray[np.uint16]:
    """For each place in the store the number of its source's name.

    Raises:
        UserError: of a source there is nothing in the places from `held_out` on, those of the training side.
    """
    origins = np.zeros(sum(int((places >= 0).sum()) for _, _, places in jobs), dtype=np.uint16)
    for _, part, places in jobs:
        origins[places[places >= 0]] = names.index(part.source.name)
    if missing := set(range(len(names))) - set(np.unique(origins[held_out:]).tolist()):
        raise UserError(
            f"of the source {names[min(missing)]} no text is left to train on: it is empty, held out, a repeat of "
            f"other text, or beyond the size asked for; give more of it or a larger size, or leave it out"
        )
    return origins


def plan_shards(
    side: str, sizes: npt.NDArray[np.int64], first: int, origins: npt.NDArray[np.uint16] | None = None
) -> list[Shard]:
    """Cuts the documents of a side into stretches of about `_SHARD_BYTES`; `origins` are those of all places."""
    number = (np.cumsum(sizes) - sizes) // _SHARD_BYTES
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return [
        Shard(
            f"{side}-{count:05d}",
            first + start,
            first + stop,
            None if origins is None else origins[first + start : first + stop],
        )
        for count, (start, stop) in enumerate(pairwise(starts))
    ]


def gather(work: Path, dtype: str, end_of_text: int, num_sources: int, shard: Shard) -> dict[str, Any]:
    """Step 4: writes a shard and returns its line in the manifest; `num_sources` are those with a name."""
    record = work / "shards" / f"{shard.name}.json"
    if record.exists():
        return read_json(record)
    documents: list[tuple[int, npt.NDArray[Any]]] = []
    sizes = np.zeros(shard.stop - shard.first, dtype=np.int64)
    for path in sorted((work / "spill").glob("*.index")):
        index = np.memmap(path, dtype=_SPILLED, mode="r")
        first, stop = np.searchsorted(index["place"], [shard.first, shard.stop])
        if first == stop:
            continue
        mine = np.array(index[first:stop])
        start = int(mine["start"][0])
        length = int(mine["tokens"].sum())
        tokens = np.fromfile(path.with_suffix(".tokens"), dtype, length, offset=start * np.dtype(dtype).itemsize)
        cuts = np.cumsum(mine["tokens"])[:-1].astype(np.int64)
        documents += zip(mine["place"].tolist(), np.split(tokens, cuts), strict=True)
        sizes[mine["place"].astype(np.int64) - shard.first] = mine["bytes"]
    whole = [ids for _, ids in sorted(documents, key=itemgetter(0))]
    if len(whole) != shard.stop - shard.first:
        raise UserError(f"{work} has lost documents of {shard.name}; remove it and prepare again")
    offsets = np.concatenate([[0], np.cumsum([len(ids) + 1 for ids in whole])])
    end = np.array([end_of_text], dtype=dtype)
    with whole_file(work / f"{shard.name}.tokens") as aside, aside.open("wb") as file:
        for ids in whole:
            file.write(ids.tobytes())
            file.write(end.tobytes())
    with whole_file(work / f"{shard.name}.offsets") as aside:
        aside.write_bytes(offsets.astype("<u8").tobytes())
    suffixes = ["tokens", "offsets"]
    counts: dict[str, Any] = {"tokens": int(offsets[-1]), "documents": len(whole), "bytes": int(sizes.sum())}
    if shard.origins is not None:
        with whole_file(work / f"{shard.name}.sources") as aside:
            aside.write_bytes(shard.origins.astype("<u2").tobytes())
        suffixes.append("sources")
        # Sums of whole numbers below 2^53 are exact.
        columns = {"tokens": np.diff(offsets), "documents": np.ones_like(sizes), "bytes": sizes}
        sums = {name: np.bincount(shard.origins, values, num_sources) for name, values in columns.items()}
        counts["sources"] = [{name: int(sums[name][number]) for name in sums} for number in range(num_sources)]
    sha256 = {suffix: file_sha256(work / f"{shard.name}.{suffix}") for suffix in suffixes}
    write_json(record, {"name": shard.name, **counts, "sha256": sha256})
    return read_json(record)
