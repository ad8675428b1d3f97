"""Which engine: what `--engine` names."""

from superpose.engine.jobs import Engine
from superpose.engine.local import Local
from superpose.engine.ray import Ray
from superpose.errors import UserError


def open_engine(name: str = "local", cores: int = 0, gpus: float = 0) -> Engine:
    """The engine of a name, to be entered as a context.

    Args:
        name: "local" for processes of this machine; "ray" for the Ray cluster that this machine is part of;
            "ray://HOST:PORT" for one elsewhere.
        cores: of each run; 0 for its share of this machine's, or one on a cluster.
        gpus: of each run on GPUs; 0 for one. A share below 1 lets several runs use one; with several, a run has a rank
            on each.

    Raises:
        UserError: there is no engine of that name, or numbers are wrong.
    """
    if cores < 0:
        raise UserError(f"--cores-per-run {cores}: expected a number of cores, 1 or more")
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise UserError(f"--gpus-per-run {gpus:g}: expected a number of GPUs, or a share of one such as 0.5")
    if name == "local":
        return Local(cores, gpus)
    if name == "ray" or name.startswith("ray://"):
        return Ray("auto" if name == "ray" else name, cores, gpus)
    raise UserError(f"--engine {name}: expected local, ray or ray://HOST:PORT")
