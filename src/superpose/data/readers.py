"""From what a user names to documents: sources are cut into parts that any process can read by itself.

    Source -> files -> Part, Part, ... -> documents of each

A document of text is a `str`; one of tokens, from stores that others made, is an int64 array without the token that
ends documents; `None` stands for something that is not text. Reading a part again gives the same documents, so
they can be counted first and fetched later. No part needs much more memory than `RANGE` bytes: large files are cut
at line ends, Parquet at its row groups, and compressed files are read as a stream.
"""

import gzip
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from superpose.data.text_files import open_parquet, read_arrow, read_json_lines, read_parquet, read_text, wide_units
from superpose.data.token_files import find_documents, megatron_documents, open_megatron, open_tokens
from superpose.errors import UserError, first_line
from superpose.files import read_json
from superpose.places import list_files, stat_of, walk

PYTHON_SOURCES = "python"
"""Names the default corpus: the Python sources installed on this machine."""
RANGE = 8 * 2**20
"""Bytes (or half as many tokens) of a file that make a part: enough to be worth a turn, and few enough that all
processes have work until the end. It decides where large texts are cut, so it does not depend on the machine."""

# Small files are read together, up to so many.
_FILES = 1000
# Text in fewer files than this is cut into pieces, so that some can be held out and their order shuffled.
_FEW_FILES = 100

_JSON = (".jsonl", ".ndjson", ".json")

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
    """The parts of a source, in an order that depends on nothing but its files; a UserError if it cannot be read."""
    try:
        # Looking it up would accept base64 and its like, which decode to no text.
        b" ".decode(source.encoding, "replace")
    except (LookupError, ValueError):
        raise UserError(f"there is no encoding {source.encoding!r}; name one of Python's, such as utf-8") from None
    files = [Path(file) for file in files_of(source.location)]
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
            file_size, _ = stat_of(str(file))
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
    """The documents of a part; `end_of_text` ends those in a store of tokens. A UserError if a file is damaged."""
    source, start, stop = part.source, part.start, part.stop
    # An index and its tokens are one.
    for file in map(Path, part.files[:1] if part.is_tokens else part.files):
        with _explained(str(file)):
            if part.kind == "text":
                yield from read_text(file, source.encoding, part.in_pieces, start, stop, RANGE)
            elif part.kind == "json":
                yield from read_json_lines(file, source.field, start, stop)
            elif part.kind == "parquet":
                yield from read_parquet(file, source.field, start, stop)
            elif part.kind == "arrow":
                yield from read_arrow(file, source.field)
            else:
                assert end_of_text is not None
                if part.kind == "megatron":
                    yield from megatron_documents(*open_megatron(file), start, stop, end_of_text)
                else:
                    yield from find_documents(open_tokens(file, source.dtype), start, stop, end_of_text)


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
            groups = open_parquet(file).metadata
            sizes = [groups.row_group(number).total_byte_size for number in range(groups.num_row_groups)]
            return _grouped(whole, sizes, RANGE)
        if whole.kind == "tokens":
            return _cut(whole, len(open_tokens(file, whole.source.dtype)), RANGE // 2)
        if whole.kind == "megatron":
            return _grouped(whole, np.diff(open_megatron(file)[1]), RANGE // 2)
        if whole.kind == "arrow" or file.suffix in (".gz", ".zst") or wide_units(file, whole.source.encoding):
            return [whole]
        return _cut(whole, file.stat().st_size, RANGE)


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
        reason = error.strerror or first_line(error)
        raise UserError(f"{name} cannot be read ({reason}); make it readable or leave it out") from None
    except (ValueError, NotImplementedError) as error:
        # Arrow's own errors are these.
        raise UserError(f"{name} cannot be read ({first_line(error)}); make it again or leave it out") from None


def files_of(location: str) -> list[str]:
    """The files of a source, in an order that depends on nothing but their names; a UserError if there are none."""
    if location == PYTHON_SOURCES:
        return list(_python_files())
    if not location:
        raise UserError("a source has no name; give a file, a folder or a pattern")
    path = Path(location)
    if path.is_file():
        return [location]
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise UserError(f"{path / 'dataset_dict.json'} names no splits; save the dataset again")
        if "train" not in splits and len(splits) > 1:
            raise UserError(f"{path} has the splits {', '.join(splits)}; give the folder of one of them")
        return files_of(str(path / _plain("train" if "train" in splits else splits[0], path)))
    if (path / "state.json").is_file():
        state = read_json(path / "state.json")
        if state.get("_indices_name") or state.get("_indices_data_files"):
            raise UserError(
                f"{path} was saved with an index over its rows; call dataset.flatten_indices() and save again"
            )
        try:
            return [str(path / _plain(entry["filename"], path)) for entry in state["_data_files"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{path / 'state.json'} does not list the dataset's files; save the dataset again"
            ) from None
    matching = list_files(location)
    if not matching and not path.is_dir():
        raise UserError(
            f"source {location} is not there; give a file, a folder, a pattern, or '{PYTHON_SOURCES}' "
            f"for the Python sources of this machine"
        )
    return matching


def _plain(name: str, folder: Path) -> str:
    if Path(name).name != name:
        raise UserError(f"{folder} names {name!r}, which is outside it; save the dataset again")
    return name


def _python_files() -> Iterator[str]:
    """Python sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    library = paths["stdlib"]
    yield from (path for path in walk(library, ".py") if "site-packages" not in path[len(library) :].split(os.sep))
    for packages in sorted({paths["purelib"], paths["platlib"]}):
        yield from walk(packages, ".py")
