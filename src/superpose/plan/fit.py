"""Whether a step fits into the devices' memory, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from superpose.plan.cost import CO2_GRAMS, Price
from superpose.plan.evidence import Setting
from superpose.plan.hardware import Hardware
from superpose.plan.memory import Memory, Sharing, memory
from superpose.plan.model import ModelFacts
from superpose.train.hardware import Precision
from superpose.train.optim import Optimizer

ROOM = 0.9
"""Share of a device's memory that can be planned with."""
_MOST_DEVICES = 2**16


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        config: the model, as transformers has it.
        latents, rows, steps: L of a sequence, sequences of a step on all devices, steps of the run.
        unique_tokens: raw tokens of the text there is; None if it is not known.
        setting: bag size, ratio and weighting to take; None to have them recommended.
        parts: into which a device's sequences of a step are split.
        sharing: of the model over the devices; also says how many they are.
        unusual: what about the run has no evidence, in words ("continued pre-training").
        like: what the model's shape was taken from, in words.
    """

    config: Any
    latents: int
    rows: int
    steps: int
    unique_tokens: float | None = None
    setting: Setting | None = None
    hardware: Hardware | None = None
    utilisation: float | None = None
    price_per_hour: Price | None = None
    co2_grams: float = CO2_GRAMS
    parts: int = 1
    precision: Precision = "bfloat16"
    sharing: Sharing = Sharing()  # noqa: RUF009  # frozen
    optimizer: Optimizer = "adamw"
    checkpoint_activations: bool = False
    device: str = "cuda"
    unusual: tuple[str, ...] = ()
    like: str = ""


def step_memory(request: Request, model: ModelFacts) -> Memory:
    """Memory of one device in a step of what is requested; `model` is its model, counted."""
    rows = max(1, request.rows // request.sharing.devices // request.parts)
    return memory(
        request.config, model, rows, request.latents, request.parts, request.precision, request.sharing,
        request.optimizer, request.checkpoint_activations, request.device,
    )  # fmt: skip


def fitted(request: Request, model: ModelFacts, room: float) -> tuple[Request, bool]:
    """The request with as many parts as fit it into `room` bytes a device, and with activations checkpointed where that
    is not enough; or, and then False, what needs least."""
    last = request
    for last in _leaner(request):
        if step_memory(last, model).peak <= ROOM * room:
            return last, True
    return last, False


def fewest_devices(request: Request, model: ModelFacts) -> int | None:
    """Devices of the requested kind, as a power of two, over which the model, sharded, fits; None if none do."""
    assert request.hardware is not None
    count = 1
    while count <= _MOST_DEVICES:
        spread = replace(request, sharing=Sharing(count, count), checkpoint_activations=True, parts=1)
        if fitted(spread, model, request.hardware.device.memory)[1]:
            return count
        count *= 2
    return None


def what_would_fit(request: Request, model: ModelFacts) -> str | None:
    """What to do about a step that does not fit the devices it is for, in a sentence; None if it fits."""
    device = request.hardware.device if request.hardware else None
    needed = step_memory(request, model)
    if device is None or not device.memory or needed.peak <= ROOM * device.memory:
        return None
    gib = 2**30
    text = (
        f"it does not fit: a step needs {needed.peak / gib:,.0f} GiB on each {device.name}, of whose "
        f"{device.memory / gib:,.0f} GiB {ROOM:.0%} can be planned with"
    )
    leaner, fits = fitted(request, model, device.memory)
    if fits:
        changes = [f"train.accumulate = {leaner.parts}"] if leaner.parts != request.parts else []
        if leaner.checkpoint_activations != request.checkpoint_activations:
            changes.append("train.checkpoint_activations = true")
        return f"{text}; it does with {' and '.join(changes)}"
    states = needed.weights + needed.gradients + needed.optimizer
    text += f" (weights, gradients and optimizer alone take {states / gib:,.0f})"
    fewest = fewest_devices(request, model)
    if fewest is None:
        return f"{text}, and no number of them is enough; take devices with more memory"
    return (
        f"{text}; the fewest that it fits are {fewest} x {device.name}, sharded (parallel.strategy = 'fsdp'), with "
        f"activations checkpointed"
    )


def _leaner(request: Request) -> Iterator[Request]:
    """The request, and with ever more parts; then the same with activations checkpointed."""
    for checkpointed in (False, True):
        if request.checkpoint_activations and not checkpointed:
            continue
        parts = request.parts
        while True:
            yield replace(request, parts=parts, checkpoint_activations=checkpointed)
            if request.rows // request.sharing.devices // parts <= 1:
                break
            parts *= 2
