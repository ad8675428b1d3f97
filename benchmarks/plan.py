"""What `superpose plan` estimates beside what is measured: memory on a CPU, and the paper's Table 1.

    python benchmarks/plan.py

Memory: a few steps of `superpose train` in a process of its own, whose peak is held against the estimate made before;
models large enough that training is most of the process. Table 1: raw tokens and ratios of GPU hours, out of the
paper's recipes. Writes benchmarks/results/plan.json and the table of docs/planning.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from evidence import PAGE, filled
from measure import machine, refuse_arguments
from superpose.core.schedule import Schedule
from superpose.files import read_json, write_json, write_text
from superpose.paper.published import published_runs
from superpose.plan.evidence import LATENTS_PER_STEP
from superpose.plan.fit import request_of
from superpose.plan.memory import memory
from superpose.plan.model import facts
from superpose.results.tables import Row, Table
from superpose.train.recipe_file import load_recipe

HERE = Path(__file__).parent
RECIPE = "cpu-tiny"
WIDE = "{ hidden_size = 512, intermediate_size = 1408, num_hidden_layers = 8, num_attention_heads = 8 }"
FLAT = "{ hidden_size = 768, intermediate_size = 2048, num_hidden_layers = 4, num_attention_heads = 12 }"
CHECKPOINTED = "train.checkpoint_activations=true"
MODELS = {
    "wide, 8 rows of 256, checkpointed": (WIDE, 8, 256, (CHECKPOINTED,)),
    "flat, 8 rows of 512, checkpointed": (FLAT, 8, 512, (CHECKPOINTED,)),
    "wide, 8 rows of 256": (WIDE, 8, 256, ()),
    "wide, 16 rows of 512": (WIDE, 16, 512, ()),
    "wide, 16 rows of 512 in 4 parts": (WIDE, 16, 512, ("train.accumulate=4",)),
    "wide, 16 rows of 512, checkpointed": (WIDE, 16, 512, (CHECKPOINTED,)),
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
    request = request_of(recipe)
    estimated = memory(request, facts(request.config, request.latents))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "superpose", "train", RECIPE, "--out", str(out)]
        subprocess.run([*command, *(part for text in settings for part in ("--set", text))], check=True, text=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        measured = read_json(out / "result.json")["peak_memory"]
    return {"estimated": estimated.peak, "measured": measured, "ratio": estimated.peak / measured}


def main() -> None:
    refuse_arguments(__doc__)
    results = {}
    for name, (config, rows, latents, more) in MODELS.items():
        results[name] = measure(config, rows, latents, more)
        found = results[name]
        print(
            f"{name}: estimated {found['estimated'] / 2**30:.2f} GiB, measured {found['measured'] / 2**30:.2f} GiB, "
            f"ratio {found['ratio']:.3f}",
            flush=True,
        )
    runs = [asdict(run) for run in table1()]
    write_json(HERE / "results" / "plan.json", {"machine": machine(), "memory": results, "table1": runs})
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), {"memory": memory_table(results)}))


def memory_table(results: dict[str, dict[str, float]]) -> Table:
    rows: list[Row] = [
        (name, f"{found['estimated'] / 2**30:.2f}", f"{found['measured'] / 2**30:.2f}", f"{found['ratio']:.2f}")
        for name, found in results.items()
    ]
    return "Memory", ("run", "estimated", "measured", "ratio"), rows


@dataclass(frozen=True)
class Counted:
    """A run of the paper's Table 1 (arXiv 2605.06546), out of its recipe.

    Attributes:
        raw_tokens, published_tokens: counted here, and in the paper (rounded there).
        hours_ratio, published_ratio: of GPU hours, to the ordinary run of the fewest steps of its model. Ours is that
            of FLOPs, and so of latents.
    """

    model: str
    steps: int
    bag_size: int | None
    raw_tokens: float
    published_tokens: float
    hours_ratio: float
    published_ratio: float


def table1() -> list[Counted]:
    """All runs of the table but the re-initialised one, which costs what its twin does."""
    runs, counted = published_runs(), []
    for run in runs:
        batch = LATENTS_PER_STEP * (4 if run.params == "10B-A1B" else 1)
        first = min((r for r in runs if (r.params, r.bag_size) == (run.params, None)), key=lambda r: r.steps)
        schedule = Schedule(run.steps)
        if run.bag_size is not None:
            schedule = Schedule(run.steps, run.bag_size, run.tst_steps / run.steps)
        counted.append(
            Counted(
                run.params,
                run.steps,
                run.bag_size,
                schedule.raw_tokens(batch),
                run.tokens,
                run.steps / first.steps,
                run.hours / first.hours,
            )
        )
    return counted


if __name__ == "__main__":
    main()
