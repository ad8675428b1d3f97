"""Hugging Face Trainer with superposition, on the bytes of a text; it ends with an ordinary model.

python examples/huggingface_trainer.py text.txt --out out
accelerate launch --cpu --num_processes 2 examples/huggingface_trainer.py text.txt --out out
python examples/huggingface_trainer.py text.txt --out out --resume     # from the newest checkpoint, with its schedule
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from superpose import Schedule
from superpose.integrations.transformers import SuperposeTrainer

LATENTS = 64


def rows_of(text: bytes) -> list[dict[str, list[int]]]:
    """The text as packed rows, the usual form."""
    return [{"input_ids": list(text[place : place + LATENTS])} for place in range(0, len(text) - LATENTS, LATENTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step, all processes together")
    parser.add_argument("--bag-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    rows = rows_of(options.text.read_bytes())
    held_out = max(8, len(rows) // 20)
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LATENTS,
        )
    )
    args = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        learning_rate=2e-3,
        warmup_steps=options.steps // 10,
        logging_steps=max(1, options.steps // 20),
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 4),
        save_steps=max(1, options.steps // 4),
        report_to="none",
        use_cpu=True,
    )
    args.per_device_train_batch_size = options.batch_size // args.world_size
    trainer = SuperposeTrainer(
        model,
        args,
        train_dataset=rows[:-held_out],
        eval_dataset=rows[-held_out:],
        schedule=Schedule(options.steps, options.bag_size, options.ratio),
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
