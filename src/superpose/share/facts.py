"""Facts about an exported model: gathered from its run, written to superpose.json and, in words, to the model card.

config.json, result.json, metrics.jsonl, the store's manifest -> Facts -> superpose.json, README.md

A fact that the run does not tell is None, and is left out of both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpose import __version__
from superpose.compare.comparison import Comparison
from superpose.data.readers import PYTHON_SOURCES
from superpose.errors import UserError
from superpose.evaluate.evaluation import Evaluation
from superpose.files import read_json
from superpose.models.load import NEXT_TOKEN
from superpose.results.intervals import spoken
from superpose.results.tables import Row, describe, mode_of
from superpose.runs.disk import RunOnDisk
from superpose.train.records import Energy

FORMAT = "superpose export 1"

_OF_TRAINING = ("steps", "latents", "batch_size", "lr", "lr_schedule", "warmup_steps", "optimizer", "precision", "seed")
"""Settings of `train` that are facts by the same names."""


@dataclass(frozen=True)
class Text:
    """What a model was trained on; paths of the machine are left out.

    Attributes:
        sources: last parts of their paths.
        tokens, documents, bytes: of the training side; None if the store is gone.
        fingerprint: of tokens and tokenizer.
    """

    sources: tuple[str, ...]
    fingerprint: str
    tokens: int | None = None
    documents: int | None = None
    bytes: int | None = None
    held_out_tokens: int | None = None


@dataclass(frozen=True)
class Facts:
    """What superpose.json says of an exported model.

    Attributes:
        predicts: what its weights were last trained to predict.
        step: optimizer steps they had, of `steps`.
        stages: [bag size, first step, step after the last] of each stage that was begun; of drawn sizes the largest.
        schedule: the stages in words, where they differ in more than that.
        latents: positions in a row of training.
        spent: until this step: raw_tokens, latents and flops are counts, seconds are of training.
        epochs, energy: of the whole run, known at its end.
        val_loss: nats per token, next-token, on held-out text.
        started_from: last part of the path of the model that training went on from.
        averaged: whether the weights are the moving average.
        evaluation: what was scored, in what unit, and the figure with its 95 % interval.
        comparison: verdict of the comparison the run is part of.
        versions: of what trained it.
        tokenizer: how AutoTokenizer differs from the tokenizer it was trained with, where it does.
    """

    predicts: str
    step: int
    steps: int
    mode: str
    stages: tuple[tuple[int, int, int], ...]
    architecture: str
    parameters: int
    vocabulary: int
    latents: int
    batch_size: int
    lr: float
    lr_schedule: str
    warmup_steps: int
    optimizer: str
    precision: str
    seed: int
    text: Text
    schedule: str | None = None
    started_from: str | None = None
    averaged: bool = False
    spent: dict[str, float] | None = None
    epochs: float | None = None
    energy: Energy | None = None
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    evaluation: tuple[tuple[str, ...], ...] = ()
    comparison: str | None = None
    versions: dict[str, str] | None = None
    tokenizer: str | None = None
    exported_with: str = __version__

    @property
    def bag_size(self) -> int:
        """Of the last step trained; 1 is a model that generates text."""
        return self.stages[-1][0]

    @property
    def superposed(self) -> bool:
        """Whether it has read or predicted bags at all."""
        return any(size > 1 for size, _, _ in self.stages)


def gather(run: RunOnDisk, model: Any, step: int, averaged: bool) -> Facts:
    """The facts of a model that a run had at a step."""
    recipe = run.recipe
    schedule, train = recipe.schedule, recipe.train
    stages = tuple((s.largest, s.start, min(s.stop, step)) for s in schedule.stages if s.start < step)
    predicts, bag_size = NEXT_TOKEN, stages[-1][0]
    if bag_size > 1:
        predicts = (
            f"the token after a bag of {bag_size}"
            if schedule.stage_at(step - 1).mode == "input"
            else f"bags of {bag_size} tokens"
        )
    result = run.result if step == train.steps else None
    spent = result or next((record for record in run.validations if record.step == step), None)
    # The average is validated at the end alone.
    measured, average = (result, "average_") if averaged else (spent, "")
    final = None if averaged else result
    return Facts(
        predicts=predicts,
        step=step,
        mode=mode_of(schedule),
        stages=stages,
        architecture=str(model.config.model_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=int(model.config.vocab_size),
        **{name: getattr(train, name) for name in _OF_TRAINING},
        text=_text(run),
        schedule=None if schedule.in_short else describe(schedule),
        started_from=Path(recipe.model.init_from).name if recipe.model.init_from else None,
        averaged=averaged,
        spent={name: getattr(spent, name) for name in ("raw_tokens", "latents", "flops", "seconds")} if spent else None,
        epochs=result.epochs if result else None,
        energy=result.energy if result else None,
        val_loss=getattr(measured, f"{average}val_loss", None),
        val_bits_per_byte=getattr(measured, f"{average}val_bits_per_byte", None),
        evaluation=_evaluation(run.path) if final else (),
        comparison=_comparison(run) if final else None,
        versions=(result.versions or None) if result else None,
    )


def _text(run: RunOnDisk) -> Text:
    corpus, store = run.recipe.data.corpus, run.store
    locations = [corpus] if isinstance(corpus, str) else [source.path for source in corpus]
    if store is not None:
        sources = store.manifest.get("preparation", {}).get("sources", [])
        locations = [str(source["location"]) for source in sources if "location" in source] or locations
    names = tuple(
        "Python sources of the machine it was prepared on" if place == PYTHON_SOURCES else Path(place).name or place
        for place in locations
    )
    if store is None:
        return Text(names, str(read_json(run.path / "store.json").get("fingerprint", "")))
    side = store.train
    return Text(names, store.fingerprint, len(side.tokens), side.documents, side.bytes, len(store.val.tokens))


def _comparison(run: RunOnDisk) -> str | None:
    """The verdict of the comparison in whose folder the run stands, if it is one of its runs."""
    try:
        comparison = Comparison.load(run.path.parent)
        mine = any(trained.directory.resolve() == run.path.resolve() for trained in comparison.runs)
        return comparison.verdict() if mine and comparison.seeds else None
    except UserError:
        return None


def _evaluation(run: Path) -> tuple[Row, ...]:
    """The figures of the evaluation.json in a run's directory that are of its own model; none, if it is not sound."""
    try:
        found = Evaluation.load(run / "evaluation.json")
    except UserError:
        return ()
    names = [model.name for model in found.models]
    # Several models are called by the ends of their paths.
    mine = names if len(names) == 1 else [name for name in names if Path(name).name in (run.name, run.resolve().name)]
    if len(mine) != 1:
        return ()
    rows: list[Row] = []
    for text in found.texts:
        for model in (model for model in text.models if model.name == mine[0]):
            rows.append((text.name, "nats per token", spoken(model.loss, ".4g")))
            rows.append((text.name, "bits per byte", spoken(model.bits_per_byte, ".4g")))
    for task in found.tasks:
        rows += [(task.name, "share right", spoken(one.accuracy, ".4g")) for one in task.models if one.name == mine[0]]
    return tuple(rows)
