"""Training speed of superpose, Hugging Face Trainer and litgpt: the same Llama, batch, data and optimizer on this CPU.

    python -m venv other
    other/bin/pip install torch==2.13.0 litgpt==0.5.13 transformers==5.23.0 accelerate==1.15.0 requests
    python benchmarks/trainer.py --other other/bin/python

Each trainer runs as a user starts it, in a process of its own, on one thread; processes take turns, and a step is the
process' CPU time between the moments at which its batches are taken from the data: the median, without the first ones.
litgpt always compiles its model; the others are run with compilation and without. Everybody does ordinary training in
float32 or under bfloat16 autocast: AdamW, clipping, a checkpoint at the end. superpose's superposition steps (s 4) are
timed beside it. `--setting`, `--arms` and `--rounds` measure a part, which replaces that of the results.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset

# Runs with the other environment's Python too: superpose is imported where it is timed.
RESULTS = Path(__file__).parent / "results" / "trainer.json"
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
GPT2 = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}


@dataclass(frozen=True)
class Setting:
    """What everybody trains; of `steps` the first `skipped` are not counted."""

    model: dict[str, int]
    vocab_size: int
    rows: int
    latents: int
    precision: Literal["float32", "bfloat16"]
    steps: int = 20
    skipped: int = 6


SETTINGS = {
    "small, float32": Setting(SMALL, 16_384, 4, 256, "float32"),
    "small, bfloat16": Setting(SMALL, 16_384, 4, 256, "bfloat16"),
    "GPT-2's shape, bfloat16": Setting(GPT2, 50_304, 2, 512, "bfloat16", steps=6, skipped=2),
}
OTHERS = ("Trainer", "Trainer, compiled", "litgpt, compiled")
OURS = ("superpose", "superpose, compiled", "superpose, s 4", "superpose, s 4, compiled")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--other", default=sys.executable, help="a Python that has litgpt and accelerate")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--setting", choices=SETTINGS, action="append")
    arguments.add_argument("--arms", choices=(*OURS, *OTHERS), action="append")
    arguments.add_argument("--arm", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.arm:
        setting = SETTINGS[options.setting[0]]
        times: list[float] = []
        torch.set_num_threads(1)
        {"superpose": superpose, "Trainer": trainer, "litgpt": litgpt}[options.arm.split(",")[0]](
            options.arm, setting, options.folder, times
        )
        counted = times[setting.skipped :]
        print("seconds", statistics.median(after - before for before, after in itertools.pairwise(counted)))
        return

    from measure import machine

    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()).get("settings", {}) if RESULTS.exists() else {}
    for name in options.setting or SETTINGS:
        results[name] = {"machine": machine(), **measured(name, options)}
        print(json.dumps(results[name], indent=1))
        clock = "CPU time of a process on one thread"
        RESULTS.write_text(json.dumps({"clock": clock, "settings": results}, indent=1) + "\n")


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All arms of a setting in turns: latents per second and what they are to each other."""
    setting = SETTINGS[name]
    seconds: dict[str, list[float]] = {arm: [] for arm in options.arms or (*OURS, *OTHERS)}
    latents = setting.rows * setting.latents
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SUPERPOSE_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": "1"}
        for turn in range(options.rounds):
            for arm, found in seconds.items():
                python = options.other if arm in OTHERS else sys.executable
                place = Path(folder, f"{turn}-{arm}")
                place.mkdir()
                command = [python, __file__, "--arm", arm, "--folder", str(place), "--setting", name]
                done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
                if done.returncode:
                    sys.exit(f"{arm}: {done.stderr[-2000:]}")
                found.append(float(done.stdout.split("seconds")[-1]))
                print(f"{name}, round {turn + 1}: {arm}: {latents / found[-1]:,.0f} latents/s", flush=True)
                shutil.rmtree(place)
    best = {arm: min(found) for arm, found in seconds.items()}
    ours = {other: "superpose, compiled" if "compiled" in other else "superpose" for other in OTHERS}
    bags = {f"superpose, s 4{end}": f"superpose{end}" for end in ("", ", compiled")}
    return {
        "setting": asdict(setting),
        "latents_per_second": {arm: latents / least for arm, least in best.items()},
        "superpose_over": {o: best[o] / best[our] for o, our in ours.items() if {o, our} <= best.keys()},
        "superposition_step_over_recovery_step": {
            bag: best[bag] / best[single] for bag, single in bags.items() if {bag, single} <= best.keys()
        },
    }


class Rows(IterableDataset[Any]):
    """Rows [latents + 1] of random ids, noting when a batch's first row is taken."""

    def __init__(self, setting: Setting, times: list[float], named: bool) -> None:
        self.setting, self.times, self.named = setting, times, named

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        of = self.setting
        rows = torch.randint(0, of.vocab_size, (64 * of.rows, of.latents + 1), generator=generator)
        for number in range(of.steps * of.rows + 4 * of.rows):
            if number % of.rows == 0:
                self.times.append(time.process_time())
            row = rows[number % len(rows)]
            # transformers' models shift labels themselves.
            yield {"input_ids": row[:-1], "labels": row[:-1]} if self.named else row


def superpose(arm: str, setting: Setting, folder: Path, times: list[float]) -> None:
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
            "model": {"config": {**setting.model, "tie_word_embeddings": False}},
            "superposition": {"bag_size": bag_size, "ratio": 1.0 if bag_size > 1 else 0.0},
            "train": {
                "steps": setting.steps,
                "batch_size": setting.rows,
                "latents": setting.latents,
                "warmup_steps": 1,
                "precision": setting.precision,
                "threads": 1,
                "compile": "compiled" in arm,
                "track": [],
            },
        }
    )
    store = prepare(recipe.data)
    # As large a vocabulary as the others'; bytes are its first entries.
    store.manifest["vocab_size"] = setting.vocab_size
    # Called by the loop for each step; looked at from outside, as the data loaders of the others are.
    step = vars(loop)["optimizer_step"]

    def timed(*parts: Any) -> Any:
        times.append(time.process_time())
        return step(*parts)

    vars(loop)["optimizer_step"] = timed
    loop.train(recipe, store, folder / "run")


def trainer(arm: str, setting: Setting, folder: Path, times: list[float]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    config = AutoConfig.for_model(
        "llama",
        vocab_size=setting.vocab_size,
        max_position_embeddings=setting.latents,
        tie_word_embeddings=False,
        **setting.model,
    )
    settings = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=setting.steps,
        per_device_train_batch_size=setting.rows,
        bf16=setting.precision == "bfloat16",
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
        AutoModelForCausalLM.from_config(config), settings, train_dataset=Rows(setting, times, named=True)
    ).train()


def litgpt(arm: str, setting: Setting, folder: Path, times: list[float]) -> None:
    from litgpt import Config
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    class Data(DataModule):  # type: ignore[misc]
        def connect(self, *args: Any, **settings: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(Rows(setting, times, named=False), batch_size=setting.rows)

        def val_dataloader(self) -> Any:
            return DataLoader(Rows(setting, [], named=False), batch_size=setting.rows)

    sys.argv = [sys.argv[0], "same"]  # litgpt reads its own settings from there
    setup(
        "same",
        model_config=Config(
            name="same",
            block_size=setting.latents,
            vocab_size=setting.vocab_size,
            padded_vocab_size=setting.vocab_size,
            n_layer=setting.model["num_hidden_layers"],
            n_head=setting.model["num_attention_heads"],
            n_embd=setting.model["hidden_size"],
            intermediate_size=setting.model["intermediate_size"],
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        ),
        out_dir=folder / "run",
        precision="bf16-mixed" if setting.precision == "bfloat16" else "32-true",
        devices=1,
        data=Data(),
        train=TrainArgs(
            save_interval=None,
            log_interval=10,
            global_batch_size=setting.rows,
            micro_batch_size=setting.rows,
            lr_warmup_steps=1,
            max_tokens=setting.steps * setting.rows * setting.latents,
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
