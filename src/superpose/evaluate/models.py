"""What is evaluated: the model of a finished run, or of a Hugging Face directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpose.data.tokenizer import TextTokenizer, load_tokenizer, tokenizer_identity
from superpose.errors import UserError, first_line
from superpose.evaluate.evaluation import ModelFigures
from superpose.models.load import load_with_tokenizer
from superpose.places import is_remote
from superpose.runs.disk import model_directory


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, with what is needed for it.

    Attributes:
        name: short, and different from the others'.
        place: as it was given.
        model_directory: the Hugging Face directory.
        model: of transformers, on its device, set to evaluation.
        tokenizer: of transformers, for tasks; the same ids come of it as of `text_tokenizer`.
        text_tokenizer: as preparation uses it, for text.
        context: positions the model was made for, where its configuration says so.
        run: its run's directory, if it is of a run.
    """

    name: str
    place: str
    model_directory: Path
    model: Any
    tokenizer: Any
    text_tokenizer: TextTokenizer
    context: int | None
    run: Path | None

    @property
    def vocabulary(self) -> str:
        """The same for models whose tokens are comparable."""
        return tokenizer_identity(self.model_directory / "tokenizer.json")

    @property
    def facts(self) -> ModelFigures:
        return ModelFigures(
            name=self.name,
            path=self.place,
            model=self.model.config.model_type,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            context=self.context,
            vocabulary=self.text_tokenizer.vocab_size,
        )


def load_models(places: Sequence[str | Path], device: str) -> list[EvaluatedModel]:
    """Loads several models, named as their places were typed; a UserError if one holds no model, or is given twice."""
    typed = [str(place) for place in places]
    locations = [place.rstrip("/") if is_remote(place) else str(Path(place)) for place in typed]
    absolute = [place if is_remote(place) else str(Path(place).absolute()) for place in locations]
    for place, known in zip(locations, absolute, strict=True):
        if absolute.count(known) > 1:
            raise UserError(f"{place} is given twice; give each model once")
    return [_load(place, name, device) for place, name in zip(locations, _names(locations), strict=True)]


def _load(place: str, name: str, device: str) -> EvaluatedModel:
    if not is_remote(place) and not Path(place).is_dir():
        raise UserError(f"{place} is not there; give a finished run's directory, or one that save_pretrained wrote")
    directory = model_directory(place)
    model, tokenizer = load_with_tokenizer(directory)
    text_tokenizer = load_tokenizer(str(directory))
    if text_tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {text_tokenizer.vocab_size} entries and the model predicts "
            f"{model.config.vocab_size}; put the tokenizer there that the model was trained with"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device is {device!r}, which PyTorch cannot use here: {first_line(error)}") from None
    run = None if is_remote(place) or directory == Path(place) else Path(place)
    return EvaluatedModel(name, place, directory, model, tokenizer, text_tokenizer, context, run)


def _names(places: Sequence[str]) -> list[str]:
    """The shortest ends of the paths, as they were typed, that tell them apart: a link keeps its own name."""
    names, length = [""] * len(places), 0
    while len(set(names)) < len(names) or not length:
        length += 1
        names = [str(Path(*Path(place).parts[-length:])) for place in places]
    return names
