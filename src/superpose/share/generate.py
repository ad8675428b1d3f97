"""Sampling text from a finished run or a Hugging Face directory: next-token generation by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from superpose.errors import UserError, first_line
from superpose.files import read_json
from superpose.models.build import load_model as load_weights
from superpose.runs.disk import open_run
from superpose.share.facts import predicts_bags


def load_model(place: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a finished run, or of a Hugging Face directory; nothing is looked up elsewhere.

    Raises:
        UserError: there is neither, the run is not finished, or its model was last trained in superposition.
    """
    return load_directory(place if is_model(place) else _of_run(place))


def load_directory(directory: Path) -> tuple[Any, Any]:
    """Model, set to evaluation, and tokenizer of a Hugging Face directory.

    Raises:
        UserError: they cannot be loaded, or the model does not predict the next token.
    """
    from transformers import AutoTokenizer

    if predicts := predicts_bags(directory):
        raise UserError(f"{directory} predicts {predicts}, not the next token, so what it generated would be noise")
    model = load_weights(directory, str(directory)).eval()
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises for a file that is missing or was altered
        raise UserError(f"{directory} holds no tokenizer that can be loaded: {first_line(error)}") from None
    return model, tokenizer


def is_model(place: Path) -> bool:
    """Whether a directory holds a configuration of transformers, and not a run."""
    return (place / "config.json").is_file() and "model_type" in read_json(place / "config.json")


def _of_run(place: Path) -> Path:
    """The directory of a finished run's model."""
    run = open_run(place)
    if run.state != "finished":
        raise UserError(
            f"{place} is not finished; go on with: superpose train {place / 'config.json'} --out {place} --resume"
        )
    schedule = run.recipe.schedule
    if schedule.ends_in_superposition:
        raise UserError(
            f"{place} ended inside superposition: its model was last trained to predict bags of "
            f"{schedule.bag_size_at(schedule.total_steps - 1)} tokens, not the next token, so what it generated "
            f"would be noise; train it with superposition.ratio below 1, so that recovery follows"
        )
    return place / "model"


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
        UserError: prompt and new tokens do not fit into the context, or the model's files were altered.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text; give it in the encoding of the terminal") from None

    from transformers import TextStreamer

    class Stream(TextStreamer):  # type: ignore[misc]  # transformers is not followed by the type checker
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            stream(text)

    with _altered_files_told(model):
        # An empty prompt starts where every document starts: after the end of another one.
        start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = torch.tensor([tokenizer(prompt)["input_ids"] or start])
        if ids.numel() == 0:
            raise UserError("the model's tokenizer has no end of text to start from; give a prompt")
        context = getattr(model.config, "max_position_embeddings", None)
        if context is None and max_new_tokens is None:
            raise UserError("the model's configuration sets no context length; say how far to go with --max-new-tokens")
        if context is not None:
            room = context - ids.shape[1]
            if room < 1 or (max_new_tokens or 0) > room:
                raise UserError(
                    f"the prompt has {ids.shape[1]} tokens and {max_new_tokens or 'some'} are to follow, but the model "
                    f"was trained on {context}; shorten the prompt or lower --max-new-tokens"
                )
            max_new_tokens = max_new_tokens or room
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        torch.manual_seed(seed)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            streamer=Stream(tokenizer, skip_special_tokens=True),
            **sampling,
        )


@contextmanager
def _altered_files_told(model: Any) -> Iterator[None]:
    """transformers takes the settings beside a model for granted; what it says of others becomes a sentence."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{model.name_or_path} cannot generate ({reason}); its files were altered") from None
