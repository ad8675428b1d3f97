"""What came of an input: accepted, refused in a sentence, or a finding."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checks.fuzz.samples import Samples
from superpose.errors import UserError

LONGEST = 1000
"""Characters of a refusal."""
CANARY = "CANARY"
"""A file that code out of the inputs would make, were it run."""

Feed = Callable[[Samples, Path, random.Random], None]


class FindingError(Exception):
    """What must not happen has happened."""


def expect_sentence(message: str) -> None:
    """One sentence, or a short list of them, that a person can read on any terminal."""
    if not message.strip() or len(message) > LONGEST:
        raise FindingError(f"a refusal of {len(message.strip())} characters: {message[:200]!r}")
    if "Traceback" in message or "<class" in message or " object at 0x" in message:
        raise FindingError(f"a refusal in Python's words: {message!r}")
    if not all(character.isprintable() or character == "\n" for character in message):
        raise FindingError(f"a refusal with control characters: {message!r}")


_forbidden = ""
"""The folder nothing is to be opened in, while an input is read."""
_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _forbidden and isinstance(arguments[0], (str, os.PathLike)):
        # A link that somebody put there is followed for reading, as anywhere; what only names a place is not.
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = (os.path.realpath if writes else os.path.abspath)(os.fspath(arguments[0]))
        if path.startswith(_forbidden):
            _opened.append(path)


def judge(feed: Feed, drawn: str, samples: Samples, folder: Path) -> tuple[str, str]:
    """What came of an input: "accepted", "refused" or "finding", and what was said.

    Args:
        drawn: seeds all that is drawn.
        folder: is emptied; the input lies in a folder inside, beside `outside`, which nothing may touch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    inside, outside = folder / "input", folder / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret", encoding="utf-8")
    shutil.copy(samples.run / "metrics.jsonl", outside)
    for shard in sorted((samples.run / "checkpoints").glob("step-*/*.safetensors"))[:1]:
        shutil.copy(shard, outside)
    known = _state(outside)
    global _forbidden
    _opened.clear()
    _forbidden = os.path.realpath(outside)
    outcome, said = "accepted", ""
    try:
        with contextlib.chdir(inside):
            feed(samples, inside, random.Random(drawn))
    except (UserError, OSError) as error:
        outcome = "refused"
        said = str(UserError.from_system(error) if isinstance(error, OSError) else error)
        try:
            expect_sentence(said)
        except FindingError as finding:
            outcome, said = "finding", f"{finding}\n{traceback.format_exc()}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        outcome, said = "finding", traceback.format_exc()
    finally:
        _forbidden = ""
    if outcome != "finding":
        if any(inside.rglob(CANARY)) or any(Path.cwd().glob(CANARY)):
            outcome, said = "finding", "code out of the input was run"
        elif _state(outside) != known:
            outcome, said = "finding", "something outside the input's folder was changed"
        elif _opened:
            outcome, said = "finding", f"{_opened[0]} was opened, outside the input's folder"
        elif left := [path for path in inside.rglob("*") if re.search(r"\.\d+\.(tmp|old)$|\.lock$", path.name)]:
            outcome, said = "finding", f"{left[0]} was left behind"
    return outcome, said


def _state(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*"))}


def watch_files() -> None:
    """From now on, what is opened outside an input's folder is noticed."""
    sys.addaudithook(_watch)
