import json
from dataclasses import fields

import pytest

from superpose.errors import UserError
from superpose.files import write_json
from superpose.train.records import (
    Energy,
    Result,
    Switch,
    Training,
    Validation,
    Warned,
    as_json,
    metrics_log,
    read_metrics,
    read_records,
    read_result,
)

VALIDATION = Validation(4, 3.5, 1.25, 10**6, 10**5, 10**21, 12.5)


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    training = Training(2, "superposition", 4, bag_loss=5.5, lr=1e-3)
    records = [Warned(1, "look"), training, VALIDATION, Training(6, "recovery", 1, loss=4.0)]
    with metrics_log(path, 0) as write:
        for record in records:
            write(record.as_json())
    assert read_records(path, Training) == [training, records[3]]
    assert read_records(path, Validation) == [VALIDATION]
    assert read_records(path, Warned) == records[:1]
    assert [set(record) for record in read_metrics(path)[:2]] == [
        {"kind", "step", "message"},
        {"kind", "step", "phase", "bag_size", "bag_loss", "lr"},
    ]


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    result = Result(
        val_loss=3.5,
        val_bits_per_byte=1.25,
        raw_tokens=10**6,
        latents=10**5,
        flops=10**24,
        seconds=12.5,
        energy=Energy(None, 0.5, "unknown"),
        switch=Switch(8, 5.0, 1.5, None),
        versions={"python": "3.11"},
    )
    write_json(tmp_path / "result.json", as_json(result))
    assert read_result(tmp_path / "result.json") == result


def test_results_and_records_of_older_versions_are_read(run, tmp_path):
    """What was not measured then is None; what nobody could do without is asked for."""
    whole = json.loads((run / "result.json").read_text())
    needed = ("val_loss", "val_bits_per_byte", "raw_tokens", "latents", "flops", "seconds")
    write_json(tmp_path / "result.json", {name: whole[name] for name in needed})
    old = read_result(tmp_path / "result.json")
    assert (old.val_loss, old.energy, old.parameters, old.versions) == (whole["val_loss"], None, None, {})
    assert set(whole) <= {field.name for field in fields(Result)}
    for name in needed:
        write_json(tmp_path / "result.json", {key: whole[key] for key in whole if key != name})
        with pytest.raises(UserError, match=rf"result\.json was altered: {name}"):
            read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("val_loss", "low"), ("val_loss", float("nan")), ("flops", -1), ("flops", 10**400), ("latents", None)],
)
def test_an_altered_record_is_named(tmp_path, name, value):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**VALIDATION.as_json(), name: value}) + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl was altered: {name}"):
        read_records(path, Validation)


def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log(path, 0) as write:
        for step in range(5):
            write({"kind": "training", "step": step})
    with path.open("a") as file:
        file.write('{"kind": "tra')  # cut short by a crash
    with metrics_log(path, 2) as write:
        write({"kind": "training", "step": 3, "again": True})
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    assert read_metrics(path)[-1]["again"]


@pytest.mark.parametrize("line", ["3", "null", "[]", "{}", '{"step": "3"}', '{"step": true}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


@pytest.mark.parametrize("tail", [b'{"step": 2', b"\xff\xfe", b"[" * 5000])
def test_what_a_crash_left_is_no_record(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
