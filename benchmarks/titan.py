"""What a step of TorchTitan costs with superposition, against TorchTitan's own ordinary step.

    torchrun --nproc-per-node 1 benchmarks/titan.py

Two trainers in one process, one thread, on a CPU, steps interleaved, medians; the same model, rows and optimizer. The
ordinary one is TorchTitan's `Trainer` with its own embedding, loss and metrics, fed the same tokens from memory, so the
ratio in recovery is the price of the integration, loader included. In superposition it is that of the bags as well.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from torchtitan_cpu import on_cpu

on_cpu()

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.models.common import Embedding
from torchtitan.trainer import Trainer

from measure import refuse_arguments
from superpose.data.config import DataArgs, prepare
from superpose.integrations.torchtitan.config_registry import superpose_debug
from superpose.integrations.torchtitan.trainer import SuperposeTrainer

STEPS, WARM, LATENTS, ROWS = 120, 10, 256, 8


class Memory(BaseDataLoader):  # type: ignore[misc]
    """Random tokens, as little work as a loader can have."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):  # type: ignore[misc]
        pass

    def __init__(self, config: Config, *, seq_len: int, local_batch_size: int, **_: Any) -> None:
        self.window = torch.randint(257, (local_batch_size, seq_len + 1))
        self.positions = torch.arange(seq_len).repeat(local_batch_size, 1)

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield {"input": self.window[:, :-1], "positions": self.positions}, self.window[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def config_of(store: str, out: str, bag_size: int) -> SuperposeTrainer.Config:
    config = superpose_debug()
    config.dataloader.dataset_path, config.dump_folder = store, out
    config.training.steps, config.training.seq_len, config.training.local_batch_size = STEPS, LATENTS, ROWS
    config.superposition.bag_size, config.superposition.ratio = bag_size, 1.0 if bag_size > 1 else 0.0
    config.checkpoint.enable = config.validator.enable = config.debug.enable_structured_logging = False
    config.metrics.log_freq = 10 * STEPS
    return config


def ordinary(config: SuperposeTrainer.Config, tokenizer: str) -> Trainer.Config:
    """The same run as TorchTitan has it."""
    settings = {item.name: getattr(config, item.name) for item in fields(Trainer.Config)}
    model = config.model_spec.model
    embedding = model.tok_embeddings
    model.tok_embeddings = Embedding.Config(**{item.name: getattr(embedding, item.name) for item in fields(embedding)})
    chunks, vocabulary = config.loss.num_chunks, model.vocab_size
    settings["loss"] = ChunkedLossWrapper.Config(
        num_chunks=chunks, loss_fn=CrossEntropyLoss.Config(global_vocab_size=vocabulary)
    )
    settings |= {"dataloader": Memory.Config(), "hf_assets_path": tokenizer}
    settings["metrics"] = MetricsProcessor.Config(log_freq=10 * STEPS)
    return Trainer.Config(**settings)


def main() -> None:
    refuse_arguments(__doc__)
    torch.set_num_threads(1)
    os.environ.setdefault("SUPERPOSE_CACHE", tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as out:
        text = Path(out) / "text.txt"
        text.write_text("".join(f"{number} and {number * number} and so on.\n\n" for number in range(150_000)))
        store = prepare(DataArgs(corpus=str(text), tokenizer="bytes"))
        path = str(store.path)
        trainers = {
            "ordinary": ordinary(config_of(path, out, 1), str(store.tokenizer_path)).build(),
            "recovery": config_of(path, out, 1).build(),
            "superposition": config_of(path, out, 4).build(),
        }
        batches = {way: trainer.batch_generator(trainer.dataloader) for way, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {way: [] for way in trainers}
        for step in range(1, STEPS + 1):
            for way, trainer in trainers.items():
                trainer.step = step
                start = time.perf_counter()
                trainer.train_step(batches[way])
                if step > WARM:
                    seconds[way].append(time.perf_counter() - start)
        median = {way: statistics.median(values) for way, values in seconds.items()}
        print(f"{ROWS} rows x {LATENTS} latents, the debug model, V {superpose_debug().model_spec.model.vocab_size}")
        for way in list(median)[1:]:
            print(f"{way}: {median[way] / median['ordinary']:.3f} of {median['ordinary'] * 1000:.0f} ms")
        for trainer in trainers.values():
            trainer.close()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
