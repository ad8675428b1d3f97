import io

import pytest
from rich.console import Console

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


def test_a_quiet_display_shows_nothing(capsys):
    display = Display(Console(quiet=True))
    with display:
        display.say("something")
        display.record("one", 20, TRAINING)
    assert capsys.readouterr().out == ""
