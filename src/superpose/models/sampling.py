"""Continuing a text with a model: next-token generation by transformers."""

from collections.abc import Callable
from typing import Any

import torch

from superpose.errors import UserError, first_line


def sample(
    model: Any,
    tokenizer: Any,
    prompt: str = "",
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    stream: Callable[[str], None] = lambda text: None,
) -> str:
    """The prompt and its continuation, until the end of text or `max_new_tokens`.

    Args:
        model, tokenizer: of transformers. The prompt is encoded as text is for training: without the tokenizer's
            template, and a special token that it spells out is text.
        max_new_tokens: by default what the context the model was trained on leaves room for.
        temperature: of sampling; 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that hold this share of the probability.
        seed: decides what is sampled.
        stream: called with each piece of text as it comes.

    Raises:
        UserError: prompt and new tokens do not fit into the context, or the model's files were altered.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text; give it in the encoding of the terminal") from None

    from transformers import TextStreamer

    pieces: list[str] = []

    class Stream(TextStreamer):  # type: ignore[misc]  # transformers is not followed by the type checker
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)
            stream(text)

    # An empty prompt starts where every document starts: after the end of another one.
    start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    try:
        encoded = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = torch.tensor([encoded or start])
        if ids.numel() == 0:
            raise UserError("the model's tokenizer has no end of text to start from; give a prompt")
        torch.manual_seed(seed)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_room(model, ids.shape[1], max_new_tokens),
            pad_token_id=tokenizer.eos_token_id,
            streamer=Stream(tokenizer, skip_special_tokens=True),
            **(sampling if temperature > 0 else {"do_sample": False}),
        )
    except (UserError, OSError):
        raise
    except Exception as error:  # transformers takes the settings beside a model for granted
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{model.name_or_path} cannot generate ({reason}); its files were altered") from None
    return "".join(pieces)


def _room(model: Any, length: int, max_new_tokens: int | None) -> int:
    """How many tokens may follow a prompt of this length."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None and max_new_tokens is None:
        raise UserError("the model's configuration sets no context length; say how far to go with --max-new-tokens")
    room: Any = max_new_tokens if context is None else context - length
    if room < 1 or (max_new_tokens or 0) > room:
        raise UserError(
            f"the prompt has {length} tokens and {max_new_tokens or 'some'} are to follow, but the model "
            f"was trained on {context}; shorten the prompt or lower --max-new-tokens"
        )
    return max_new_tokens or room
