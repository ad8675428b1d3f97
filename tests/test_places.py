import os
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread

import pytest

from superpose.errors import UserError
from superpose.places import is_file, is_remote, join, list_files, list_names, open_binary, stat_of


def test_addresses_are_told_from_paths():
    assert all(map(is_remote, ("s3://bucket/x", "memory://x", "HTTPS://host/x", "hf://datasets/a/b")))
    assert not any(map(is_remote, ("a/b", "/a/b", "datasets:name", "C:x", "://", "a b://c", "", "./s3://x")))
    assert join("s3://bucket/x/", "y") == join("s3://bucket/x", "y") == "s3://bucket/x/y"
    assert join("x", "y") == "x/y"


def test_files_are_listed_alike_here_and_there(memory, tmp_path):
    files = ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.md", ".hidden.txt", ".git/e.txt", "sub/.f.txt"]
    for name in files:
        memory.pipe(f"/top/.dot/{name}", b"text")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    there = "memory://top/.dot"
    for pattern in ("", "*.txt", "sub/*", "**/*.txt", "sub/deep", "nothing*", "?.txt", "[ab].txt"):
        here = list_files(str(tmp_path / pattern))
        far = list_files(f"{there}/{pattern}".rstrip("/"))
        assert {name.removeprefix(f"{there}/") for name in far} == {os.path.relpath(name, tmp_path) for name in here}
        assert far == sorted(far)
    assert list_files(f"{there}/a.txt") == [f"{there}/a.txt"]
    assert list_names(there) == ["a.txt", "b.txt"]
    assert list_files("memory://nothing") == []


def test_a_file_is_read_from_anywhere(memory):
    content = bytes(range(256)) * 20_000
    memory.pipe("/top/file", content)
    with open_binary("memory://top/file") as stream:
        assert stream.read(10) == content[:10]
        for place in (3_000_000, 5, len(content) - 3, len(content) + 9):
            assert stream.seek(place) == stream.tell() == place
            assert stream.read(1000) == content[place : place + 1000]
        stream.seek(-4, os.SEEK_END)
        assert stream.read() == content[-4:]
        stream.seek(0)
        assert stream.read() == content


def test_a_file_that_is_written_again_has_another_stamp(memory, tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    memory.pipe("/file", b"text")
    places = ("memory://file", str(tmp_path / "file"))
    before = [stat_of(place) for place in places]
    assert before == [stat_of(place) for place in places]
    assert [size for size, _ in before] == [4, 4]
    time.sleep(0.02)
    (tmp_path / "file").write_bytes(b"next")
    memory.pipe("/file", b"next")
    assert all(first != stat_of(place) for first, place in zip(before, places, strict=True))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("memory://nothing", "memory://nothing is not there; check the address"),
        ("foo://bucket/x", "foo://bucket/x is no place that can be read"),
        ("gs://bucket/x", "needs a package that is not installed; pip install gcsfs"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(memory, location, said):
    with pytest.raises(UserError, match=said):
        open_binary(location)
    with pytest.raises(UserError, match=said):
        stat_of(location)


def test_errors_of_a_place_that_fails_are_one_sentence(memory, monkeypatch):
    memory.pipe("/file", b"text" * 1000)
    stream = open_binary("memory://file")
    monkeypatch.setattr(stream.raw, "_file", Broken())
    with pytest.raises(UserError, match=r"memory://file cannot be reached \(gone\); check"):
        stream.read()
    monkeypatch.setattr(type(memory), "info", Broken.info)
    for ask in (stat_of, is_file, list_files):
        with pytest.raises(UserError, match=r"memory://file cannot be reached \(refused\)"):
            ask("memory://file")


class Broken:
    def read(self, size):
        raise RuntimeError("gone")

    def info(self, path, **_):
        raise PermissionError("refused")

    def close(self):
        pass


class Served(SimpleHTTPRequestHandler):
    """Sends whole files only, as Python's server does."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="fsspec reads the web by aiohttp")
def test_a_web_server_without_ranges(server, tmp_path):
    content = os.urandom(12_000_000)
    (tmp_path / "file").write_bytes(content)
    with open_binary(f"{server}/file") as stream:
        stream.seek(11_000_000)
        assert stream.read(10) == content[11_000_000:11_000_010]
        stream.seek(0)
        assert stream.read() == content
    assert stat_of(f"{server}/file")[0] == len(content)
    assert not is_file(f"{server}/nothing")
    with pytest.raises(UserError, match="is not there"):
        stat_of(f"{server}/nothing")
    with pytest.raises(UserError, match=r"127.0.0.1:1/x cannot be reached \(Cannot connect"):
        stat_of("http://127.0.0.1:1/x")
