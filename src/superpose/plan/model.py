"""What a plan has to know of a model: its parameters, exactly, and what a latent costs.

Counted on the meta device, from transformers' own code, so that attention, head, norms, biases and experts are all in
it. Where only a number of parameters is given, a Llama of about that many stands in.
"""

import tomllib
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Any

from torch import nn

from superpose.errors import UserError
from superpose.models.build import ModelArgs, build_config, build_model, matmul_parameters, model_flops_per_latent
from superpose.train.config import Recipe
from superpose.train.distributed import blocks

LLAMA_3_VOCABULARY = 128_256
_WIDTH_STEP = 64


@dataclass(frozen=True)
class ModelFacts:
    """
    Attributes:
        parameters: all of them, tied ones once.
        active: weights a latent is multiplied with, the head included, look-up tables not, of experts those chosen.
        flops: forward and backward FLOPs of a latent.
        block_parameters: of the largest repeated block.
        layers: repeated blocks.
        width, vocab_size: D and V.
        experts: of a layer; 0 for a dense model.
    """

    architecture: str
    parameters: int
    active: int
    flops: int
    block_parameters: int
    layers: int
    width: int
    vocab_size: int
    experts: int
    tied: bool


def facts(config: Any, latents: int) -> ModelFacts:
    """Counts a model of this configuration in rows of `latents`.

    Raises:
        UserError: the configuration does not make a model.
    """
    model = build_model(config, "meta")
    repeated = blocks(model)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0
    return ModelFacts(
        config.model_type,
        _count(model),
        matmul_parameters(model),
        model_flops_per_latent(model, latents),
        max(map(_count, repeated), default=0),
        len(repeated) or config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        experts,
        bool(getattr(config, "tie_word_embeddings", False)),
    )


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, by their names in transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def parameters(self) -> int:
        width = self.hidden_size
        narrow = width * self.num_key_value_heads // self.num_attention_heads
        block = 2 * width * (width + narrow) + 3 * width * self.intermediate_size + 2 * width
        return self.tables + width + self.num_hidden_layers * block

    @property
    def tables(self) -> int:
        """Parameters of embedding and head."""
        return (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size

    def config(self, latents: int) -> Any:
        """The configuration of a Llama of this shape."""
        settings = asdict(self)
        vocab_size = settings.pop("vocab_size")
        return build_config(ModelArgs(architecture="llama", config=settings), vocab_size, latents, 0)


KNOWN_SHAPES = {
    name: (known.pop("size"), Shape(**known))
    for name, known in tomllib.loads(files("superpose.plan").joinpath("shapes.toml").read_text("utf-8")).items()
}
"""Sizes as they are called, and the shapes of models of that name."""
_VOCABULARIES = ((LLAMA_3_VOCABULARY, False), (LLAMA_3_VOCABULARY, True), (50_257, True), (32_000, True), (8192, True),
                 (1024, True))  # fmt: skip
"""Tried in this order for other sizes, until tables are no more than a third of the parameters."""


def shape_for(parameters: float, vocab_size: int | None = None) -> tuple[Shape, str]:
    """A Llama of about so many parameters, and what it is like.

    A known shape where the size has one. Otherwise one layer for each 64 of width up to 32 layers, then for each 104:
    depth and width grow together about as in the paper's models and in Llama 3 (32 x 4,096, 80 x 8,192).

    Args:
        vocab_size: by default the largest of a few whose tables leave two thirds of the parameters to the blocks.

    Raises:
        UserError: the embeddings alone have more.
    """
    for name, (size, shape) in KNOWN_SHAPES.items():
        if vocab_size is None and abs(parameters / size - 1) <= 0.02:
            return shape, f"the shape of {name}"
    found = None
    for entries, tied in _VOCABULARIES if vocab_size is None else ((vocab_size, False), (vocab_size, True)):
        grown = _grown(parameters, entries, tied)
        found = grown or found
        if grown is not None and grown.tables <= parameters / 3:
            break
    if found is None:
        raise UserError(
            f"--params {parameters:g}: a vocabulary of {entries:,} entries takes more than that at a width of "
            f"{_WIDTH_STEP}; give a smaller --vocab-size"
        )
    return found, "a shape between those of known models"


def _grown(parameters: float, vocab_size: int, tied: bool) -> Shape | None:
    """The widest shape at its usual depth, then as many layers as fit best; None if the tables alone are too large."""
    chosen = None
    for width in range(_WIDTH_STEP, 64 * 1024, _WIDTH_STEP):
        heads = width // _WIDTH_STEP
        layers = max(2, min(heads, 32), width // 104)
        shape = Shape(width, -(-8 * width // 3 // 64) * 64, layers, heads, heads, vocab_size, tied)
        if shape.parameters >= parameters:
            break
        chosen = shape
    if chosen is None:
        return None
    layers = chosen.num_hidden_layers
    block = replace(chosen, num_hidden_layers=layers + 1).parameters - chosen.parameters
    return replace(chosen, num_hidden_layers=max(1, layers + round((parameters - chosen.parameters) / block)))


def parameters_of(recipe: Recipe, vocabulary: int) -> int:
    """Parameters of a recipe's model with a vocabulary of so many entries; only its shapes are made."""
    return _count(build_model(build_config(recipe.model, vocabulary, recipe.train.latents, 0), "meta"))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
