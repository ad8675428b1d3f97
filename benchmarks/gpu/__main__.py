"""Runs the parts in turn, each within its share of the minutes."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu import correct, losses, sharded, steps, training
from gpu.bench import Bench
from superpose.files import write_json

Part = Callable[[Bench, Any], dict[str, Any]]
PARTS: dict[str, Part] = {
    "device": lambda bench, _: bench.facts(),
    "correctness": lambda bench, _: correct.check(bench),
    "passes": lambda bench, _: losses.measure_passes(bench),
    "steps": lambda bench, _: steps.measure(bench, bench.left / 3),
    "losses": lambda bench, _: losses.measure_losses(bench, bench.left / 5),
    "sharded": lambda bench, _: sharded.measure(bench),
    "training": lambda bench, text: training.measure(bench, text),
}
"""In this order, each with a share of the time that is left; training has the rest."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder for gpu.json")
    target.add_argument("--page", type=Path, help="writes docs/gpu.md from this gpu.json, and measures nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--parts", help="only these, with commas between")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU")
    arguments = parser.parse_args()
    if arguments.page is not None:
        from gpu import page  # which needs more of superpose than its core

        page.write(arguments.page)
        return 0
    if not arguments.small and not torch.cuda.is_available():
        print("there is no GPU that this PyTorch can use; --small tries the script out on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.small else "cuda")
    bench = Bench(device, arguments.small, time.monotonic() + 60 * arguments.minutes)
    chosen = list(PARTS) if arguments.parts is None else arguments.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is no part; choose of {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"minutes": arguments.minutes, "small": arguments.small}
    text = training.Text(bench) if "training" in chosen else None
    try:
        for name in chosen:
            results[name] = run(name, bench, text)
            write_json(arguments.out / "gpu.json", results)
            show(name, results[name])
    finally:
        if text is not None:
            text.close()
    failed = [name for name in chosen if "failed" in results[name] or results[name].get("right") is False]
    print(f"failed: {', '.join(failed)}" if failed else "all parts ended, all that was checked is right")
    return 1 if failed else 0


def run(name: str, bench: Bench, text: training.Text | None) -> dict[str, Any]:
    """What a part found, or the sentence of its failure, and how long it took."""
    started = time.monotonic()
    try:
        result = PARTS[name](bench, text)
    except Exception as error:  # the others go on
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return result | {"took_seconds": round(time.monotonic() - started, 1)}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"== {name}")
    for key, value in result.items():
        for row in value if isinstance(value, list) else [value]:
            print(f"{key}: {' '.join(map(_short, row.values())) if isinstance(row, dict) else row}")
    sys.stdout.flush()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
