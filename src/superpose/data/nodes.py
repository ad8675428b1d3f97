"""Work on parts of sources by other machines: refused by those that see other files than this one."""

import platform
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

from superpose.data.readers import Part
from superpose.data.workers import Run
from superpose.engine.jobs import Engine
from superpose.errors import UserError
from superpose.places import is_remote, stat_of

Stats = dict[str, tuple[int, int | str]]
"""Size and time of files, as `superpose.places.stat_of` tells them."""


def on_nodes(run: Run, engine: Engine, folder: Path) -> Run:
    """The same `Run` for machines of which each has to see a folder as this one does, and the files of its parts."""
    engine.share(folder)

    def checked(work: Callable[[Any], Any], items: Sequence[Any], what: str) -> list[Any]:
        return run(partial(_checked, work, Path.cwd()), [(item, _stats(item)) for item in items], what)

    return checked


def _stats(item: Any) -> Stats:
    parts = [part for part in item if isinstance(part, Part)] if isinstance(item, tuple) else []
    return {file: stat_of(file) for part in parts for file in part.files if not is_remote(file)}


def _checked(work: Callable[[Any], Any], here: Path, item_and_stats: tuple[Any, Stats]) -> Any:
    item, stats = item_and_stats
    try:
        # Paths of the user's are seen from where the user is.
        with chdir(here):
            different = next((file for file, expected in stats.items() if stat_of(file) != expected), None)
            if different is None:
                return work(item)
    except FileNotFoundError as error:
        different = error.filename
    raise UserError(
        f"{platform.node()} does not see {different} as the machine that prepares it does; put it on a file system "
        f"that all nodes see"
    )
