"""Requests out of recipes and out of a few numbers; whether a step fits the devices, and what would make it fit."""

from dataclasses import replace

from superpose.core.schedule import Schedule
from superpose.data.config import DataArgs, vocabulary_size
from superpose.data.store import Split, TokenStore
from superpose.errors import UserError
from superpose.models.build import build_config
from superpose.plan.evidence import LATENTS_PER_STEP, Setting
from superpose.plan.memory import memory
from superpose.plan.model import LLAMA_3_VOCABULARY, ModelFacts, facts, shape_for
from superpose.plan.request import Hardware, Request, Sharing
from superpose.results.tables import remarks
from superpose.train.config import Recipe

_ROOM = 0.9
"""Share of a device's memory that can be planned with."""
_FEWEST_STEPS = 10_000
"""Where only tokens are given: as many steps at least, if batches can be made small enough."""
_SMALLEST_BATCH = 2**15
_USUAL_MEMORY = 80 * 2**30
"""Of a card, where none is named."""


def setting_of(recipe: Recipe) -> tuple[Setting | None, list[str]]:
    """The setting whose evidence a recipe is held against, None if it has no single one; and what nobody measured."""
    unusual = ["continued pre-training (model.init_from)"] if recipe.model.init_from else []
    unusual += [f"train.embedding_lr_factor = {f:g}"] if (f := recipe.train.embedding_lr_factor) != 1 else []
    for name, usual in {"mode": "full", "variant": "mce"}.items():
        if (value := getattr(recipe.superposition, name)) != usual:
            unusual.append(f"superposition.{name} = {value!r}")
    return _setting(recipe.schedule, unusual), unusual


def request_of(recipe: Recipe, hardware: Hardware | None = None, unique_tokens: float | None = None) -> Request:
    """A recipe as a request: its own bag size and ratio, on as many devices as the hardware has.

    Args:
        unique_tokens: of its text; by default what a prepared store holds, otherwise not known.

    Raises:
        UserError: the model cannot be built.
    """
    train, parallel = recipe.train, recipe.parallel
    config = build_config(recipe.model, _vocabulary(recipe.data), train.latents, 0)
    devices, shards = hardware.count if hardware else 1, 1
    if parallel.strategy == "fsdp":
        shards, left = divmod(devices, parallel.replicas)
        if left:
            raise UserError(f"{devices} devices cannot be divided into parallel.replicas = {parallel.replicas}")
    schedule, (setting, unusual) = recipe.schedule, setting_of(recipe)
    sources: dict[str, int] = {}
    if recipe.data.store is not None and (unique_tokens is None or schedule.mixes):
        side = TokenStore.open(recipe.data.store).train
        sources, unique_tokens = source_tokens(side), len(side.tokens) if unique_tokens is None else unique_tokens
    half = train.precision == "bfloat16" or (train.precision == "auto" and train.device != "cpu")
    return Request(
        config,
        train.latents,
        train.batch_size,
        train.steps,
        unique_tokens,
        setting,
        hardware,
        parts=train.accumulate,
        precision="bfloat16" if half else "float32",
        sharing=Sharing(devices, shards, train.accumulate == 1 or parallel.shard_gradients),
        optimizer=train.optimizer,
        checkpoint_activations=train.checkpoint_activations,
        schedule=schedule,
        sources=sources,
        device=train.device.split(":")[0],
        unusual=tuple(unusual),
    )


def source_tokens(side: Split) -> dict[str, int]:
    """Tokens of each named source of a side of a store."""
    return {name: source.num_tokens for name, source in side.sources.items()}


def request_for(
    params: float,
    tokens: float,
    vocab_size: int | None = None,
    latents: int = 2048,
    hardware: Hardware | None = None,
    unique_tokens: float | None = None,
) -> Request:
    """A request out of numbers: a Llama of about so many parameters, and the paper's batch, or a smaller one.

    Args:
        tokens: the budget in latents, what an ordinary run would read.
        vocab_size: by default what suits the size, see `superpose.plan.model.shape_for`.

    Raises:
        UserError: a number is too small.
    """
    rows = max(1, LATENTS_PER_STEP // latents)
    while rows > 1 and tokens / (rows * latents) < _FEWEST_STEPS and rows * latents > _SMALLEST_BATCH:
        rows //= 2
    steps = round(tokens / (rows * latents))
    if steps < 1:
        raise UserError(f"--tokens {tokens:g}: less than one step of {latents:,} latents")
    devices = hardware.count if hardware else 1
    on_cpu = hardware is not None and hardware.device.name == "CPU"
    shape, like = shape_for(params, vocab_size)
    request = Request(
        shape.config(latents),
        latents,
        rows,
        steps,
        unique_tokens,
        hardware=hardware,
        precision="float32" if on_cpu else "bfloat16",
        sharing=Sharing(devices, devices),
        device="cpu" if on_cpu else "cuda",
        like=like,
    )
    room = (hardware.device.memory if hardware else 0) or _USUAL_MEMORY
    return _fitted(request, facts(request.config, latents), room)[0]


def what_would_fit(request: Request, model: ModelFacts) -> str | None:
    """What to do about a step that does not fit the devices it is for, in a sentence; None if it fits."""
    device, needed, gib = request.hardware.device if request.hardware else None, memory(request, model), 2**30
    if device is None or not device.memory or needed.peak <= _ROOM * device.memory:
        return None
    text = (
        f"it does not fit: a step needs {needed.peak / gib:,.0f} GiB on each {device.name}, of whose "
        f"{device.memory / gib:,.0f} GiB {_ROOM:.0%} can be planned with"
    )
    leaner, fits = _fitted(request, model, device.memory)
    if fits:
        changes = [f"train.accumulate = {leaner.parts}"] if leaner.parts != request.parts else []
        if leaner.checkpoint_activations != request.checkpoint_activations:
            changes.append("train.checkpoint_activations = true")
        if leaner.parts > 1 and leaner.sharing.shards > 1 and not (request.parts > 1 and request.sharing.gradients):
            changes.append("parallel.shard_gradients = true")
        return f"{text}; it does with {' and '.join(changes)}"
    states = needed.weights + needed.gradients + needed.optimizer
    text += f" (weights, gradients and optimizer alone take {states / gib:,.0f})"
    leanest = replace(request, checkpoint_activations=True, parts=1)
    for count in (2**power for power in range(17)):
        if _fitted(replace(leanest, sharing=Sharing(count, count)), model, device.memory)[1]:
            fewest = f"the fewest that it fits are {count} x {device.name}, sharded (parallel.strategy = 'fsdp')"
            return f"{text}; {fewest}, with activations checkpointed"
    return f"{text}, and no number of them is enough; take devices with more memory"


def _fitted(request: Request, model: ModelFacts, room: float) -> tuple[Request, bool]:
    """The request with as many parts as fit it into `room` bytes a device, and with activations checkpointed where that
    is not enough; or, and then False, what needs least."""
    rows = request.rows // request.sharing.devices
    request = leaner = replace(request, sharing=replace(request.sharing, gradients=True))
    for checkpointed in sorted({request.checkpoint_activations, True}):
        leaner = replace(request, checkpoint_activations=checkpointed)
        while (too_much := memory(leaner, model).peak > _ROOM * room) and rows // leaner.parts > 1:
            leaner = replace(leaner, parts=2 * leaner.parts)
        if not too_much:
            return leaner, True
    return leaner, False


def _vocabulary(data: DataArgs) -> int:
    """Entries of the recipe's vocabulary; those of Llama 3 or GPT-2 where their tokenizer is named but not there."""
    try:
        return vocabulary_size(data)
    except UserError:
        for name, entries in {"llama-3": LLAMA_3_VOCABULARY, "gpt2": 50_257}.items():
            if name in data.tokenizer.lower():
                return entries
        raise


def _setting(schedule: Schedule, unusual: list[str]) -> Setting | None:
    """Of the recipe's superposition; several stages are taken as their mean, and named as unusual."""
    for number, stage in enumerate(schedule.stages, 1):
        if not schedule.in_short and (words := remarks(stage)):
            unusual.append(f"superposition.stages, stage {number}: {', '.join(words)}")
    stages = [stage for stage in schedule.stages if stage.superposes]
    if not stages:
        return Setting(1, 0.0)
    share = sum(stage.steps for stage in stages)
    alike = [(stage, count) for stage, count in schedule.counts() if stage.phase == "superposition"]
    size = max(2, round(sum(count * stage.largest for stage, count in alike) / share))
    weightings = {stage.weighting for stage in stages if stage.mode != "input"} or {"uniform"}
    weighting = weightings.pop() if len(weightings) == 1 else "uniform"
    if len(stages) > 1:
        unusual.append(f"{len(stages)} stages of superposition, predicted as one of s {size}")
    if weighting not in ("uniform", "power"):
        unusual.append(f"superposition.weighting = {weighting!r}, predicted as uniform")
    ratio = round(share / schedule.total_steps, 4)
    if ratio >= 1:
        raise UserError("the recipe ends in superposition: nothing is left for recovery, and the model cannot generate")
    return Setting(size, ratio, "power" if weighting == "power" else "uniform")
