"""What `superpose plan` estimates beside what is measured: memory on a CPU, and the paper's Table 1.

    python benchmarks/plan.py

Memory: a few steps of `superpose train` in a process of its own, whose peak is held against the estimate made before;
models large enough that training is most of the process. Table 1: raw tokens and ratios of GPU hours, out of the
paper's recipes. Writes benchmarks/results/plan.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import machine
from superpose.files import read_json, write_json
from superpose.plan.request import memory_of
from superpose.plan.table1 import table1
from superpose.train.config import load_recipe

HERE = Path(__file__).parent
RECIPE = "cpu-tiny"
WIDE = "{ hidden_size = 512, intermediate_size = 1408, num_hidden_layers = 8, num_attention_heads = 8 }"
FLAT = "{ hidden_size = 768, intermediate_size = 2048, num_hidden_layers = 4, num_attention_heads = 12 }"
MODELS = {
    "wide, 8 rows of 256": (WIDE, 8, 256, ()),
    "wide, 16 rows of 512": (WIDE, 16, 512, ()),
    "wide, 16 rows of 512 in 4 parts": (WIDE, 16, 512, ("train.accumulate=4",)),
    "wide, 16 rows of 512, checkpointed": (WIDE, 16, 512, ("train.checkpoint_activations=true",)),
    "wide, 16 rows of 512, bfloat16": (WIDE, 16, 512, ("train.precision='bfloat16'",)),
    "flat, 8 rows of 512": (FLAT, 8, 512, ()),
    "flat, 8 rows of 512, Muon": (FLAT, 8, 512, ("train.optimizer='muon'",)),
}


def measure(config: str, rows: int, latents: int, more: tuple[str, ...]) -> dict[str, float]:
    settings = [
        "data.max_megabytes=8",
        "data.vocab_size=8192",
        "data.val_megabytes=0.05",
        f"model.config={config}",
        f"train.batch_size={rows}",
        f"train.latents={latents}",
        "train.steps=4",
        "train.warmup_steps=1",
        "train.eval_every=4",
        "train.precision='float32'",
        "superposition.ratio=0.5",
        *more,
    ]
    recipe = load_recipe(RECIPE, settings)
    estimated = memory_of(recipe)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "superpose", "train", RECIPE, "--out", str(out)]
        subprocess.run([*command, *(part for text in settings for part in ("--set", text))], check=True, text=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        measured = read_json(out / "result.json")["peak_memory"]
    return {"estimated": estimated.peak, "measured": measured, "ratio": estimated.peak / measured}


def main() -> None:
    results = {}
    for name, (config, rows, latents, more) in MODELS.items():
        results[name] = measure(config, rows, latents, more)
        found = results[name]
        print(
            f"{name}: estimated {found['estimated'] / 2**30:.2f} GiB, measured {found['measured'] / 2**30:.2f} GiB, "
            f"ratio {found['ratio']:.3f}",
            flush=True,
        )
    rows_of_table = [row.__dict__ for row in table1()]
    for row in rows_of_table:
        print(json.dumps(row))
    write_json(HERE / "results" / "plan.json", {"machine": machine(), "memory": results, "table1": rows_of_table})


if __name__ == "__main__":
    main()
