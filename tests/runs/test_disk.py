import json
import os
import shutil
import time

import pytest

from superpose.errors import UserError
from superpose.files import one_at_a_time, read_json
from superpose.runs.disk import find_runs, names_of, open_run, size_of
from superpose.runs.tables import listed, shown, spoken_age, spoken_size, spread, table_of, tables_of


@pytest.fixture
def folder(run, tmp_path):
    """A run of its own, one in the pool with two names, one that is not finished, and much that is no run."""
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "one")
    shutil.copytree(run, runs / "pool" / "abc")
    shutil.copytree(run, runs / "pool" / "def")
    (runs / "pool" / "def" / "result.json").unlink()
    for name in ("demo", "other"):
        (runs / name).mkdir()
        (runs / name / "tst-20-seed1").symlink_to("../pool/abc", target_is_directory=True)
    (runs / "demo" / "gone").symlink_to("../pool/gone")
    (runs / "demo" / "comparison.json").write_text("{}")
    (runs / "store").mkdir()
    (runs / "store" / "manifest.json").write_text("{}")
    return runs


def test_each_run_is_found_once_under_the_name_that_says_what_it_is(folder):
    runs, problems = find_runs(folder)
    assert [run.path.relative_to(folder).as_posix() for run in runs] == ["demo/tst-20-seed1", "one", "pool/def"]
    assert [path.relative_to(folder).as_posix() for path in runs[0].names] == ["other/tst-20-seed1", "pool/abc"]
    assert problems == []
    assert names_of(folder / "pool" / "abc", folder) == [folder / name / "tst-20-seed1" for name in ("demo", "other")]
    assert [run.path for run in find_runs(folder / "one")[0]] == [folder / "one"]
    with pytest.raises(UserError, match="no directory"):
        find_runs(folder / "none")


def test_a_run_that_was_altered_takes_no_other_from_the_list(folder):
    (folder / "one" / "config.json").write_text('{"train": {"lrr": 1}}')
    runs, problems = find_runs(folder)
    assert len(runs) == 2
    assert "did you mean 'train.lr'" in problems[0]


def test_states(folder):
    assert [run.state for run in find_runs(folder)[0]] == ["finished", "finished", "unfinished"]
    with one_at_a_time(folder / "pool" / "def"):
        assert open_run(folder / "pool" / "def").state == "running"
    # A lock that nobody holds is left of a process that was killed.
    (folder / "pool" / ".def.lock").touch()
    assert open_run(folder / "pool" / "def").state == "unfinished"


def test_what_a_list_says(folder, run):
    runs, _ = find_runs(folder)
    result = read_json(run / "result.json")
    then = time.time() - 7200
    for path in (folder / "one").iterdir():
        os.utime(path, (then, then))
    known = listed(runs[1])
    assert known | {"age_seconds": 0, "bytes": 0} == {
        "path": str(folder / "one"),
        "names": [],
        "state": "finished",
        "step": 20,
        "steps": 20,
        "parameters": result["parameters"],
        "bag_size": [4],
        "ratio": [0.4],
        "mode": "full",
        "seed": 1,
        "lr": 0.002,
        "val_loss": result["val_loss"],
        "age_seconds": 0,
        "bytes": 0,
    }
    assert known["bytes"] == size_of(folder / "one") == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())
    assert 7190 < known["age_seconds"] < 7300
    header, rows = table_of(runs)
    assert rows[1][:6] == (
        str(folder / "one"),
        "finished",
        f"{result['parameters']:,}",
        "20",
        "s 4, r 0.4",
        f"{result['val_loss']:.4f}",
    )
    assert rows[1][6] == "2.0 h"
    assert rows[2][1] == "unfinished, step 20"
    assert rows[2][2] == rows[2][5] == ""
    assert all(len(row) == len(header) for row in rows)


def test_an_unfinished_run_is_where_its_log_or_its_checkpoints_are(folder):
    path = folder / "pool" / "def"
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 10) + '{"ste')
    assert open_run(path).step == 20
    shutil.rmtree(path / "checkpoints")
    assert open_run(path).step == 10
    (path / "metrics.jsonl").unlink()
    assert open_run(path).step == 0


def test_the_text_is_known_while_it_is_whole(folder, store, tmp_path):
    place = shutil.copytree(store.path, tmp_path / "store")
    about = {"path": str(place), "fingerprint": store.fingerprint}
    run = open_run(folder / "one")
    (folder / "one" / "store.json").write_text(json.dumps(about))
    assert run.store.fingerprint == store.fingerprint
    (folder / "one" / "store.json").write_text(json.dumps({**about, "fingerprint": "another"}))
    assert run.store is None
    (folder / "one" / "store.json").write_text(json.dumps(about))
    (place / "train-00000.tokens").write_bytes(b"")
    assert run.store is None


def test_what_is_shown_of_a_run(run):
    known = shown(open_run(run))
    assert list(known["checkpoints"]) == ["8", "18", "20"]
    assert known["checkpoints"]["8"] == size_of(run / "checkpoints" / "step-00000008") > 0
    assert [record["step"] for record in known["validations"]] == [0, 8, 10, 20]
    assert known["recipe"]["superposition"]["bag_size"] == 4
    json.dumps(known, allow_nan=False)
    (_, _, about), (_, _, validations) = tables_of(open_run(run))
    assert ("state", "finished") in about
    assert ("validation loss of the average", f"{known['result']['average_val_loss']:.4f}") in about
    assert validations[-1][1] == f"{known['result']['val_loss']:.4f}"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("result.json", '{"val_loss": "low"}', r"result\.json was altered: val_loss"),
        ("result.json", "[", r"result\.json is not valid JSON"),
        ("metrics.jsonl", '{"kind": "validation", "step": 1}\n', r"metrics\.jsonl was altered: val_loss"),
        ("config.json", "{", r"config\.json is not valid JSON"),
    ],
)
def test_an_altered_file_is_named(folder, file, text, message):
    (folder / "one" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        shown(open_run(folder / "one"))


def test_units_and_spreads():
    assert [spoken_size(size) for size in (0, 999, 1000, 1_234_567, 5e9, 2.5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "5 GB",
        "2.5 TB",
    ]
    assert [spoken_age(age) for age in (0, 59, 90, 5400, 200_000)] == ["0 s", "59 s", "1.5 min", "1.5 h", "2.3 d"]
    assert spread([], 3) == []
    assert spread(range(1, 8), 10) == [1, 2, 3, 4, 5, 6, 7]
    assert spread(range(1, 12), 4) == [2, 5, 8, 11]
