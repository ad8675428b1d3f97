"""Kills training at random moments and shows that it ends with the same bits all the same.

    python checks/crash.py                 # 100 kills of a run on one process
    python checks/crash.py 20 --ranks 2    # of one of two ranks; the other has to notice and end by itself

One run is left alone. Then the same run is killed (SIGKILL) after a random time, resumed, killed again, until it gets
to its end; there its weights are compared with those of the first, and another run begins. Checkpoints are written
every other step, so that many kills fall into the writing of one: they leave a hidden directory behind, and are
counted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from superpose.data.config import prepare
from superpose.data.store import TokenStore
from superpose.train.config import Recipe
from superpose.train.loop import train

STEPS = 40


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("kills", type=int, nargs="?", default=100)
    arguments.add_argument("--ranks", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["SUPERPOSE_CACHE"] = str(place / "cache")
        recipe = _recipe(place)
        finish([fork(lambda: prepare(recipe.data))])
        store = next((place / "cache" / "stores").iterdir())
        started = time.monotonic()
        finish(start(recipe, store, place / "whole", options.ranks))
        alone = time.monotonic() - started
        expected = load_file(place / "whole" / "model" / "model.safetensors")
        kills = writing = good = since = 0
        while kills < options.kills:
            run = place / "killed"
            shutil.rmtree(run, ignore_errors=True)
            since = kills
            while not (run / "result.json").exists():
                processes = start(recipe, store, run, options.ranks)
                ended = kills < options.kills and wait(processes, chance.uniform(0, 1.2 * alone))
                if kills == options.kills:
                    finish(processes)
                elif not ended:
                    os.kill(chance.choice(processes), signal.SIGKILL)
                    for process in processes:
                        os.waitpid(process, 0)
                    kills += 1
                    writing += any((run / "checkpoints").glob(".step-*.tmp"))
            weights = load_file(run / "model" / "model.safetensors")
            same = all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
            good += same * (kills - since)
            print(f"{kills} kills, {writing} of them while a checkpoint was written; same bits: {same}", flush=True)
        print(f"{good}/{kills} kills ended in the same weights, to the bit")
        sys.exit(good != kills)


def start(recipe: Recipe, store: Path, run: Path, ranks: int) -> list[int]:
    """The processes of a run, new or resumed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        train(recipe, TokenStore.open(store), run, resume=True)

    return [fork(lambda rank=rank: work(rank)) for rank in range(ranks)]


def fork(work: object) -> int:
    """A process that does one thing. This one never computes, so all a fork copies is what was imported."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if not os.environ.get("SHOW"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()  # type: ignore[operator]
        code = 0
    finally:
        os._exit(code)


def wait(processes: list[int], seconds: float) -> bool:
    """Whether all processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" for process in processes):
            finish(processes)
            return True
        time.sleep(0.002)
    return False


def finish(processes: list[int]) -> None:
    for process in processes:
        _, status = os.waitpid(process, 0)
        if status:
            sys.exit(f"a process that was left alone ended with status {status}; SHOW=1 shows its messages")


def _recipe(place: Path) -> Recipe:
    text = "".join(f"{n}: the {n % 7} of {n * n % 11} is {n % 10}.\n" + "\n" * (n % 5 == 0) for n in range(20_000))
    (place / "text.txt").write_text(text)
    return Recipe.model_validate(
        {
            "data": {"corpus": str(place / "text.txt"), "vocab_size": 512, "val_fraction": 0.1, "val_megabytes": 0.02},
            # Large enough for the writing of a checkpoint to take as long as the steps between two.
            "model": {
                "config": {
                    "hidden_size": 256,
                    "intermediate_size": 512,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                }
            },
            "superposition": {"bag_size": 4, "ratio": 0.4},
            "train": {
                "steps": STEPS,
                "batch_size": 8,
                "latents": 32,
                "warmup_steps": 4,
                "eval_every": 20,
                "checkpoint_every": 2,
                "precision": "float32",
                "track": [],
            },
            "parallel": {"timeout": 30},
        }
    )


if __name__ == "__main__":
    main()
