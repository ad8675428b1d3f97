"""Where work is done: in processes of this machine, or on a Ray cluster.

from superpose.compare import Design, compare
from superpose.engine import open_engine

comparison = compare(design, name="mine", engine=open_engine("ray"))
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.engine.choice import open_engine
    from superpose.engine.jobs import Engine, Event, Job, LostError, Resources
    from superpose.engine.local import Local

__all__ = ["Engine", "Event", "Job", "Local", "LostError", "Resources", "open_engine"]

__getattr__ = names(
    __name__,
    {
        "open_engine": "choice",
        **dict.fromkeys(["Engine", "Event", "Job", "LostError", "Resources"], "jobs"),
        "Local": "local",
    },
)
