import io
import re

import pytest
from rich.console import Console, Group

from superpose.results.progress import Display

TRAINING = {
    "kind": "training",
    "phase": "recovery",
    "bag_size": 1,
    "loss": 3.0,
    "step": 5,
    "raw_tokens_per_second": 1e4,
    "latents_per_second": 1e3,
    "mfu": 0.3,
    "memory": 2**30,
}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_display_can_be_entered_again_and_names_what_failed(terminal):
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=terminal, width=120))
    for name in ("one", "two"):
        with display:
            display.prepare("reading text", 0.5)
            display.record(name, 20, TRAINING)
            assert list(display._tasks) == [name]  # text is prepared when runs begin
            display.record(name, 20, {"kind": "failure", "message": "died"})
        assert not display._progress.tasks
    assert display.failed == ["one", "two"]
    assert "two failed: died" in out.getvalue()


def test_preparation_says_how_long_the_rest_of_a_part_takes(monkeypatch):
    out, clock = io.StringIO(), [100.0]
    monkeypatch.setattr("superpose.results.progress.time.monotonic", lambda: clock[0])
    with Display(Console(file=out, width=80)) as display:
        for seconds, what, share in [
            (0, "reading", 0),
            (30, "reading", 0.25),
            (30, "writing", 0),
            (10, "writing", 0.5),
        ]:
            clock[0] += seconds
            display.prepare(what, share)
    assert out.getvalue().splitlines() == [
        "reading (0%)",
        "reading (25%, about 1.5 min left)",
        "writing (0%)",
        "writing (50%, about 10 s left)",
    ]


def test_a_quiet_display_shows_nothing(capsys):
    display = Display(Console(quiet=True))
    with display:
        display.say("something")
        display.record("one", 20, TRAINING)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("at_work", [1, 8, 64])
def test_runs_at_work_are_a_line_each_that_holds_all_it_should(at_work, width):
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=width, height=24))
    names = [f"ordinary-6000-seed{seed}" for seed in range(at_work)]
    display.expect([*names, "waiting"], lambda: 5400.0)
    for name in names:
        display.record(name, 6000, {**TRAINING, "step": 1440})
    page = Console(file=io.StringIO(), width=width, height=24)
    page.print(Group(*display._progress.get_renderables()))
    lines = [line.rstrip() for line in page.file.getvalue().splitlines() if line.strip()]
    assert lines[0] == f"0 of {at_work + 1} runs done, 0 failed, about 1.5 h left"
    rows = lines[1 : 1 + min(at_work, 21)]
    for name, line in zip(names, rows, strict=False):
        end = r"(10.0k tok/s|loss 3.000 .*)"
        assert re.fullmatch(rf"{name} +[━╸╺ ]{{6,24}} 1440 of 6000 +\S+ +recovery +{end}", line), line
    assert lines[1 + len(rows) :] == (["and 43 more at work"] if at_work == 64 else [])
    assert len(lines) < 24


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (80, r"{name} [━╸╺ ]{{6,}} 14400 of 60000 +\S+ +recovery"),
        (60, r"{name} [━╸╺ ]{{6,}} 14400 of 60000 +\S+"),
        (40, r"\S+… [━╸╺ ]{{6}} 14400 of 60000 +\S+"),
    ],
)
def test_without_room_the_speed_goes_first_and_the_amount_never(width, row):
    display, name = (
        Display(Console(file=io.StringIO(), force_terminal=True, width=width)),
        "ordinary-60000-seed1-lr0.002",
    )
    display.record(name, 60_000, {**TRAINING, "step": 14_400})
    page = Console(file=io.StringIO(), width=width)
    page.print(Group(*display._progress.get_renderables()))
    assert re.fullmatch(row.format(name=name), page.file.getvalue().strip())


def test_what_failed_is_named_at_once_and_at_the_end():
    out = io.StringIO()
    with Display(Console(file=out, width=80)) as display:
        display.expect(["one", "two", "three"], lambda: 90.0)
        for name in ("one", "two"):
            display.record(name, 20, TRAINING)
        display.record("two", 20, {"kind": "failure", "message": "Traceback:\nOSError: disk full"})
        display.record("one", 20, {"kind": "result", "result": {"val_loss": 3.0}})
    assert out.getvalue().splitlines() == [
        "two failed: Traceback:",
        "OSError: disk full",
        "0 of 3 runs done, 1 failed, about 1.5 min left",
        "1 of 3 runs done, 1 failed, about 1.5 min left",
        "1 of 3 runs failed:",
        "  two: OSError: disk full",
    ]
