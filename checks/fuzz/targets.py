"""What is fed: each target draws an input into the folder it is given and has it read; what they raise is judged."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from checks.fuzz.damage import (
    PICKLE,
    add_code,
    altered,
    as_json,
    as_toml,
    damage_file,
    damage_safetensors,
    damaged,
    odd,
    text,
    without_null,
)
from checks.fuzz.elsewhere import feed_place, feed_stream
from checks.fuzz.judging import Feed, FindingError, expect_sentence, judge
from checks.fuzz.models import feed_evaluate, feed_export, feed_import
from checks.fuzz.samples import Samples
from superpose.errors import UserError


class ReachedError(Exception):
    """The command line has come to the work itself, which is left out: all before was accepted."""


def feed_recipe(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Recipes: TOML and JSON, overrides, and all that is made of them before any work."""
    from superpose.data.store import TokenStore
    from superpose.models.build import build_config
    from superpose.plan.advisor import make_plan
    from superpose.plan.fit import request_of
    from superpose.train.loop import check_recipe
    from superpose.train.recipe_file import load_recipe, override, recipe_toml

    settings = samples.settings
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        section = rng.choice(list(settings))
        settings = (
            {**settings, section: altered(rng, settings[section])} if rng.random() < 0.9 else altered(rng, settings)
        )
        if not isinstance(settings, dict) or not settings:
            break
    if rng.random() < 0.2 and isinstance(settings, dict):
        name = rng.choice(
            ("hidden_act", "rope_parameters", "attn_implementation", "head_dim", "layer_types", text(rng))
        )
        model = {**samples.settings["model"]["config"], name: rng.choice(("a/b", "silu", odd(rng), odd(rng)))}
        settings = {**settings, "model": {"config": model}}
    if rng.random() < 0.5:
        file, content = folder / "recipe.json", as_json(settings)
    else:
        file = folder / "recipe.toml"
        known = settings if isinstance(settings, dict) else {"data": settings}
        lines = [f"{json.dumps(str(key))} = {as_toml(without_null(value))}" for key, value in known.items()]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    file.write_bytes(damaged(rng, content) if rng.random() < 0.25 else content)
    recipe = load_recipe(file)
    if rng.random() < 0.5:
        places = [f"{section}.{name}" for section, values in samples.settings.items() for name in values]
        changes = []
        for _ in range(rng.randint(1, 2)):
            name = rng.choice((*places, "model.config.hidden_size", "model.config.num_hidden_layers", text(rng)))
            value = odd(rng)
            changes.append(f"{name}={value if rng.random() < 0.5 else as_toml(without_null(value))}")
        recipe = override(recipe, changes)
    _ = recipe.schedule.stages, recipe.ordinary(), recipe.computing, recipe.changes(recipe), recipe.stable_steps
    recipe_toml(recipe)
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)  # as it is written into the run's folder
    recipe.windows(TokenStore.open(samples.store).train)
    check_recipe(recipe)
    build_config(recipe.model, 300, recipe.train.latents, 0)
    request = request_of(recipe)
    if rng.random() < 0.2:
        make_plan(request)


def feed_store(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Token stores: manifest, shards, offsets, links; opened, told of, verified and read."""
    from superpose.data.store import TokenStore
    from superpose.train.run_directory import export_model

    store = folder / "store"
    shutil.copytree(samples.store, store)
    files = [file for file in sorted(store.rglob("*")) if file.is_file()]
    weights = [8 if file.name == "manifest.json" else 1 for file in files]
    for file in {rng.choices(files, weights)[0] for _ in range(rng.randint(1, 2))}:
        damage_file(rng, file)
    opened = TokenStore.open(store)
    opened.describe()
    opened.verify()
    for split in (opened.train, opened.val):
        split.tokens.read(len(split.tokens) // 2, min(100, len(split.tokens)))
    _ = opened.facts, opened.fingerprint
    if rng.random() < 0.1:
        with mock.patch("superpose.train.run_directory.build_model"):
            export_model(None, {}, opened, folder / "exported")
        if any("secret" in file.read_text(errors="replace") for file in (folder / "exported").iterdir()):
            raise FindingError("a file from outside the store was exported")
        shutil.rmtree(folder / "exported")


def feed_checkpoint(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Checkpoints: state.json, safetensors and links, with checksums that are right all the same; then restored."""
    from superpose.train.checkpoint import Checkpoints, _fingerprint
    from superpose.train.distributed import Ranks

    trained = samples.state
    shutil.copytree(samples.run / "checkpoints", folder / "checkpoints")
    for place in sorted((folder / "checkpoints").iterdir())[rng.choice((0, 0, -1)) :]:
        shards = sorted(place.glob("*.safetensors"))
        state_file = place / "state.json"
        state = json.loads(state_file.read_text())
        if rng.random() < 0.7:
            shard = rng.choice(shards)
            damage_safetensors(rng, shard)
        if rng.random() < 0.15:
            (place / rng.choice(("extra.safetensors", "data.pkl", ".metadata", "model.pt"))).write_bytes(PICKLE)
        if rng.random() < 0.75:  # whoever alters it on purpose puts the checksums right
            for shard in place.glob("*.safetensors"):
                if shard.is_file():
                    state["files"][shard.name] = hashlib.sha256(shard.read_bytes()).hexdigest()
        if rng.random() < 0.5:
            state = altered(rng, state)
        if isinstance(state, dict) and rng.random() < 0.9:
            state.pop("sha256", None)
            with contextlib.suppress(RecursionError, TypeError, ValueError):
                state["sha256"] = _fingerprint(state)
        state_file.write_bytes(as_json(state))
        if rng.random() < 0.15:
            damage_file(rng, rng.choice([state_file, *(shard for shard in shards if shard.exists())]))
    if rng.random() < 0.1:
        (folder / "checkpoints" / rng.choice(("step-99999999", ".step-00000003.tmp"))).write_bytes(b"no folder")
    checkpoints = Checkpoints(folder, Ranks(0, 1, torch.device("cpu")))
    passed_over: list[str] = []
    try:
        progress = checkpoints.restore(trained.parts, passed_over.append)
        if type(progress.step) is not int or not isinstance(progress.seconds, (int, float)):
            raise FindingError(f"restored with a progress of {progress}")
        for parameter in trained.model.parameters():
            for value in trained.optimizer_of(parameter).state[parameter].values():
                if value.numel() not in (1, parameter.numel()):
                    raise FindingError("an optimizer was given a state that is not its parameter's")
    finally:
        checkpoints.close()
        for sentence in passed_over:
            expect_sentence(sentence)


def feed_tokenizer(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Tokenizers: tokenizer.json and its companions, with custom code beside them; loaded, used and saved."""
    from superpose.data.tokenizer import load_tokenizer, save_tokenizer

    place = folder / "tokenizer"
    shutil.copytree(samples.store / "tokenizer", place)
    if rng.random() < 0.75:
        damage_file(rng, place / "tokenizer.json")
    if rng.random() < 0.6:
        damage_file(rng, place / "tokenizer_config.json")
    if rng.random() < 0.3:
        add_code(rng, place)
    name = rng.choice(("", "", "<|endoftext|>", "a", text(rng)))
    tokenizer = load_tokenizer(str(place), name)
    _ = tokenizer.vocab_size, tokenizer.byte_ids
    tokenizer.tokenizer.encode_special_tokens = True
    words = tokenizer.words
    sample = "Hello, 12 alpha 漢\n"
    if words is not None:
        words.encode("Hello, 12 alpha\n")
    tokenizer.tokenizer.encode_batch([sample], add_special_tokens=False)
    save_tokenizer(tokenizer, folder / "saved")
    shutil.rmtree(folder / "saved")


def feed_run(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Directories of runs, comparisons, reproductions and plans: reported, resumed, and generated from."""
    from superpose.compare.comparison import Comparison
    from superpose.data.store import TokenStore
    from superpose.plan.evidence import points_of
    from superpose.report.page import write_report
    from superpose.share import generate
    from superpose.train.recipe_file import load_recipe
    from superpose.train.records import metrics_log
    from superpose.train.run_directory import claim

    runs = folder / "runs"
    shutil.copytree(samples.runs, runs, symlinks=True)
    run = runs / "pool" / samples.run.name
    kind = rng.choices(("report", "generate", "resume"), (6, 2, 2))[0]
    if kind == "generate":
        model = run / "model"
        for _ in range(rng.randint(0, 2)):
            damage_file(rng, rng.choice([file for file in sorted(model.iterdir()) if file.is_file()]))
        if rng.random() < 0.6:
            add_code(rng, model)
        if rng.random() < 0.2:
            damage_file(rng, run / rng.choice(("result.json", "config.json")))
        generate(run, "alpha", 2, 0.8, 0.9)
        return
    if kind == "resume":
        damage_file(rng, run / rng.choice(("config.json", "store.json", "metrics.jsonl", "metrics.jsonl")))
        store = TokenStore.open(samples.store)
        claim(run, load_recipe(samples.run / "config.json"), store, True, torch.device("cpu"))
        with metrics_log(run / "metrics.jsonl", 4) as write:
            write({"step": 5})
        if not (run / "metrics.jsonl").is_file() or (run / "metrics.jsonl").is_symlink():
            raise FindingError("the log was written elsewhere")
        return
    places = ("named/comparison.json", "reproduced/reproduction.json", "planned/plan.json")
    file = rng.choice(
        [*(runs / place for place in places), run / "result.json", run / "metrics.jsonl", run / "config.json"]
    )
    comparison = runs / "named"
    if file.parent == comparison and rng.random() < 0.2:
        saved = json.loads(file.read_bytes())
        rng.choice(saved["runs"])["directory"] = rng.choice(("../../../outside", str(folder.parent / "outside")))
        file.write_bytes(as_json(saved))
    else:
        damage_file(rng, file)
    with mock.patch("superpose.report.page.draw"):
        write_report([comparison if file.parent == run and rng.random() < 0.4 else file.parent], folder / "page.html")
    for name in ("page.html", "page.md"):
        (folder / name).unlink()
    if file.name == "comparison.json":
        points_of(Comparison.load(comparison), "own")


def feed_text(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Text, JSON lines, Parquet, Arrow and tokens of others, compressed or not; found and read to their end."""
    from superpose.data.account import Dropped
    from superpose.data.readers import Source, find_parts, read_part

    place = folder / "texts"
    shutil.copytree(samples.texts, place)
    file = rng.choice([file for file in sorted(place.rglob("*")) if file.is_file()])
    if file.suffix in (".gz",) and rng.random() < 0.5:
        inside = gzip.decompress(file.read_bytes())
        file.write_bytes(gzip.compress(damaged(rng, inside), mtime=0))
    else:
        damage_file(rng, file)
    location = str(rng.choice((*[file] * 8, place / "*", file.parent)))
    others = ("utf-16", "latin-1", "utf-8-sig", "gb18030", "utf-7", "iso2022_jp", "base64", "idna", "", text(rng))
    encoding = rng.choice(("utf-8",) * 20 + others)
    dtype: Any = rng.choice(("auto", "auto", "uint16", "uint32", "int32", "int64"))
    field = rng.choice(("text",) * 12 + ("id", "", text(rng)))
    for part in find_parts(Source(location, field, encoding, dtype)):
        for document in read_part(part, 0):
            if not isinstance(document, (str, np.ndarray, Dropped)):
                raise FindingError(f"a document is a {type(document).__name__}")


_WORK = (
    # First, as importing them later would keep what stands in for it here.
    *(f"superpose.{module}.prepare" for module in ("compare.workflow", "tune.halving", "reproduce.reproduction")),
    "superpose.data.config.prepare",
    "superpose.report.page.write_report",
    "superpose.share.sampling.generate",
    "superpose.data.prepare.prepare_store",
    "superpose.data.prepare.train_on_sources",
    "superpose.data.store.TokenStore.open",
    "superpose.plan.advisor.make_plan",
    "superpose.conform.subject.load",
)
"""Where the command line's checks end."""
_TEXTS = (
    *("", " ", "-", "--", "-1", "0", "1", "2", "4", "0.5", "1.0", "1e999", "nan", "inf", "-inf", "1,2", "1,,2", ","),
    *("1e3", "8:0.1,4:0.1", "8:0.1", ":", "8:", "a:b", "8:nan", "9" * 400, "9" * 5000, "0x10", "1_000", "٣", "½", "K"),
    *("train.steps=5", "train.steps=", "=", "=1", "train=1", "model.config=1"),
    *("model.config.hidden_size=1e999", "a.b.c=1"),
    *("train.lr=nan", "train.steps=99999999999999999999", "data.corpus=[]", 'data.corpus="\\u0000"', "data.seed=[[[["),
    *("270M", "3B", "1.5T", "-3B", "1e30B", "8xH100", "cpu", "0xH100", "999999999xH100", "2.5/h", "/h", "python"),
    *("recipe.toml", "run", "nowhere", ".", "..", "a" * 5000, "\udcff", "é💥", "%s", "{}", "[red]", "step=f", "step="),
    *("bytes", "auto", "tiny", "table1", "text", "uint16", "pool", "../x", "report.html", "a\nb", "\x1b[0m"),
)


def feed_cli(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Arguments of all commands: of each option odd ones and fitting ones, twice, unknown, or without a value."""
    from superpose import __main__

    shutil.copy(samples.recipe, folder / "recipe.toml")
    (folder / "run").mkdir()
    before = sorted(folder.rglob("*"))
    arguments = _arguments(rng)
    printed, said = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.ExitStack() as stack:
        for work in _WORK:
            stack.enter_context(mock.patch(work, side_effect=ReachedError))
        stack.enter_context(mock.patch.object(sys, "argv", ["superpose", *arguments]))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.chdir(folder))
        try:
            __main__.main()
        except SystemExit as ended:
            code = ended.code
        except ReachedError:
            return
        except Exception as error:
            raise type(error)(f"superpose {arguments!r:.300}: {error}") from error
    if sorted(folder.rglob("*")) != before:
        raise FindingError(f"{arguments} left something behind")
    if code in (None, 0):
        return
    message = said.getvalue()
    if code != 2 or not message or "Traceback" in message:
        raise FindingError(f"{arguments} ended with {code!r} and {message!r:.300}")
    if "Usage:" in message:  # the parser's own words, in a frame
        raise UserError("usage")
    raise UserError(message.removeprefix("superpose: ").rstrip("\n"))


def _arguments(rng: random.Random) -> list[str]:
    import typer.main

    from superpose.cli import app

    command: Any = typer.main.get_command(app)
    words: list[str] = []
    while hasattr(command, "commands"):
        name = rng.choice(list(command.commands))
        command = command.commands[name]
        words.append(name)
    if rng.random() < 0.03:
        words = [rng.choice((text(rng), "traim", "--version", "--help", ""))]

    def value(parameter: Any) -> str:
        fitting = {
            "recipe": "recipe.toml", "out": "made", "vocab_size": "300", "seeds": "1,2", "steps": "600",
            "name": "x", "lrs": "1e-3,2e-3", "ratio": "0.3", "bag_size": "4", "bag_sizes": "4,8",
            "ratios": "0.2,0.3", "price": "2.5/h", "hardware": "8xH100", "params": "270M", "tokens": "10B",
            "data": "10B", "places": "run", "run": "run", "store": "run", "sources": "python", "tokenizer": "bytes",
            "overrides": "train.steps=500", "trials": "3", "experiments": "table1", "scale": "tiny", "budget": "3",
            "budgets": "800", "corpus": "python", "stages": "8:0.1", "min_steps": "300", "compared": "run",
            "source": "x.py", "role": "step=f", "dtype": "auto", "baseline": "run",
        }.get(parameter.name)  # fmt: skip
        return fitting if fitting is not None and rng.random() < 0.6 else rng.choice((*_TEXTS, _no_null(text(rng))))

    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    for parameter in command.params:
        if parameter.param_type_name == "argument" and rng.random() < 0.9:
            words += [value(parameter) for _ in range(1 if parameter.nargs == 1 else rng.randint(1, 2))]
    required = [parameter for parameter in options if parameter.required and rng.random() < 0.9]
    for parameter in [*required, *rng.choices(options, k=rng.choice((0, 1, 1, 2, 3)) if options else 0)]:
        words.append(rng.choice(parameter.opts))
        if not parameter.is_flag and rng.random() < 0.97:
            words.append(value(parameter))
    if rng.random() < 0.05:
        words.insert(rng.randint(0, len(words)), rng.choice(("--no-such", "-x", "--", "--set", _no_null(text(rng)))))
    return words


def _no_null(word: str) -> str:
    """What an argument of a process can be: no null, and of what is no text only undecoded bytes."""
    return "".join(c for c in word if c != "\0" and not 0xD800 <= ord(c) < 0xDC80 and not 0xDD00 <= ord(c) < 0xE000)


TARGETS: dict[str, tuple[Feed, int]] = {
    "command line": (feed_cli, 1000),
    "recipe": (feed_recipe, 2500),
    "token store": (feed_store, 1500),
    "checkpoint": (feed_checkpoint, 1200),
    "tokenizer": (feed_tokenizer, 1200),
    "run folder": (feed_run, 1000),
    "text and tokens": (feed_text, 2000),
    "export": (feed_export, 700),
    "import": (feed_import, 700),
    "evaluate": (feed_evaluate, 700),
    "stream": (feed_stream, 1000),
    "remote place": (feed_place, 1000),
}
"""What is fed, and how many inputs by default."""


def judge_input(target: str, seed: int, samples: Samples, folder: Path) -> tuple[str, str]:
    """`judge` of an input by its number."""
    return judge(TARGETS[target][0], f"{target} {seed}", samples, folder)
