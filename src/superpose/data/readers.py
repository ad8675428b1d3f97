"""From what a user names to documents: sources are cut into parts that any process can read by itself.

    Source -> files -> Part, Part, ... -> documents of each

A document of text is a `str`; one of tokens, from stores that others made, is an int64 array without the token that
ends documents; `None` stands for something that is not text. Reading a part again gives the same documents, so
they can be counted first and fetched later. No part needs much more memory than `RANGE` bytes: large files are cut
at line ends, Parquet at its row groups, and compressed files are read as a stream.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from superpose.data.token_files import find_documents, megatron_documents, open_megatron, open_tokens
from superpose.errors import UserError
from superpose.files import read_json

PYTHON_SOURCES = "python"
"""Names the default corpus: the Python sources installed on this machine."""

RANGE = 8 * 2**20
"""Bytes (or half as many tokens) of a file that make a part: enough to be worth a turn, and few enough that all
processes have work until the end. It decides where large texts are cut, so it does not depend on the machine."""

# Small files are read together, up to so many.
_FILES = 1000
# Text in fewer files than this is cut into pieces, so that some can be held out and their order shuffled.
_FEW_FILES = 100
_PIECE_BYTES = 16 * 1024
# Text without a line end for so long is cut between two characters.
_LONGEST_LINE = 2**20

# Records that are read from columns at a time.
_RECORDS = 256

_JSON = (".jsonl", ".ndjson", ".json")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Document = str | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    location: str
    """`PYTHON_SOURCES`, a file, a folder, or a pattern such as `dump/*.jsonl.gz`."""
    field: str = "text"
    """Of JSON lines, Parquet and datasets: where a record keeps its text."""
    encoding: str = "utf-8"
    """Of text files that do not start with a byte order mark."""
    dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Of .bin files without a header; auto takes them for uint16."""


@dataclass(frozen=True)
class Part:
    """A piece of a source."""

    kind: Literal["text", "json", "parquet", "arrow", "tokens", "megatron"]
    files: tuple[str, ...]
    source: Source
    start: int = 0
    """First byte, row group, token or document, by kind; moved to where a line or document begins."""
    stop: int = 0
    """The next part's `start`; 0 for all of the files."""
    in_pieces: bool = False
    """Whether text is cut into pieces."""

    @property
    def is_tokens(self) -> bool:
        return self.kind in ("tokens", "megatron")


def find_parts(source: Source) -> list[Part]:
    """The parts of a source, in an order that depends on nothing but its files.

    Raises:
        UserError: there is nothing, or something that cannot be read.
    """
    try:
        # Looking it up would accept base64 and its like, which decode to no text.
        b" ".decode(source.encoding, "replace")
    except (LookupError, ValueError):
        raise UserError(f"there is no encoding {source.encoding!r}; name one of Python's, such as utf-8") from None
    files = list(_python_files()) if source.location == PYTHON_SOURCES else _files(source.location)
    # Megatron's index and tokens are one source.
    tokens = {file for file in files if file.suffix == ".bin"}
    files = [file for file in files if file.suffix != ".idx" or file.with_suffix(".bin") not in tokens]
    kinds = [_kind(file) for file in files]
    in_pieces = kinds.count("text") < _FEW_FILES
    parts: list[Part] = []
    together: list[str] = []
    size = 0
    for file, kind in zip(files, kinds, strict=True):
        with _explained(str(file)):
            file_size = file.stat().st_size
        large = file_size > RANGE
        if kind != "text" or large:
            names = (file.with_suffix(".bin"), file.with_suffix(".idx")) if kind == "megatron" else (file,)
            # A text that is too large for memory is no document, however many there are beside it.
            parts += _ranges(Part(kind, tuple(map(str, names)), source, in_pieces=in_pieces or large), file)
            continue
        together.append(str(file))
        size += file_size
        if size >= RANGE or len(together) == _FILES:
            parts.append(Part("text", tuple(together), source, in_pieces=in_pieces))
            together, size = [], 0
    if together:
        parts.append(Part("text", tuple(together), source, in_pieces=in_pieces))
    if not parts:
        raise UserError(f"{source.location} holds no files to read")
    return parts


def read_part(part: Part, end_of_text: int | None = None) -> Iterator[Document | None]:
    """The documents of a part.

    Args:
        end_of_text: ends documents in a store of tokens; needed for those.

    Raises:
        UserError: a file cannot be read or is not what it should be.
    """
    if part.is_tokens:
        assert end_of_text is not None
        file = Path(part.files[0])
        with _explained(part.files[0]):
            if part.kind == "megatron":
                yield from megatron_documents(open_megatron(file), part.start, part.stop, end_of_text)
            else:
                yield from find_documents(open_tokens(file, part.source.dtype), part.start, part.stop, end_of_text)
        return
    readers = {"text": _read_text, "json": _read_json, "parquet": _read_parquet, "arrow": _read_arrow}
    for name in part.files:
        with _explained(name):
            yield from readers[part.kind](Path(name), part)


def _files(location: str) -> list[Path]:
    if not location:
        raise UserError("a source has no name; give a file, a folder or a pattern")
    path = Path(location)
    if path.is_file():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise UserError(f"{path / 'dataset_dict.json'} names no splits; save the dataset again")
        if "train" not in splits and len(splits) > 1:
            raise UserError(f"{path} has the splits {', '.join(splits)}; give the folder of one of them")
        return _files(str(path / _plain("train" if "train" in splits else splits[0], path)))
    if (path / "state.json").is_file():
        state = read_json(path / "state.json")
        if state.get("_indices_name") or state.get("_indices_data_files"):
            raise UserError(
                f"{path} was saved with an index over its rows; call dataset.flatten_indices() and save again"
            )
        try:
            return [path / _plain(entry["filename"], path) for entry in state["_data_files"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{path / 'state.json'} does not list the dataset's files; save the dataset again"
            ) from None
    if path.is_dir():
        return list(_walk(path, onerror=_refuse))
    matching = sorted(Path(name) for name in glob.glob(location, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not matching:
        raise UserError(
            f"source {location} is not there; give a file, a folder, a pattern, or '{PYTHON_SOURCES}' "
            f"for the Python sources of this machine"
        )
    return matching


def _plain(name: str, folder: Path) -> str:
    if Path(name).name != name:
        raise UserError(f"{folder} names {name!r}, which is outside it; save the dataset again")
    return name


def _python_files() -> Iterator[Path]:
    """Python sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    yield from (path for path in _walk(library, ".py") if "site-packages" not in path.parts[len(library.parts) :])
    for packages in sorted({paths["purelib"], paths["platlib"]}):
        yield from _walk(Path(packages), ".py")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable or leave it out")


def _walk(top: Path, suffix: str = "", onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    for folder, folders, names in os.walk(top, onerror=onerror):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffix) and not name.startswith(".") and path.is_file():
                yield path


def _kind(file: Path) -> Any:
    plain = file.with_suffix("") if file.suffix in (".gz", ".zst") else file
    if plain.suffix in _JSON:
        return "json"
    if file.suffix in (".bin", ".idx"):
        return "megatron" if file.suffix == ".idx" or file.with_suffix(".idx").is_file() else "tokens"
    return {".parquet": "parquet", ".arrow": "arrow"}.get(file.suffix, "text")


def _ranges(whole: Part, file: Path) -> list[Part]:
    """A file as parts of about `RANGE` bytes each, where it can be entered in the middle."""
    with _explained(str(file)):
        if whole.kind == "parquet":
            groups = _parquet(file).metadata
            sizes = [groups.row_group(number).total_byte_size for number in range(groups.num_row_groups)]
        elif whole.kind == "tokens":
            return _cut(whole, len(open_tokens(file, whole.source.dtype)), RANGE // 2)
        elif whole.kind == "megatron":
            return _grouped(whole, np.diff(open_megatron(file).bounds), RANGE // 2)
        elif whole.kind == "arrow" or file.suffix in (".gz", ".zst") or _wide_units(file, whole.source.encoding):
            return [whole]
        else:
            return _cut(whole, file.stat().st_size, RANGE)
        return _grouped(whole, sizes, RANGE)


def _cut(whole: Part, size: int, step: int) -> list[Part]:
    return [replace(whole, start=start, stop=min(start + step, size)) for start in range(0, max(1, size), step)]


def _grouped(whole: Part, sizes: Sequence[int] | npt.NDArray[np.int64], limit: int) -> list[Part]:
    """Consecutive items together until they reach a size."""
    parts, start, held = [], 0, 0
    for number, size in enumerate(sizes):
        held += size
        if held >= limit or number == len(sizes) - 1:
            parts.append(replace(whole, start=start, stop=number + 1))
            start, held = number + 1, 0
    return parts


def _wide_units(file: Path, encoding: str) -> bool:
    """Whether a text is in units of two or four bytes, in which a line end cannot be searched for as a byte."""
    with _stream(file) as stream:
        start = stream.read(4)
    return codecs.lookup(_encoding(start, encoding)).name.startswith(("utf-16", "utf-32"))


def _encoding(start: bytes, encoding: str) -> str:
    """The encoding of a text that starts so: its mark decides, unless another was asked for."""
    if codecs.lookup(encoding).name == "utf-8":
        for mark, marked in _MARKS:
            if start.startswith(mark):
                return marked
    return encoding


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever is raised for a file that is damaged or not there, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is damaged or cut short ({error}); fetch or compress it again") from None
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise UserError(f"{name} cannot be read ({reason}); make it readable or leave it out") from None
    except (ValueError, NotImplementedError) as error:
        # Arrow's own errors are these.
        raise UserError(f"{name} cannot be read ({_first_line(error)}); make it again or leave it out") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _stream(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed."""
    # Even nothing takes some bytes to compress, but readers take no bytes for nothing.
    if file.suffix in (".gz", ".zst") and file.stat().st_size == 0:
        raise EOFError("it is empty")
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as stream:
            yield stream  # type: ignore[misc]
    elif file.suffix == ".zst":
        import pyarrow as pa

        with file.open("rb") as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)
    else:
        with file.open("rb") as stream:
            yield stream


def _read_text(file: Path, part: Part) -> Iterator[str | None]:
    encoding = codecs.lookup(part.source.encoding).name
    for number, block in enumerate(_blocks(file, part)):
        # Only where a file starts is a byte order mark one.
        first = number == 0 and part.start == 0
        try:
            text = block.decode(_encoding(block[:4], encoding) if first else encoding.removesuffix("-sig"))
        except UnicodeDecodeError:
            yield None
            return
        if "\0" in text:
            yield None
            return
        yield from _pieces(text) if part.in_pieces else [text]


def _blocks(file: Path, part: Part) -> Iterator[bytes]:
    """The bytes a part has of a text: all at once, or, where documents are pieces, as many as fit in memory."""
    with _stream(file) as stream:
        if not part.in_pieces or _wide_units(file, part.source.encoding):
            yield stream.read()
            return
        if part.stop:
            start, stop = (_after_blank_line(stream, place) for place in (part.start, part.stop))
            stream.seek(start)
            yield stream.read(stop - start)
            return
        held = b""
        while chunk := stream.read(RANGE):
            # Only now is it known that more follows: the end of a text is no place to cut it.
            if end := _last_cut(held):
                yield held[:end]
            held = held[end:] + chunk
        if held:
            yield held


def _last_cut(block: bytes) -> int:
    """Where the last paragraph starts; the last line, if there is no blank line; 0 if more is to be read first."""
    for separator in (b"\n\n", b"\n"):
        found = block.rfind(separator)
        if found >= 0:
            return found + len(separator)
    return _last_character(block) if len(block) >= _LONGEST_LINE else 0


def _last_character(block: bytes) -> int:
    """Where the last character of UTF-8 starts; in other encodings, near the end."""
    end = len(block) - 1
    return next((place for place in range(end, end - 4, -1) if block[place] & 0xC0 != 0x80), end)


def _after_blank_line(stream: IO[bytes], place: int) -> int:
    """Where the first paragraph at or after a place starts; the first line, if no blank line is near."""
    if place == 0:
        return 0
    stream.seek(place - 1)
    near = stream.read(_LONGEST_LINE)
    for separator in (b"\n\n", b"\n"):
        found = near.find(separator)
        if found >= 0:
            return place - 1 + found + len(separator)
    return place - 1 + (_last_character(near) if len(near) == _LONGEST_LINE else len(near))


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at blank lines (at line ends where there are none) into pieces of about `_PIECE_BYTES`."""
    blank = r"(?<=\n\n)(?=[^\n])|(?<=\n\r\n)(?=[^\r\n])"
    separator = blank if re.search(r"\n\s*\n", text) else r"(?<=\n)(?=[^\n])"
    piece: list[str] = []
    size = 0
    for paragraph in re.split(separator, text):
        piece.append(paragraph)
        size += len(paragraph)
        if size >= _PIECE_BYTES:
            yield "".join(piece)
            piece, size = [], 0
    if size:
        yield "".join(piece)


def _read_json(file: Path, part: Part) -> Iterator[str]:
    with _stream(file) as stream:
        place = 0
        if part.start:
            stream.seek(part.start - 1)
            place = part.start - 1 + len(stream.readline())
        for number, line in enumerate(stream, 1):
            if part.stop and place >= part.stop:
                return
            if line.strip():
                where = f"{file}, {f'byte {place}' if part.start else f'line {number}'}"
                if text := _text_of(line, where, part.source.field):
                    yield text
            place += len(line)


def _text_of(line: bytes, where: str, field: str) -> str:
    expected = f"expected JSON lines, such as {{{json.dumps(field)}: ...}} in each; convert the file to that"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); {expected}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is no record; {expected}")
    if not isinstance(record.get(field), str):
        has = ", ".join(map(repr, list(record)[:10])) or "none"
        raise UserError(f"{where} has no text in {field!r}; its fields are {has}: name one with --field")
    return _sound(record[field])


def _sound(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


def _read_parquet(file: Path, part: Part) -> Iterator[str]:
    table = _parquet(file)
    _expect_column(file, table.schema_arrow, part.source.field)
    groups = list(range(part.start, part.stop))
    for batch in table.iter_batches(_RECORDS, row_groups=groups, columns=[part.source.field], use_threads=False):
        yield from _texts(file, batch.column(0).to_pylist(), part.source.field)


def _read_arrow(file: Path, part: Part) -> Iterator[str]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        _expect_column(file, reader.schema, part.source.field)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            column = batch.column(part.source.field)
            # Arrow trusts the offsets in a file, and a wrong one ends the process.
            column.validate(full=True)
            for start in range(0, len(column), _RECORDS):
                yield from _texts(file, column.slice(start, _RECORDS).to_pylist(), part.source.field)


def _expect_column(file: Path, schema: Any, field: str) -> None:
    if field not in schema.names:
        raise UserError(
            f"{file} has no column {field!r}; its columns are {', '.join(schema.names)}: name one with --field"
        )
    if schema.names.count(field) > 1:
        raise UserError(f"{file} has several columns {field!r}; give them different names")


def _texts(file: Path, values: Iterable[Any], field: str) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield _sound(value)
        elif value is not None:
            raise UserError(
                f"{file}: column {field!r} holds {type(value).__name__}, expected text; name another with --field"
            )
