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

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate, chain, count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from superpose.data.readers import Part, Source, find_parts, read_part
from superpose.data.selection import INDEX, Selection, index_entry, select
from superpose.data.shards import Job, chosen_documents, gather, keep_tokenizer, kept_tokenizer, plan_shards, spill
from superpose.data.store import FORMAT, TokenStore
from superpose.data.tokenizer import TRAINING_BYTES, TextTokenizer, load_tokenizer, train_tokenizer
from superpose.data.workers import Progress, Run, available_cores, workers
from superpose.errors import UserError
from superpose.files import file_sha256, one_at_a_time, read_json, sync, whole_file, write_json
from superpose.places import stat_of


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
    progress("looking at the sources and the tokenizer" if preparation.tokenizer else "looking at the sources", 0)
    parts = [part for source in preparation.sources for part in find_parts(source)]
    given = load_tokenizer(preparation.tokenizer, preparation.end_of_text) if preparation.tokenizer else None
    if given is None and any(part.is_tokens for part in parts):
        raise UserError("a source holds tokens already; name the tokenizer they were made with")
    inputs = _hash_of_inputs(preparation, parts)
    path = path or cache_directory() / "stores" / inputs[:16]
    if not path.exists():
        with one_at_a_time(path):
            if not path.exists():  # another process may have made it
                with workers(min(processes or available_cores(), len(parts)), progress) as run:
                    _prepare(preparation, path, inputs, parts, given, run)
    if not (path / "manifest.json").is_file() or read_json(path / "manifest.json").get("inputs") != inputs:
        raise UserError(
            f"{path} exists and holds something else than what is to be prepared (other sources, settings or "
            f"versions); give a new directory, or remove it"
        )
    return TokenStore.open(path)


def _prepare(
    preparation: Preparation, path: Path, inputs: str, parts: list[Part], given: TextTokenizer | None, run: Run
) -> None:
    work = path.with_name(f".{path.name}.partial")
    # What an interrupted preparation of the same inputs left is gone on with.
    mark = work / "inputs.json"
    if not mark.is_file() or read_json(mark) != {"inputs": inputs}:
        shutil.rmtree(work, ignore_errors=True)
        for folder in ("index", "spill", "shards"):
            (work / folder).mkdir(parents=True)
        write_json(mark, {"inputs": inputs})
    selection, jobs = _select(preparation, parts, work, given.end_of_text if given else None, run)
    if not len(selection.train.documents) or not len(selection.val.documents):
        where = ", ".join(source.location for source in preparation.sources)
        unreadable = f" and {selection.unreadable} files that are not text" if selection.unreadable else ""
        raise UserError(
            f"{where}: {selection.documents} different documents{unreadable} were found, too few to train on some "
            f"and hold out others; give more text, or hold out a larger share"
        )
    if not (work / "tokenizer").is_dir():
        keep_tokenizer(given or train_tokenizer(_first_texts(run, jobs, selection), preparation.vocab_size), work)
    tokenizer = kept_tokenizer(work)
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    run(partial(spill, work, dtype), jobs, "tokenizing")
    val = plan_shards("val", selection.val.sizes, 0)
    train = plan_shards("train", selection.train.sizes, len(selection.val.sizes))
    records = run(partial(gather, work, dtype, tokenizer.end_of_text), val + train, "writing shards")
    checksums = {
        f"{shard['name']}.{suffix}": digest for shard in records for suffix, digest in shard.pop("sha256").items()
    }
    content = [checksums[name] for name in sorted(checksums)]
    checksums |= {f"tokenizer/{file.name}": file_sha256(file) for file in sorted((work / "tokenizer").iterdir())}
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
            "splits": {"val": {"shards": records[: len(val)]}, "train": {"shards": records[len(val) :]}},
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


def train_on_sources(
    sources: tuple[Source, ...],
    vocab_size: int,
    special_tokens: tuple[str, ...] = (),
    processes: int = 0,
    progress: Progress = lambda what, share: None,
) -> TextTokenizer:
    """A tokenizer trained on 16 MiB of some sources, taken from all over them; a UserError if they hold no text."""
    preparation = Preparation(sources, val_fraction=0.0)
    parts = [part for source in sources for part in find_parts(source)]
    if any(part.is_tokens for part in parts):
        raise UserError("a source holds tokens already, and a tokenizer is trained on text")
    with workers(min(processes or available_cores(), len(parts)), progress) as run, TemporaryDirectory() as folder:
        (Path(folder) / "index").mkdir()
        selection, jobs = _select(preparation, parts, Path(folder), None, run)
        if not len(selection.train.documents):
            raise UserError(f"{', '.join(source.location for source in sources)}: no text was found to train on")
        return train_tokenizer(_first_texts(run, jobs, selection), vocab_size, special_tokens)


def cache_directory() -> Path:
    """`$SUPERPOSE_CACHE`, or `superpose` in the user's cache directory."""
    if chosen := os.environ.get("SUPERPOSE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superpose"


def _hash_of_inputs(preparation: Preparation, parts: list[Part]) -> str:
    """Of all that decides what a store holds; files go in by path, size and time, not by reading them."""
    files = sorted({file for part in parts for file in part.files})
    stats = [(file, *stat_of(file)) for file in files]
    path = Path(preparation.tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = file_sha256(file) if preparation.tokenizer and file.is_file() else ""
    inputs = [FORMAT, version("tokenizers"), asdict(preparation), tokenizer, stats]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _scan(work: Path, end_of_text: int | None, job: tuple[int, Part]) -> None:
    """Step 2: writes the index of a part."""
    number, part = job
    path = work / "index" / f"{number:06d}.npy"
    if not path.exists():
        entries = np.fromiter(map(index_entry, read_part(part, end_of_text)), dtype=INDEX)
        with whole_file(path) as aside, aside.open("wb") as file:
            np.save(file, entries, allow_pickle=False)


def _select(
    preparation: Preparation, parts: list[Part], work: Path, end_of_text: int | None, run: Run
) -> tuple[Selection, list[Job]]:
    """Step 2: the selection, and of each part that has some of it the places in the store."""
    run(partial(_scan, work, end_of_text), list(enumerate(parts)), "reading text")
    indexes = [np.load(work / "index" / f"{number:06d}.npy") for number in range(len(parts))]
    bounds = [0, *accumulate(map(len, indexes))]
    sources = [preparation.sources.index(part.source) for part in parts]
    selection = select(
        np.concatenate(indexes),
        np.repeat(sources, np.diff(bounds)),
        preparation.weights,
        preparation.max_bytes,
        preparation.val_fraction,
        preparation.val_bytes,
        preparation.seed,
    )
    order = np.concatenate([selection.val.documents, selection.train.documents])
    places = np.full(bounds[-1], -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    of_part = [places[start:stop] for start, stop in pairwise(bounds)]
    return selection, [job for job in zip(count(), parts, of_part) if (job[2] >= 0).any()]


def _first_texts(run: Run, jobs: list[Job], selection: Selection) -> Iterator[str]:
    """The first `TRAINING_BYTES` of the training side."""
    first = len(selection.val.documents)
    stop = first + 1 + int(np.searchsorted(np.cumsum(selection.train.sizes), TRAINING_BYTES))
    jobs = [(number, part, np.where((at >= first) & (at < stop), at, -1)) for number, part, at in jobs]
    texts = run(_texts_of_places, [job for job in jobs if (job[2] >= 0).any()], "training the tokenizer")
    return (text for _, text in sorted(chain.from_iterable(texts)))


def _texts_of_places(job: Job) -> list[tuple[int, str]]:
    _, part, places = job
    return [(place, document) for place, document in chosen_documents(part, places, None) if isinstance(document, str)]
