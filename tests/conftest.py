"""Small models, a small store, and one directory for caches, shared by all tests."""

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fsspec
import hypothesis
import pytest
import torch

from superpose.data.config import DataArgs, prepare
from superpose.train.config import Recipe

torch.set_num_threads(1)
hypothesis.settings.register_profile("superpose", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("superpose")

MODELS = {
    "llama": {"num_attention_heads": 2, "intermediate_size": 32},
    "qwen3": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32},
    "qwen3_moe": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.01,
    },
    # Dropout off: two forward passes are to be compared.
    "gpt2": {"num_attention_heads": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
"""The four families of the first release, as small as they go; gpt2 ties its embeddings."""


def load_example(name: str):
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(family: str, vocab_size: int = 50):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **MODELS[family],
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(params=MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    os.environ["SUPERPOSE_CACHE"] = str(directory)
    return directory


@pytest.fixture
def memory():
    """fsspec's file system of memory://, a remote place with nothing in it."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A text file with some structure: numbered sentences in paragraphs."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma"]
    lines = [
        f"{number}: the {words[number % 6]} of {words[number * number % 6]} is {number % 10}.\n"
        + ("\n" if number % 5 == 0 else "")
        for number in range(20_000)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def documents(corpus) -> Path:
    """Its paragraphs as JSON lines: of documents so short a few can be held out, and validated in no time."""
    path = corpus.with_name("documents.jsonl")
    paragraphs = corpus.read_text(encoding="utf-8").split("\n\n")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_args(documents) -> DataArgs:
    return DataArgs(corpus=str(documents), vocab_size=300, val_fraction=0.1, val_megabytes=0.003)


@pytest.fixture(scope="session")
def store(cache, data_args):
    return prepare(data_args)


@pytest.fixture(scope="session")
def recipe(data_args) -> Recipe:
    """A run of seconds: 20 steps, the switch at step 8."""
    return Recipe.model_validate(
        {
            "data": data_args.model_dump(),
            "model": {
                "config": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "tie_word_embeddings": False,
                }
            },
            "superposition": {"bag_size": 4, "ratio": 0.4},
            "train": {
                "steps": 20,
                "batch_size": 4,
                "latents": 16,
                "warmup_steps": 2,
                "log_every": 1,
                "eval_every": 10,
                "checkpoint_every": 3,
                "precision": "float32",
                "track": [],
                "threads": 1,
            },
        }
    )


@pytest.fixture(scope="session")
def run(recipe, store, tmp_path_factory) -> Path:
    """A finished run with a moving average: not to be changed."""
    from superpose.train.loop import train
    from superpose.train.recipe_file import with_settings

    path = tmp_path_factory.mktemp("finished") / "one"
    train(with_settings(recipe, "train", average=0.9), store, path)
    return path


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory) -> Path:
    """Its model as a Hugging Face directory: not to be changed either."""
    from superpose.share import export

    path = tmp_path_factory.mktemp("exported") / "model"
    export(run, path)
    return path


def trained(runs, store, pool):
    """What `superpose.runs.pool.execute` does, in this process: a process of its own takes seconds to start."""
    from superpose.runs.pool import Outcome
    from superpose.train.loop import train

    directories = [pool / run.key(store) for run in runs]
    return [
        Outcome(run, path, train(run.recipe, store, path, resume=True))
        for run, path in zip(runs, directories, strict=True)
    ]


@pytest.fixture(scope="session")
def compared(recipe, store, tmp_path_factory):
    """A small comparison with all there is in one, and its directory: seeds, budgets, rates, the control, a variant."""
    from superpose.compare import Design, compare

    runs = tmp_path_factory.mktemp("runs")
    variants = {"power": ["superposition.weighting=power"]}
    design = Design(recipe, (1, 2), (), (30,), tune={"train.lr": (1e-2, 2e-2)}, context_control=True, variants=variants)
    with (
        mock.patch("superpose.compare.workflow.prepare", return_value=store),
        mock.patch("superpose.compare.workflow.train_all", lambda planned, *of: trained(planned, *of[:2])),
    ):
        return runs / "named", compare(design, runs=runs, name="named")


def suggestions(output):
    """The arguments of the commands that another names at its end."""
    return [shlex.split(line)[2:] for line in output.splitlines() if line.startswith("Next: superpose ")]


def suggested(output):
    """Those of the only one."""
    (arguments,) = suggestions(output)
    return arguments


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Calls the command line with something wrong and returns the one sentence it prints."""

    from superpose.__main__ import main

    def call(*arguments, cwd=tmp_path):
        monkeypatch.setattr(sys, "argv", ["superpose", *map(str, arguments)])
        monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr().err
        assert caught.value.code == 2
        assert printed.startswith("superpose: ")
        assert printed.count("\n") == 1
        return printed

    return call
