import shutil

import pytest

from superpose.errors import UserError
from superpose.files import one_at_a_time
from superpose.runs.disk import open_run, size_of
from superpose.runs.remove import plan_removals, remove


@pytest.fixture
def folder(run, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "one")
    shutil.copytree(run, runs / "pool" / "abc")
    (runs / "demo").mkdir()
    (runs / "demo" / "tst").symlink_to("../pool/abc", target_is_directory=True)
    return runs


def carry_out(paths, folder, **settings):
    planned = plan_removals(paths, folder, **settings)
    for removal in planned:
        remove(removal)
    return planned


def test_a_run_goes_as_a_whole_and_alone(folder):
    size = size_of(folder / "one")
    (planned,) = plan_removals([folder / "one"], folder)
    assert (planned.kind, planned.bytes, planned.remarks) == ("run", size, ())
    assert (folder / "one" / "model").is_dir()  # so far nothing is done
    remove(planned)
    assert sorted(path.name for path in folder.iterdir()) == ["demo", "pool"]
    assert (folder / "demo" / "tst" / "result.json").is_file()


def test_of_a_link_the_link_alone(folder):
    (planned,) = carry_out([folder / "demo" / "tst"], folder)
    assert (planned.kind, planned.bytes) == ("link", 0)
    assert list((folder / "demo").iterdir()) == []
    assert (folder / "pool" / "abc" / "result.json").is_file()


def test_what_leads_to_a_run_is_said(folder):
    (planned,) = carry_out([folder / "pool" / "abc"], folder)
    assert planned.remarks == (f"{folder / 'demo' / 'tst'} leads to it, and will lead nowhere",)
    assert (folder / "demo" / "tst").is_symlink()
    # The link that leads nowhere can still be removed.
    carry_out([folder / "demo" / "tst"], folder)
    assert list((folder / "demo").iterdir()) == []


def test_a_link_and_what_it_leads_to(folder):
    run, link = carry_out([folder / "pool" / "abc", folder / "demo" / "tst"], folder)
    assert run.remarks == ()
    assert "goes too" in link.remarks[0]
    assert list((folder / "demo").iterdir()) == list((folder / "pool").iterdir()) == []


def test_checkpoints_alone(folder):
    (planned,) = carry_out([folder / "one"], folder, checkpoints=True)
    assert planned.bytes > 0
    assert open_run(folder / "one").checkpoints == []
    assert open_run(folder / "one").state == "finished"
    with pytest.raises(UserError, match="has no checkpoints"):
        plan_removals([folder / "one"], folder, checkpoints=True)
    with pytest.raises(UserError, match="is a link; name the run it leads to"):
        plan_removals([folder / "demo" / "tst"], folder, checkpoints=True)


def test_an_unfinished_run_is_called_that(folder):
    (folder / "one" / "result.json").unlink()
    assert plan_removals([folder / "one"], folder)[0].remarks == ("it is not finished: step 20 of 20",)
    assert "cannot go on" in plan_removals([folder / "one"], folder, checkpoints=True)[0].remarks[0]


def test_what_is_no_run_is_left_alone(folder):
    (folder / "store").mkdir()
    (folder / "store" / "manifest.json").write_text("{}")
    (folder / "demo" / "elsewhere").symlink_to("../store")
    (folder / "note.txt").write_text("x")
    for path, message in (
        (folder / "store", "is not a run"),
        (folder / "pool", "it holds the runs abc"),
        (folder / "note.txt", "is not a run"),
        (folder / "none", "is not a run"),
        (folder / "one" / "model", "is not a run"),
        (folder / "demo" / "elsewhere", "link to something that is no run"),
    ):
        with pytest.raises(UserError, match=message):
            plan_removals([folder / "one", path], folder)
    (folder / "store" / "config.json").write_text("{}")
    (folder / "store" / "store.json").write_text("{}")
    assert plan_removals([folder / "store"], folder)


def test_what_is_outside_stays(folder, run, tmp_path):
    """By its path, by the way up, or by a link in the middle of it."""
    outside = tmp_path / "outside"
    shutil.copytree(run, outside / "mine")
    (folder / "way").symlink_to(outside, target_is_directory=True)
    for path in (
        outside / "mine",
        folder / ".." / "outside" / "mine",
        folder / "way" / "mine",
        folder,
        folder / "one" / "..",
    ):
        with pytest.raises(UserError, match=r"is not inside of|is not a run|no run"):
            plan_removals([path], folder)
    # The runs' folder itself may be a run: that is not inside of it.
    with pytest.raises(UserError, match="is not inside of"):
        plan_removals([folder / "one"], folder / "one")
    # A link in the folder to a run outside of it goes; the run stays.
    (folder / "name").symlink_to(outside / "mine", target_is_directory=True)
    carry_out([folder / "name"], folder)
    assert (outside / "mine" / "result.json").is_file()


def test_links_inside_a_run_are_not_followed(folder, tmp_path):
    precious = tmp_path / "precious"
    shutil.move(folder / "one" / "checkpoints", precious)
    (folder / "one" / "checkpoints").symlink_to(precious, target_is_directory=True)
    with pytest.raises(UserError, match="is a link, which is not followed"):
        plan_removals([folder / "one"], folder, checkpoints=True)
    carry_out([folder / "one"], folder)
    assert not (folder / "one").exists()
    assert len(list(precious.iterdir())) == 3


def test_a_run_that_is_trained_at_the_moment_stays(folder):
    (folder / "pool" / "abc" / "result.json").unlink()
    with one_at_a_time(folder / "pool" / "abc"), pytest.raises(UserError, match="being trained"):
        plan_removals([folder / "pool" / "abc"], folder)


def test_what_changed_since_it_was_planned_stays(folder, tmp_path):
    (planned,) = plan_removals([folder / "one"], folder)
    (folder / "one").rename(tmp_path / "moved")
    (folder / "one").symlink_to(tmp_path / "moved", target_is_directory=True)
    with pytest.raises(UserError, match="changed meanwhile"):
        remove(planned)
    assert (tmp_path / "moved" / "result.json").is_file()
