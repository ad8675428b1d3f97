"""Training speed of superpose, Hugging Face Trainer and litgpt: the same Llama, batch, data and optimizer on this CPU.

    python -m venv other
    other/bin/pip install torch==2.13.0 litgpt==0.5.13 transformers==5.23.0 accelerate==1.15.0 requests
    python benchmarks/trainer.py --other other/bin/python

Each trainer runs as a user starts it, in a process of its own, on all cores; processes take turns, and the time of a
step is the median between the moments at which its batches are taken from the data, without the first ones. litgpt
always compiles its model; the others are run with compilation and without. Everybody does ordinary training: float32,
AdamW, clipping, a checkpoint at the end. superpose's superposition steps (s 4) are timed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

# Runs with the other environment's Python too: superpose is imported where it is timed.
RESULTS = Path(__file__).parent / "results" / "trainer.json"
MODEL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCAB_SIZE, ROWS, LATENTS = 16_384, 4, 256
STEPS, SKIPPED = 20, 6
OTHERS = ("Trainer", "Trainer, compiled", "litgpt, compiled")
OURS = ("superpose", "superpose, compiled", "superpose, s 4", "superpose, s 4, compiled")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--other", default=sys.executable, help="a Python that has litgpt and accelerate")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--arm", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.arm:
        times: list[float] = []
        {"superpose": superpose, "Trainer": trainer, "litgpt": litgpt}[options.arm.split(",")[0]](
            options.arm, options.folder, times
        )
        steps = [after - before for before, after in zip(times[SKIPPED:], times[SKIPPED + 1 :], strict=False)]
        print("seconds", statistics.median(steps))
        return

    from measure import machine

    seconds: dict[str, list[float]] = {arm: [] for arm in (*OURS, *OTHERS)}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SUPERPOSE_CACHE"] = str(Path(folder, "cache"))
        for turn in range(options.rounds):
            for arm, found in seconds.items():
                python = options.other if arm in OTHERS else sys.executable
                place = Path(folder, f"{turn}-{arm}")
                place.mkdir()
                command = [python, __file__, "--arm", arm, "--folder", str(place)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=place)
                if done.returncode:
                    sys.exit(f"{arm}: {done.stderr[-2000:]}")
                found.append(float(done.stdout.split("seconds")[-1]))
                print(f"round {turn + 1}: {arm}: {ROWS * LATENTS / found[-1]:,.0f} latents/s", flush=True)
    best = {arm: min(found) for arm, found in seconds.items()}
    result: dict[str, Any] = {
        "machine": machine(),
        "setting": {"model": MODEL, "vocab_size": VOCAB_SIZE, "rows": ROWS, "latents": LATENTS, "steps": STEPS},
        "tokens_per_second": {arm: ROWS * LATENTS / least for arm, least in best.items()},
        "superpose_over": {
            other: best[other] / best["superpose, compiled" if "compiled" in other else "superpose"] for other in OTHERS
        },
        "superposition_step_over_recovery_step": {
            end: best[f"superpose, s 4{end}"] / best[f"superpose{end}"] for end in ("", ", compiled")
        },
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


class Rows(IterableDataset[Any]):
    """Rows [LATENTS + 1] of random ids, noting when a batch's first row is taken."""

    def __init__(self, times: list[float], named: bool) -> None:
        self.times, self.named = times, named

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, VOCAB_SIZE, (64 * ROWS, LATENTS + 1), generator=generator)
        for number in range(STEPS * ROWS + 4 * ROWS):
            if number % ROWS == 0:
                self.times.append(time.perf_counter())
            row = rows[number % len(rows)]
            # transformers' models shift labels themselves.
            yield {"input_ids": row[:-1], "labels": row[:-1]} if self.named else row


def superpose(arm: str, folder: Path, times: list[float]) -> None:
    import numpy as np

    from superpose.data.config import prepare
    from superpose.train import loop
    from superpose.train.config import Recipe

    ids = np.random.default_rng(0).integers(0, 255, 3_000_000, dtype=np.uint8)
    text = np.where(np.arange(len(ids)) % 500 < 2, 10, 32 + ids % 90).astype(np.uint8)  # documents end at blank lines
    (folder / "text.txt").write_bytes(text.tobytes())
    bag_size = 4 if "s 4" in arm else 1
    recipe = Recipe.model_validate(
        {
            "data": {"corpus": str(folder / "text.txt"), "tokenizer": "bytes", "val_megabytes": 0.001},
            "model": {"config": {**MODEL, "tie_word_embeddings": False}},
            "superposition": {"bag_size": bag_size, "ratio": 1.0 if bag_size > 1 else 0.0},
            "train": {
                "steps": STEPS,
                "batch_size": ROWS,
                "latents": LATENTS,
                "warmup_steps": 1,
                "precision": "float32",
                "compile": "compiled" in arm,
                "track": [],
            },
        }
    )
    store = prepare(recipe.data)
    # As large a vocabulary as the others'; bytes are its first entries.
    store.manifest["vocab_size"] = VOCAB_SIZE
    # Called by the loop for each step; looked at from outside, as the data loaders of the others are.
    step = vars(loop)["optimizer_step"]

    def timed(*parts: Any) -> Any:
        times.append(time.perf_counter())
        return step(*parts)

    vars(loop)["optimizer_step"] = timed
    loop.train(recipe, store, folder / "run")


def trainer(arm: str, folder: Path, times: list[float]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    config = AutoConfig.for_model(
        "llama", vocab_size=VOCAB_SIZE, max_position_embeddings=LATENTS, tie_word_embeddings=False, **MODEL
    )
    settings = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        use_cpu=True,
        learning_rate=2e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        torch_compile="compiled" in arm,
        dataloader_pin_memory=False,
    )
    HuggingFaceTrainer(
        AutoModelForCausalLM.from_config(config), settings, train_dataset=Rows(times, named=True)
    ).train()


def litgpt(arm: str, folder: Path, times: list[float]) -> None:
    from litgpt import Config
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    class Data(DataModule):  # type: ignore[misc]
        def connect(self, *args: Any, **settings: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(Rows(times, named=False), batch_size=ROWS)

        def val_dataloader(self) -> Any:
            return DataLoader(Rows([], named=False), batch_size=ROWS)

    sys.argv = [sys.argv[0], "same"]  # litgpt reads its own settings from there
    setup(
        "same",
        model_config=Config(
            name="same",
            block_size=LATENTS,
            vocab_size=VOCAB_SIZE,
            padded_vocab_size=VOCAB_SIZE,
            n_layer=MODEL["num_hidden_layers"],
            n_head=MODEL["num_attention_heads"],
            n_embd=MODEL["hidden_size"],
            intermediate_size=MODEL["intermediate_size"],
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        ),
        out_dir=folder / "run",
        precision="32-true",
        devices=1,
        data=Data(),
        train=TrainArgs(
            save_interval=None,
            log_interval=10,
            global_batch_size=ROWS,
            micro_batch_size=ROWS,
            lr_warmup_steps=1,
            max_tokens=STEPS * ROWS * LATENTS,
            max_norm=1.0,
            min_lr=0.0,
        ),
        eval=EvalArgs(interval=10_000, max_iters=1, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 2e-3, "weight_decay": 0.1, "betas": [0.9, 0.95]},
        },
        logger_name="csv",
    )


if __name__ == "__main__":
    main()
