"""From what a user names to documents: sources are cut into parts that any process can read by itself.

    Source -> files -> Part, Part, ... -> documents of each, and what is dropped between them

A document of text is a `str`; one of tokens, from stores that others made, is an int64 array without the token that
ends documents; `Dropped` tells of something that is no document. Reading a part again gives the same documents, so
they can be counted first and fetched later. No part needs much more memory than `RANGE` bytes: large files are cut
at line ends, Parquet at its row groups, and what cannot be entered in the middle is read as a stream.
"""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from superpose.data.account import Dropped
from superpose.data.compressed import Codec
from superpose.data.encodings import check_encoding
from superpose.data.formats import Kind, format_of, sibling
from superpose.data.record_files import (
    READING_ERRORS,
    is_systems,
    open_parquet,
    read_arrow,
    read_json_lines,
    read_parquet,
)
from superpose.data.text_files import PIECE, can_be_entered, pieces, read_text
from superpose.data.text_streams import Streams, is_stream, open_stream, texts_of
from superpose.data.token_files import (
    TOKEN_PIECE,
    Layout,
    TokenType,
    has_documents,
    layout_of,
    megatron_index,
    read_megatron,
    read_tokens,
)
from superpose.errors import UserError, first_line
from superpose.files import parse_json
from superpose.places import has_ranges, is_file, is_remote, join, list_files, open_binary, stat_of, walk

PYTHON_SOURCES = "python"
"""Names the default corpus: the Python sources installed on this machine."""
RANGE = 8 * 2**20
"""Bytes (or half as many tokens) of a file that make a part: enough to be worth a turn, and few enough that all
processes have work until the end. It decides where large texts are cut, so it does not depend on the machine."""

# Small files are read together, up to so many.
_FILES = 1000
# Text in fewer files than this is cut into pieces, so that some can be held out and their order shuffled.
_FEW_FILES = 100

Document = str | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    location: str
    """`PYTHON_SOURCES`, a file, a folder, or a pattern such as `dump/*.jsonl.gz`, here or in a remote place; or a
    stream, see `superpose.data.text_streams`."""
    field: str = "text"
    """Of JSON lines, Parquet and datasets: where a record keeps its text."""
    encoding: str = "utf-8"
    """Of text and JSON lines that do not start with a byte order mark."""
    dtype: TokenType = "auto"
    """Of .bin files without a header; auto looks at their numbers."""
    name: str = ""
    """What a stage's mixture calls it, see `superpose.data.mixture`; several of one name are one source."""


@dataclass(frozen=True)
class Part:
    """A piece of a source."""

    kind: Kind
    files: tuple[str, ...]
    source: Source
    codec: Codec = ""
    """How its files are compressed."""
    start: int = 0
    """First byte, row group, token or document, by kind; moved to where a line or document begins. A stream's shard."""
    stop: int = 0
    """The next part's `start`; 0 for all of the files. Of a stream, how many shards there are."""
    piece: int = 0
    """Characters or tokens of the pieces that documents are cut into, about; 0 for whole ones."""
    layout: Layout | None = None
    """Of tokens."""

    @property
    def is_tokens(self) -> bool:
        return self.layout is not None

    def bytes_read(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Bytes that documents take in the files, by their sizes in the index, where a token has four."""
        return sizes if self.layout is None else sizes // 4 * self.layout.width


def find_parts(
    source: Source, vocab_size: int = 2**16, end_of_text: int = 0, streams: Streams = MappingProxyType({})
) -> list[Part]:
    """The parts of a source, in an order that depends on nothing but its files.

    Args:
        source: to read.
        vocab_size: of the tokenizer, by which tokens are told from other numbers.
        end_of_text: the token that ends documents in stores of tokens.
        streams: those the caller gives, by name.

    Raises:
        UserError: it cannot be read, or what it is cannot be told.
    """
    check_encoding(source.encoding)
    if is_stream(source.location):
        shards = open_stream(source.location, streams).shards
        return [Part("stream", (source.location,), source, start=shard, stop=shards) for shard in range(shards)]
    files = files_of(source.location)
    # Megatron's index and tokens are one source.
    names = set(files)
    files = [file for file in files if not _is_index_of(file, names)]
    wholes = [_whole(source, file, len(files) == 1) for file in files]
    few = sum(part.kind == "text" for part in wholes) < _FEW_FILES
    parts: list[Part] = []
    together: list[str] = []
    held = 0
    for file, whole in zip(files, wholes, strict=True):
        with _explained(file):
            size, _ = stat_of(file)
            if whole.kind != "text" or whole.codec or size > RANGE:
                # A text that is too large for memory is no document, however many there are beside it.
                in_pieces = whole.kind == "text" and (few or (size > RANGE and not whole.codec))
                parts += _ranges(replace(whole, piece=PIECE if in_pieces else 0), size, vocab_size, end_of_text)
                continue
        together.append(file)
        held += size
        if held >= RANGE or len(together) == _FILES:
            parts.append(Part("text", tuple(together), source, piece=PIECE if few else 0))
            together, held = [], 0
    if together:
        parts.append(Part("text", tuple(together), source, piece=PIECE if few else 0))
    if not parts:
        raise UserError(f"{source.location} holds no files to read")
    return parts


def read_part(part: Part, end_of_text: int | None = None) -> Iterator[Document | Dropped]:
    """The documents of a part; `end_of_text` ends those in a store of tokens.

    Raises:
        UserError: a file is not there, or not what its name says.
    """
    for file in part.files:
        begun = False
        try:
            with _explained(file):
                for document in _read(part, file, end_of_text):
                    begun = True
                    yield document
        except DamagedError as error:
            # Nothing was read of it; what else is damaged its reader tells.
            if begun:
                raise
            yield Dropped("files", stat_of(file)[0], where=str(error))


def _read(part: Part, file: str, end_of_text: int | None) -> Iterator[Document | Dropped]:
    source, start, stop = part.source, part.start, part.stop
    if part.kind == "text":
        strict = source.location == PYTHON_SOURCES
        yield from read_text(file, source.encoding, part.codec, part.piece, start, stop, RANGE, strict)
    elif part.kind == "json":
        yield from _cut_to(part.piece, read_json_lines(file, source.field, source.encoding, part.codec, start, stop))
    elif part.kind == "parquet":
        yield from _cut_to(part.piece, read_parquet(file, source.field, start, stop))
    elif part.kind == "arrow":
        yield from _cut_to(part.piece, read_arrow(file, source.field))
    elif part.kind == "stream":
        for text in texts_of(open_stream(file, {}).shard(start), source.field):
            yield text if text else Dropped("no_text", 0)
    else:
        assert end_of_text is not None
        assert part.layout is not None
        if part.kind == "megatron":
            yield from read_megatron(file, start, stop, end_of_text, part.piece)
        else:
            yield from read_tokens(file, part.layout, start, stop, end_of_text, part.piece)


def _cut_to(size: int, documents: Iterator[str | Dropped]) -> Iterator[str | Dropped]:
    for document in documents:
        yield from pieces(document, size) if isinstance(document, str) else [document]


def _is_index_of(file: str, names: set[str]) -> bool:
    return file.lower().endswith(".idx") and sibling(file, ".bin") in names


def _whole(source: Source, file: str, alone: bool) -> Part:
    """All of a file."""
    if source.location == PYTHON_SOURCES:
        return Part("text", (file,), source)
    with _explained(file):
        kind, codec = format_of(file, source.field, alone)
    return Part(kind, (file,), source, codec)


def _ranges(whole: Part, size: int, vocab_size: int, end_of_text: int) -> list[Part]:
    """A file as parts of about `RANGE` bytes each, where it can be entered in the middle."""
    (file,), source = whole.files, whole.source
    # What can only be sent whole is one part, or it would be sent for each.
    most = RANGE if has_ranges(file) else sys.maxsize
    if whole.kind == "parquet":
        try:
            with open_parquet(file) as table:
                groups = table.metadata
                sizes = [groups.row_group(number).total_byte_size for number in range(groups.num_row_groups)]
        except READING_ERRORS as error:
            if is_systems(error):
                raise
            return [whole]  # which tells when it is read
        return _grouped(whole, sizes, most)
    if whole.kind == "tokens":
        layout = layout_of(file, source.dtype, vocab_size)
        piece = 0 if has_documents(file, layout, end_of_text) else TOKEN_PIECE
        return _cut(replace(whole, layout=layout, piece=piece), layout.count, most // 2)
    if whole.kind == "megatron":
        data, layout, bounds = megatron_index(file)
        return _grouped(replace(whole, files=(data,), layout=layout), np.diff(bounds), most // 2)
    if whole.kind == "arrow" or whole.codec or not can_be_entered(file, source.encoding, whole.kind == "json"):
        return [whole]
    return _cut(whole, size, most)


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


class DamagedError(UserError):
    """What is in a file cannot be read, though the file can."""


@contextmanager
def _explained(file: str) -> Iterator[None]:
    """Whatever is raised for a file that is damaged or not there, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except READING_ERRORS as error:
        if is_systems(error):
            reason = error.strerror or first_line(error)
            raise UserError(f"{file} cannot be read ({reason}); make it readable or leave it out") from None
        raise DamagedError(f"{file} cannot be read ({first_line(error)}); make it again or leave it out") from None


def files_of(location: str) -> list[str]:
    """The files of a source, in an order that depends on nothing but their names; a UserError if there are none."""
    if location == PYTHON_SOURCES:
        return list(_python_files())
    if not location:
        raise UserError("a source has no name; give a file, a folder or a pattern")
    if is_file(location):
        return [location]
    if is_file(splits_file := join(location, "dataset_dict.json")):
        splits = _json(splits_file).get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise UserError(f"{splits_file} names no splits; save the dataset again")
        if "train" not in splits and len(splits) > 1:
            raise UserError(f"{location} has the splits {', '.join(splits)}; give the folder of one of them")
        return files_of(join(location, _plain("train" if "train" in splits else splits[0], location)))
    if is_file(state_file := join(location, "state.json")):
        state = _json(state_file)
        if state.get("_indices_name") or state.get("_indices_data_files"):
            raise UserError(
                f"{location} was saved with an index over its rows; call dataset.flatten_indices() and save again"
            )
        try:
            return [join(location, _plain(entry["filename"], location)) for entry in state["_data_files"]]
        except (KeyError, TypeError):
            raise UserError(f"{state_file} does not list the dataset's files; save the dataset again") from None
    matching = list_files(location)
    if not matching and (is_remote(location) or not Path(location).is_dir()):
        raise UserError(
            f"source {location} is not there; give a file, a folder, a pattern, or '{PYTHON_SOURCES}' "
            f"for the Python sources of this machine"
        )
    return matching


def _json(location: str) -> dict[str, Any]:
    with _explained(location), open_binary(location) as stream:
        return parse_json(stream.read(), location)


def _plain(name: str, folder: str) -> str:
    if Path(name).name != name:
        raise UserError(f"{folder} names {name!r}, which is outside it; save the dataset again")
    return name


def _python_files() -> Iterator[str]:
    """Python sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    inside = len(library.parts)
    yield from (path for path in walk(str(library), ".py") if "site-packages" not in Path(path).parts[inside:])
    for packages in sorted({paths["purelib"], paths["platlib"]}):
        yield from walk(packages, ".py")
