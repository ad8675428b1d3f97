import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.errors import UserError
from superpose.recipes import NAMES
from superpose.train.config import Recipe
from superpose.train.recipe_file import load_recipe


def written(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_the_tiny_recipe_is_the_defaults():
    assert load_recipe("cpu-tiny") == Recipe()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid(name):
    load_recipe(name)


def test_overrides_win_over_the_file(tmp_path):
    path = written(tmp_path, "[train]\nlr = 1.0\nsteps = 400\n")
    recipe = load_recipe(path, ["train.lr=1e-3", "data.corpus=some/path", "model.config.hidden_size=32"])
    assert (recipe.train.lr, recipe.train.steps, recipe.data.corpus) == (1e-3, 400, "some/path")
    assert recipe.model.config == {**Recipe().model.config, "hidden_size": 32}


def test_several_stages(tmp_path):
    path = written(tmp_path, "[superposition]\nbag_size = [8, 4]\nratio = [0.1, 0.2]\n[train]\nsteps = 1000\n")
    assert load_recipe(path).schedule.boundaries == (100, 300)


def test_what_a_run_writes_can_be_read_back(tmp_path):
    recipe = load_recipe(None, ["superposition.bag_size=[8, 4]", "superposition.ratio=[0.1, 0.1]", "train.seed=7"])
    path = tmp_path / "config.json"
    path.write_text(recipe.model_dump_json())
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "no setting 'train.lrr'; did you mean 'train.lr'"),
        ("trian.lr=1", "did you mean 'train.lr'"),
        ("train.lr.x=1", "no setting 'train.lr.x'"),
        ("train=1", "SECTION.NAME=VALUE"),
        ("train.lr", "NAME=VALUE"),
        ("train.lr=fast", "train.lr is 'fast'"),
        ("train.steps=1.5", "train.steps is 1.5"),
        ("train.lr=-1", "greater than 0"),
        ("superposition.ratio=1.2", "ratio"),
        ("superposition.mode=both", "mode"),
        ("superposition.bag_size=[4, 2]", "one ratio for each"),
        ("superposition.weighting=[1.0]", "1 weights for bags of 4"),
        ("superposition.ratio=0.00001", "less than one step"),
        ("train.warmup_steps=5000", "do not fit into train.steps"),
        ("train.accumulate=5", "not a multiple of train.accumulate"),
        ("data.vocab_size=200", "vocab_size"),
        ("model.config=3", "model.config is 3"),
    ],
)
def test_wrong_settings_are_one_clear_sentence(override, message):
    with pytest.raises(UserError) as caught:
        load_recipe(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        load_recipe(None, ["train.lr=fast", "train.steps=0"])
    assert "train.lr is" in str(caught.value)
    assert "train.steps is" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"[train", b"\xff\xfe", b"train = 3", b"[train]\nlr = nan"])
def test_files_that_are_no_recipe_are_named(tmp_path, content):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.toml"):
        load_recipe(path)


@given(st.text(max_size=40))
def test_no_override_ends_in_a_traceback(text):
    with contextlib.suppress(UserError):
        load_recipe(None, [text])


@given(st.sampled_from(["train.lr", "superposition.bag_size", "model.config", "data.corpus", "train.betas"]), st.text())
def test_no_value_ends_in_a_traceback(name, text):
    with contextlib.suppress(UserError):
        load_recipe(None, [f"{name}={text}"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('lr_schedule = "cosine"\ndecay_ratio = 0.2', "train.decay_ratio is of lr_schedule = 'wsd'"),
        ("min_lr_ratio = 0.1", "train.min_lr_ratio is of lr_schedule = 'cosine'"),
        ("momentum = 0.9", "train.momentum is of optimizer = 'muon'"),
        ("[superposition]\nvariant = 'bce'\nweighting = 'power'", "superposition.weighting would be ignored"),
        ('optimizer = "sgd"', "train.optimizer is 'sgd'"),
        ('track = ["mlflow"]', "train.track"),
    ],
)
def test_settings_that_would_be_ignored_or_do_not_exist(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        load_recipe(written(tmp_path, "[train]\n" + settings))


@pytest.mark.parametrize("name", ["train.lr", "train.runaway", "train.eps", "data.max_megabytes", "parallel.timeout"])
def test_what_json_cannot_hold_is_no_setting(name):
    with pytest.raises(UserError, match=rf"{name} is inf; input should be a finite number"):
        load_recipe(None, [f"{name}=inf"])


@pytest.mark.parametrize(
    "name",
    [
        *("superposition.bag_size", "train.steps", "train.batch_size", "train.latents", "train.rewarm_steps"),
        *("data.vocab_size", "data.seed", "parallel.timeout"),
    ],
)
def test_numbers_beyond_all_machines_are_refused(name):
    with pytest.raises(UserError, match=rf"{name} is 1000.*; input should be (less than|a valid number)"):
        load_recipe(None, [f"{name}=1{'0' * 400}"])


def test_of_a_long_value_its_ends_are_shown():
    with pytest.raises(UserError, match=r"train\.attention is 'x+\.\.\.x+'; input should be") as caught:
        load_recipe(None, [f"train.attention={'x' * 5000}"])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_a_value_that_no_parser_takes_is_text(value):
    with pytest.raises(UserError, match=r"train\.lr is '.*\.\.\..*'; input should be a (valid|finite) number"):
        load_recipe(None, [f"train.lr={value}"])


@pytest.mark.parametrize(
    ("steps", "every", "interval"),
    [
        (3000, 300, 300),
        (8000, 1000, 1000),
        (300, 300, 60),
        (301, 300, 61),
        (60, 300, 20),
        (20, 10, 10),
        (600, 99, 99),
    ],
)
def test_a_short_run_is_validated_more_often(steps, every, interval):
    recipe = Recipe.model_validate({"train": {"steps": steps, "eval_every": every, "warmup_steps": 1}})
    assert recipe.validation_interval == interval
    assert interval <= every
    assert steps // interval >= min(5, steps // 20) - 1
