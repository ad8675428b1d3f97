"""From sources on disk to a token store, in memory that does not grow with them.

    sources -> parts -> index -> selection -> tokens of each part -> shards -> STORE
               (1)      (2)                   (3)                    (4)

    1. Sources are cut into parts that any process can read by itself (`readers`).
    2. Every part is read once for its index: a fingerprint of each document. All indexes together decide which
       documents are used, on which side, and where each will stand (`selection`).
    3. Every part is read again; its chosen documents are tokenized and spilled to disk, sorted by their places.
    4. A shard is a stretch of places: it is gathered from all spills and written.

Steps 2 to 4 run in as many processes as there are cores, each with one part or shard in memory. What is finished
stands in a `.partial` directory beside STORE, so a preparation that was interrupted goes on where it stopped; when
all is there, the directory is renamed to STORE.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from superpose.data.readers import Part, Source, find_parts, read_part
from superpose.data.selection import INDEX, Selection, index_entry, select
from superpose.data.store import FORMAT, TokenStore, file_sha256
from superpose.data.tokenizer import TRAINING_BYTES, TextTokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from superpose.data.workers import Run, available_cores, workers
from superpose.errors import UserError
from superpose.files import read_json, sync, whole_file, write_json

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""

# Text of a shard: larger ones take more memory to gather, smaller ones are more files.
_SHARD_BYTES = 64 * 2**20
# Text given to the tokenizer at a time, and tokens of a part that are held before they are spilled.
_BATCH_BYTES = 2**20
_SPILL_TOKENS = 2**24

_SPILLED = np.dtype([("place", "<u8"), ("start", "<u8"), ("tokens", "<u8"), ("bytes", "<u8")])
"""A spilled document: its place in the store, where its tokens start in the spill, how many, of how many bytes."""


@dataclass(frozen=True)
class Preparation:
    """All that decides what a store holds."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...] | None = None
    """Share of the text each source is to have, see `select`; by default all of every source is used."""
    tokenizer: str = ""
    """See `load_tokenizer`; by default one is trained on the text."""
    vocab_size: int = 0
    """Of a tokenizer that is trained."""
    end_of_text: str = ""
    """The token that ends documents, where the tokenizer's directory does not say."""
    max_bytes: float = float("inf")
    """Of text on the training side."""
    val_fraction: float = 0.005
    """Share of the documents that is held out."""
    val_bytes: float = 10e6
    """Of held-out text that is kept."""
    seed: int = 0
    """Of the order of the documents."""


@dataclass(frozen=True)
class _Shard:
    name: str
    first: int
    """Its documents are those of places `first` to `stop - 1`, validation first."""
    stop: int


def prepare_store(
    preparation: Preparation,
    path: Path | None = None,
    processes: int = 0,
    progress: Progress = lambda what, share: None,
) -> TokenStore:
    """Prepares a store, or opens the one that the same sources and settings made before.

    Args:
        path: where to; by default in the cache, by the hash of all that goes in.
        processes: at a time; 0 for one on each core.

    Raises:
        UserError: a source or the tokenizer cannot be read, there is too little text, or `path` holds something else.
    """
    progress("looking at the sources", 0)
    by_source = [find_parts(source) for source in preparation.sources]
    parts = [part for group in by_source for part in group]
    given = load_tokenizer(preparation.tokenizer, preparation.end_of_text) if preparation.tokenizer else None
    if given is None and any(part.is_tokens for part in parts):
        raise UserError("a source holds tokens already; name the tokenizer they were made with")
    inputs = _hash_of_inputs(preparation, parts)
    path = path or cache_directory() / "stores" / inputs[:16]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path):
            if not path.exists():
                _prepare(preparation, path, inputs, by_source, given, processes, progress)
    return _opened(path, inputs)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Whoever else prepares the same store waits, and then finds it made."""
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)


def _prepare(
    preparation: Preparation,
    path: Path,
    inputs: str,
    by_source: list[list[Part]],
    given: TextTokenizer | None,
    processes: int,
    progress: Progress,
) -> None:
    parts = [part for group in by_source for part in group]
    work = path.with_name(f".{path.name}.partial")
    _claim(work, inputs)
    with workers(min(processes or available_cores(), len(parts))) as run:
        end_of_text = given.end_of_text if given else None
        selection, of_part = _select(preparation, by_source, work, end_of_text, run, progress)
        _expect_text(preparation, selection)
        if not (work / "tokenizer" / "done").is_file():
            progress("training the tokenizer" if given is None else "looking at the tokenizer", 0)
            tokenizer = given or train_tokenizer(_first_texts(run, parts, of_part, selection), preparation.vocab_size)
            _save(tokenizer, work / "tokenizer")
        tokenizer = load_tokenizer(str(work / "tokenizer"), _end_of_text(work))
        dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"

        chosen = [(number, parts[number], of_part[number]) for number in range(len(parts))]
        chosen = [job for job in chosen if (job[2] >= 0).any()]
        run(partial(_spill, work, dtype), chosen, lambda share: progress("tokenizing", share))
        shards = {
            "val": _shards("val", selection.val.sizes, 0),
            "train": _shards("train", selection.train.sizes, len(selection.val.sizes)),
        }
        gather = partial(_gather, work, dtype, tokenizer.end_of_text)
        records = run(gather, shards["val"] + shards["train"], lambda share: progress("writing shards", share))
    written = {
        "val": {"shards": records[: len(shards["val"])]},
        "train": {"shards": records[len(shards["val"]) :]},
    }
    _finish(work, path, preparation, inputs, tokenizer, dtype, selection, written)


def train_on_sources(
    sources: tuple[Source, ...],
    vocab_size: int,
    special_tokens: tuple[str, ...] = (),
    processes: int = 0,
    progress: Progress = lambda what, share: None,
) -> TextTokenizer:
    """A tokenizer trained on 16 MiB of some sources, taken from all over them.

    Raises:
        UserError: a source cannot be read, or holds no text.
    """
    preparation = Preparation(sources, val_fraction=0.0)
    by_source = [find_parts(source) for source in sources]
    parts = [part for group in by_source for part in group]
    if any(part.is_tokens for part in parts):
        raise UserError("a source holds tokens already, and a tokenizer is trained on text")
    with workers(min(processes or available_cores(), len(parts))) as run, TemporaryDirectory() as folder:
        (Path(folder) / "index").mkdir()
        selection, of_part = _select(preparation, by_source, Path(folder), None, run, progress)
        if not len(selection.train.documents):
            raise UserError(f"{', '.join(source.location for source in sources)}: no text was found to train on")
        progress("training the tokenizer", 0)
        return train_tokenizer(_first_texts(run, parts, of_part, selection), vocab_size, special_tokens)


def cache_directory() -> Path:
    """`$SUPERPOSE_CACHE`, or `superpose` in the user's cache directory."""
    if chosen := os.environ.get("SUPERPOSE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superpose"


def _hash_of_inputs(preparation: Preparation, parts: list[Part]) -> str:
    """Of all that decides what a store holds; files go in by path, size and time, not by reading them."""
    files = sorted({file for part in parts for file in part.files})
    stats = [(file, (stat := Path(file).stat()).st_size, stat.st_mtime_ns) for file in files]
    path = Path(preparation.tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = file_sha256(file) if preparation.tokenizer and file.is_file() else ""
    inputs = [FORMAT, version("tokenizers"), asdict(preparation), tokenizer, stats]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _opened(path: Path, inputs: str) -> TokenStore:
    if not (path / "manifest.json").is_file() or read_json(path / "manifest.json").get("inputs") != inputs:
        raise UserError(
            f"{path} exists and holds something else than what is to be prepared (other sources, settings or "
            f"versions); give a new directory, or remove it"
        )
    return TokenStore.open(path)


def _claim(work: Path, inputs: str) -> None:
    """Makes the directory of a preparation, or goes on with what an interrupted one of the same inputs left."""
    mark = work / "inputs.json"
    if mark.is_file() and read_json(mark) == {"inputs": inputs}:
        return
    if work.exists():
        shutil.rmtree(work)
    for folder in ("index", "spill", "shards"):
        (work / folder).mkdir(parents=True)
    write_json(mark, {"inputs": inputs})


def _scan(work: Path, end_of_text: int | None, job: tuple[int, Part]) -> None:
    """Step 2: writes the index of a part."""
    number, part = job
    path = work / "index" / f"{number:06d}.npy"
    if not path.exists():
        entries = np.fromiter(map(index_entry, read_part(part, end_of_text)), dtype=INDEX)
        with whole_file(path) as aside, aside.open("wb") as file:
            np.save(file, entries, allow_pickle=False)


def _select(
    preparation: Preparation,
    by_source: list[list[Part]],
    work: Path,
    end_of_text: int | None,
    run: Run,
    progress: Progress,
) -> tuple[Selection, list[npt.NDArray[np.int64]]]:
    """Step 2: the selection, and for each document of each part its place in the store, or -1."""
    parts = [part for group in by_source for part in group]
    run(partial(_scan, work, end_of_text), list(enumerate(parts)), lambda share: progress("reading text", share))
    indexes = [np.load(work / "index" / f"{number:06d}.npy") for number in range(len(parts))]
    bounds = [0, *accumulate(map(len, indexes))]
    parts_of_source = [len(group) for group in by_source]
    selection = select(
        np.concatenate(indexes),
        np.repeat(np.repeat(np.arange(len(by_source)), parts_of_source), np.diff(bounds)),
        preparation.weights,
        preparation.max_bytes,
        preparation.val_fraction,
        preparation.val_bytes,
        preparation.seed,
    )
    order = np.concatenate([selection.val.documents, selection.train.documents])
    places = np.full(bounds[-1], -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    return selection, [places[start:stop] for start, stop in pairwise(bounds)]


def _expect_text(preparation: Preparation, selection: Selection) -> None:
    if len(selection.train.documents) and len(selection.val.documents):
        return
    where = ", ".join(source.location for source in preparation.sources)
    unreadable = f" and {selection.unreadable} files that are not text" if selection.unreadable else ""
    raise UserError(
        f"{where}: {selection.documents} different documents{unreadable} were found, too few to train on some and "
        f"hold out others; give more text, or hold out a larger share"
    )


def _first_texts(
    run: Run, parts: list[Part], of_part: list[npt.NDArray[np.int64]], selection: Selection
) -> Iterator[str]:
    """The first `TRAINING_BYTES` of the training side."""
    first = len(selection.val.documents)
    stop = first + 1 + int(np.searchsorted(np.cumsum(selection.train.sizes), TRAINING_BYTES))
    jobs = [
        (part, np.where((places >= first) & (places < stop), places, -1))
        for part, places in zip(parts, of_part, strict=True)
    ]
    jobs = [job for job in jobs if (job[1] >= 0).any()]
    texts = sorted(pair for pairs in run(_texts_of_places, jobs, lambda share: None) for pair in pairs)
    return (text for _, text in texts)


def _texts_of_places(job: tuple[Part, npt.NDArray[np.int64]]) -> list[tuple[int, str]]:
    part, places = job
    return [(place, document) for place, document in _chosen(part, places, None) if isinstance(document, str)]


def _chosen(
    part: Part, places: npt.NDArray[np.int64], end_of_text: int | None
) -> Iterator[tuple[int, str | npt.NDArray[np.int64]]]:
    """The documents of a part that have a place, with it."""
    wanted = int(np.flatnonzero(places >= 0)[-1]) + 1
    for place, document in zip(places[:wanted].tolist(), read_part(part, end_of_text), strict=False):
        if place >= 0:
            if document is None or not len(document):
                raise UserError(f"{part.files[0]} was changed while it was being prepared; start again")
            yield place, document


def _save(tokenizer: TextTokenizer, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    save_tokenizer(tokenizer, directory)
    (directory.parent / "end_of_text.json").write_text(
        json.dumps({"token": tokenizer.tokenizer.id_to_token(tokenizer.end_of_text)})
    )
    (directory / "done").touch()


def _end_of_text(work: Path) -> str:
    return str(read_json(work / "end_of_text.json")["token"])


@cache
def _loaded(work: Path) -> TextTokenizer:
    loaded = load_tokenizer(str(work / "tokenizer"), _end_of_text(work))
    # Where a text spells out a special token, it is text: only we end documents.
    loaded.tokenizer.encode_special_tokens = True
    return loaded


def _spill(work: Path, dtype: str, job: tuple[int, Part, npt.NDArray[np.int64]]) -> None:
    """Step 3: tokenizes the chosen documents of a part."""
    number, part, places = job
    done = work / "spill" / f"{number:06d}.done"
    if done.exists():
        return
    tokenizer = _loaded(work)
    held: list[tuple[int, npt.NDArray[Any], int]] = []
    tokens = runs = 0
    for place, ids, size in _tokenized(tokenizer, part, places):
        if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
            raise UserError(
                f"{part.files[0]} holds token {int(ids.max())}, but the tokenizer has {tokenizer.vocab_size}; "
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
    byte_ids = tokenizer.byte_ids
    for place, document in _chosen(part, places, tokenizer.end_of_text):
        if isinstance(document, str) and byte_ids is not None:
            content = document.encode()
            yield place, byte_ids[np.frombuffer(content, np.uint8)], len(content)
        elif isinstance(document, str):
            batch.append((place, document))
            held += len(document)
            if held >= _BATCH_BYTES:
                yield from _encoded(tokenizer.tokenizer, batch)
                batch, held = [], 0
        else:
            yield place, document, len(tokenizer.tokenizer.decode(document.tolist()).encode())
    yield from _encoded(tokenizer.tokenizer, batch)


def _encoded(tokenizer: Tokenizer, batch: list[tuple[int, str]]) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
    # The fast variant leaves out the places of tokens in the text, which nobody asks for here.
    encodings = tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
    for (place, text), encoding in zip(batch, encodings, strict=True):
        yield place, np.array(encoding.ids, dtype=np.uint32), len(text.encode())


def _write_run(path: Path, documents: list[tuple[int, npt.NDArray[Any], int]], dtype: str) -> None:
    documents.sort(key=lambda document: document[0])
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


def _shards(side: str, sizes: npt.NDArray[np.int64], first: int) -> list[_Shard]:
    """Cuts the documents of a side into stretches of about `_SHARD_BYTES`."""
    number = (np.cumsum(sizes) - sizes) // _SHARD_BYTES
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return [
        _Shard(f"{side}-{count:05d}", first + start, first + stop)
        for count, (start, stop) in enumerate(pairwise(starts))
    ]


def _gather(work: Path, dtype: str, end_of_text: int, shard: _Shard) -> dict[str, Any]:
    """Step 4: writes a shard and returns its line in the manifest."""
    record = work / "shards" / f"{shard.name}.json"
    if record.exists():
        return read_json(record)
    count = shard.stop - shard.first
    documents: list[npt.NDArray[Any] | None] = [None] * count
    size = 0
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
        for place, ids in zip(mine["place"].tolist(), np.split(tokens, cuts), strict=True):
            documents[place - shard.first] = ids
        size += int(mine["bytes"].sum())
    whole = [ids for ids in documents if ids is not None]
    if len(whole) != count:
        raise UserError(f"{work} has lost documents of {shard.name}; remove it and prepare again")
    offsets = np.concatenate([[0], np.cumsum([len(ids) + 1 for ids in whole])])
    end = np.array([end_of_text], dtype=dtype)
    with whole_file(work / f"{shard.name}.tokens") as aside, aside.open("wb") as file:
        for ids in whole:
            file.write(ids.tobytes())
            file.write(end.tobytes())
    with whole_file(work / f"{shard.name}.offsets") as aside:
        aside.write_bytes(offsets.astype("<u8").tobytes())
    line = {"name": shard.name, "tokens": int(offsets[-1]), "documents": count, "bytes": size}
    checksums = {suffix: file_sha256(work / f"{shard.name}.{suffix}") for suffix in ("tokens", "offsets")}
    write_json(record, {**line, "sha256": checksums})
    return read_json(record)


def _finish(
    work: Path,
    path: Path,
    preparation: Preparation,
    inputs: str,
    tokenizer: TextTokenizer,
    dtype: str,
    selection: Selection,
    written: dict[str, Any],
) -> None:
    """Writes the manifest, removes what only the preparation needed, and gives the directory its name."""
    checksums: dict[str, str] = {}
    for side in written.values():
        for shard in side["shards"]:
            checksums |= {f"{shard['name']}.{suffix}": digest for suffix, digest in shard.pop("sha256").items()}
    (work / "tokenizer" / "done").unlink()
    for file in sorted((work / "tokenizer").iterdir()):
        checksums[f"tokenizer/{file.name}"] = file_sha256(file)
        sync(file)
    content = [checksums[name] for name in sorted(checksums) if not name.startswith("tokenizer/")]
    content.append(checksums["tokenizer/tokenizer.json"])
    write_json(
        work / "manifest.json",
        {
            "format": FORMAT,
            "fingerprint": hashlib.sha256("".join(content).encode()).hexdigest(),
            "inputs": inputs,
            "versions": {name: version(name) for name in ("superpose", "tokenizers")},
            "preparation": {
                name: value for name, value in asdict(preparation).items() if value not in (float("inf"), None, "")
            },
            "documents": selection.documents,
            "repeated_documents": selection.repeated,
            "unreadable_files": selection.unreadable,
            "left_out_bytes": selection.left_out_bytes,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "dtype": dtype,
            "splits": written,
            "sha256": checksums,
        },
    )
    # The mark goes first: without it nobody takes what is left for a preparation to go on with.
    for name in ("inputs.json", "end_of_text.json"):
        (work / name).unlink()
    for folder in ("index", "spill", "shards"):
        shutil.rmtree(work / folder)
    work.rename(path)
    sync(path.parent)
