"""Runs the parts in turn, each within its share of the minutes."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu import correct, losses
from gpu.bench import Bench
from superpose.files import write_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--parts", help="only these, with commas between")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        print("there is no GPU that this PyTorch can use; --small tries the script out on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.small else "cuda")
    bench = Bench(device, arguments.small, time.monotonic() + 60 * arguments.minutes)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "device": bench.facts,
        "correctness": lambda: correct.check(bench),
        "passes": lambda: losses.measure_passes(bench),
        "losses": lambda: losses.measure_losses(bench, 60 * arguments.minutes / 4),
    }
    chosen = list(parts) if arguments.parts is None else arguments.parts.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is no part; choose of {', '.join(parts)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"minutes": arguments.minutes, "small": arguments.small}
    for name in chosen:
        started = time.monotonic()
        try:
            results[name] = parts[name]()
        except Exception as error:  # the others go on
            traceback.print_exc()
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        results[name]["took_seconds"] = round(time.monotonic() - started, 1)
        write_json(arguments.out / "gpu.json", results)
        print(f"== {name}: {results[name]['took_seconds']} s", flush=True)
        show(name, results[name])
    failed = [name for name in chosen if "failed" in results[name] or results[name].get("right") is False]
    print(f"failed: {', '.join(failed)}" if failed else "all parts ended, all that was checked is right")
    return 1 if failed else 0


def show(name: str, result: dict[str, Any]) -> None:
    rows = next((value for value in result.values() if isinstance(value, list)), None)
    if rows is None:
        print(json.dumps(result))
        return
    for key, value in result.items():
        for row in value if isinstance(value, list) else [value]:
            print(f"{key}: {row if isinstance(row, (str, int, float)) else ' '.join(map(_short, row.values()))}")
    sys.stdout.flush()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
