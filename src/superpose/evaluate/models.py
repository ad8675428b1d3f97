"""What is evaluated: the model of a finished run, or of a Hugging Face directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpose.data.tokenizer import TextTokenizer, load_tokenizer, tokenizer_identity
from superpose.errors import UserError, first_line
from superpose.evaluate.evaluation import ModelFigures
from superpose.models.load import load_with_tokenizer
from superpose.runs.disk import model_directory


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, with what is needed for it.

    Attributes:
        name: short, and different from the others'.
        model_directory: the Hugging Face directory.
        model: of transformers, on its device, set to evaluation.
        tokenizer: of transformers, for tasks; the same ids come of it as of `text_tokenizer`.
        text_tokenizer: as preparation uses it, for text.
        context: positions the model was made for, where its configuration says so.
        run: its run's directory, if it is of a run.
    """

    name: str
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
            path=str(self.run or self.model_directory),
            model=self.model.config.model_type,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            context=self.context,
            vocabulary=self.text_tokenizer.vocab_size,
        )


def load_models(places: Sequence[Path], device: str) -> list[EvaluatedModel]:
    """Loads several models, named by their directories; a UserError if one holds no model, or is given twice."""
    for place in places:
        if list(places).count(place) > 1:
            raise UserError(f"{place} is given twice; give each model once")
    return [_load(place, name, device) for place, name in zip(places, _names(places), strict=True)]


def _load(place: Path, name: str, device: str) -> EvaluatedModel:
    if not place.is_dir():
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
    return EvaluatedModel(
        name, directory, model, tokenizer, text_tokenizer, context, None if directory == place else place
    )


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; a link says more than what it leads to in the pool."""
    names, length = [""] * len(places), 0
    while len(set(names)) < len(names) or not length:
        length += 1
        names = ["/".join(place.absolute().parts[-length:]) for place in places]
    return names
