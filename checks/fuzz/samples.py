"""What is valid: made once, by superpose itself."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).parents[2]


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
        from superpose.plan.fit import request_of
        from superpose.plan.tables import record
        from superpose.runs.pool import Outcome, link
        from superpose.share import export
        from superpose.train.loop import train
        from superpose.train.recipe_file import load_recipe

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
        design = Design(recipe, (1,))
        for run in plan_runs(design):
            directory = pool / run.key(store)
            outcomes.append(Outcome(run, directory, train(run.recipe, store, directory)))
        link(outcomes, samples.runs / "named")
        Comparison.of(design, outcomes, (), store).write(samples.runs / "named")
        (samples.runs / "reproduced").mkdir()
        shutil.copy(ROOT / "benchmarks/results/reproduce-tiny/reproduction.json", samples.runs / "reproduced")
        (samples.runs / "planned").mkdir()
        write_json(samples.runs / "planned" / "plan.json", record(make_plan(request_of(recipe))))
        export(samples.run, samples.exported)
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
    def exported(self) -> Path:
        """The run's model."""
        return self.folder / "exported"

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
        from superpose.train.distributed import Ranks
        from superpose.train.recipe_file import load_recipe
        from superpose.train.step import build_state

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
