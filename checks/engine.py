"""Kills workers, nodes and drivers of a comparison on a Ray cluster, and shows that it ends with the same result.

    python checks/engine.py 50      # so many kills in all; those of earlier calls count

A comparison of 12 short runs is made once in processes of this machine. Then it is made again and again on a cluster of
this machine, a head without cores and two nodes of one core each, while at random moments one of three things is killed
(SIGKILL): a process of a run or Ray's of one, all processes of a node, for which another comes, or the driver, which is
started again with the same command. At the end comparison.json has to be the same but for what was measured in time
and memory, and so have the weights of every run, to the bit.

Counts are written to benchmarks/results/engine.json after each comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from checks.cluster import Cluster, processes_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
KINDS = ("worker", "node", "driver")
MEASURED = {"seconds", "mfu", "peak_memory", "energy", "compile_seconds", "raw_tokens_per_second", "latents_per_second"}
"""What a result says of time and memory."""
SETTINGS = {
    "data.vocab_size": 300,
    "data.val_fraction": 0.1,
    "data.val_megabytes": 0.01,
    "model.config.hidden_size": 16,
    "model.config.intermediate_size": 32,
    "model.config.num_hidden_layers": 1,
    "model.config.num_attention_heads": 2,
    "train.batch_size": 4,
    "train.latents": 16,
    "train.warmup_steps": 10,
    "train.log_every": 10,
    "train.eval_every": 100,
    "train.checkpoint_every": 10,
    "train.precision": "float32",
    "train.track": [],
}
OPTIONS = ["--steps", "150", "--budgets", "200", "--seeds", "1,2,3", "--name", "killed", "--cores-per-run", "1"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kills", type=int, nargs="?", default=50)
    options = arguments.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["SUPERPOSE_CACHE"] = str(place / "cache")
        text = "".join(f"{n}: the {n % 7} of {n * n % 11} is {n % 10}.\n" + "\n" * (n % 5 == 0) for n in range(20_000))
        (place / "text.txt").write_text(text)
        began = time.monotonic()
        if compare(place, place / "alone").wait():
            sys.exit(f"the comparison that was left alone failed: {(place / 'alone.log').read_text()}")
        alone = time.monotonic() - began
        while (counts := known_counts())["kills"] < options.kills:
            # Every comparison is another, and the same if it is made again.
            chance = random.Random(counts["comparisons"])
            with Cluster([0, 1, 1]) as cluster:
                killed = disturbed(place, cluster, chance, alone, options.kills - counts["kills"])
            differences = list(different(place / "alone", place / "disturbed"))
            counts = added(counts, killed, differences)
            print(f"{counts['kills']} kills {counts['by_kind']}; {differences or 'the same'}", flush=True)
            shutil.rmtree(place / "disturbed")
            if differences:
                sys.exit(1)
    print(f"{counts['same']} of {counts['comparisons']} comparisons with {counts['kills']} kills ended the same")


def compare(place: Path, runs: Path, *engine: str) -> subprocess.Popen[bytes]:
    """The command under way; what it says goes into a file beside its runs."""
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "superpose", "compare", "cpu-tiny", "--corpus", str(place / "text.txt"), *OPTIONS]
    with runs.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*command, *settings, "--runs", str(runs), *engine], stdout=log, stderr=log)


def disturbed(place: Path, cluster: Cluster, chance: random.Random, alone: float, most: int) -> list[str]:
    """Makes the comparison, which takes so many seconds if left alone, while things are killed; returns what was."""
    runs, killed = place / "disturbed", list[str]()
    os.environ["RAY_ADDRESS"] = cluster.address
    driver = compare(place, runs, "--engine", "ray")
    while True:
        try:
            if code := driver.wait(chance.uniform(0.1, 0.6) * alone if len(killed) < most else None):
                sys.exit(f"the comparison failed with {code} after {killed}: {runs.with_suffix('.log').read_text()}")
            return killed
        except subprocess.TimeoutExpired:
            pass
        kind = chance.choice(KINDS)
        if kind == "driver":
            driver.kill()
            driver.wait()
            driver = compare(place, runs, "--engine", "ray")
        elif kind == "node":
            cluster.kill(chance.choice(range(1, len(cluster.nodes))))
            cluster.add(1)
        elif victims := list(workers(cluster)):
            os.kill(chance.choice(victims), signal.SIGKILL)
        else:
            continue  # no run is under way
        killed.append(kind)


def workers(cluster: Cluster) -> Iterator[int]:
    """Ray's processes that have a run to do, and those of the runs."""
    for node in cluster.nodes[1:]:
        for process in processes_of(node):
            try:
                command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if command.startswith(b"ray::_alone") or b"multiprocessing.forkserver" in command:
                yield process


def different(one: Path, other: Path) -> Iterator[str]:
    """What two comparisons differ in besides measured times and memory."""
    ours, theirs = (json.loads((runs / "killed" / "comparison.json").read_text()) for runs in (one, other))
    if computed(ours) != computed(theirs):
        yield "comparison.json"
    for path in sorted(one.glob("pool/*/model/model.safetensors")):
        mine, its = load_file(path), load_file(other / path.relative_to(one))
        if any(not torch.equal(mine[name], its[name]) for name in mine | its):
            yield f"the weights of {path.parts[-3]}"


def computed(value: Any) -> Any:
    """A result without what was measured."""
    if isinstance(value, dict):
        return {name: computed(part) for name, part in value.items() if name not in MEASURED}
    return [computed(part) for part in value] if isinstance(value, list) else value


def known_counts() -> dict[str, Any]:
    none = {"comparisons": 0, "same": 0, "kills": 0, "by_kind": dict.fromkeys(KINDS, 0)}
    saved: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return dict(saved.get("kills", none))


def added(counts: dict[str, Any], killed: list[str], differences: list[str]) -> dict[str, Any]:
    """The counts with those of another comparison, saved."""
    counts = {
        "comparisons": counts["comparisons"] + 1,
        "same": counts["same"] + (not differences),
        "kills": counts["kills"] + len(killed),
        "by_kind": {kind: counts["by_kind"][kind] + killed.count(kind) for kind in KINDS},
        "command": "python checks/engine.py 50",
    }
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**saved, "kills": counts}, indent=1) + "\n")
    return counts


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
