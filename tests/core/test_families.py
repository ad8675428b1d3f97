"""Families of transformers in small, with weights of trained size: both phases against their own forward pass.

benchmarks/models.py goes through all of them, and trains, resumes and exports each.
"""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from superpose.core.model import SuperposedLM
from tiny_models import tiny_config

DECODERS = (
    *(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
        "gptj",
    ),
    *("olmo", "olmo2", "olmo3", "granite", "granite_swa", "smollm3", "cohere", "cohere2", "stablelm", "starcoder2"),
    *("bloom", "codegen", "ctrl", "falcon", "gpt_bigcode", "gpt_neo", "helium", "minicpm3", "mpt", "nanochat"),
    *("nemotron", "opt", "persimmon", "seed_oss", "vaultgemma", "xglm", "arcee", "ernie4_5", "glm4", "hyperclovax"),
)
MIXTURES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "jetmoe"),
    *("phimoe", "ernie4_5_moe", "minimax_m2", "dbrx", "deepseek_v2"),
)
HYBRIDS = (
    *("qwen3_next", "granitemoehybrid", "falcon_h1", "jamba", "lfm2", "recurrent_gemma", "olmo_hybrid", "qwen3_5_text"),
    *("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"),
)
OTHERS = ("bart", "bert", "electra", "roberta", "rembert", "modernbert-decoder", "inkling_text", "gemma3n_text")
FAMILIES = (*DECODERS, *MIXTURES, *HYBRIDS, *OTHERS)


def test_there_are_sixty():
    assert len(set(FAMILIES)) == len(FAMILIES) >= 60


def grown(name: str):
    """A model whose weights are those of a trained one, in size."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (
                0.5 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.1
            )
        model.get_output_embeddings().weight *= 3
    return model


def own_logits(model, bags: Tensor) -> Tensor:
    """Of the model's own forward pass: given tokens, or the mean of what it makes of each token of a bag."""
    if bags.shape[-1] == 1:
        return model(input_ids=bags.squeeze(-1), use_cache=False).logits
    tables = {}
    if hasattr(model.base_model, "get_per_layer_inputs"):
        tables["per_layer_inputs"] = model.base_model.get_per_layer_inputs(bags).mean(dim=2)
    return model(inputs_embeds=model.get_input_embeddings()(bags).mean(dim=2), use_cache=False, **tables).logits


@pytest.mark.error(n=6)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_both_phases_are_the_models_own(family):
    model = grown(family)
    lm = SuperposedLM(model)
    for bag_size in (1, 3):
        window = torch.randint(2, 300, (2, bag_size * 9))
        bags = window.view(2, 9, bag_size)
        log_probabilities = own_logits(model, bags[:, :-1]).double().log_softmax(dim=-1)
        expected = -log_probabilities.gather(-1, bags[:, 1:]).mean()
        assert expected > 2  # the weights say something, and it is wrong
        torch.testing.assert_close(lm(window, bag_size).cross_entropy.double(), expected, rtol=1e-4, atol=1e-4)
    lm.check()
