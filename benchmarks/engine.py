"""What the engine costs: 10,000 runs of a function that does nothing, and preparing text on two nodes.

    python benchmarks/engine.py            # both; where the extra `ray` is installed
    python benchmarks/engine.py --runs 1000 --megabytes 20
    python benchmarks/engine.py --pages runs/mine     # what a page costs that is written while runs are at work

Runs: `superpose.runs.pool.execute` plans and follows all of them, once with an engine that answers at once, so that
what the driver does itself is left, and once with one whose jobs are tasks of a Ray cluster of this machine. Memory is
the driver's peak.

Preparation: the Python sources of this machine, in processes of this machine, and with 1, 2 and 4 workers on two nodes
of two cores each, which share this machine's. Stores have to be the same. Writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from measure import machine
from superpose.data.prepare import Preparation, prepare_store
from superpose.data.readers import PYTHON_SOURCES, Source
from superpose.engine.jobs import Engine, Event, Job, Resources, without_records
from superpose.engine.ray import Ray
from superpose.runs.pool import Run, execute
from superpose.train.config import Recipe
from superpose.train.recipe_file import with_settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from checks.cluster import Cluster  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "engine.json"


class AtOnce(Engine):
    """Has done a job when it is submitted: a record, and a result."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def room(self, count: int, jobs: int = 0, on_gpu: bool = False) -> tuple[int, Resources]:
        return count, Resources()

    def call(self, work: Callable[..., Any], *arguments: Any, on_gpu: bool = False) -> Any:
        return work(*arguments)

    def submit(self, key: str, job: Job) -> None:
        self._events += [Event(key, "record", {"kind": "warning"}), Event(key, "done", {"val_loss": 1.0})]

    def heard(self) -> Event:
        return self._events.popleft()

    def cancel(self, *keys: str) -> None:
        pass


class Tasks(Ray):
    """Does nothing for a job, in a task of Ray's."""

    def submit(self, key: str, job: Job) -> None:
        nothing = Job.of(without_records, dict, {"val_loss": 1.0}, resources=job.resources, alone=False)
        super().submit(key, nothing)


def many(engine: Engine, count: int, folder: Path) -> dict[str, float]:
    """Seconds and peak memory, in bytes, of a driver that has so many runs done; its own part in processor seconds."""
    os.environ["SUPERPOSE_CACHE"] = str(folder / "cache")
    (folder / "text.txt").write_text("".join(f"{n}: a line of {n % 7}.\n\n" for n in range(4000)))
    preparation = Preparation((Source(str(folder / "text.txt")),), vocab_size=300, val_fraction=0.1)
    store = prepare_store(preparation, folder / "store", processes=1)
    recipe = with_settings(Recipe(), "train", precision="float32")
    runs = [Run("tst", with_settings(recipe, "train", seed=seed)) for seed in range(count)]
    heard = 0

    def listener(run: Run, record: dict[str, Any]) -> None:
        nonlocal heard
        heard += 1

    with engine:
        started, spent = time.monotonic(), time.process_time()
        outcomes = execute(runs, store, folder / "pool", engine, listener=listener)
        took, spent = time.monotonic() - started, time.process_time() - spent
    assert heard >= count
    assert all(outcome.result == {"val_loss": 1.0} for outcome in outcomes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"runs": count, "seconds": took, "processor_seconds": spent, "peak_memory": peak}


def preparation_on_nodes(address: str, megabytes: float, folder: Path) -> dict[str, Any]:
    """Megabytes of text a second by number of workers."""
    preparation = Preparation((Source(PYTHON_SOURCES),), tokenizer="bytes", max_bytes=megabytes * 1e6)

    def speed(name: str, processes: int, engine: Engine | None) -> tuple[float, str]:
        started = time.monotonic()
        store = prepare_store(preparation, folder / name, processes, engine=engine)
        took = time.monotonic() - started
        return store.train.bytes / 1e6 / took, json.dumps(store.manifest)

    local = {processes: speed(f"local-{processes}", processes, None) for processes in (1, 2)}
    with Ray(address) as engine:
        # The first task of each node starts its worker, which no later one waits for.
        speed("first", 4, engine)
        nodes = {processes: speed(f"nodes-{processes}", processes, engine) for processes in (1, 2, 4)}
    assert len({manifest for _, manifest in [*local.values(), *nodes.values()]}) == 1, "the stores differ"
    return {
        "megabytes": megabytes,
        "megabytes_per_second": {
            "local": {str(processes): rate for processes, (rate, _) in local.items()},
            "two_nodes": {str(processes): rate for processes, (rate, _) in nodes.items()},
        },
        "same_store": True,
    }


def pages(directory: Path, folder: Path) -> dict[str, float]:
    """Processor seconds for the two pages of a comparison, the second time each; what the report adds in bytes."""
    # Not for the other parts, whose memory is measured.
    from superpose.compare.comparison import Comparison
    from superpose.report.page import write_report

    comparison = Comparison.load(directory)

    def measured(write: Callable[[], Any]) -> float:
        write()
        spent = time.process_time()
        write()
        return time.process_time() - spent

    summary = measured(lambda: comparison.write_summary(folder, "now"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = measured(lambda: write_report([directory], folder / "report.html"))
    return {
        "runs": len(comparison.runs),
        "summary_seconds": summary,
        "report_seconds": report,
        "report_bytes": (folder / "report.html").stat().st_size,
        "report_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=10_000)
    arguments.add_argument("--megabytes", type=float, default=100)
    arguments.add_argument("--pages", type=Path, metavar="RUNS/NAME", help="of this comparison, and nothing else")
    arguments.add_argument("--only", choices=["driver", "ray", "prepare"], help="one part, in this process")
    options = arguments.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")])
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if options.pages:
            measured["pages"] = pages(options.pages, Path(place))
        elif options.only == "driver":
            measured["driver"] = many(AtOnce(), options.runs, Path(place))
        else:
            # Peaks are a process's: that of the driver alone is measured in one of its own.
            if options.only is None:
                subprocess.run([sys.executable, __file__, "--runs", str(options.runs), "--only", "driver"], check=True)
                saved = json.loads(RESULTS.read_text())
            with Cluster([2, 2]) as cluster:
                if options.only != "prepare":
                    measured["ray"] = many(Tasks(cluster.address), options.runs, Path(place))
                if options.only != "ray":
                    measured["prepare"] = preparation_on_nodes(cluster.address, options.megabytes, Path(place))
    known = {**saved, **measured, "machine": machine(), "command": "python benchmarks/engine.py"}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
