"""Goes through every causal language model of transformers: is it trained by what it is, or refused, and why?

    python benchmarks/models.py             # writes results/models.json and docs/models.md
    python benchmarks/models.py llama jamba # prints these alone

Each family is built in small (`tiny_models.py`), from random weights, on the CPU, and judged by what a user has:

- `SuperposedLM(model).check()`, over the row and inside documents;
- `superpose train`'s own function on a recipe of its configuration, three steps with bags of 2 and three without; the
  run is then taken back to the step before its last and resumed, and has to end with the same bits;
- `superpose export`, and the exported model's own held-out loss, computed by its own forward pass with transformers
  alone, which has to be the run's `val_loss` within 1e-3 nats.

A family that passes all of it is right; one refused with a message is refused; anything else is a fault, and the exit
code is 1.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from superpose import SuperposedLM
from superpose.data.config import DataArgs, prepare
from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.files import write_json, write_text
from superpose.models.build import ModelArgs, build_config
from superpose.share import export
from superpose.train import train
from superpose.train.config import Recipe
from superpose.train.records import read_metrics
from tiny_models import VOCAB_SIZE, tiny_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PAGE = ROOT / "docs" / "models.md"
LATENTS = 16
USUAL = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "gemma2", "gemma3_text"),
    *("phi3", "gpt2", "gpt_neox", "olmo2", "olmoe", "deepseek_v3", "granite", "granitemoehybrid", "smollm3", "mamba2"),
)
"""Families that people pre-train most; the page marks them."""


def main() -> int:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    with tempfile.TemporaryDirectory() as place:
        store = text(Path(place))
        found = [judge(name, store, Path(place)) for name in track(names, "families", console=None)]
    if sys.argv[1:]:
        print(json.dumps(found, indent=1))
    else:
        write_json(RESULTS, {"transformers": transformers.__version__, "torch": torch.__version__, "families": found})
        write_text(PAGE, page(found))
    counts = Counter(family["verdict"] for family in found)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["fault"] else 0


def text(place: Path) -> TokenStore:
    """A small text of documents."""
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma"]
    lines = (f"{number}: the {words[number % 6]} of {words[number**2 % 6]} is {number % 10}." for number in range(4000))
    corpus = place / "text.jsonl"
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return prepare(arguments(corpus))


def arguments(corpus: Path) -> DataArgs:
    return DataArgs(corpus=str(corpus), vocab_size=VOCAB_SIZE, val_fraction=0.1, val_megabytes=0.001)


def judge(name: str, store: TokenStore, place: Path) -> dict[str, Any]:
    """What becomes of a family.

    Returns:
        family, verdict ("right", "refused" or "fault") and why; of those that are right also: balance of the experts
        (null without experts), the kinds of layers of a hybrid, whether documents can be kept apart, and the
        weights that no loss trains.
    """
    entry: dict[str, Any] = {"family": name}
    try:
        return entry | {"verdict": "right"} | right(name, store, place)
    except ValueError as error:  # a UserError is one
        why = str(error).removeprefix("model.architecture: ").replace(f"{place / name / 'config.json'}: ", "")
        return entry | {"verdict": "refused", "why": why}
    except Exception as error:
        traceback.print_exc()
        return entry | {"verdict": "fault", "why": f"{type(error).__name__}: {error}"}


def right(name: str, store: TokenStore, place: Path) -> dict[str, Any]:
    """Builds, checks, trains, resumes, exports and measures a family.

    Raises:
        ValueError: it is refused.
        AssertionError: it passed the check and is not right.
    """
    if (wrapper := more_than_text(name)) is not None:
        raise ValueError(wrapper)
    try:
        config = tiny_config(name)
    except Exception:  # its defaults do not fit together: what does a recipe say to that?
        config = build_config(ModelArgs(architecture=name, config={}), VOCAB_SIZE, LATENTS, 1)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 10_000_000, f"tiny_models.py does not make it tiny: {size} parameters"
    folder = place / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "data": arguments(place / "text.jsonl").model_dump(),
            "model": {"config_file": str(folder / "config.json")},
            "superposition": {"bag_size": 2, "ratio": 0.5},
            "train": {
                **{"steps": 6, "batch_size": 2, "latents": LATENTS, "lr": 0.02, "warmup_steps": 1, "threads": 1},
                **{"precision": "float32", "track": [], "checkpoint_every": 2, "eval_every": 100, "log_every": 1},
            },
        }
    )
    result = train(recipe, store, folder / "whole")
    model = AutoModelForCausalLM.from_pretrained(folder / "whole" / "model", dtype=torch.float32).eval()
    resumed(recipe, store, folder)
    export(folder / "whole", folder / "exported")
    exported = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32).eval()
    own = own_loss(exported, store, LATENTS)
    assert abs(own - result["val_loss"]) < 1e-3, f"val_loss is {result['val_loss']:.4f}, the exported model's {own:.4f}"
    lm = SuperposedLM(model)
    notes = [record for record in read_metrics(folder / "whole" / "metrics.jsonl") if record["kind"] == "warning"]
    kinds = list(
        dict.fromkeys(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or [])
    )
    shutil.rmtree(folder)
    return {
        "balance": balance(lm),
        "layers": kinds if len(kinds) > 1 else None,
        "documents": kept_apart(model, store.end_of_text),
        "notes": [note["message"] for note in notes],
    }


def more_than_text(name: str) -> str | None:
    """What the recipe of a family that reads more than text is told."""
    try:
        build_config(ModelArgs(architecture=name, config={}), VOCAB_SIZE, LATENTS, 1)
    except UserError as error:
        if "more than text" in str(error):
            return str(error)
    return None


def resumed(recipe: Recipe, store: TokenStore, folder: Path) -> None:
    """Trains again, dies after step 4 and is resumed: the same weights to the bit."""

    def dies(record: dict[str, Any]) -> None:
        if record["kind"] == "training" and record["step"] >= 5:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(recipe, store, folder / "again", listener=dies)
    train(recipe, store, folder / "again", resume=True)
    one, other = (load_file(folder / run / "model" / "model.safetensors") for run in ("whole", "again"))
    assert one.keys() == other.keys()
    for weight, tensor in one.items():
        assert torch.equal(tensor, other[weight]), f"{weight} differs after resuming"


@torch.no_grad()
def own_loss(model: Any, store: TokenStore, latents: int) -> float:
    """Held-out loss by the model's own forward pass, in rows of as many tokens, each but the first predicted."""
    tokens = torch.from_numpy(store.val.tokens.read(0, len(store.val.tokens)))
    total = 0.0
    for start in range(0, len(tokens) - 1, latents):
        row = tokens[start : start + latents + 1]
        whole = F.pad(row, (0, latents + 1 - len(row)))  # what follows changes nothing in a causal model
        logits = model(input_ids=whole[None, :-1], use_cache=False).logits[0, : len(row) - 1]
        total += float(F.cross_entropy(logits.double(), row[1:], reduction="sum"))
    return total / (len(tokens) - 1)


def balance(lm: SuperposedLM) -> str | None:
    """What keeps the load of the experts even."""
    ways = [way for way, there in (("loss", lm.router_coef is not None), ("bias", bool(lm.biases))) if there]
    return " and ".join(ways) or ("nothing" if lm.unbalanced else None)


def kept_apart(model: Any, end_of_text: int) -> bool:
    try:
        SuperposedLM(model, end_of_text=end_of_text).check()
    except ValueError:
        return False
    return True


def page(found: list[dict[str, Any]]) -> str:
    """docs/models.md with a new table between its two comments."""
    counts = Counter(family["verdict"] for family in found)
    said = [
        f"Of all {len(found)} architectures that transformers {transformers.__version__} lists for causal language",
        f"modelling, **{counts['right']} are right and {counts['refused']} are refused with a message**"
        + (f"; {counts['fault']} fail." if counts["fault"] else ", none fail."),
    ]
    head = ["| family | | documents | experts | layers, or why not |", "| --- | --- | --- | --- | --- |"]
    filled = "\n".join(["<!-- models -->", *said, "", *head, *map(row, found), "<!-- end -->"])
    return re.sub("<!-- models -->.*<!-- end -->", lambda _: filled, PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def row(family: dict[str, Any]) -> str:
    name = f"**{family['family']}**" if family["family"] in USUAL else family["family"]
    if family["verdict"] != "right":
        return f"| {name} | {family['verdict']} | | | {family['why'].replace('|', '/')} |"
    documents = "yes" if family["documents"] else "no"
    return f"| {name} | right | {documents} | {family['balance'] or ''} | {', '.join(family['layers'] or [])} |"


if __name__ == "__main__":
    sys.exit(main())
