import pytest

from superpose.errors import UserError
from superpose.models.build import ModelArgs, build_config, build_model


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
    ],
)
def test_wrong_models_are_one_clear_sentence(args, message):
    with pytest.raises(UserError, match=message):
        build_config(ModelArgs(**args), 300, 64, 0)
