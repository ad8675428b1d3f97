import gzip
import random
import shutil
import subprocess
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import compressed
from superpose.data.account import Dropped
from superpose.data.compressed import UntrustedError, read_chunks
from superpose.errors import UserError


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


WAYS = [("gz", gzip.compress), ("zst", zstd)]


@pytest.mark.parametrize(("codec", "compress"), WAYS)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 400), st.integers(0, 50))
def test_members_follow_each_other_and_come_in_chunks(tmp_path_factory, codec, compress, texts, size, padding):
    file = tmp_path_factory.mktemp("members") / "a"
    file.write_bytes(b"".join(map(compress, texts)) + bytes(padding if codec == "gz" else 0))
    chunks = list(read_chunks(str(file), codec, size))
    assert b"".join(chunks) == b"".join(texts)
    assert all(len(chunk) == size for chunk in chunks[:-1])


@pytest.fixture
def large(monkeypatch):
    """Members of 60 kB that are too large to be held until they are whole."""
    monkeypatch.setattr(compressed, "_HELD", 20_000)
    monkeypatch.setattr(compressed, "_MARGIN", 5_000)
    monkeypatch.setattr(compressed, "_BLOCK", 1_000)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(500)]
    return [" ".join(rng.choices(words, k=10_000)).encode() for _ in range(3)]


def test_of_a_large_member_what_came_before_the_damage_is_kept(tmp_path, large):
    first, third = gzip.compress(large[0]), gzip.compress(large[2])
    halves = zlib.compressobj(wbits=31)
    half = halves.compress(large[1][:30_000]) + halves.flush(zlib.Z_FULL_FLUSH)
    rest = halves.compress(large[1][30_000:]) + halves.flush()
    # A block of no kind that there is.
    (tmp_path / "a.gz").write_bytes(first + half + b"\xff" + rest[1:] + third)
    found = list(read_chunks(str(tmp_path / "a.gz"), "gz", 1000))
    (lost,) = (chunk for chunk in found if isinstance(chunk, Dropped))
    at = found.index(lost)
    before, after = b"".join(found[:at]), b"".join(found[at + 1 :])
    assert after == large[2]
    assert before.startswith(large[0])
    kept = len(before) - len(large[0])
    assert 20_000 < kept <= 25_000
    assert before == (large[0] + large[1])[: len(before)]
    # What cannot be decompressed, a block more at most, and the text that was held back.
    assert len(rest) + 5_000 <= lost.bytes <= len(rest) + 1_000 + (30_000 - kept)


@pytest.mark.parametrize("damage", ["cut", "checksum"])
def test_a_large_member_that_cannot_be_trusted_is_refused(tmp_path, large, damage):
    content = bytearray(gzip.compress(large[0]))
    if damage == "cut":
        del content[-20:]
    else:
        content[-6] ^= 1
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(UntrustedError, match=r"a\.gz (is cut short|does not match its checksum); fetch"):
        list(read_chunks(str(tmp_path / "a.gz"), "gz", 1000))


def test_a_window_that_is_too_long_says_what_to_do(tmp_path):
    # A frame's header with a window of 2 GiB, as --long=31 writes it.
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + bytes(30))
    with pytest.raises(UserError, match=r"a\.zst was compressed with a window of 2,048 MiB; .*zstd -d --long=31"):
        list(read_chunks(str(tmp_path / "a.zst"), "zst", 1000))


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd here")
def test_what_zstd_itself_writes_is_read(tmp_path):
    text = b"some text that repeats, " * 40_000
    for options in (["--long=27"], ["-19", "--check"], ["--no-check"], ["-1"]):
        done = subprocess.run(["zstd", "-q", "-c", *options], input=text, capture_output=True, check=True)
        (tmp_path / "a.zst").write_bytes(done.stdout)
        assert b"".join(read_chunks(str(tmp_path / "a.zst"), "zst", 2**16)) == text
