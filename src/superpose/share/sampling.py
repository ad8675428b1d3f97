"""Sampling text from a finished run or a Hugging Face directory."""

from collections.abc import Callable
from pathlib import Path

from superpose.models.load import load_with_tokenizer
from superpose.models.sampling import sample
from superpose.runs.disk import model_directory


def generate(
    place: str | Path,
    prompt: str = "",
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    stream: Callable[[str], None] = lambda text: None,
) -> str:
    """Continues a text with the model of a finished run or of a Hugging Face directory; see `sample`.

    Args:
        place: a directory, or a remote place that holds a model.

    Raises:
        UserError: there is neither, its model was last trained in superposition, or the text is too long for it.
    """
    model, tokenizer = load_with_tokenizer(model_directory(place))
    return sample(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed, stream)
