"""Sampling text from a finished run: next-token generation by transformers, from the model as exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from superpose.errors import UserError
from superpose.files import read_json
from superpose.train.config import load_recipe


def load_model(run: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a finished run, from its directory alone.

    Raises:
        UserError: there is no run, it is not finished, or it ended inside superposition.
    """
    if not (run / "config.json").is_file():
        inside = sorted(path.parent.name for path in run.glob("*/result.json"))
        hint = f"it holds the runs {', '.join(inside)}: give one of them" if inside else "give the directory of a run"
        raise UserError(f"{run} is not a run; {hint}")
    if not (run / "result.json").is_file():
        raise UserError(
            f"{run} is not finished; go on with: superpose train {run / 'config.json'} --out {run} --resume"
        )
    if read_json(run / "result.json").get("ends_in_superposition"):
        schedule = load_recipe(run / "config.json").schedule
        raise UserError(
            f"{run} ended inside superposition: its model was last trained to predict bags of "
            f"{schedule.bag_size_at(schedule.total_steps - 1)} tokens, not the next token, so what it generated "
            f"would be noise; train it with superposition.ratio below 1, so that recovery follows"
        )
    return load_directory(run / "model")


def load_directory(path: Path) -> tuple[Any, Any]:
    """Model, set to evaluation, and tokenizer of a Hugging Face directory on this machine.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever transformers raises for a directory that was altered
        raise UserError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model, tokenizer


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int,
    stream: Callable[[str], None],
) -> None:
    """Streams the prompt and its continuation, until the end of text or `max_new_tokens`.

    Args:
        max_new_tokens: by default what the context the model was trained on leaves room for.
        temperature: of sampling; 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that hold this share of the probability.
        stream: called with each piece of text as it comes.

    Raises:
        UserError: prompt and new tokens do not fit into the context.
    """
    from transformers import TextStreamer

    class Stream(TextStreamer):  # type: ignore[misc]  # transformers is not followed by the type checker
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            stream(text)

    # An empty prompt starts where every document starts: after the end of another one.
    ids = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]])
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < 1 or (max_new_tokens or 0) > room:
        raise UserError(
            f"the prompt has {ids.shape[1]} tokens and {max_new_tokens or 'some'} are to follow, but the model was "
            f"trained on {model.config.max_position_embeddings}; shorten the prompt or lower --max-new-tokens"
        )
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens or room,
        pad_token_id=tokenizer.eos_token_id,
        streamer=Stream(tokenizer, skip_special_tokens=True),
        **sampling,
    )
