"""A run's model as a Hugging Face directory with a model card.

run -> RUN/model/, or a checkpoint's weights -> DIR/: config.json, model*.safetensors, the tokenizer's files,
                                                      superpose.json, README.md

Weights are neither converted nor renamed, so what comes out is the run's model to the bit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from superpose.data.store import TokenStore
from superpose.data.tokenizer import FILES
from superpose.errors import UserError, first_line
from superpose.files import read_json, whole_directory, write_json, write_text
from superpose.models.build import build_config, build_model, load_model, refuse_code_of_others
from superpose.models.save import save_model
from superpose.runs.disk import ALONE, RunOnDisk, open_run
from superpose.share.card import model_card
from superpose.share.facts import ABOUT, FORMAT, Facts, gather
from superpose.train.checkpoint import Checkpoints


def export(
    run_path: Path,
    directory: Path,
    checkpoint: int | None = None,
    average: bool = False,
    bags: bool = False,
    max_shard_size: str = "5GB",
    license_id: str = "",
    languages: Sequence[str] = (),
) -> Facts:
    """Writes the model of a run with its card, whole or not at all, and returns the card's facts.

    Args:
        run_path: directory of the run.
        directory: to be written; it must not exist, or be empty.
        checkpoint: step of the one to export; by default the model the finished run ended with.
        average: take the moving average of the weights.
        bags: export a model that predicts bags, and say so in the card.
        max_shard_size: of a file of weights, such as 5GB or 100KB, in powers of 1000.
        license_id, languages: see `model_card`.

    Raises:
        UserError: there is no such model, it predicts bags and `bags` is not given, or something is in the way.
    """
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a size such as 5GB or 100KB")
    empty = directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())
    if directory.name in ("", "..") or (os.path.lexists(directory) and not empty):
        raise UserError(f"{directory} is there already; give a new directory")
    run = open_run(run_path)
    step = _step(run, checkpoint)
    _expect_kind(run, step, bags)
    model = _model(run, checkpoint if checkpoint is not None or not bags else step, average)
    facts = gather(run, model, step, average)
    tokenizer = _tokenizer(run)
    with whole_directory(directory) as aside:
        files = [(name, (tokenizer / name).read_bytes()) for name in FILES if (tokenizer / name).is_file()]
        save_model(aside, model, files, max_shard_size=max_shard_size)
        known = TypeAdapter(Facts).dump_python(facts, mode="json", exclude_none=True)
        write_json(aside / ABOUT, {"format": FORMAT, **known})
        write_text(aside / "README.md", model_card(directory.name, facts, license_id, languages))
    return facts


def _step(run: RunOnDisk, checkpoint: int | None) -> int:
    """The step to export."""
    steps = run.recipe.train.steps
    if checkpoint is None:
        if run.result is None:
            known = ", ".join(map(str, run.checkpoints))
            how = f"--checkpoint exports one of its checkpoints: {known}" if known else "it has no checkpoint either"
            raise UserError(f"{run.path} is not finished; {how}")
        return steps
    if not 1 <= checkpoint <= steps:
        raise UserError(f"--checkpoint {checkpoint}: {run.path} has {steps} steps")
    return checkpoint


def _expect_kind(run: RunOnDisk, step: int, bags: bool) -> None:
    size = run.recipe.schedule.bag_size_at(step - 1)
    if size > 1 and not bags:
        raise UserError(
            f"{run.path} was in superposition at step {step}: its model predicts bags of {size} tokens and cannot "
            f"generate text; train it to the end of recovery, or add --bags to export it marked as such"
        )
    if size == 1 and bags:
        raise UserError(f"--bags is for models that predict bags, and that of step {step} predicts the next token")


def _model(run: RunOnDisk, checkpoint: int | None, average: bool) -> Any:
    """The model with the weights to export: as the finished run wrote it, or a checkpoint's."""
    if checkpoint is None:
        directory = run.path / ("model-average" if average else "model")
        if average and not directory.is_dir():
            raise UserError(f"{run.path} has no average; it was trained without train.average")
        return load_model(directory, str(directory))
    if checkpoint not in (checkpoints := Checkpoints(run.path, ALONE)).steps:
        known = ", ".join(map(str, checkpoints.steps)) or "none"
        raise UserError(f"{run.path} has no checkpoint of step {checkpoint}; those it has: {known}")
    model = build_model(_config(run))
    checkpoints.weights(model, checkpoint, average)
    return model


def _config(run: RunOnDisk) -> Any:
    """The configuration of the model a run trains: the one in its exported model, if that is there."""
    from transformers import AutoConfig

    file = run.path / "model" / "config.json"
    if file.is_file():
        refuse_code_of_others(read_json(file), f"{file}: ")
        try:
            return AutoConfig.from_pretrained(run.path / "model", local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever transformers raises for a file that was altered
            raise UserError(f"{run.path / 'model'} cannot be read: {first_line(error)}") from None
    store = _store(run)
    return build_config(run.recipe.model, store.vocab_size, run.recipe.train.latents, store.end_of_text)


def _tokenizer(run: RunOnDisk) -> Path:
    """A directory with the files of the run's tokenizer."""
    if (run.path / "model" / "tokenizer.json").is_file():
        return run.path / "model"
    return _store(run).tokenizer_path


def _store(run: RunOnDisk) -> TokenStore:
    store = run.store
    if store is None:
        raise UserError(
            f"the text that {run.path} reads is no longer whole where {run.path / 'store.json'} says, so its tokenizer "
            f"is not known; prepare it again at that path"
        )
    return store
