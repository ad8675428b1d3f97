"""Trains a short run of each kind and prints the SHA-256 of its weights: did a change touch the computation?

    python checks/bits.py > before.json         on the code as it was
    python checks/bits.py --against before.json on the changed code: exit code 1 names each kind that differs
    python checks/bits.py tst power --seeds 1,2 some kinds alone, with several seeds

Weights depend on the machine and on PyTorch's version, so compare hashes of one machine alone. About five minutes
on two cores for each seed.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SMALL = (
    *("data.vocab_size=300", "train.steps=12", "train.batch_size=4", "train.latents=16", "train.threads=1"),
    *("train.warmup_steps=2", "train.precision='float32'", "train.track=[]", "train.eval_every=6"),
    *("model.config.hidden_size=32", "model.config.intermediate_size=64", "train.checkpoint_every=5"),
)
HEADS = "num_attention_heads = 4, num_hidden_layers = 2, hidden_size = 32"
LLAMA_LIKE = f"{HEADS}, intermediate_size = 64, num_key_value_heads = 2, head_dim = 8"
FAMILIES = {
    "gpt2": "n_embd = 32, n_layer = 2, n_head = 4",
    "qwen3": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "qwen3_moe": f"{LLAMA_LIKE}, moe_intermediate_size = 16, num_experts = 4, num_experts_per_tok = 2, "
    "output_router_logits = true",
}
KINDS: dict[str, tuple[str, ...]] = {
    "tst": (),
    "ordinary": ("superposition.bag_size=1", "superposition.ratio=0.0"),
    "stages": ("superposition.bag_size=[8,4]", "superposition.ratio=[0.25,0.25]"),
    "input": ("superposition.mode='input'",),
    "output": ("superposition.mode='output'",),
    "power": ("superposition.weighting='power'", "superposition.bag_size=8"),
    "numbers": ("superposition.weighting=[4.0,3.0,2.0,1.0]",),
    "mce_alt": ("superposition.variant='mce_alt'",),
    "hinge": ("superposition.variant='hinge'",),
    "bce": ("superposition.variant='bce'",),
    "expand": ("superposition.expand='batch'",),
    "aligned": ("superposition.documents='aligned'",),
    "documents": ("train.attention='document'",),
    "accumulate": ("train.accumulate=2",),
    "bfloat16": ("train.precision='bfloat16'",),
    "checkpointed": ("train.checkpoint_activations=true",),
    "cosine": ("train.lr_schedule='cosine'", "train.min_lr_ratio=0.1"),
    "average": ("train.average=0.9",),
    "muon": ("train.optimizer='muon'",),
    "embedding lr": ("train.embedding_lr_factor=0.5",),
    "embedding lr muon": ("train.embedding_lr_factor=0.5", "train.optimizer='muon'"),
    "reinit": ("train.reinit_embeddings=true",),
    "reset": ("train.reset_optimizer=true", "train.rewarm_steps=2"),
    "bytes": ("data.tokenizer='bytes'", "data.vocab_size=1024"),
}
ALONE = {kind: (*SMALL, *settings) for kind, settings in KINDS.items()} | {
    family: (*(s for s in SMALL if not s.startswith("model.")), f"model.architecture='{family}'",
             f"model.config={{{config}}}")
    for family, config in FAMILIES.items()
}  # fmt: skip
"""Settings of the kinds that are trained alone and in one process."""
LAUNCHED = {
    "ddp": ("parallel.strategy='ddp'",),
    "fsdp": (),
    "fsdp muon": ("train.optimizer='muon'",),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kinds", nargs="*", help=f"Of {', '.join(ALONE)}; by default these and all else there is.")
    arguments.add_argument("--seeds", default="1", help="Of the runs that are trained alone.")
    arguments.add_argument("--against", type=Path, help="Hashes to compare with.")
    given = arguments.parse_args()
    if unknown := set(given.kinds) - ALONE.keys():
        arguments.error(f"there is no kind {unknown.pop()!r}; choose of {', '.join(ALONE)}")
    before, seeds = given.against, given.seeds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        hashes = dict(some_kinds(Path(folder), given.kinds, seeds) if given.kinds else all_kinds(Path(folder), seeds))
    print(json.dumps(hashes, indent=1))
    if before is not None:
        known = json.loads(before.read_text(encoding="utf-8"))
        if given.kinds:  # the others of an earlier file are not asked for
            known = {kind: known.get(kind) for kind in hashes}
        differing = sorted(kind for kind in known.keys() | hashes.keys() if known.get(kind) != hashes.get(kind))
        sys.exit(f"other bits: {', '.join(differing)}" if differing else 0)


def corpus_in(folder: Path) -> Path:
    corpus = folder / "text.txt"
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma"]
    corpus.write_text("".join(f"{n}: the {words[n % 6]} of {words[n * n % 6]} is {n % 10}.\n" + "\n" * (n % 5 == 0)
                              for n in range(20_000)), encoding="utf-8")  # fmt: skip
    os.environ["SUPERPOSE_CACHE"] = str(folder / "cache")
    return corpus


def some_kinds(folder: Path, kinds: Iterable[str], seeds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name of each kind of run that is trained alone, with its seed if there are several, and its weights' hash."""
    corpus = corpus_in(folder)
    for kind, seed in itertools.product(kinds, seeds):
        name = f"{kind}, seed {seed}" if len(seeds) > 1 else kind
        settings = (*ALONE[kind], f"train.seed={seed}")
        yield name, trained([*python(), "train"], folder / f"{kind}{seed}", corpus, settings)


def all_kinds(folder: Path, seeds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name of each kind of run and the hash of its weights."""
    yield from some_kinds(folder, ALONE, seeds)
    corpus = folder / "text.txt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for kind, settings in LAUNCHED.items():
        yield kind, trained([*launch, "superpose", "train"], folder / kind, corpus, (*SMALL, *settings))
    yield "export", exported(folder / f"tst{seeds[0]}", folder / "exported")
    yield from compared(folder, corpus)


def python() -> list[str]:
    return [sys.executable, "-m", "superpose"]


def trained(command: list[str], out: Path, corpus: Path, settings: tuple[str, ...]) -> str:
    recipe = corpus.with_name("recipe.toml")
    recipe.write_text("[data]\nmax_megabytes = 0.4\n", encoding="utf-8")
    run([*command, str(recipe), "--out", str(out), "--corpus", str(corpus), *(f"--set={s}" for s in settings)])
    return weights_of(out)


def exported(run_directory: Path, out: Path) -> str:
    run([*python(), "export", str(run_directory), str(out)])
    return weights_of(out)


def compared(folder: Path, corpus: Path) -> Iterator[tuple[str, str]]:
    """All runs of a comparison with budgets that branch from each other, of a search, and of an experiment."""
    common = ["--corpus", str(corpus), "--runs", str(folder / "runs"), *(f"--set={s}" for s in (*SMALL,))]
    common.append("--set=data.max_megabytes=0.4")
    run([*python(), "compare", *common, "--seeds", "1,2", "--lrs", "1e-3,2e-3", "--ordinary-budgets", "20,auto",
         "--context-control", "--name", "compared"])  # fmt: skip
    run([*python(), "tune", *common, "--trials", "2", "--name", "tuned", "--bag-sizes", "2,4", "--ratios", "0.3"])
    run([*python(), "reproduce", "figure6", *common, "--seeds", "1", "--name", "reproduced"])
    for path in sorted((folder / "runs" / "pool").iterdir()):
        if (path / "result.json").exists():
            yield f"pool/{path.name}", weights_of(path)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def weights_of(place: Path) -> str:
    """SHA-256 over a model's files of weights, averages included."""
    total = hashlib.sha256()
    for path in sorted(place.glob("**/*.safetensors")):
        if "checkpoints" not in path.parts:
            total.update(path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
