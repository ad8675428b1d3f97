"""Feeds damaged, hostile and random input to all that superpose reads, and counts what comes of it.

    python -m checks.fuzz                           all targets, some 14,500 inputs; writes results/fuzz.json
    python -m checks.fuzz --target recipe --only 17 one input again, with its traceback

Ends with exit code 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from checks.fuzz.judging import watch_files
from checks.fuzz.samples import ROOT, Samples
from checks.fuzz.targets import TARGETS, judge_input
from superpose.files import read_json, write_json

RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"

SECONDS = 10
"""An input that takes more of a processor's time hangs; one that waits for anything ends a dozen times as late."""
MEMORY = 3 * 2**30
"""Bytes an input's reading may map beyond what the process has at its start."""


class HangError(BaseException):
    """An input took longer than `SECONDS`."""


def _hangs(number: int, frame: FrameType | None) -> None:
    raise HangError(f"after {SECONDS} s")


def run_inputs(target: str, seeds: Sequence[int], samples: Samples, folder: Path, log: Path) -> None:
    """What the process of a target does: an outcome a line, under limits of time and memory."""
    watch_files()
    torch.set_num_threads(1)
    judge_input(target, -1, samples, folder)  # loads all that is loaded once
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _hangs)
    with log.open("a", encoding="utf-8") as file:
        for seed in seeds:
            print(json.dumps({"seed": seed}), file=file, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
            outcome, said = judge_input(target, seed, samples, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"seed": seed, "outcome": outcome, "said": said}), file=file, flush=True)


def sweep(target: str, seeds: range, samples: Samples, folder: Path) -> list[dict[str, Any]]:
    """All outcomes of a target; a process that dies is a finding, and another goes on after it."""
    folder.mkdir()
    log = folder / "log.jsonl"
    log.touch()
    start = seeds.start
    command = [sys.executable, "-m", "checks.fuzz", "--samples", str(samples.folder.resolve()), "--target", target]
    while start < seeds.stop:
        done = subprocess.run(
            [
                *command,
                "--log",
                log,
                "--work",
                folder / "work",
                "--start",
                str(start),
                "--count",
                str(seeds.stop - start),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if not lines:
            raise RuntimeError(done.stderr)
        if "outcome" not in lines[-1]:
            lines[-1] |= {"outcome": "finding", "said": f"the process died ({done.returncode}): {done.stderr[-1500:]}"}
            log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        start = lines[-1]["seed"] + 1
    return [line for line in lines if "outcome" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, help="one alone")
    parser.add_argument("--only", type=int, help="this input of --target alone")
    parser.add_argument("--start", type=int, default=0, help="first input")
    parser.add_argument("--count", type=int, help="inputs of each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--samples", type=Path, help="valid samples of an earlier sweep; made if not there")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.log is not None:
        seeds = range(options.start, options.start + options.count)
        run_inputs(options.target, seeds, Samples(options.samples), options.work, options.log)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = options.samples or folder / "samples"
        samples = Samples(place) if place.exists() else Samples.make(place)
        if options.only is not None:
            watch_files()
            print(*judge_input(options.target, options.only, samples, folder / "work"))
            return
        table, findings = {}, []
        targets = [options.target] if options.target else list(TARGETS)

        def swept(target: str) -> list[dict[str, Any]]:
            count = options.count or TARGETS[target][1]
            return sweep(target, range(options.start, options.start + count), samples, folder / target)

        with ThreadPoolExecutor(options.jobs) as pool:
            all_outcomes = list(pool.map(swept, targets))
        for target, outcomes in zip(targets, all_outcomes, strict=True):
            table[target] = Counter(line["outcome"] for line in outcomes)
            print(f"{target:16} {len(outcomes):6,} inputs  {dict(sorted(table[target].items()))}", flush=True)
            for line in outcomes:
                if line["outcome"] == "finding":
                    findings.append(line)
                    print(f"--- {target} {line['seed']}: {line['said'][-2000:]}", flush=True)
    if options.count is None and options.start == 0:
        kinds = ("accepted", "refused", "finding")
        known = read_json(RESULTS) if RESULTS.exists() else {}
        known |= {target: {kind: counts[kind] for kind in kinds} for target, counts in table.items()}
        write_json(RESULTS, {target: known[target] for target in TARGETS if target in known})
    print(f"{sum(sum(counts.values()) for counts in table.values()):,} inputs, {len(findings)} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
