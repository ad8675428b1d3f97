"""Requests out of recipes, and out of a few numbers."""

from __future__ import annotations

from superpose.core.schedule import Schedule
from superpose.data.config import DataArgs, vocabulary_size
from superpose.data.store import TokenStore
from superpose.errors import UserError
from superpose.models.build import build_config
from superpose.plan.evidence import LATENTS_PER_STEP, Setting
from superpose.plan.fit import Request, fitted, step_memory
from superpose.plan.hardware import Hardware
from superpose.plan.memory import Memory, Sharing
from superpose.plan.model import LLAMA_3_VOCABULARY, facts, shape_for
from superpose.train.config import Recipe

_ROW = 2048
_FEWEST_STEPS = 10_000
"""Where only tokens are given: as many steps at least, if batches can be made small enough."""
_SMALLEST_BATCH = 2**15
_USUAL_MEMORY = 80 * 2**30
"""Of a card, where none is named."""


def request_of(recipe: Recipe, hardware: Hardware | None = None, unique_tokens: float | None = None) -> Request:
    """A recipe as a request: its own bag size and ratio, on as many devices as the hardware has.

    Args:
        unique_tokens: of its text; by default what a prepared store holds, otherwise not known.

    Raises:
        UserError: the model cannot be built.
    """
    train, superposition, parallel = recipe.train, recipe.superposition, recipe.parallel
    vocab_size = _vocabulary(recipe.data)
    config = build_config(recipe.model, vocab_size, train.latents, 0)
    devices = hardware.count if hardware else 1
    if parallel.strategy == "fsdp" and devices % parallel.replicas:
        raise UserError(f"{devices} devices cannot be divided into parallel.replicas = {parallel.replicas}")
    shards = devices // parallel.replicas if parallel.strategy == "fsdp" else 1
    unusual = []
    if recipe.model.init_from:
        unusual.append("continued pre-training (model.init_from)")
    if superposition.mode != "full":
        unusual.append(f"superposition.mode = {superposition.mode!r}")
    if superposition.variant != "mce":
        unusual.append(f"superposition.variant = {superposition.variant!r}")
    if unique_tokens is None and recipe.data.store is not None:
        unique_tokens = len(TokenStore.open(recipe.data.store).train.tokens)
    half = train.precision == "bfloat16" or (train.precision == "auto" and train.device != "cpu")
    return Request(
        config,
        train.latents,
        train.batch_size,
        train.steps,
        unique_tokens,
        _setting(recipe.schedule, superposition.weighting, unusual),
        hardware,
        parts=train.accumulate,
        precision="bfloat16" if half else "float32",
        sharing=Sharing(devices, shards),
        optimizer=train.optimizer,
        checkpoint_activations=train.checkpoint_activations,
        device=train.device.split(":")[0],
        unusual=tuple(unusual),
    )


def request_for(
    params: float,
    tokens: float,
    vocab_size: int | None = None,
    latents: int = _ROW,
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
    rows = LATENTS_PER_STEP // latents
    while rows > 1 and tokens / (rows * latents) < _FEWEST_STEPS and rows * latents > _SMALLEST_BATCH:
        rows //= 2
    steps = round(tokens / (max(1, rows) * latents))
    if steps < 1:
        raise UserError(f"--tokens {tokens:g}: less than one step of {latents:,} latents")
    devices = hardware.count if hardware else 1
    on_cpu = hardware is not None and hardware.device.name == "CPU"
    shape, like = shape_for(params, vocab_size)
    request = Request(
        shape.config(latents),
        latents,
        max(1, rows),
        steps,
        unique_tokens,
        hardware=hardware,
        precision="float32" if on_cpu else "bfloat16",
        sharing=Sharing(devices, devices),
        device="cpu" if on_cpu else "cuda",
        like=like,
    )
    room = (hardware.device.memory if hardware else 0) or _USUAL_MEMORY
    return fitted(request, facts(request.config, latents), room)[0]


def memory_of(recipe: Recipe) -> Memory:
    """Memory of a step of a recipe, on one device."""
    request = request_of(recipe)
    return step_memory(request, facts(request.config, request.latents))


def _vocabulary(data: DataArgs) -> int:
    """Entries of the recipe's vocabulary; Llama 3's where its tokenizer's directory is named but not there."""
    try:
        return vocabulary_size(data)
    except UserError:
        if "llama-3" in data.tokenizer.lower():
            return LLAMA_3_VOCABULARY
        if "gpt2" in data.tokenizer.lower():
            return 50_257
        raise


def _setting(schedule: Schedule, weighting: object, unusual: list[str]) -> Setting | None:
    """Of the recipe's superposition; several stages are taken as their mean, and named as unusual."""
    stages = [stage for stage in schedule.stages if stage.bag_size > 1]
    if not stages:
        return Setting(1, 0.0)
    share = sum(stage.steps for stage in stages)
    size = round(sum(stage.steps * stage.bag_size for stage in stages) / share)
    if len(stages) > 1:
        unusual.append(f"{len(stages)} stages of superposition, predicted as one of s {size}")
    if weighting not in ("uniform", "power"):
        unusual.append(f"superposition.weighting = {weighting!r}, predicted as uniform")
    ratio = round(share / schedule.total_steps, 4)
    if ratio >= 1:
        raise UserError("the recipe ends in superposition: nothing is left for recovery, and the model cannot generate")
    return Setting(size, ratio, "power" if weighting == "power" else "uniform")
