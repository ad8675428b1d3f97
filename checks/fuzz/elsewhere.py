"""What lies elsewhere: streams that break off, and remote places that fail."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from checks.fuzz.damage import altered, damage_file, damaged, odd, text
from checks.fuzz.judging import FindingError
from checks.fuzz.samples import Samples
from superpose.errors import UserError

_FAILURES = (
    *(ConnectionResetError("reset by peer"), TimeoutError(), PermissionError("Forbidden"), OSError(5, "Input/output")),
    *(RuntimeError("\x1b[31mbad\ngateway" * 300), ValueError("invalid literal"), KeyError("ETag"), EOFError()),
)


def feed_stream(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Streams of odd records that break off, change, or find what was kept of them altered; kept to their end."""
    from superpose.data.text_streams import keep, open_stream, texts_of

    records = [{"text": f"Document {number}", "id": number} for number in range(rng.choice((0, 1, 7, 40)))]
    if records and rng.random() < 0.4:
        records[rng.randrange(len(records))] = altered(rng, dict(records[0])) if rng.random() < 0.8 else odd(rng)
    if records and rng.random() < 0.2:
        records[rng.randrange(len(records))] = {"text": text(rng) * rng.choice((1, 1, 1000))}
    stream: Any = _Breaking(records, rng)
    field = rng.choice(("text",) * 12 + ("id", "", text(rng)))
    location = rng.choice(("stream:mine",) * 12 + ("stream:", "datasets:", "datasets::", f"stream:{text(rng)}"))
    kept = folder / "streams" / "000000"
    kept.mkdir(parents=True)
    last: UserError | None = None
    for _ in range(4):
        try:
            opened = open_stream(location, {"mine": stream})
            keep((kept, opened, field, rng.choice((1, 20, 200))))
            if (kept / "whole.json").is_file() and rng.random() < 0.5:
                _ = list(texts_of(opened, field))
            last = None
            break
        except UserError as error:
            last = error
        files = sorted(kept.iterdir())
        if files and rng.random() < 0.3:
            damage_file(rng, rng.choice(files))
        if rng.random() < 0.1:
            stream.records = list(reversed(records))
    if last is not None:
        raise last


class _Breaking:
    """Records that are given until the connection is lost, now and then."""

    def __init__(self, records: list[Any], rng: random.Random) -> None:
        self.records, self._rng = records, rng

    def __iter__(self) -> Iterator[Any]:
        stop = self._rng.choice((None, None, self._rng.randint(0, 40)))
        for number, record in enumerate(self.records):
            if number == stop:
                raise self._rng.choice(_FAILURES)
            yield record


def feed_place(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Texts, stores and models in a remote place that has them damaged, or fails in the middle; read and written."""
    import fsspec

    from superpose.data.readers import Source, find_parts, read_part
    from superpose.data.store import TokenStore
    from superpose.places import is_file, list_files, stat_of
    from superpose.share import export, generate

    system = fsspec.filesystem("memory")
    system.store.clear()
    kind = rng.choices(("text", "store", "model", "export", "address"), (4, 4, 2, 1, 2))[0]
    origin = {"text": samples.texts, "store": samples.store}.get(kind, samples.exported)
    names = sorted(file.relative_to(origin).as_posix() for file in origin.rglob("*") if file.is_file())
    chosen = rng.sample(names, rng.choice((0, 1, 1, 2)))
    for name in names if kind != "export" else ():
        content = (origin / name).read_bytes()
        if name in chosen:
            if rng.random() < 0.15:
                continue
            content = _damaged(rng, name, content)
        system.pipe(f"/bucket/place/{name}", content)
    if rng.random() < 0.1:
        name = rng.choice(("../outside", "a\nb", ".hidden", "tokenizer", "x" * 300))
        system.pipe(f"/bucket/place/{name}", b"{}")
    place = "memory://bucket/place"
    with _failing(rng), mock.patch.dict(os.environ, {"SUPERPOSE_CACHE": str(folder / "cache")}):
        if kind == "text":
            file = rng.choice(chosen or names)
            location = rng.choice((f"{place}/{file}", f"{place}/{file}", place, f"{place}/*", f"{place}/**"))
            for part in find_parts(Source(location, dtype=rng.choice(("auto", "uint16", "uint32")))):
                for document in read_part(part, 0):
                    if isinstance(document, (bytes, list)):
                        raise FindingError(f"a document is a {type(document).__name__}")
        elif kind == "store":
            opened = TokenStore.open(place)
            if problems := opened.verify():
                raise FindingError(f"a copy was taken though {problems[0]}")
            _ = opened.train.tokens.read(0, np.minimum(100, len(opened.train.tokens)))
        elif kind == "model":
            generate(place, "alpha", 2, 0.8, 0.9)
        elif kind == "export":
            export(samples.run, place)
            if not system.exists("/bucket/place/config.json"):
                raise FindingError("an export that is said to be done is not whole")
        else:
            address = _address(rng)
            rng.choice((stat_of, is_file, list_files, TokenStore.open, generate))(address)
    system.store.clear()


def _damaged(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json") and rng.random() < 0.7:
        value = json.loads(content)
        for _ in range(rng.randint(1, 3)):
            value = altered(rng, value)
        return json.dumps(value).encode("utf-8", "surrogatepass") if not _deep(value) else b"[" * 5000
    return damaged(rng, content)


def _deep(value: Any) -> bool:
    try:
        json.dumps(value)
    except (RecursionError, ValueError, TypeError):
        return True
    return False


def _address(rng: random.Random) -> str:
    """Places nobody is at, none of them beyond this machine."""
    scheme = rng.choice(("memory", "memory", "MEMORY", "nosuch", "gs", "s3", "x+y", "dir", "zip", "reference", "local"))
    if scheme in ("gs", "s3"):
        return f"{scheme}://"
    rest = rng.choice(("", "/", "bucket/none", "*", "[", "bucket/**", "..", "../../etc", "a::memory://b", text(rng)))
    return f"{scheme}://{rest}"


def _failing(rng: random.Random) -> Any:
    """In half of all inputs the place fails at one of its answers, each time in another way."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    if rng.random() < 0.5:
        return mock.MagicMock()
    owner, name = rng.choice(
        (
            *((MemoryFileSystem, name) for name in ("info", "find", "glob", "_open", "put_file", "makedirs")),
            *((MemoryFile, name) for name in ("read", "seek")),
        )
    )
    works, left = getattr(owner, name), rng.choice((0, 0, 1, 2, 5, 20))
    error = rng.choice(_FAILURES)

    def fails(*arguments: Any, **settings: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return works(*arguments, **settings)

    return mock.patch.object(owner, name, fails)
