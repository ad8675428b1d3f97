from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from superpose.errors import UserError
from superpose.plan.model import KNOWN_SHAPES, LLAMA_3_VOCABULARY, facts, parameters_of, shape_for
from superpose.train.recipe_file import load_recipe
from tests.conftest import MODELS

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("parameters", [1e6, 30e6, 250e6, 1e9, 13e9])
def test_a_llama_of_about_so_many_parameters(parameters):
    shape, _ = shape_for(parameters)
    assert shape.parameters == pytest.approx(parameters, rel=0.05)
    assert 20 < shape.hidden_size / shape.num_hidden_layers < 130
    assert shape.tables <= parameters / 3
    own, _ = shape_for(parameters, 512)
    assert own.vocab_size == 512
    assert own.parameters == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize(("name", "size", "shape"), [(name, *known) for name, known in KNOWN_SHAPES.items()])
def test_sizes_with_a_name_have_its_shape(name, size, shape):
    found, like = shape_for(size)
    assert found == shape
    assert name in like
    assert facts(shape.config(2048), 2048).parameters == shape.parameters
    assert shape.parameters == pytest.approx(size, rel=0.12)


@pytest.mark.parametrize("name", ["270m", "600m", "3b"])
def test_the_papers_shapes_are_those_of_its_recipes(name):
    recipe = load_recipe(ROOT / "recipes" / f"paper-{name}.toml")
    assert parameters_of(recipe, LLAMA_3_VOCABULARY) == KNOWN_SHAPES[f"the paper's {name.upper()}"][1].parameters


def test_124m_is_gpt2s_shape():
    shape, _ = shape_for(124e6)
    assert (shape.num_hidden_layers, shape.hidden_size) == (12, 768)


def test_more_vocabulary_than_parameters_is_refused():
    with pytest.raises(UserError, match="smaller --vocab-size"):
        shape_for(1e6, LLAMA_3_VOCABULARY)
