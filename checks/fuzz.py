"""Feeds damaged, hostile and random input to all that superpose reads, and counts what comes of it.

    python checks/fuzz.py                          all targets, some 10,000 inputs; writes results/fuzz.json
    python checks/fuzz.py --target recipe --only 17 one input again, with its traceback

An input is a number: it seeds all that is drawn. It is either accepted or refused in one sentence. Anything else is a
finding, and ends the script with exit code 1: another exception, a sentence that is none, a file left behind, one
written or read outside the input's folder, code out of the input that ran, memory beyond the limit, or a hang.

    valid sample -> copy in a folder of its own -> damage -> what reads it -> accepted | refused | finding
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from superpose.errors import UserError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"

SECONDS = 10
"""An input that takes more of a processor's time hangs; one that waits for anything ends a dozen times as late."""
MEMORY = 3 * 2**30
"""Bytes an input's reading may map beyond what the process has at its start."""
LONGEST = 1000
"""Characters of a refusal."""
CANARY = "CANARY"
"""A file that code out of the inputs would make, were it run."""


class FindingError(Exception):
    """What must not happen has happened."""


class ReachedError(Exception):
    """The command line has come to the work itself, which is left out: all before was accepted."""


class HangError(BaseException):
    """An input took longer than `SECONDS`."""


# Damage.

_DEEP = "@deep@"
"""Stands for lists in lists, deeper than any parser goes; see `as_json`."""
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**15, 2**31, 2**32 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "a",
        "0",
        "-1",
        "1e9",
        "true",
        "null",
        "\0",
        "\n",
        "\ud800",
        "é" * 40,
        "\U0001d518💥",
        "x" * 5000,
        "\x1b[31m",
    ),
    *(
        "../../outside/secret",
        "../../../outside",
        "/etc/hostname",
        "~",
        "$HOME",
        "a/../../outside",
        "\\\\?\\C:\\",
        "con",
    ),
    *("!!python/object/apply:os.system [touch CANARY]", "__import__('os').system('touch CANARY')", "{{7*7}}", "%s%n"),
    *([], {}, [[]], [0], [None], [1, 2, 3], ["a"] * 50, {"": None}, {"a": {"b": {}}}, [{}] * 3, _DEEP),
)
_PICKLE = b"cposix\nsystem\n(S'touch CANARY'\ntR."
_ODD_BYTES = (
    *(b"", b"\0", b"\0" * 64, b"\xff" * 16, b"\n", b"\r\n\r\n", b"{", b"}", b'"', b"[", b"]", b"=", b"\\u0000"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfe\0\0", b"\xc0\x80", b"\xed\xa0\x80", b"NaN", b"1e999", b"9" * 5000),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", b"PK\x03\x04", b"PAR1", b"ARROW1", _PICKLE),
    *(b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"[" * 3000, b'{"a":' * 3000),
)


def odd(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return rng.choice((rng.randint(-10, 100), rng.uniform(-2, 2), rng.randint(-(2**70), 2**70), text(rng)))
    return rng.choice(_ODD)


def text(rng: random.Random) -> str:
    """A random text, its characters from all over Unicode."""
    ranges = ((32, 126), (0, 31), (128, 0x2FFF), (0xD800, 0xDFFF), (0x1F300, 0x1FAFF))
    return "".join(chr(rng.randint(*rng.choices(ranges, (12, 1, 1, 1, 1))[0])) for _ in range(rng.randint(0, 12)))


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to four things done to them."""
    held = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(held))
        stop = min(len(held), start + rng.choice((1, 2, 4, 8, 64, 1000)))
        match rng.randrange(8):
            case 0 if held:
                held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
            case 1:
                del held[start:stop]
            case 2:
                held[start:start] = held[start:stop] * rng.randint(1, 3)
            case 3:
                held[start:start] = rng.randbytes(rng.choice((1, 3, 8, 100)))
            case 4:
                del held[start:]
            case 5:
                held += rng.randbytes(rng.choice((1, 2, 7, 300)))
            case 6:
                held[start:stop] = rng.choice(_ODD_BYTES)
            case _:
                held[start:stop] = bytes(rng.randrange(256) for _ in range(stop - start))
    return bytes(held)


def altered(rng: random.Random, value: Any) -> Any:
    """A copy of what JSON holds, in which one thing somewhere is another."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.12:
        return odd(rng)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    changed: Any = value.copy()
    match rng.randrange(10):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[rng.choice((text(rng), str(key) + "_", "__class__", "auto_map"))] = changed.pop(key)
        case 2 if isinstance(changed, dict):
            changed[text(rng)] = odd(rng)
        case 3 if isinstance(changed, list):
            changed.insert(key, odd(rng))
        case _:
            changed[key] = altered(rng, value[key])
    return changed


def as_json(value: Any) -> bytes:
    deep = f"{'[' * 5000}{']' * 5000}"
    return json.dumps(value).replace(json.dumps(_DEEP), deep).encode("utf-8", "surrogatepass")


def as_toml(value: Any) -> str:
    """A value as TOML; what TOML has no word for as something it has none for either."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if value == _DEEP:
        return "[" * 5000 + "]" * 5000
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _parsed(content: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


def damage_file(rng: random.Random, file: Path) -> None:
    """Damages a file as what it is: JSON mostly as JSON, anything by its bytes, or there is no file any more."""
    if not file.is_file():
        return  # damaged before
    content = file.read_bytes()
    file.unlink()
    chance = rng.random()
    if chance < 0.04:
        return
    if chance < 0.06:
        file.mkdir()
    elif chance < 0.08:
        file.symlink_to(rng.choice((str(Path.cwd().parent / "outside" / "secret"), "nowhere", file.name, "..")))
    elif file.suffix == ".json" and chance < 0.8 and (value := _parsed(content)) is not None:
        for _ in range(rng.randint(1, 3)):
            value = altered(rng, value)
        file.write_bytes(as_json(value))
    elif file.suffix == ".jsonl" and chance < 0.8:
        lines = content.splitlines()
        for _ in range(rng.randint(1, 3)):
            number = rng.randrange(len(lines))
            with contextlib.suppress(ValueError, RecursionError):
                lines[number] = as_json(altered(rng, json.loads(lines[number])))
        file.write_bytes(b"\n".join(lines) + b"\n")
    else:
        file.write_bytes(damaged(rng, content))


# Samples: what is valid, made once, by superpose itself.


@dataclass(frozen=True)
class Samples:
    """Valid inputs of all kinds, in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Samples:
        """Trains two runs of six steps and writes all there is to read."""
        from superpose.compare.comparison import Comparison
        from superpose.compare.experiment import Design, plan_runs
        from superpose.data.config import prepare
        from superpose.data.store import TokenStore
        from superpose.files import write_json
        from superpose.plan.advisor import make_plan
        from superpose.plan.record import record
        from superpose.plan.request import request_of
        from superpose.runs.pool import Outcome, link
        from superpose.train.config import load_recipe
        from superpose.train.loop import train

        samples = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        words = ("alpha", "beta", "gamma", "delta")
        lines = [
            f"{n}: the {words[n % 4]} of {words[n * n % 4]} is {n % 10}.\n" + "\n" * (n % 5 == 0) for n in range(4000)
        ]
        (folder / "corpus.txt").write_text("".join(lines), encoding="utf-8")
        samples.recipe.write_text(_RECIPE.format(corpus=json.dumps(str(folder / "corpus.txt"))), encoding="utf-8")
        recipe = load_recipe(samples.recipe)
        with mock.patch.dict(os.environ, {"SUPERPOSE_CACHE": str(folder / "cache")}):
            prepared = prepare(recipe.data)
        shutil.copytree(prepared.path, samples.store)
        store = TokenStore.open(samples.store)
        pool = samples.runs / "pool"
        outcomes = []
        for run in plan_runs(Design(recipe, (1,)), {}):
            directory = pool / run.key(store)
            outcomes.append(Outcome(run, directory, train(run.recipe, store, directory)))
        link(outcomes, samples.runs / "named")
        Comparison.of(recipe, outcomes, {}, store).write(samples.runs / "named")
        (samples.runs / "reproduced").mkdir()
        shutil.copy(ROOT / "benchmarks/results/reproduce-tiny/reproduction.json", samples.runs / "reproduced")
        (samples.runs / "planned").mkdir()
        write_json(samples.runs / "planned" / "plan.json", record(make_plan(request_of(recipe))))
        _write_texts(samples.texts)
        return samples

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        """One of the runs."""
        return sorted((self.runs / "pool").glob("[0-9a-f]*"))[0]

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All of the recipe's."""
        loaded: dict[str, Any] = json.loads((self.run / "config.json").read_text(encoding="utf-8"))
        return loaded

    @cached_property
    def state(self) -> Any:
        from superpose.data.store import TokenStore
        from superpose.train.config import load_recipe
        from superpose.train.distributed import Ranks
        from superpose.train.state import build_state

        recipe = load_recipe(self.run / "config.json")
        return build_state(recipe, TokenStore.open(self.store), Ranks(0, 1, torch.device("cpu")))


_RECIPE = """
[data]
corpus = {corpus}
vocab_size = 300
val_fraction = 0.1
val_megabytes = 0.02
[model.config]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
[superposition]
bag_size = 4
ratio = 0.5
[train]
steps = 6
batch_size = 2
latents = 16
warmup_steps = 1
log_every = 1
eval_every = 2
checkpoint_every = 2
precision = "float32"
track = []
threads = 1
"""


def _write_texts(folder: Path) -> None:
    """A file of each kind that is read as text or as tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    documents = [f"Document {number}: größer, 漢字.\n\nIts end.\n" for number in range(12)]
    plain = "\n\n".join(documents).encode()
    records = "".join(json.dumps({"id": n, "text": part}) + "\n" for n, part in enumerate(documents)).encode()
    table = pa.table({"text": documents, "id": list(range(12))})
    for name, content in (
        ("a.txt", plain),
        ("wide.txt", plain.decode().encode("utf-16")),
        ("a.txt.gz", gzip.compress(plain, mtime=0)),
        ("a.jsonl", records),
        ("a.jsonl.gz", gzip.compress(records, mtime=0)),
        ("plain.bin", np.arange(1, 400, dtype="<u2").tobytes()),
        (
            "headed.bin",
            np.array([20240520, 1, 300, *[0] * 253], "<i4").tobytes() + np.arange(300, dtype="<u2").tobytes(),
        ),
    ):
        (folder / name).write_bytes(content)
    with pa.OSFile(str(folder / "a.jsonl.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
        stream.write(records)
    pq.write_table(table, folder / "a.parquet", row_group_size=5)
    for name, opened in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(folder / name), "wb") as raw, opened(raw, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    sizes, marks = np.full(6, 5, "<i4"), np.array([0, 2, 6], "<i8")
    pointers = (np.arange(6) * 10).astype("<i8")
    header = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + bytes([8]) + np.array([6, 3], "<u8").tobytes()
    (folder / "mega.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes() + marks.tobytes())
    (folder / "mega.bin").write_bytes(np.arange(1, 31, dtype="<u2").tobytes())
    saved = folder / "saved"
    saved.mkdir()
    shutil.copy(folder / "stream.arrow", saved / "data-00000-of-00001.arrow")
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}', encoding="utf-8")


# Targets: each draws an input into the folder it is given and has it read; whatever they raise is judged.


def feed_recipe(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Recipes: TOML and JSON, overrides, and all that is made of them before any work."""
    from superpose.data.store import TokenStore
    from superpose.models.build import build_config
    from superpose.plan.advisor import make_plan
    from superpose.plan.request import request_of
    from superpose.train.config import load_recipe, override
    from superpose.train.loop import check_recipe
    from superpose.train.recipe_file import recipe_toml

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
        lines = [f"{json.dumps(str(key))} = {as_toml(_without_null(value))}" for key, value in known.items()]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    file.write_bytes(damaged(rng, content) if rng.random() < 0.25 else content)
    recipe = load_recipe(file)
    if rng.random() < 0.5:
        places = [f"{section}.{name}" for section, values in samples.settings.items() for name in values]
        changes = []
        for _ in range(rng.randint(1, 2)):
            name = rng.choice((*places, "model.config.hidden_size", "model.config.num_hidden_layers", text(rng)))
            value = odd(rng)
            changes.append(f"{name}={value if rng.random() < 0.5 else as_toml(_without_null(value))}")
        recipe = override(recipe, changes)
    _ = recipe.schedule.stages, recipe.ordinary(), recipe.computing, recipe.changes(recipe), recipe.stable_steps
    recipe_toml(recipe)
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)  # as it is written into the run's folder
    recipe.plan(TokenStore.open(samples.store).train)
    check_recipe(recipe)
    build_config(recipe.model, 300, recipe.train.latents, 0)
    request = request_of(recipe)
    if rng.random() < 0.2:
        make_plan(request)


def _without_null(value: Any) -> Any:
    """The same without nulls, which TOML has none of."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_null(inner) for inner in value if inner is not None]
    return value


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
            _damage_safetensors(rng, shard)
        if rng.random() < 0.15:
            (place / rng.choice(("extra.safetensors", "data.pkl", ".metadata", "model.pt"))).write_bytes(_PICKLE)
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
        progress = checkpoints.restore(trained.model, trained.optimizer_of, tell=passed_over.append)
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


def _damage_safetensors(rng: random.Random, file: Path) -> None:
    """Its header, mostly as JSON: shapes, types, places, PyTorch's notes on parts; or any byte."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    file.unlink()
    match rng.randrange(6):
        case 0:
            file.write_bytes(damaged(rng, content))
        case 1:
            file.write_bytes(_PICKLE)
        case 2:
            file.symlink_to(rng.choice(sorted((Path.cwd().parent / "outside").iterdir())))
        case 3:
            notes = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
            changed = altered(rng, altered(rng, notes) or notes)
            header["__metadata__"]["DCP_SHARDING_INFO"] = as_json(changed).decode("utf-8", "replace")
            _write_safetensors(file, header, tensors)
        case 4:
            name = rng.choice([name for name in header if name != "__metadata__"])
            new = rng.choice(
                (name + "x", "optimizer." + name, f"{name}.../outside", name.replace("model.", "average."))
            )
            header[new] = header.pop(name)
            _write_safetensors(file, header, tensors)
        case _:
            _write_safetensors(file, altered(rng, header), tensors)


def _write_safetensors(file: Path, header: Any, tensors: bytes) -> None:
    head = as_json(header)
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + tensors)


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
        _add_code(rng, place)
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


_CODE = "from pathlib import Path\nPath('CANARY').touch()\nclass Evil:\n    def __init__(self, *a, **k): pass\n"


def _add_code(rng: random.Random, place: Path) -> None:
    """What would be run, were code beside a model or a tokenizer ever run."""
    (place / "evil.py").write_text(_CODE, encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = place / name
        if not file.is_file() or rng.random() < 0.3:
            continue
        with contextlib.suppress(ValueError, RecursionError):
            settings = json.loads(file.read_bytes())
            if not isinstance(settings, dict):
                continue
            classes = ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
            settings["auto_map"] = (
                {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
                if name.startswith("tokenizer")
                else dict.fromkeys(classes, "evil.Evil")
            )
            if rng.random() < 0.5:
                settings["tokenizer_class" if name.startswith("tokenizer") else "model_type"] = "Evil"
            file.write_bytes(as_json(settings))
    for name in ("pytorch_model.bin", "model.pt", "added_tokens.pkl"):
        if rng.random() < 0.3:
            (place / name).write_bytes(_PICKLE)
    if rng.random() < 0.3:
        (place / "model.safetensors").unlink(missing_ok=True)


def feed_run(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Directories of runs, comparisons, reproductions and plans: reported, resumed, and generated from."""
    from superpose.compare.comparison import Comparison
    from superpose.data.store import TokenStore
    from superpose.plan.evidence import points_of
    from superpose.report.write import write_report
    from superpose.share import generate
    from superpose.train.config import load_recipe
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
            _add_code(rng, model)
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
    places = [
        *(
            runs / "named" / "comparison.json",
            runs / "reproduced" / "reproduction.json",
            runs / "planned" / "plan.json",
        ),
        *(run / "result.json", run / "metrics.jsonl", run / "config.json"),
    ]
    file = rng.choice(places)
    comparison = runs / "named"
    if file.parent == comparison and rng.random() < 0.2:
        saved = json.loads(file.read_bytes())
        rng.choice(saved["runs"])["directory"] = rng.choice(("../../../outside", str(folder.parent / "outside")))
        file.write_bytes(as_json(saved))
    else:
        damage_file(rng, file)
    with mock.patch("superpose.report.write.draw"):
        write_report([comparison if file.parent == run and rng.random() < 0.4 else file.parent], folder / "page.html")
    for name in ("page.html", "page.md"):
        (folder / name).unlink()
    if file.name == "comparison.json":
        points_of(Comparison.load(comparison), "own")


def feed_text(samples: Samples, folder: Path, rng: random.Random) -> None:
    """Text, JSON lines, Parquet, Arrow and tokens of others, compressed or not; found and read to their end."""
    from superpose.data.readers import find_parts, read_part
    from superpose.data.sources import Source

    place = folder / "texts"
    shutil.copytree(samples.texts, place)
    file = rng.choice([file for file in sorted(place.rglob("*")) if file.is_file()])
    if file.suffix in (".gz",) and rng.random() < 0.5:
        inside = gzip.decompress(file.read_bytes())
        file.write_bytes(gzip.compress(damaged(rng, inside), mtime=0))
    else:
        damage_file(rng, file)
    location = str(rng.choice((*[file] * 8, place / "*", file.parent)))
    encoding = rng.choice(("utf-8",) * 20 + ("utf-16", "latin-1", "utf-8-sig", "base64", "idna", "", text(rng)))
    dtype: Any = rng.choice(("auto", "uint16", "uint32"))
    field = rng.choice(("text",) * 12 + ("id", "", text(rng)))
    for part in find_parts(Source(location, field, encoding, dtype)):
        for document in read_part(part, 0):
            if document is not None and not isinstance(document, (str, np.ndarray)):
                raise FindingError(f"a document is a {type(document).__name__}")


_WORK = (
    "superpose.data.config.prepare",
    "superpose.report.write.write_report",
    "superpose.share.sampling.generate",
    "superpose.data.prepare.prepare_store",
    "superpose.data.prepare.train_on_sources",
    "superpose.data.store.TokenStore.open",
    "superpose.plan.advisor.make_plan",
    "superpose.conform.implementation.load",
)
"""Where the command line's checks end."""
_TEXTS = (
    *("", " ", "-", "--", "-1", "0", "1", "2", "4", "0.5", "1.0", "1e999", "nan", "inf", "-inf", "1,2", "1,,2", ","),
    *("1e3", "8:0.1,4:0.1", "8:0.1", ":", "8:", "a:b", "8:nan", "9" * 400, "9" * 5000, "0x10", "1_000", "٣", "½", "K"),
    *(
        "train.steps=5",
        "train.steps=",
        "=",
        "=1",
        "train=1",
        "model.config=1",
        "model.config.hidden_size=1e999",
        "a.b.c=1",
    ),
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


Feed = Callable[[Samples, Path, random.Random], None]
TARGETS: dict[str, tuple[Feed, int]] = {
    "command line": (feed_cli, 1000),
    "recipe": (feed_recipe, 2500),
    "token store": (feed_store, 1500),
    "checkpoint": (feed_checkpoint, 1200),
    "tokenizer": (feed_tokenizer, 1200),
    "run folder": (feed_run, 1000),
    "text and tokens": (feed_text, 2000),
}
"""What is fed, and how many inputs by default."""


# Judging.


def expect_sentence(message: str) -> None:
    """One sentence, or a short list of them, that a person can read on any terminal."""
    if not message.strip() or len(message) > LONGEST:
        raise FindingError(f"a refusal of {len(message.strip())} characters: {message[:200]!r}")
    if "Traceback" in message or "<class" in message or " object at 0x" in message:
        raise FindingError(f"a refusal in Python's words: {message!r}")
    if not all(character.isprintable() or character == "\n" for character in message):
        raise FindingError(f"a refusal with control characters: {message!r}")


_forbidden = ""
"""The folder nothing is to be opened in, while an input is read."""
_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _forbidden and isinstance(arguments[0], (str, os.PathLike)):
        # A link that somebody put there is followed for reading, as anywhere; what only names a place is not.
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = (os.path.realpath if writes else os.path.abspath)(os.fspath(arguments[0]))
        if path.startswith(_forbidden):
            _opened.append(path)


def judge(target: str, seed: int, samples: Samples, folder: Path) -> tuple[str, str]:
    """What came of an input: "accepted", "refused" or "finding", and what was said.

    Args:
        folder: is emptied; the input lies in a folder inside, beside `outside`, which nothing may touch.
    """
    shutil.rmtree(folder, ignore_errors=True)
    inside, outside = folder / "input", folder / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret", encoding="utf-8")
    shutil.copy(samples.run / "metrics.jsonl", outside)
    for shard in sorted((samples.run / "checkpoints").glob("step-*/*.safetensors"))[:1]:
        shutil.copy(shard, outside)
    known = _state(outside)
    global _forbidden
    _opened.clear()
    feed, _ = TARGETS[target]
    _forbidden = os.path.realpath(outside)
    outcome, said = "accepted", ""
    try:
        with contextlib.chdir(inside):
            feed(samples, inside, random.Random(f"{target} {seed}"))
    except (UserError, OSError) as error:
        outcome = "refused"
        said = str(UserError.from_system(error) if isinstance(error, OSError) else error)
        try:
            expect_sentence(said)
        except FindingError as finding:
            outcome, said = "finding", f"{finding}\n{traceback.format_exc()}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        outcome, said = "finding", traceback.format_exc()
    finally:
        _forbidden = ""
    if outcome != "finding":
        if any(inside.rglob(CANARY)) or any(Path.cwd().glob(CANARY)):
            outcome, said = "finding", "code out of the input was run"
        elif _state(outside) != known:
            outcome, said = "finding", "something outside the input's folder was changed"
        elif _opened:
            outcome, said = "finding", f"{_opened[0]} was opened, outside the input's folder"
        elif left := [path for path in inside.rglob("*") if re.search(r"\.\d+\.(tmp|old)$|\.lock$", path.name)]:
            outcome, said = "finding", f"{left[0]} was left behind"
    return outcome, said


def _state(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*"))}


def watch_files() -> None:
    """From now on, what is opened outside an input's folder is noticed."""
    sys.addaudithook(_watch)


def _hangs(number: int, frame: FrameType | None) -> None:
    raise HangError(f"after {SECONDS} s")


def run_inputs(target: str, seeds: Sequence[int], samples: Samples, folder: Path, log: Path) -> None:
    """What the process of a target does: an outcome a line, under limits of time and memory."""
    import faulthandler

    watch_files()
    torch.set_num_threads(1)
    judge(target, -1, samples, folder)  # loads all that is loaded once
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _hangs)
    with log.open("a", encoding="utf-8") as file:
        for seed in seeds:
            print(json.dumps({"seed": seed}), file=file, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
            outcome, said = judge(target, seed, samples, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"seed": seed, "outcome": outcome, "said": said}), file=file, flush=True)


def sweep(target: str, seeds: range, samples: Samples, folder: Path) -> list[dict[str, Any]]:
    """All outcomes of a target; a process that dies is a finding, and another goes on after it."""
    folder.mkdir()
    log = folder / "log.jsonl"
    log.touch()
    start = seeds.start
    command = [sys.executable, __file__, "--samples", str(samples.folder), "--target", target, "--log", str(log)]
    while start < seeds.stop:
        done = subprocess.run(
            [*command, "--work", str(folder / "work"), "--start", str(start), "--count", str(seeds.stop - start)],
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if not lines:
            raise RuntimeError(done.stderr)
        if "outcome" not in lines[-1]:
            lines[-1] |= {"outcome": "finding", "said": f"the process died ({done.returncode}): {done.stderr[-1500:]}"}
            log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        start = lines[-1]["seed"] + 1
    return [line for line in lines if "outcome" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, help="one alone")
    parser.add_argument("--only", type=int, help="this input of --target alone")
    parser.add_argument("--start", type=int, default=0, help="first input")
    parser.add_argument("--count", type=int, help="inputs of each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--samples", type=Path, help="valid samples of an earlier sweep; made if not there")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.log is not None:
        seeds = range(options.start, options.start + options.count)
        run_inputs(options.target, seeds, Samples(options.samples), options.work, options.log)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = options.samples or folder / "samples"
        samples = Samples(place) if place.exists() else Samples.make(place)
        if options.only is not None:
            watch_files()
            print(*judge(options.target, options.only, samples, folder / "work"))
            return
        table, findings = {}, []
        targets = [options.target] if options.target else list(TARGETS)

        def swept(target: str) -> list[dict[str, Any]]:
            count = options.count or TARGETS[target][1]
            return sweep(target, range(options.start, options.start + count), samples, folder / target)

        with ThreadPoolExecutor(options.jobs) as pool:
            all_outcomes = list(pool.map(swept, targets))
        for target, outcomes in zip(targets, all_outcomes, strict=True):
            table[target] = Counter(line["outcome"] for line in outcomes)
            print(f"{target:16} {len(outcomes):6,} inputs  {dict(sorted(table[target].items()))}", flush=True)
            for line in outcomes:
                if line["outcome"] == "finding":
                    findings.append(line)
                    print(f"--- {target} {line['seed']}: {line['said'][-2000:]}", flush=True)
    if options.count is None and options.start == 0:
        from superpose.files import read_json, write_json

        kinds = ("accepted", "refused", "finding")
        known = read_json(RESULTS) if RESULTS.exists() else {}
        known |= {target: {kind: counts[kind] for kind in kinds} for target, counts in table.items()}
        write_json(RESULTS, {target: known[target] for target in TARGETS if target in known})
    print(f"{sum(sum(counts.values()) for counts in table.values()):,} inputs, {len(findings)} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
