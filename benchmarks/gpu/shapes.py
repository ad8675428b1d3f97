"""The models that are measured: those of the recipes, on the device, and what a latent of them costs."""

import tomllib
from typing import Any

import torch
from torch import nn

from gpu.bench import ROOT, Bench
from superpose import flops_per_latent

DEVICES = tomllib.loads((ROOT / "src" / "superpose" / "plan" / "devices.toml").read_text())["devices"]


def build(bench: Bench, recipe: str, vocab_size: int, latents: int) -> Any:
    """A recipe's model with first weights; two narrow layers of it where all is small."""
    from transformers import AutoConfig, AutoModelForCausalLM

    stated = tomllib.loads((ROOT / "src" / "superpose" / "recipes" / f"{recipe}.toml").read_text())["model"]
    settings = dict(stated["config"])
    if bench.small:
        narrow = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2}}
        other = {"hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 2}
        settings |= narrow.get(stated["architecture"], other)
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        stated["architecture"], vocab_size=vocab_size, max_position_embeddings=latents, **settings
    )
    config.use_cache = False  # nobody generates
    return AutoModelForCausalLM.from_config(config).to(bench.device).train()


def blocks(model: Any) -> list[nn.Module]:
    """The repeated layers, as `superpose.train` finds them."""
    return [module for module in model.modules() if type(module).__name__ in model._no_split_modules]


def flops(model: Any, latents: int) -> int:
    """Of a latent, forward and backward."""
    config = model.config
    products = sum(
        weight.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.dim() == 2
    )
    return flops_per_latent(products, config.num_hidden_layers, config.hidden_size, latents)


def peak_flops(card: str) -> float | None:
    """FLOP/s that the maker's data sheet gives a card in bfloat16; None for one that is not known."""
    names = sorted((name for name in DEVICES if name in card), key=len)
    return float(DEVICES[names[-1]]["flops"]) if names else None
