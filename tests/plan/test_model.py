import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from superpose.errors import UserError
from superpose.plan.model import facts, llama_of
from tests.conftest import MODELS


def config_of(family, **settings):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "max_position_embeddings": 512}
    return AutoConfig.for_model(family, **sizes, **MODELS[family], **settings)


def test_parameters_are_those_of_the_model(family):
    config = config_of(family)
    found = facts(config, 32)
    model = AutoModelForCausalLM.from_config(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.layers == 3
    assert found.experts == (4 if family == "qwen3_moe" else 0)
    assert found.tied == (family == "gpt2")


def test_active_parameters_of_a_llama_written_out():
    # Two norms a block, q k v o of 16 x 16, three of 16 x 32; the head; tables are looked up.
    found = facts(config_of("llama"), 32)
    block = 4 * 16 * 16 + 3 * 16 * 32
    assert found.active == 3 * block + 50 * 16
    assert found.block_parameters == block + 2 * 16
    assert found.flops == 6 * found.active + 12 * 3 * 16 * 32


@pytest.mark.parametrize("parameters", [1e6, 30e6, 124e6, 1e9, 8e9, 70e9])
def test_a_llama_of_about_so_many_parameters(parameters):
    vocab_size = 512 if parameters < 1e8 else 32_000
    found = facts(llama_of(parameters, 2048, vocab_size), 2048)
    assert found.parameters == pytest.approx(parameters, rel=0.05)
    assert 20 < found.width / found.layers < 130


def test_more_vocabulary_than_parameters_is_refused():
    with pytest.raises(UserError, match="smaller --vocab-size"):
        llama_of(1e6, 2048)
