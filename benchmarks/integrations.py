"""What an ordinary step costs through each integration, against the same step without it.

    python benchmarks/integrations.py

Pairs, interleaved, one thread, medians of a step: in recovery (bag size 1) both compute the same loss of the same
model, so the ratio is the price of the integration; in superposition it is that of the bags as well.

    plain      the loop of examples/plain_pytorch.py with SuperposedParts, against F.cross_entropy on whole logits
    trainer    SuperposeTrainer against Trainer, both on rows of the same length, per-step logging off
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from measure import refuse_arguments
from superpose import Schedule, SuperposedParts, window_length
from superpose.integrations.transformers import SuperposeTrainer, next_token_collator

LATENTS, ROWS, STEPS, ROUNDS, BAG_SIZE = 128, 8, 12, 7, 8


def build(vocab_size: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LATENTS + 1,
    )
    return LlamaForCausalLM(config)


def plain(vocab_size: int) -> dict[str, Callable[[], list[float]]]:
    model = build(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def backbone(x: Tensor) -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden

    parts = SuperposedParts(model.model.embed_tokens, backbone, model.lm_head)

    def whole(window: Tensor, bag_size: int) -> Tensor:
        hidden = backbone(model.model.embed_tokens(window[:, :-1]))
        return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), window[:, 1:].flatten())

    def steps(loss_of: Callable[[Tensor, int], Tensor], bag_size: int) -> list[float]:
        seconds = []
        for _ in range(STEPS):
            window = torch.randint(vocab_size, (ROWS, window_length(LATENTS, bag_size)))
            start = time.perf_counter()
            loss_of(window, bag_size).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return seconds

    return {
        "ordinary": lambda: steps(whole, 1),
        "recovery": lambda: steps(parts, 1),
        "superposition": lambda: steps(parts, BAG_SIZE),
    }


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.times.append(time.perf_counter())


def trainer(vocab_size: int) -> dict[str, Callable[[], list[float]]]:
    model = build(vocab_size)
    tokens = torch.randint(vocab_size, (ROWS * STEPS * BAG_SIZE * 2, LATENTS))
    dataset = [{"input_ids": row} for row in tokens]

    def steps(bag_size: int | None) -> list[float]:
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as out:
            args = TrainingArguments(
                out,
                max_steps=STEPS,
                per_device_train_batch_size=ROWS,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            common: dict[str, Any] = {"train_dataset": dataset, "callbacks": [watch]}
            if bag_size is None:
                Trainer(model, args, data_collator=next_token_collator, **common).train()
            else:
                schedule = Schedule(STEPS, bag_size, 1.0 if bag_size > 1 else 0.0)
                SuperposeTrainer(model, args, schedule=schedule, **common).train()
        return [after - before for before, after in zip(watch.times, watch.times[1:], strict=False)]

    return {
        "ordinary": lambda: steps(None),
        "recovery": lambda: steps(1),
        "superposition": lambda: steps(BAG_SIZE),
    }


def main() -> None:
    refuse_arguments(__doc__)
    torch.set_num_threads(1)
    print(f"{ROWS} rows x {LATENTS} latents, Llama 128 wide with 4 layers, bags of {BAG_SIZE}")
    for name, setup in (("plain", plain), ("trainer", trainer)):
        for vocab_size in (1024, 16384):
            ways = setup(vocab_size)
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(ROUNDS + 1):
                for way, measure in ways.items():
                    measured = measure()
                    if number:  # the first warms up
                        seconds[way] += measured
            median = {way: statistics.median(values) for way, values in seconds.items()}
            ratios = ", ".join(f"{way} {median[way] / median['ordinary']:.2f}" for way in list(ways)[1:])
            print(f"{name}, V {vocab_size:6}: ordinary {median['ordinary'] * 1000:.0f} ms; {ratios}", flush=True)


if __name__ == "__main__":
    main()
