"""What a plan has to know of a model: its parameters, exactly, and what a latent costs.

Counted on the meta device, from transformers' own code, so that attention, head, norms, biases and experts are all in
it. Where only a number of parameters is given, a Llama of about that many stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from superpose.errors import UserError
from superpose.models.build import ModelArgs, build_config, build_model, matmul_parameters, model_flops_per_latent
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


def llama_of(parameters: float, latents: int, vocab_size: int = LLAMA_3_VOCABULARY) -> Any:
    """The configuration of a Llama with about so many parameters, untied: one layer for each 64 of width up to 32
    layers, then for each 104.

    Depth and width grow together about as in the paper's models and in Llama 3 (32 x 4,096, 80 x 8,192).

    Raises:
        UserError: the embeddings alone have more.
    """
    for width in range(_WIDTH_STEP, 64 * 1024, _WIDTH_STEP):
        layers = max(2, min(width // _WIDTH_STEP, 32), width // 104)
        intermediate = -(-8 * width // 3 // 64) * 64
        block = 4 * width * width + 3 * width * intermediate + 2 * width
        rest = 2 * vocab_size * width + width
        # The last width that is not too wide at this depth; then as many layers as fit best.
        if rest + layers * block < parameters and width < 64 * 1023:
            chosen = width, intermediate, max(1, round((parameters - rest) / block))
            continue
        if width == _WIDTH_STEP:
            raise UserError(
                f"--params {parameters:g}: a vocabulary of {vocab_size:,} entries takes more than that at a width of "
                f"{_WIDTH_STEP}; give a smaller --vocab-size"
            )
        break
    width, intermediate, layers = chosen
    settings = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _WIDTH_STEP,
        "tie_word_embeddings": False,
    }
    return build_config(ModelArgs(architecture="llama", config=settings), vocab_size, latents, 0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
