"""Preparing text against `datasets.map`, memory as the input grows, and how fast windows are read.

    python benchmarks/data.py             all of docs/data.md's figures, some 15 minutes
    python benchmarks/data.py --megabytes 100
    python benchmarks/data.py --large 10000      once so much text in compressed files; 45 GB of disk, half an hour

Text is the Python sources of this machine as JSON lines, over and over with a number in each copy so that none is a
repeat of another. Both sides start from that file and the same tokenizer, use one process a core, and end with tokens
on disk; ours also removes repeats, shuffles, and writes checksums. Needs the extra `bench`. Writes
benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from measure import machine
from superpose.core.schedule import Schedule
from superpose.data.prepare import Preparation, prepare_store, train_on_sources
from superpose.data.readers import PYTHON_SOURCES, Source, find_parts, read_part
from superpose.data.store import TokenStore
from superpose.data.tokenizer import BYTES, save_tokenizer
from superpose.data.windows import WindowPlan
from superpose.engine.local import available_cores

RESULTS = Path(__file__).parent / "results" / "data.json"
SPEED_MEGABYTES = 50
LARGE_FILE = 100
"""Megabytes of text in each file of the largest input."""
BPE_MEGABYTES = 500
"""The largest input that is also tokenized in byte pairs."""


def lines_of_text() -> Iterator[str]:
    """JSON lines without end."""
    texts = [text for part in find_parts(Source(PYTHON_SOURCES)) for text in read_part(part) if isinstance(text, str)]
    for copy in count():
        for text in texts:
            yield json.dumps({"text": f"# copy {copy}\n{text}"}) + "\n"


def write_text(file: IO[bytes], lines: Iterator[str], megabytes: float) -> None:
    """So much of the lines."""
    size = 0
    while size < megabytes * 1e6:
        size += file.write(next(lines).encode())


def prepared(source: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    """Seconds of each step of ours."""
    began: list[tuple[str, float]] = []

    def progress(what: str, share: float) -> None:
        if not began or began[-1][0] != what:
            began.append((what, time.perf_counter()))

    prepare_store(Preparation((Source(str(source)),), tokenizer=str(tokenizer)), out, progress=progress)
    progress("end", 1)
    return {what: round(until - since, 2) for (what, since), (_, until) in pairwise(began)}


def mapped(source: Path, tokenizer: Path, out: Path) -> None:
    """The same file through `datasets.map`, as its documentation shows it."""
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoTokenizer

    disable_progress_bar()
    encode = AutoTokenizer.from_pretrained(tokenizer)
    text = load_dataset("json", data_files=str(source), split="train", cache_dir=str(out / "cache"))
    tokens = text.map(
        lambda batch: {"input_ids": encode(batch["text"])["input_ids"]},
        batched=True,
        num_proc=available_cores(),
        remove_columns=text.column_names,
    )
    tokens.save_to_disk(out / "tokens")


def peak_of_tree(arguments: list[str]) -> tuple[float, float]:
    """Runs this script; returns seconds, and the largest resident memory of it and its children together, in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_resident(child) for child in _tree(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, peak


def _tree(process: int) -> Iterator[int]:
    yield process
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _resident(process: int) -> float:
    """Its own and a fair part of what it shares."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def read_speed(store: TokenStore) -> dict[str, float]:
    """Tokens and bytes a second that windows of the demo's shape are read with, at bags of 16."""
    split = store.train
    steps = 400
    plan = WindowPlan(Schedule(steps, 16, 1.0), 16, 128, len(split.tokens), seed=1)
    started = time.perf_counter()
    for step in range(steps):
        plan.read(split.tokens, step)
    rate = steps * 16 * 16 * 129 / (time.perf_counter() - started)
    return {"tokens_per_second": round(rate), "gigabytes_per_second": round(rate * 2 / 1e9, 3)}


def large(megabytes: float, folder: Path) -> dict[str, Any]:
    """So much text in Zstandard's files, prepared into a store of bytes."""
    source, out = folder / "text", folder / "out"
    source.mkdir()
    lines = lines_of_text()
    for number in range(round(megabytes / LARGE_FILE)):
        with pa.CompressedOutputStream(str(source / f"{number:03d}.jsonl.zst"), "zstd") as file:
            write_text(file, lines, LARGE_FILE)
    spent, peak = peak_of_tree(["--once", "ours", str(source), BYTES, str(out)])
    store = TokenStore.open(out)
    return {
        "command": f"python benchmarks/data.py --large {megabytes:g}",
        "machine": machine(),
        "megabytes": megabytes,
        "compressed_megabytes": round(sum(file.stat().st_size for file in source.iterdir()) / 1e6),
        "seconds": round(spent),
        "seconds_of_steps": json.loads((folder / "steps.json").read_text()),
        "peak_mb": round(peak),
        "documents": store.train.documents + store.val.documents,
        "tokens": len(store.train.tokens) + len(store.val.tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--megabytes", type=float, nargs="*", default=[100, 500, 2000], help="inputs to measure memory on"
    )
    parser.add_argument("--once", nargs=4, metavar=("HOW", "SOURCE", "TOKENIZER", "OUT"), help="one preparation")
    parser.add_argument("--large", type=float, metavar="MEGABYTES", help="prepare so much text, and nothing else")
    arguments = parser.parse_args()
    if arguments.large:
        with tempfile.TemporaryDirectory() as folder:
            known = json.loads(RESULTS.read_text()) | {"large": large(arguments.large, Path(folder))}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        return
    if arguments.once:
        how, *paths = arguments.once
        result = (prepared if how == "ours" else mapped)(*map(Path, paths))
        (Path(paths[2]).parent / "steps.json").write_text(json.dumps(result))
        return
    results: dict[str, Any] = {"command": "make bench-data", "machine": machine(), "processes": available_cores()}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        os.environ["HF_HOME"] = str(top / "hf")
        os.environ["HF_HUB_OFFLINE"] = "1"
        save_tokenizer(train_on_sources((Source(PYTHON_SOURCES),), 32768), top / "tokenizer")
        source = top / "speed.jsonl"
        with source.open("wb") as file:
            write_text(file, lines_of_text(), SPEED_MEGABYTES)
        seconds: dict[str, list[float]] = {"ours": [], "datasets.map": []}
        for _ in range(3):
            for how, times in seconds.items():
                out = top / "out"
                times.append(peak_of_tree(["--once", how, str(source), str(top / "tokenizer"), str(out)])[0])
                if how == "ours":
                    results["seconds_of_steps"] = json.loads((top / "steps.json").read_text())
                    results["reading"] = read_speed(TokenStore.open(out))
                shutil.rmtree(out)
        results["seconds"] = {how: round(float(np.min(times)), 2) for how, times in seconds.items()}
        results["ratio"] = round(results["seconds"]["datasets.map"] / results["seconds"]["ours"], 2)
        print(json.dumps(results, indent=1), flush=True)
        source.unlink()
        results["memory"] = []
        for megabytes in arguments.megabytes:
            source = top / f"{megabytes:g}.jsonl"
            with source.open("wb") as file:
                write_text(file, lines_of_text(), megabytes)
            # Byte pairs take most of the time and the same memory for any input, so the largest is done in bytes too.
            for tokenizer in (str(top / "tokenizer"), BYTES) if megabytes <= BPE_MEGABYTES else (BYTES,):
                spent, peak = peak_of_tree(["--once", "ours", str(source), tokenizer, str(top / "out")])
                kind = "bytes" if tokenizer == BYTES else "byte-level BPE, 32,768 entries"
                line = {"megabytes": megabytes, "tokenizer": kind, "seconds": round(spent, 1), "peak_mb": round(peak)}
                print(line, flush=True)
                results["memory"].append(line)
                shutil.rmtree(top / "out")
            source.unlink()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {"large": known.get("large")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
