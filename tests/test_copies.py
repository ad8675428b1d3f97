import json
import os

import fsspec
import pytest

from superpose import copies
from superpose.copies import local_copy, write_folder
from superpose.errors import UserError
from superpose.files import file_sha256
from superpose.places import list_files
from tests.s3 import needs_s3, running

FILES = {"a.bin": b"a" * 1000, "sub/b.json": b"{}", "last": b"all is there", "before-last": b"nearly"}
LAST = ("before-last", "last")


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("s3", marks=needs_s3)])
def place(request, tmp_path, monkeypatch):
    """A remote location with nothing there."""
    monkeypatch.setenv("SUPERPOSE_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        system = fsspec.filesystem("memory")
        system.store.clear()
        yield "memory://bucket/place"
        system.store.clear()
    else:
        bucket = tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
        request.getfixturevalue("server").put({f"{bucket}/other": b"x"})
        yield f"s3://{bucket}/place"


def written(place):
    system, path = fsspec.url_to_fs(place)
    system.invalidate_cache()
    return {name.partition(path.strip("/") + "/")[2]: system.cat(name) for name in system.find(path)}


def test_a_folder_comes_back_as_it_was(place, folder):
    write_folder(folder, place, LAST)
    assert written(place) == FILES
    copy = local_copy(place, {name: file_sha256(folder / name) for name in FILES})
    assert {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == FILES
    assert local_copy(place, {name: file_sha256(folder / name) for name in FILES}) == copy
    assert not [path for path in copy.parent.iterdir() if path != copy]
    with pytest.raises(UserError, match="is there already; give a new place"):
        write_folder(folder, place, LAST)


def test_what_makes_it_whole_is_written_last_and_what_is_written_is_not_written_again(place, folder, monkeypatch):
    """Interrupted at every file."""
    send, wrote = copies._send, []

    def dies(file, location):
        if len(wrote) == limit:
            raise KeyboardInterrupt
        wrote.append(os.path.relpath(file, folder))
        send(file, location)

    monkeypatch.setattr(copies, "_send", dies)
    for limit in range(1, len(FILES)):
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder, place, LAST)
        assert len(written(place)) == limit
        assert "last" not in written(place)
    limit = len(FILES)
    write_folder(folder, place, LAST)
    assert wrote == ["a.bin", "sub/b.json", "before-last", "last"]
    assert written(place) == FILES
    assert not list((copies.cache_directory() / "writing").iterdir())


def test_another_folder_takes_nothing_of_an_interrupted_one(place, folder, monkeypatch):
    send = copies._send

    def first_alone(file, location):
        if file.name != "a.bin":
            raise KeyboardInterrupt
        send(file, location)

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_send", first_alone)
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder, place, LAST)
    (folder / "a.bin").write_bytes(b"b" * 1000)
    (folder / "last").write_bytes(b"all of the other is there")
    write_folder(folder, place, LAST)
    assert written(place)["a.bin"] == b"b" * 1000


def test_files_of_others_are_not_written_among(place, folder):
    system, path = fsspec.url_to_fs(place)
    system.makedirs(path, exist_ok=True)
    system.pipe(f"{path}/precious.txt", b"mine")
    with pytest.raises(UserError, match=r"holds other files, such as precious\.txt"):
        write_folder(folder, place, LAST)
    assert written(place) == {"precious.txt": b"mine"}


def test_an_altered_file_is_refused_and_a_changed_one_is_copied_anew(place, folder):
    write_folder(folder, place, LAST)
    system, path = fsspec.url_to_fs(place)
    known = {name: file_sha256(folder / name) for name in FILES}
    before = local_copy(place, {"a.bin": None})
    system.pipe(f"{path}/a.bin", b"c" * 1000)
    with pytest.raises(UserError, match=r"place/a.bin was altered or is not whole; write .*place again"):
        local_copy(place, known)
    after = local_copy(place, {"a.bin": None})
    assert [(copy / "a.bin").read_bytes()[:1] for copy in (before, after)] == [b"a", b"c"]


def test_a_copy_that_was_interrupted_goes_on(place, folder, monkeypatch):
    write_folder(folder, place, LAST)
    known = {name: file_sha256(folder / name) for name in FILES}
    opened, open_binary = [], copies.open_binary

    def dies(location):
        if len(opened) == 2:
            opened.append("")
            raise KeyboardInterrupt
        opened.append(location)
        return open_binary(location)

    monkeypatch.setattr(copies, "open_binary", dies)
    with pytest.raises(KeyboardInterrupt):
        local_copy(place, known)
    copy = local_copy(place, known)
    assert sorted(filter(None, opened)) == sorted(list_files(place))
    assert json.loads((copy / "sub" / "b.json").read_text()) == {}
