"""How the benchmarks measure: times side by side in one process, peak memory each in a process of its own."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def refuse_arguments(description: str) -> None:
    """For scripts without options: --help prints what the script does, and nothing that is typed is ignored."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=description, formatter_class=form).parse_args()


def interleaved(
    arms: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Least seconds of each arm over rounds of all arms, after one round that does not count.

    Other work on the machine only ever adds time, and in rounds it hits all arms alike. Of work on one thread
    `time.thread_time` does not count the time that others had the core.
    """
    least = dict.fromkeys(arms, float("inf"))
    for number in range(rounds + 1):
        for name, run in arms.items():
            started = clock()
            run()
            seconds = clock() - started
            if number > 0:
                least[name] = min(least[name], seconds)
    return least


def peak_memory(script: str, *arguments: str) -> float:
    """Peak resident memory in MB of `python script arguments...`, which must end with `print_peak_memory()`."""
    # Above 1 MB memory goes back when it is freed, so that the peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, script, *arguments], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout.split()[-1])


def print_peak_memory() -> None:
    """Not ru_maxrss, which a process inherits from the one that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(int(found[1]) / 1024)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "avx512_bf16": bool(capabilities.get("avx512_bf16")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
