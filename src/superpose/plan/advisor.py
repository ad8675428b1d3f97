"""The plan of a run: what TST would bring, what it would cost, and whether to do it at all.

Request -> accounting (model, memory, cost) + response model (response) -> verdict with reasons -> Plan
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from superpose.core.schedule import Schedule
from superpose.plan.calibration import Calibration
from superpose.plan.cost import CO2_GRAMS, Cost, cost_of
from superpose.plan.equal_loss import times_the_steps
from superpose.plan.evidence import Point, published_points
from superpose.plan.hardware import Hardware
from superpose.plan.limits import short
from superpose.plan.memory import Memory, Precision, Sharing, memory
from superpose.plan.model import ModelFacts, facts
from superpose.plan.response import Prediction, Response, Setting, fit, published_response
from superpose.plan.steps import few_steps, gain_by_steps, gains_from

Decision = Literal["go", "small gain", "do not"]
_ORDER: tuple[Decision, ...] = ("go", "small gain", "do not")

_SMALL = 0.02
"""Nats below which a gain is called small: what seeds and learning rates of a comparison differ by."""
_AS_NEW, _WORN = 4.0, 16.0
"""Passes over a text up to which it is nearly as good as new, and from which another is worth nothing (Muennighoff et
al., arXiv 2305.16264, section 5: 4 and about 16)."""
_BYTES = 300
"""Entries up to which a vocabulary is one of bytes."""
ROOM = 0.9
"""Share of a card's memory that can be planned with."""


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        config: the model, as transformers has it.
        latents, rows, steps: L of a row, rows of a step on all devices, steps of the run.
        unique_tokens: raw tokens of the text there is; None if it is not known.
        setting: bag size, ratio and weighting to take; None to have them recommended.
        parts: into which a device's rows of a step are split.
        sharing: of the model over the devices; also says how many they are.
        unusual: what about the run has no evidence, in words ("continued pre-training").
    """

    config: Any
    latents: int
    rows: int
    steps: int
    unique_tokens: float | None = None
    setting: Setting | None = None
    hardware: Hardware | None = None
    utilisation: float | None = None
    price_per_hour: float | None = None
    co2_grams: float = CO2_GRAMS
    parts: int = 1
    precision: Precision = "bfloat16"
    sharing: Sharing = Sharing()  # noqa: RUF009  # frozen
    optimizer: Literal["adamw", "muon"] = "adamw"
    checkpoint_activations: bool = False
    device: str = "cuda"
    unusual: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reason:
    """What speaks for a decision, or against a better one; None where it speaks for none, and is to be known."""

    decision: Decision | None
    text: str


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        alternatives: settings that cannot be told from the recommended one.
        times_the_steps: how much longer ordinary training would take for the same loss: low, expected, high;
            infinite where no length would do. An orientation, see `superpose.plan.equal_loss`.
    """

    request: Request
    model: ModelFacts
    setting: Setting
    prediction: Prediction
    alternatives: tuple[Setting, ...]
    times_the_steps: tuple[float, float, float]
    cost: Cost
    memory: Memory
    decision: Decision
    reasons: tuple[Reason, ...]
    calibration: Calibration | None = None


def make_plan(request: Request, own_points: Sequence[Point] = (), calibration: Calibration | None = None) -> Plan:
    """The plan.

    Args:
        own_points: of comparisons of one's own, to be added to the fit.
        calibration: measured step times, to be taken in place of a utilisation.

    Raises:
        UserError: the model cannot be built, or the setting is none.
    """
    model = facts(request.config, request.latents)
    per_step = request.rows * request.latents
    budget = float(request.steps * per_step)
    response = fit([*published_points(), *own_points]) if own_points else published_response()
    setting, prediction, alternatives, notes = _advised(response, request, model, budget)
    schedule = Schedule(request.steps, setting.bag_size, setting.ratio)
    cost = cost_of(
        schedule,
        per_step,
        model.flops,
        request.unique_tokens,
        request.hardware,
        request.utilisation,
        request.price_per_hour,
        None if calibration is None else calibration.mean_step(schedule),
        request.co2_grams,
    )
    needed = step_memory(request, model)
    reasons = _reasons(request, model, setting, prediction, cost, needed, notes)
    decision = max((reason.decision for reason in reasons if reason.decision), key=_ORDER.index)
    times = [
        times_the_steps(gain, model.parameters, budget) for gain in (prediction.low, prediction.gain, prediction.high)
    ]
    return Plan(
        request, model, setting, prediction, alternatives, (times[0], times[1], times[2]), cost, needed, decision,
        tuple(sorted(reasons, key=_weight, reverse=True)), calibration,
    )  # fmt: skip


def step_memory(request: Request, model: ModelFacts) -> Memory:
    """Memory of one device in a step of what is requested; `model` is its model, counted."""
    rows = max(1, request.rows // request.sharing.devices // request.parts)
    return memory(
        request.config, model, rows, request.latents, request.parts, request.precision, request.sharing,
        request.optimizer, request.checkpoint_activations, request.device,
    )  # fmt: skip


def _advised(
    response: Response, request: Request, model: ModelFacts, budget: float
) -> tuple[Setting, Prediction, tuple[Setting, ...], tuple[str, ...]]:
    if request.setting is None:
        advice = response.best(model.parameters, budget, steps=request.steps)
        passes = budget / request.unique_tokens if request.unique_tokens else 0.0
        fresh = [
            setting
            for setting in advice.region
            if setting.weighting == advice.setting.weighting and passes * _reads(setting) <= _AS_NEW
        ]
        if passes * _reads(advice.setting) <= _AS_NEW or not fresh:
            return advice.setting, advice.prediction, advice.region, advice.why
        # As good within what can be told, and it does not wear the text out.
        sparing = fresh[0]
        prediction = response.predict(
            model.parameters, budget, sparing.bag_size, sparing.ratio, sparing.weighting, steps=request.steps
        )
        note = f"{advice.setting} is predicted best, but reads the text {passes * _reads(advice.setting):.1f} times"
        return sparing, prediction, advice.region, (f"{note}; {sparing} cannot be told from it",)
    wanted = request.setting
    prediction = response.predict(
        model.parameters, budget, wanted.bag_size, wanted.ratio, wanted.weighting, steps=request.steps
    )
    best = response.best(model.parameters, budget, steps=request.steps)
    notes: tuple[str, ...] = ()
    if best.prediction.gain - prediction.gain > _SMALL / 2:
        notes = (
            f"{best.setting} is predicted to gain {best.prediction.gain - prediction.gain:.3f} nats more than {wanted}",
        )
    return wanted, prediction, best.region, notes


def _reads(setting: Setting) -> float:
    """Tokens read for each of an ordinary run's."""
    return 1 + setting.ratio * (setting.bag_size - 1)


def _reasons(
    request: Request,
    model: ModelFacts,
    setting: Setting,
    prediction: Prediction,
    cost: Cost,
    needed: Memory,
    notes: Sequence[str],
) -> list[Reason]:
    gain = f"{prediction.gain:.3f} nats ({prediction.low:+.3f} to {prediction.high:+.3f})"
    if prediction.gain <= 0:
        found = [Reason("do not", f"with {setting} the predicted gain is {gain}")]
    elif prediction.low <= 0 or prediction.gain < _SMALL:
        found = [Reason("small gain", f"with {setting} the predicted gain is {gain}: compare on a small scale first")]
    else:
        found = [Reason("go", f"with {setting} the predicted gain is {gain} at equal FLOPs")]
    found += [Reason(None, note) for note in (*notes, *prediction.why)]
    found += _of_steps(request.steps, setting)
    found += _of_text(setting, cost)
    found += [Reason("small gain", f"{what}: there is no evidence on it") for what in request.unusual]
    if model.vocab_size <= _BYTES:
        found.append(
            Reason(
                "small gain",
                f"a vocabulary of {model.vocab_size}: all evidence is on tokens of several bytes, and a bag of bytes "
                f"is hardly more than one token",
            )
        )
    if model.experts:
        found.append(
            Reason(None, "a mixture of experts: of the paper's one the gain at equal steps is not known, only bounded")
        )
    device = request.hardware.device if request.hardware else None
    if device is not None and device.memory and needed.peak > ROOM * device.memory:
        found.append(
            Reason(
                None,
                f"a step needs {needed.peak / 2**30:.0f} GiB, and each {device.name} has {device.memory / 2**30:.0f}: "
                f"raise train.accumulate, checkpoint activations, or take more devices",
            )
        )
    return found


def _of_steps(steps: int, setting: Setting) -> list[Reason]:
    """Short runs, by our own measurements."""
    if setting.bag_size == 1 or setting.ratio == 0:
        return []
    rows = gain_by_steps()
    enough = gains_from(rows)
    undecided = max((row.steps for row in rows if row.low <= 0), default=0)
    if steps <= undecided:
        decision: Decision | None = "do not"
    else:
        decision = "small gain" if enough is None or steps < enough else None
    return [Reason(decision, sentence) for sentence in few_steps(steps, setting.bag_size, setting.ratio)]


def _of_text(setting: Setting, cost: Cost) -> list[Reason]:
    """Text that is read several times."""
    if cost.epochs is None or cost.ordinary_epochs is None or cost.epochs <= 1:
        return []
    passes = f"the text is read {cost.epochs:.1f} times, {cost.ordinary_epochs:.1f} times without bags"
    if cost.epochs <= _AS_NEW:
        return [Reason(None, f"{passes}; up to {_AS_NEW:.0f} times is nearly as good as new text")]
    other = (
        f"mode 'output' (superposition.mode) reads no more than ordinary training, {cost.ordinary_epochs:.1f} times, "
        f"and in the paper's ablation it gained too (s 4, r 0.5), though less than bags on both sides"
    )
    if cost.epochs <= _WORN:
        return [Reason("small gain", f"data-bound: {passes}, and what TST gains is new text; {other}")]
    return [Reason("do not", f"data-bound: {passes}, and beyond {_WORN:.0f} times text is worth nothing more; {other}")]


def _weight(reason: Reason) -> int:
    return -1 if reason.decision is None else _ORDER.index(reason.decision)


def summary(plan: Plan) -> str:
    """The verdict in a sentence."""
    low, expected, high = plan.times_the_steps
    model = f"a model of {short(plan.model.parameters)} parameters"
    text = f"{plan.decision}: {plan.setting} for {plan.request.steps:,} steps of {model}"
    if plan.decision != "do not" and plan.prediction.gain > 0:
        times = f"{_times(expected)} times the steps ({_times(low)} to {_times(high)})"
        text += f"; ordinary training would take about {times}"
    return text


def _times(value: float) -> str:
    return "more than 100" if value > 100 else f"{value:.1f}"
