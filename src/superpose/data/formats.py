"""What a file is: by how it begins, and by its name where that says more."""

from pathlib import PurePath
from typing import Literal, NamedTuple

from superpose.data.compressed import GZIP, ZSTD, Codec, read_chunks
from superpose.data.record_files import is_record
from superpose.errors import UserError
from superpose.places import is_file, name_of, open_binary, stat_of

Kind = Literal["text", "json", "parquet", "arrow", "tokens", "megatron", "stream"]

_JSON = (".jsonl", ".ndjson", ".json")
_CODECS: dict[str, Codec] = {".gz": "gz", ".zst": "zst"}
_PARQUET, _ARROW = b"PAR1", b"ARROW1\0\0"
_FOREIGN = {
    b"LITPKDS": "a chunk of TinyLlama's packed datasets",
    b"\x93NUMPY": "a NumPy array with a header",
    b"MMIDIDX\0\0": "an index of Megatron's",
    b"TNTIDX\0\0": "an index of old fairseq or Megatron",
    b"GGUF": "a model in GGUF",
    b"PK\x03\x04": "a zip archive, such as torch.save or numpy.savez write",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}


class Format(NamedTuple):
    kind: Kind
    codec: Codec = ""


def format_of(file: str, field: str, alone: bool) -> Format:
    """What a file is.

    Args:
        file: to look at.
        field: of records, where their text is.
        alone: whether the file is all of a source, so that leaving it out is no way out.

    Raises:
        UserError: the name and the beginning contradict each other, or the file is known to be another program's.
        OSError: it cannot be read.
    """
    with open_binary(file) as stream:
        start = stream.read(2**12)
    name = name_of(file)
    outer = PurePath(name).suffix.lower()
    codec: Codec = "gz" if start.startswith(GZIP) else "zst" if _is_zstd(start) else ""
    named = _CODECS.get(outer, "")
    if named and start and codec != named:
        raise UserError(
            f"{file} is named {outer} but does not begin as such a file does; if it is not compressed, rename it, else "
            f"fetch it again or leave it out"
        )
    inner = PurePath(PurePath(name).stem).suffix.lower() if named else outer
    codec = codec or named
    if inner in _JSON:
        return Format("json", codec)
    if codec:
        return Format("json" if not inner and _has_records(file, codec, field) else "text", codec)
    if outer == ".parquet" or (start.startswith(_PARQUET) and _end_of(file, 4) == _PARQUET):
        return Format("parquet")
    if outer == ".arrow" or start.startswith(_ARROW):
        return Format("arrow")
    if outer in (".bin", ".idx"):
        return Format("megatron" if outer == ".idx" or sibling(file, ".idx") else "tokens")
    if alone and b"\0" in start and (foreign := foreign_format(start)):
        raise UserError(f"{file} is {foreign}, which is not read here; give its text as text, JSON lines or Parquet")
    return Format("json" if not outer and _has_records(file, "", field) else "text")


def foreign_format(start: bytes) -> str | None:
    """Which other program's file begins so."""
    return next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), None)


def sibling(file: str, suffix: str) -> str | None:
    """The file of the same name but for its suffix, in small or capital letters."""
    names = (with_suffix(file, written) for written in (suffix, suffix.upper()))
    return next(filter(is_file, names), None)


def with_suffix(file: str, suffix: str) -> str:
    """The location of the file that is named the same but for its suffix."""
    return file.removesuffix(PurePath(file).suffix) + suffix


def _is_zstd(start: bytes) -> bool:
    # A frame, or one to be skipped, with which indexed files begin.
    return start.startswith(ZSTD) or (start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50)


def _end_of(file: str, size: int) -> bytes:
    with open_binary(file) as stream:
        stream.seek(max(0, stat_of(file)[0] - size))
        return stream.read(size)


def _has_records(file: str, codec: Codec, field: str) -> bool:
    """Whether the first lines of a file whose name says nothing are records with a text."""
    start = next(read_chunks(file, codec, 2**16), b"")
    lines = start.splitlines() if isinstance(start, bytes) else []
    # The last one may go on.
    whole = lines[:-1] if len(lines) > 1 else lines
    return bool(whole) and all(is_record(line, field) for line in whole[:2])
