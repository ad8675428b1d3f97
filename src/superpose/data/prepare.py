"""From sources on disk to a token store, in memory that does not grow with them.

    sources -> parts -> index -> selection -> tokens of each part -> shards -> STORE
               (1)      (2)                   (3)                    (4)

    1. Sources are cut into parts that any process can read by itself (`readers`); streams are first written to disk
       (`stream_parts`).
    2. Every part is read once for its index: a fingerprint of each document. All indexes together decide which
       documents are used, on which side, and where each will stand (`selection`).
    3. Every part is read again; its chosen documents are tokenized and spilled to disk, sorted by their places.
    4. A shard is a stretch of places: it is gathered from all spills and written.

Steps 2 to 4 run in as many processes as there are cores, or on the nodes of a cluster, each with one part or shard in
memory. What comes out does not depend on how many there are. What is finished
stands in a `.partial` directory beside STORE, so a preparation that was interrupted goes on where it stopped; when
all is there, the directory is renamed to STORE.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import accumulate, chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from superpose.copies import write_folder
from superpose.data.account import (
    Account,
    Dropped,
    Drops,
    account_for,
    described_drops,
    expect_little_damage,
    joined,
    note,
)
from superpose.data.compressed import UntrustedError
from superpose.data.nodes import on_nodes
from superpose.data.readers import Part, Source, find_parts, read_part
from superpose.data.selection import INDEX, Selection, index_entry, select
from superpose.data.shards import (
    Job,
    chosen_documents,
    gather,
    keep_tokenizer,
    kept_tokenizer,
    origins_of,
    plan_shards,
    spill,
)
from superpose.data.sources import checked_names
from superpose.data.store import FORMAT, TokenStore, is_store
from superpose.data.stream_parts import kept_streams, opened_streams
from superpose.data.text_files import PIECE
from superpose.data.text_streams import Stream, Streams
from superpose.data.tokenizer import TRAINING_BYTES, TextTokenizer, load_tokenizer, train_tokenizer
from superpose.data.workers import Progress, Run, workers
from superpose.engine.jobs import Engine
from superpose.engine.local import available_cores
from superpose.errors import UserError
from superpose.files import (
    cache_directory,
    file_sha256,
    one_at_a_time,
    parse_json,
    read_json,
    sync,
    whole_file,
    write_json,
)
from superpose.places import is_remote, join, open_binary, stat_of

# Parts that a cluster is given at a time; which of them wait for a core is its affair.
_AT_ONCE = 1000
# A single document is cut into pieces of at least so many characters.
_SMALLEST_PIECE = 256


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
    max_damaged: float = 0.01
    """Share of a source that may be damaged; more is an error."""


def prepare_store(
    preparation: Preparation,
    path: str | Path | None = None,
    processes: int = 0,
    progress: Progress = lambda what, share: None,
    streams: Streams = MappingProxyType({}),
    engine: Engine | None = None,
) -> TokenStore:
    """Prepares a store, or opens the one that the same sources and settings made before.

    Args:
        path: where to; by default in the cache, by the hash of all that goes in. For a remote place such as
            s3://bucket/store it is prepared in the cache and then written there, the manifest last.
        processes: at a time; 0 for one on each core.
        streams: iterables of records for sources `stream:NAME`, by name. A name and the first records stand for all
            that a stream says: one that says something else needs another name.
        engine: where parts are worked on; by default in processes of this machine. A cluster's nodes have to see the
            sources, and the folder of `path` or the cache.

    Raises:
        UserError: a source or the tokenizer cannot be read, there is too little text, or `path` holds something else.
    """
    if isinstance(path, str) and is_remote(path):
        return _prepare_remote(preparation, path, processes, progress, streams, engine)
    progress("looking at the sources and the tokenizer" if preparation.tokenizer else "looking at the sources", 0)
    names = checked_names([(source.name, source.location) for source in preparation.sources])
    given = load_tokenizer(preparation.tokenizer, preparation.end_of_text) if preparation.tokenizer else None
    tells = {"vocab_size": given.vocab_size, "end_of_text": given.end_of_text} if given else {}
    parts = [part for source in preparation.sources for part in find_parts(source, streams=streams, **tells)]
    if given is None and any(part.is_tokens for part in parts):
        raise UserError("a source holds tokens already; name the tokenizer they were made with")
    opened = opened_streams(parts, streams)
    inputs = _hash_of_inputs(preparation, parts, opened)
    path = Path(path or cache_directory() / "stores" / inputs[:16])
    if not path.exists():
        with one_at_a_time(path):
            if not path.exists():  # another process may have made it
                with workers(_processes(processes, parts, engine), progress, engine) as run:
                    run = run if engine is None else on_nodes(run, engine, path.parent)
                    _prepare(preparation, names, path, inputs, parts, opened, given, run)
    if not (path / "manifest.json").is_file() or read_json(path / "manifest.json").get("inputs") != inputs:
        raise _holds_something_else(path)
    return TokenStore.open(path)


def _prepare_remote(
    preparation: Preparation, location: str, processes: int, progress: Progress, streams: Streams, engine: Engine | None
) -> TokenStore:
    store = prepare_store(preparation, None, processes, progress, streams, engine)
    if not is_store(location):
        progress(f"writing to {location}", 0)
        write_folder(store.path, location, ["manifest.json"])
    with open_binary(join(location, "manifest.json")) as stream:
        if parse_json(stream.read(), join(location, "manifest.json")) != store.manifest:
            raise _holds_something_else(location)
    return store


def _holds_something_else(place: str | Path) -> UserError:
    return UserError(
        f"{place} exists and holds something else than what is to be prepared (other sources, settings or versions); "
        f"give a new directory, or remove it"
    )


def _processes(asked: int, parts: list[Part], engine: Engine | None = None) -> int:
    """So many as there are cores, but no more than have something to do; a stream's parts are not known yet."""
    most = asked or (available_cores() if engine is None else _AT_ONCE)
    return most if any(part.kind == "stream" for part in parts) else min(most, len(parts))


def _prepare(
    preparation: Preparation,
    names: tuple[str, ...],
    path: Path,
    inputs: str,
    parts: list[Part],
    opened: dict[str, Stream],
    given: TextTokenizer | None,
    run: Run,
) -> None:
    work = path.with_name(f".{path.name}.partial")
    # What an interrupted preparation of the same inputs left is gone on with.
    mark = work / "inputs.json"
    if not mark.is_file() or read_json(mark) != {"inputs": inputs}:
        shutil.rmtree(work, ignore_errors=True)
        for folder in ("index", "spill", "shards"):
            (work / folder).mkdir(parents=True)
        write_json(mark, {"inputs": inputs})
    kept = kept_streams(parts, opened, work, run)
    selection, jobs, accounts = _select(preparation, kept, work, given.end_of_text if given else None, run)
    if not len(selection.train.documents) or not len(selection.val.documents):
        where = ", ".join(source.location for source in preparation.sources)
        dropped = described_drops(joined(account.dropped for account in accounts))
        found = ", ".join([f"{selection.documents} different documents", *dropped])
        raise UserError(f"{where}: {found} were found, too few to train on some and hold out others; give more text")
    origins = origins_of(names, jobs, len(selection.val.documents)) if names else None
    if not (work / "tokenizer").is_dir():
        keep_tokenizer(given or train_tokenizer(_first_texts(run, jobs, selection), preparation.vocab_size), work)
    tokenizer = kept_tokenizer(work)
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    run(partial(spill, work, dtype), jobs, "tokenizing")
    val = plan_shards("val", selection.val.sizes, 0, origins)
    train = plan_shards("train", selection.train.sizes, len(selection.val.sizes), origins)
    records = run(partial(gather, work, dtype, tokenizer.end_of_text, len(names)), val + train, "writing shards")
    checksums = {
        f"{shard['name']}.{suffix}": digest for shard in records for suffix, digest in shard.pop("sha256").items()
    }
    content = [checksums[name] for name in sorted(checksums)]
    checksums |= {f"tokenizer/{file.name}": file_sha256(file) for file in sorted((work / "tokenizer").iterdir())}
    content.append(checksums["tokenizer/tokenizer.json"])
    content += (f" {name}" for name in names)
    if _hash_of_inputs(preparation, parts, opened) != inputs:
        raise UserError("a source or the tokenizer was changed while the text was prepared; start again")
    write_json(
        work / "manifest.json",
        {
            "format": FORMAT,
            "fingerprint": hashlib.sha256("".join(content).encode()).hexdigest(),
            "inputs": inputs,
            "versions": {name: version(name) for name in ("superpose", "tokenizers")},
            "preparation": {
                name: value for name, value in _settings(preparation).items() if value not in (float("inf"), None, "")
            },
            **({"sources": names} if names else {}),
            "documents": selection.documents,
            "accounts": [account.model_dump() for account in accounts],
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
    shutil.rmtree(work / "streams", ignore_errors=True)
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
    opened = opened_streams(parts, {})
    with workers(_processes(processes, parts), progress) as run, TemporaryDirectory() as folder:
        (Path(folder) / "index").mkdir()
        kept = kept_streams(parts, opened, Path(folder), run)
        selection, jobs, _ = _select(preparation, kept, Path(folder), None, run)
        if not len(selection.train.documents):
            raise UserError(f"{', '.join(source.location for source in sources)}: no text was found to train on")
        return train_tokenizer(_first_texts(run, jobs, selection), vocab_size, special_tokens)


def _hash_of_inputs(preparation: Preparation, parts: list[Part], opened: dict[str, Stream]) -> str:
    """Of all that decides what a store holds; files go in by path, size and time, not by reading them."""
    files = sorted({file for part in parts for file in part.files})
    stats = [(file, opened[file].identity) if file in opened else (file, *stat_of(file)) for file in files]
    path = Path(preparation.tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = file_sha256(file) if preparation.tokenizer and file.is_file() else ""
    inputs = [FORMAT, version("tokenizers"), _settings(preparation), tokenizer, stats]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _settings(preparation: Preparation) -> dict[str, Any]:
    """A preparation in plain values. A name that is not given is left out, so that older stores are recognised."""
    settings = asdict(preparation)
    for source in settings["sources"]:
        if not source["name"]:
            del source["name"]
    return settings


def _scan(work: Path, end_of_text: int | None, job: tuple[int, Part]) -> None:
    """Step 2: writes the index of a part, and what was dropped of it."""
    number, part = job
    path = work / "index" / f"{number:06d}.npy"
    if path.exists():
        return
    drops: Drops = {}

    def entries() -> Iterator[tuple[int, int, int, int]]:
        for document in read_part(part, end_of_text):
            if isinstance(document, Dropped):
                note(drops, document)
                continue
            entry = index_entry(document)
            if isinstance(document, str) and not entry[-1]:
                note(drops, Dropped("white_space", len(document.encode())))
            yield entry

    try:
        index = np.fromiter(entries(), dtype=INDEX)
    except UntrustedError as error:
        # What was read before may be wrong, too.
        index, drops = np.empty(0, INDEX), {}
        note(drops, Dropped("files", sum(stat_of(file)[0] for file in part.files), where=str(error)))
    write_json(path.with_suffix(".json"), {reason: count.model_dump() for reason, count in drops.items()})
    with whole_file(path) as aside, aside.open("wb") as file:
        np.save(file, index, allow_pickle=False)


def _select(
    preparation: Preparation, parts: list[Part], work: Path, end_of_text: int | None, run: Run, first: int = 0
) -> tuple[Selection, list[Job], list[Account]]:
    """Step 2: the selection, of each part that has some of it the places in the store, and where all bytes went.

    `first` is the number of the first part.
    """
    numbers = range(first, first + len(parts))
    run(partial(_scan, work, end_of_text), list(zip(numbers, parts, strict=True)), "reading text")
    indexes = [np.load(work / "index" / f"{number:06d}.npy") for number in numbers]
    bounds = [0, *accumulate(map(len, indexes))]
    index = np.concatenate(indexes)
    of_part = [preparation.sources.index(part.source) for part in parts]
    sources = np.repeat(of_part, np.diff(bounds))
    selection = select(
        index,
        sources,
        preparation.weights,
        preparation.max_bytes,
        preparation.val_fraction,
        preparation.val_bytes,
        preparation.seed,
    )
    size = int(index["size"].sum())
    if selection.documents == 1 and first == 0 and preparation.val_fraction and size >= 2 * _SMALLEST_PIECE:
        # Of a single document some can be held out when it is cut.
        piece = max(_SMALLEST_PIECE, min(PIECE, size // 20))
        cut = [replace(part, piece=piece // 4 if part.is_tokens else piece) for part in parts]
        return _select(preparation, cut, work, end_of_text, run, len(parts))
    dropped = [
        joined(_dropped(work, number) for number, source in zip(numbers, of_part, strict=True) if source == wanted)
        for wanted in range(len(preparation.sources))
    ]
    sizes = [part.bytes_read(of["size"].astype(np.int64)) for part, of in zip(parts, indexes, strict=True)]
    names = [source.location for source in preparation.sources]
    accounts = account_for(names, selection, sources, np.concatenate(sizes), dropped)
    for account, source in zip(accounts, preparation.sources, strict=True):
        expect_little_damage(account, preparation.max_damaged, source.encoding)
    order = np.concatenate([selection.val.documents, selection.train.documents])
    places = np.full(bounds[-1], -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    by_part = [places[start:stop] for start, stop in pairwise(bounds)]
    return selection, [job for job in zip(numbers, parts, by_part, strict=True) if (job[2] >= 0).any()], accounts


def _dropped(work: Path, number: int) -> Drops:
    found = read_json(work / "index" / f"{number:06d}.json")
    return TypeAdapter(Drops).validate_python(found)


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
