"""The bytes of files, decompressed: gzip and Zstandard member by member, so that damage to one costs that one.

A member is given out when it is whole and its checksum is right. One that is larger than `_HELD` is given out as it
is read, but for the last `_MARGIN` bytes: where damage is found, it began a little before. After damage, reading goes
on at the next member that can be read.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

from superpose.data.account import Dropped
from superpose.errors import UserError
from superpose.places import open_binary, stat_of

Codec = Literal["", "gz", "zst"]

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
_HELD = 8 * 2**20
_MARGIN = 2**18
_BLOCK = 2**16
# What Zstandard's decoder takes unless it is told otherwise.
_LARGEST_WINDOW = 2**27


class UntrustedError(UserError):
    """Something is wrong or missing in a file of which text was given out already, and nobody knows where."""


class _DamageError(Exception):
    """A member cannot be read on; `place` is about where, in the file."""

    def __init__(self, place: int, kind: Literal["damaged", "checksum", "cut"]) -> None:
        super().__init__(kind)
        self.place, self.kind = place, kind


def read_chunks(file: str, codec: Codec, size: int) -> Iterator[bytes | Dropped]:
    """A file's bytes, decompressed, `size` at a time but for the last before damage or the end.

    Raises:
        UntrustedError: a large member is cut short, or does not match its checksum.
    """
    held = bytearray()
    with open_binary(file) as stream:
        for piece in _members(stream, file, codec) if codec else iter(lambda: stream.read(size), b""):
            if isinstance(piece, Dropped):
                if held:
                    yield bytes(held)
                    held.clear()
                yield piece
                continue
            if not held and len(piece) == size:
                yield piece
                continue
            held += piece
            while len(held) >= size:
                yield bytes(held[:size])
                del held[:size]
    if held:
        yield bytes(held)


def _members(stream: BinaryIO, file: str, codec: Codec) -> Iterator[bytes | Dropped]:
    size, _ = stat_of(file)
    magic, member = (GZIP, _gzip_member) if codec == "gz" else (ZSTD, _zstd_frame)
    place = 0
    damage: tuple[int, int] | None = None  # where it starts, and bytes of text lost before it
    if size == 0:
        yield Dropped("files", 0, where=f"{file} is empty, and even nothing takes some bytes to compress")
    while place < size:
        held: list[bytes] = []
        given = False
        try:
            for piece in member(stream, place, file):
                if isinstance(piece, int):
                    end = piece
                    continue
                held.append(piece)
                total = sum(map(len, held))
                if not given and total < _HELD:
                    continue
                if damage:
                    yield _lost(file, *damage, place)
                    damage = None
                given = True
                while held and total - len(held[0]) >= _MARGIN:
                    total -= len(held[0])
                    yield held.pop(0)
        except _DamageError as error:
            if given and error.kind != "damaged":
                what = "is cut short" if error.kind == "cut" else "does not match its checksum"
                raise UntrustedError(f"{file} {what}; fetch or compress it again, or leave it out") from None
            if damage is None:
                damage = (error.place, sum(map(len, held))) if given else (place, 0)
            place = _next_member(stream, max(place + 1, error.place if given else 0), size, magic)
        else:
            if damage:
                yield _lost(file, *damage, place)
                damage = None
            yield from held
            place = end
    if damage:
        yield _lost(file, *damage, size)


def _lost(file: str, start: int, text: int, stop: int) -> Dropped:
    return Dropped("compression", text + stop - start, where=f"{file}, byte {start:,} of what is compressed")


def _next_member(stream: BinaryIO, place: int, size: int, magic: bytes) -> int:
    """Where the next member may start; the end of the file if there is none."""
    before = b""
    stream.seek(place)
    while block := stream.read(2**20):
        window = before + block
        found = window.find(magic)
        if found >= 0:
            return place - len(before) + found
        before = window[-len(magic) + 1 :]
        place += len(block)
    return size


Member = Callable[[BinaryIO, int, str], Iterator[bytes | int]]


def _gzip_member(stream: BinaryIO, place: int, file: str) -> Iterator[bytes | int]:
    """The text of a member, and last where the next one starts."""
    stream.seek(place)
    decoder = zlib.decompressobj(wbits=31)
    block = b""
    while not decoder.eof:
        if not block:
            block = stream.read(_BLOCK)
            if not block:
                raise _DamageError(place, "cut")
            place += len(block)
        try:
            yield decoder.decompress(block, 2**20)
        except zlib.error as error:
            kind: Any = "checksum" if "check" in str(error) and "header" not in str(error) else "damaged"
            raise _DamageError(place - len(block), kind) from None
        block = decoder.unconsumed_tail
    place -= len(decoder.unused_data)
    # Tapes and block devices fill up with zeros.
    stream.seek(place)
    padding = 0
    while (block := stream.read(_BLOCK)) and not block.strip(b"\0"):
        padding += len(block)
    yield place if block else place + padding


def _zstd_frame(stream: BinaryIO, place: int, file: str) -> Iterator[bytes | int]:
    """The text of a frame, and last where the next one starts."""
    import pyarrow as pa

    stream.seek(place)
    frame = _Frame(stream, place, file)
    if not frame.is_skippable:
        try:
            with pa.CompressedInputStream(pa.PythonFile(frame, "r"), "zstd") as decoder:
                while piece := decoder.read(2**18):
                    yield piece
        except OSError as error:
            if error.errno is not None:
                raise
            kind: Any = "checksum" if "checksum" in str(error) else "damaged"
            raise _DamageError(frame.place, kind) from None
    while frame.read(2**20):
        pass
    yield frame.place


class _Frame:
    """A frame's bytes as a file of its own, since Zstandard's reader does not say where one ends."""

    closed = False

    def __init__(self, stream: BinaryIO, place: int, file: str) -> None:
        self._stream, self.place = stream, place
        self._left = b""  # of the header, to be read first
        self._inside = 0  # bytes left of the block
        self._last = False
        magic = self._take(4)
        self.is_skippable = magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50
        if self.is_skippable:
            self._inside, self._last, self._checksum = int.from_bytes(self._take(4), "little"), True, 0
            return
        if magic != ZSTD:
            raise _DamageError(place, "damaged")
        (flags,) = described = self._take(1)
        single = flags >> 5 & 1
        window = b"" if single else self._take(1)
        dictionary = self._take((0, 1, 2, 4)[flags & 3])
        content = self._take((single, 2, 4, 8)[flags >> 6])
        if single:
            needed = int.from_bytes(content, "little")
        else:
            base = 1 << 10 + (window[0] >> 3)
            needed = base + base // 8 * (window[0] & 7)
        self._checksum = 4 * (flags >> 2 & 1)
        if flags & 8:
            raise _DamageError(place, "damaged")
        # Of what follows damage it is a guess that it is a frame at all.
        if needed > _LARGEST_WINDOW and (place or needed > 2**31):
            raise _DamageError(place, "damaged")
        if needed > _LARGEST_WINDOW:
            raise UserError(
                f"{file} was compressed with a window of {needed / 2**20:,.0f} MiB; decompress it with "
                f"zstd -d --long=31, or compress it again without --long"
            )
        self._left = magic + described + window + dictionary + content

    def _take(self, size: int) -> bytes:
        """The next bytes of the file, all of them."""
        taken = self._stream.read(size)
        self.place += len(taken)
        if len(taken) < size:
            raise _DamageError(self.place, "cut")
        return taken

    def close(self) -> None:
        """Leaves the file open, which others have more to read from."""

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the frame, at most to the end of its block; none at its end."""
        if self._left:
            given, self._left = self._left, b""
            return given
        if not self._inside and not self._last:
            # Three bytes before each block: whether it is the last, its type, its size.
            header = self._take(3)
            number = int.from_bytes(header, "little")
            kind, length = number >> 1 & 3, number >> 3
            if kind == 3 or length > 2**17:
                raise _DamageError(self.place, "damaged")
            self._last = bool(number & 1)
            self._inside = (1 if kind == 1 else length) + self._checksum * self._last
            return header
        given = self._take(min(self._inside, size if size >= 0 else self._inside))
        self._inside -= len(given)
        return given
