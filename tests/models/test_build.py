import pytest
from pydantic import ValidationError

from superpose.errors import UserError
from superpose.models.build import (
    ModelArgs,
    _counted_flops,
    build_config,
    build_model,
    matmul_parameters,
    model_flops_per_latent,
)
from superpose.train.recipe_file import load_recipe
from tests.conftest import make_model
from tiny_models import tiny_config


def test_the_config_is_the_runs_in_every_family():
    for architecture in ("llama", "qwen3", "gpt2"):
        config = build_config(ModelArgs(architecture=architecture, config={"hidden_size": 64}), 300, 64, 7)
        assert (config.model_type, config.vocab_size, config.hidden_size) == (architecture, 300, 64)
        assert (config.max_position_embeddings, config.eos_token_id) == (64, 7)


def test_the_default_is_an_untied_llama():
    model = build_model(build_config(ModelArgs(), 1024, 128, 0), "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 237_888
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"architecture": "lama"}, "did you mean 'llama'"),
        ({"config": {"hiden_size": 8}}, "did you mean 'hidden_size'"),
        ({"config": {"hidden_size": "wide"}}, "hidden_size"),
        ({"config": {"hidden_size": 63, "num_attention_heads": 4}}, "multiple"),
        ({"config": {"vocab_size": 8}}, "tokenizer"),
        ({"config": {"max_position_embeddings": 8}}, "latents"),
        ({"architecture": "gpt2", "config": {"n_positions": 8}}, "n_positions is 8 but train.latents is 64"),
        ({"architecture": "mpt", "config": {"max_seq_len": 8}}, "max_seq_len is 8 but train.latents is 64"),
        ({"architecture": "gemma3"}, "reads more than text; its text model is 'gemma3_text'"),
        ({"architecture": "llama4"}, "its text model is 'llama4_text'"),
        ({"architecture": "got_ocr2"}, "its text model is 'qwen2'"),
        ({"architecture": "emu3"}, "its text model is no causal model of its own"),
        ({"architecture": "roberta"}, "needs a padding token"),
        (
            {"config": {"num_attention_heads": 4, "num_key_value_heads": 3}},
            "num_key_value_heads is 3, which does not divide num_attention_heads, 4",
        ),
    ],
)
def test_wrong_models_are_one_clear_sentence(args, message):
    with pytest.raises(UserError, match=message):
        build_config(ModelArgs(**args), 300, 64, 0)


SIZES = {
    # SmolLM2-135M, SmolLM2-360M and SmolLM3-3B without their tied embeddings, and twice 128,256 x hidden.
    "paper-270m": (128_256, 106_203_456 + 2 * 128_256 * 576),
    "paper-600m": (128_256, 314_635_200 + 2 * 128_256 * 960),
    "paper-3b": (128_256, 2_812_430_336 + 2 * 128_256 * 2048),
    "paper-10b-a1b": (128_256, 10_315_736_576),
    "gpt2-124m": (50_257, 124_439_808),
    "cpu-tiny": (1024, 237_888),
}


@pytest.mark.parametrize("name", SIZES)
def test_recipes_have_the_published_numbers_of_parameters(name):
    recipe = load_recipe(name)
    vocab_size, expected = SIZES[name]
    model = build_model(build_config(recipe.model, vocab_size, recipe.train.latents, 0), "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_of_ten_billion_parameters_one_billion_multiply_a_latent():
    recipe = load_recipe("paper-10b-a1b")
    model = build_model(build_config(recipe.model, 128_256, 2048, 0), "meta")
    assert matmul_parameters(model) == pytest.approx(1e9, rel=0.1)


def test_any_configuration_file_of_transformers(tmp_path):
    make_model("qwen3", vocab_size=320).config.save_pretrained(tmp_path)
    args = ModelArgs(config_file=str(tmp_path / "config.json"))
    config = build_config(args, 300, 64, 7)
    assert (config.model_type, config.vocab_size, config.eos_token_id, config.hidden_size) == ("qwen3", 300, 7, 16)
    build_model(config)


def test_a_model_has_one_origin():
    with pytest.raises(ValidationError, match=r"leave out model\.architecture"):
        ModelArgs(init_from="model", architecture="gpt2")
    with pytest.raises(ValidationError, match=r"leave out model\.init_from"):
        ModelArgs(init_from="model", config_file="config.json")
    args = ModelArgs(init_from="model")
    assert ModelArgs.model_validate(args.model_dump()) == args


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 2**31}, r"model\.config\.num_hidden_layers is 2147483648; give at most"),
        ({"hidden_act": "os.system"}, r"does not make a llama model: 'os\.system' is not known"),
        ({"rope_parameters": {"rope_type": "x"}}, "does not make a llama model"),
        ({"attn_implementation": "someone/kernel"}, r"model\.config\.attn_implementation .* which is not run"),
        ({"rope_parameters": {"x_implementation": "someone/kernel"}}, r"rope_parameters\.x_implementation"),
        ({"head_dim": "a"}, r"model\.config: .*'head_dim' .* any type in \(int, NoneType\)"),
        ({"head_dim": 2**63}, "does not make a llama model: .*[Oo]verflow"),
    ],
)
def test_what_no_model_can_be_made_of_is_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(build_config(ModelArgs(config=settings), 300, 16, 0), "meta")
    assert str(caught.value).count("\n") == 0


def test_a_stored_configuration_runs_no_code_of_others(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "_attn_implementation": "someone/kernel"}')
    with pytest.raises(UserError, match=r"config\.json: _attn_implementation is 'someone/kernel'"):
        build_config(ModelArgs(config_file=str(file)), 300, 16, 0)


@pytest.mark.parametrize("family", ["qwen3", "mixtral", "mistral", "qwen2", "phimoe"])
def test_the_shipped_recipe_takes_another_family(family):
    """Whose default of key-value heads is that of a large model."""
    args = load_recipe("cpu-tiny").model.model_copy(update={"architecture": family})
    config = build_config(args, 300, 16, 0)
    assert config.num_attention_heads % config.num_key_value_heads == 0
    build_model(config, "meta")


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "xlstm", "aria_text", "dbrx", "gemma4_text"])
def test_figures_are_counted_where_a_configuration_does_not_say_them(family):
    model = build_model(tiny_config(family))
    flops = model_flops_per_latent(model, 16)
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) / 10 < flops


def test_counted_flops_are_those_of_the_formula():
    model = build_model(tiny_config("llama"))
    formula = model_flops_per_latent(model, 64)
    assert _counted_flops(model, 64) == pytest.approx(formula, rel=0.02)
