import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from superpose.errors import UserError
from superpose.files import one_at_a_time, read_json, whole_directory, whole_file, write_json, write_text


class DiskFullError(Exception):
    pass


def fail_after(path):
    path.write_text("half")
    raise DiskFullError


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(DiskFullError), whole_file(path) as aside:
        fail_after(aside)
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_directory_is_whole_or_absent(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(DiskFullError), whole_directory(path) as aside:
        fail_after(aside / "one")
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with whole_directory(path) as aside:
            (aside / "one").write_text(text)
    assert (path / "one").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", "[1]", "\x00", "[" * 5000])
def test_files_that_are_no_json_objects_are_named(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"file\.json"):
        read_json(path)


def test_what_json_cannot_say_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in (".made.lock", ".file", f".file.{os.getpid()}.tmp", "file"):
        (inside / name).symlink_to(outside)
    write_text(inside / "file", "new")
    assert (inside / "file").read_text() == "new"
    with pytest.raises(OSError, match="symbolic links"), one_at_a_time(inside / "made"):
        pytest.fail("a lock that is a link")
    assert outside.read_text() == "kept"


def test_one_at_a_time_or_told_so(tmp_path):
    with one_at_a_time(tmp_path / "made", "somebody is at it"):
        with pytest.raises(UserError, match="somebody is at it"), one_at_a_time(tmp_path / "made", "somebody is at it"):
            pytest.fail("two at once")
        (tmp_path / "made").touch()
    with one_at_a_time(tmp_path / "made", "somebody is at it"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("busy", [None, "somebody is at it"])
@pytest.mark.parametrize(("number", "refused"), [(errno.ENOSYS, False), (errno.ENOLCK, False), (errno.EIO, True)])
def test_without_locks_there_is_none(tmp_path, monkeypatch, number, refused, busy):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(OSError, match="error") if refused else nullcontext(),
        one_at_a_time(tmp_path / "made", busy),
    ):
        (tmp_path / "made").touch()
    assert (tmp_path / "made").exists() != refused


@pytest.mark.parametrize("name", ["\ud800", "a\0b"])
def test_a_name_no_file_can_have_is_one_sentence(name):
    with pytest.raises(UserError, match=r"cannot be read .*; check the path"):
        read_json(Path(name))
