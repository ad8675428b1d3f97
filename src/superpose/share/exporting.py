"""A run's model as a Hugging Face directory with a model card.

run -> RUN/model/, or a checkpoint's weights -> DIR/: config.json, model*.safetensors, the tokenizer's files,
                                                      superpose.json, README.md

Weights are neither converted nor renamed, so what comes out is the run's model to the bit.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from superpose.copies import refuse_whole, write_folder
from superpose.data.tokenizer import FILES, difference, load_tokenizer, read_tokenizer
from superpose.errors import UserError
from superpose.files import file_sha256, whole_directory, write_json, write_text
from superpose.models.build import build_config, build_model
from superpose.models.load import ABOUT, load_config, load_model
from superpose.models.save import save_model
from superpose.places import is_remote
from superpose.runs.disk import ALONE, RunOnDisk, open_run
from superpose.share.card import model_card
from superpose.share.facts import FORMAT, Facts, gather
from superpose.train.checkpoint import Checkpoints

_LAST = (ABOUT, "config.json")
"""What is written last: without a configuration, nobody takes a directory for a model."""
_NO_TOKENIZER = "its tokenizer is not known; prepare it again at that path"


def export(
    run: str | Path,
    directory: str | Path,
    checkpoint: int | None = None,
    average: bool = False,
    bags: bool = False,
    max_shard_size: str = "5GB",
    license_id: str = "",
    languages: Sequence[str] = (),
) -> Facts:
    """Writes the model of a run with its card, whole or not at all, and returns the card's facts.

    Args:
        run: its directory.
        directory: to be written; it must not exist, or be empty. In a remote place config.json is written last, so
            that what is not whole is no model.
        checkpoint: step of the one to export; by default the model the finished run ended with.
        average: take the moving average of the weights.
        bags: export a model that predicts bags, and say so in the card.
        max_shard_size: of a file of weights, such as 5GB or 100KB, in powers of 1000.
        license_id: as hubs name licenses, such as apache-2.0; unknown if not given.
        languages: codes of those in the text, such as en.

    Raises:
        UserError: there is no such model, it predicts bags and `bags` is not given, or something is in the way.
    """
    if is_remote(str(directory)):
        refuse_whole(str(directory), _LAST[-1])
        with TemporaryDirectory() as folder:
            out = Path(folder, str(directory).rstrip("/").rpartition("/")[2])
            facts = export(run, out, checkpoint, average, bags, max_shard_size, license_id, languages)
            write_folder(out, str(directory), _LAST)
        return facts
    out = Path(directory)
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a size such as 5GB or 100KB")
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if out.name in ("", "..") or (os.path.lexists(out) and not empty):
        raise UserError(f"{out} is there already; give a new directory")
    source = open_run(Path(run))
    step = _step(source, checkpoint, bags)
    # Of a model of bags a run writes none at its end, but its last checkpoint holds it.
    model = _model(source, step if bags else checkpoint, average)
    facts, end = gather(source, model, step, average), model.config.eos_token_id
    if type(end) is not int or not 0 <= end < 2**32:
        raise UserError(f"{source.path}: the model's eos_token_id is {end!r}, expected a token's number")
    tokenizer = source.path / "model"
    if not (tokenizer / "tokenizer.json").is_file():
        tokenizer = source.whole_store(_NO_TOKENIZER).tokenizer_path
    with whole_directory(out) as aside:
        files = [(name, (tokenizer / name).read_bytes()) for name in FILES if (tokenizer / name).is_file()]
        save_model(aside, model, files, max_shard_size=max_shard_size)
        # Which class AutoTokenizer takes depends on the kind of model.
        own = load_tokenizer(str(aside), read_tokenizer(tokenizer / "tokenizer.json").id_to_token(end) or "")
        facts = replace(facts, tokenizer=difference(own, aside))
        known = TypeAdapter(Facts).dump_python(facts, mode="json", exclude_none=True)
        write_text(aside / "README.md", model_card(out.name, facts, license_id, languages))
        checksums = {file.name: file_sha256(file) for file in sorted(aside.iterdir())}
        write_json(aside / ABOUT, {"format": FORMAT, **known, "sha256": checksums})
    return facts


def _step(run: RunOnDisk, checkpoint: int | None, bags: bool) -> int:
    """The step to export, whose model is of the kind that is asked for."""
    steps = run.recipe.train.steps
    if checkpoint is None and run.result is None:
        known = ", ".join(map(str, run.checkpoints))
        how = f"--checkpoint exports one of its checkpoints: {known}" if known else "it has no checkpoint either"
        raise UserError(f"{run.path} is not finished; {how}")
    step = steps if checkpoint is None else checkpoint
    if not 1 <= step <= steps:
        raise UserError(f"--checkpoint {checkpoint}: {run.path} has {steps} steps")
    size = run.recipe.schedule.bag_size_at(step - 1)
    if size > 1 and not bags:
        raise UserError(
            f"{run.path} was in superposition at step {step}: its model predicts bags of {size} tokens and cannot "
            f"generate text; train it to the end of recovery, or add --bags to export it marked as such"
        )
    if size == 1 and bags:
        raise UserError(f"--bags is for models that predict bags, and that of step {step} predicts the next token")
    return step


def _model(run: RunOnDisk, checkpoint: int | None, average: bool) -> Any:
    """The model with the weights to export: as the finished run wrote it, or a checkpoint's."""
    if checkpoint is None:
        directory = run.path / ("model-average" if average else "model")
        if average and not directory.is_dir():
            raise UserError(f"{run.path} has no average; it was trained without train.average")
        return load_model(directory)
    if (run.path / "model" / "config.json").is_file():
        config = load_config(run.path / "model")
    else:
        store = run.whole_store(_NO_TOKENIZER)
        config = build_config(run.recipe.model, store.vocab_size, run.recipe.train.latents, store.end_of_text)
    model = build_model(config)
    Checkpoints(run.path, ALONE).weights(model, checkpoint, average)
    return model
