"""Runs of families that do something of their own: the exported model's loss is the run's, and resuming is exact."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from models import own_loss
from superpose.errors import UserError
from superpose.models.build import ModelArgs
from superpose.train.config import Recipe
from superpose.train.loop import train
from superpose.train.records import read_metrics
from tests.train.test_loop import killed_and_resumed, same_weights
from tiny_models import tiny_config


def recipe_of(recipe: Recipe, family: str, folder, **settings) -> Recipe:
    folder.mkdir(exist_ok=True)
    config = tiny_config(family).to_dict() | settings
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    train = recipe.train.model_copy(update={"lr": 0.02, "steps": 6, "checkpoint_every": 2, "eval_every": 6})
    return recipe.model_copy(update={"model": ModelArgs(config_file=str(folder / "config.json")), "train": train})


@pytest.mark.error(n=6)
@pytest.mark.parametrize("family", ["falcon_h1", "deepseek_v3", "gemma3n_text", "recurrent_gemma", "mamba2", "electra"])
def test_the_loss_of_a_run_is_the_models_own(family, recipe, store, tmp_path):
    """falcon_h1 with `lm_head_multiplier = 0.0195`, as official checkpoints have; electra transforms at its head."""
    mine = recipe_of(recipe, family, tmp_path / "family")
    result = train(mine, store, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    own = own_loss(model, store, mine.train.latents)
    assert own == pytest.approx(result["val_loss"], abs=1e-3)
    assert same_weights(tmp_path / "run", killed_and_resumed(mine, store, tmp_path / "again", 5))


def test_a_run_says_what_it_does_not_train_and_does_not_balance(recipe, store, tmp_path):
    for family, said in (("bart", "encoder_attn"), ("aria_text", "nothing balances the load of a aria_text's experts")):
        train(recipe_of(recipe, family, tmp_path / family), store, tmp_path / f"{family}-run")
        metrics = read_metrics(tmp_path / f"{family}-run" / "metrics.jsonl")
        assert any(said in record.get("message", "") for record in metrics)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("bert", {"is_decoder": False}, "BertLMHeadModel looks ahead"),
        ("megatron-bert", {"is_decoder": False}, "looks ahead"),
        ("cpmant", {}, "cannot be run by its embeddings"),
        ("deepseek_v4", {}, "cannot be run by its embeddings"),
        ("roberta", {}, "needs a padding token"),
    ],
)
def test_a_family_that_cannot_be_trained_is_refused_before_the_first_step(
    family, settings, said, recipe, store, tmp_path
):
    with pytest.raises(UserError, match=said):
        train(recipe_of(recipe, family, tmp_path / "family", **settings), store, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
