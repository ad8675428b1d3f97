"""The plan of a run: what TST would bring, what it would cost, and whether to do it at all.

Request -> accounting (model, memory, cost) + evidence (prediction) -> verdict with reasons -> Plan
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from superpose.core.accounting import extra_heads_flops
from superpose.core.schedule import Schedule
from superpose.errors import UserError
from superpose.plan.cost import Calibration, RunCost, cost_of
from superpose.plan.evidence import RULE, SMALL_RULE, Point, Setting, measured_points, published_bound, short
from superpose.plan.fit import what_would_fit
from superpose.plan.memory import Memory, memory
from superpose.plan.model import ModelFacts, facts
from superpose.plan.prediction import Prediction, few_steps, level_settings, predict, step_limits
from superpose.plan.request import Request

Decision = Literal["go", "small gain", "compare first", "do not"]
_ORDER: tuple[Decision, ...] = get_args(Decision)
_SMALL = 0.02
"""Nats below which a gain is called small: what seeds and learning rates of a comparison differ by."""
_AS_NEW, _WORN = 4.0, 16.0
"""Passes over a text up to which it is nearly as good as new, and from which another is worth nothing (Muennighoff et
al., arXiv 2305.16264, section 5: 4 and about 16)."""
_SIZES, _RATIOS = tuple(range(2, 17)), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Reason:
    """What speaks for a decision, or against a better one; None where it speaks for none, and is to be known."""

    decision: Decision | None
    text: str


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        alternatives: settings that the paper's sweeps cannot tell from the best; none where they say nothing.
        reasons: the deciding ones first.
    """

    request: Request
    model: ModelFacts
    setting: Setting
    prediction: Prediction
    alternatives: tuple[Setting, ...]
    cost: RunCost
    memory: Memory
    decision: Decision
    reasons: tuple[Reason, ...]
    calibration: Calibration | None = None


def make_plan(request: Request, own_points: Sequence[Point] = (), calibration: Calibration | None = None) -> Plan:
    """The plan.

    Args:
        request: by `superpose.plan.request_for` out of numbers, or by `superpose.plan.request_of` out of a recipe.
        own_points: gains of comparisons of one's own (`superpose.plan.points_of`), which count where they are near.
        calibration: measured step times, to be taken in place of a utilisation.

    Raises:
        UserError: the model cannot be built, or the setting is none.
    """
    model = facts(request.config, request.latents)
    budget = float(request.steps * request.latents_per_step)
    setting, alternatives, notes = _advised(request, model, budget, own_points)
    prediction = predict(model.parameters, budget, request.steps, setting, own_points)
    schedule = _schedule(request, setting)
    step_seconds = None if calibration is None else calibration.mean_step(schedule)
    flops_per_head = extra_heads_flops(1, model.width, model.vocab_size)
    cost = cost_of(request, schedule, model.flops, step_seconds, flops_per_head)
    reasons = _of_gain(setting, prediction) + notes + _of_steps(request.steps, setting, prediction)
    reasons += _of_text(cost) + _of_model(request, model)
    reasons.sort(key=lambda reason: -1 if reason.decision is None else _ORDER.index(reason.decision), reverse=True)
    decision = reasons[0].decision
    assert decision is not None  # a gain, or that there is none, decides something
    return Plan(
        request, model, setting, prediction, alternatives, cost, memory(request, model), decision, tuple(reasons),
        calibration,
    )  # fmt: skip


def _advised(
    request: Request, model: ModelFacts, budget: float, own: Sequence[Point]
) -> tuple[Setting, tuple[Setting, ...], list[Reason]]:
    """The setting, those as good, and what is to be known of it."""

    def gain(setting: Setting) -> float | None:
        return predict(model.parameters, budget, request.steps, setting, own).gain

    usual = SMALL_RULE if model.parameters < 2 * measured_points()[0].params else RULE
    of_paper = usual == RULE and gain(RULE) is not None
    level = level_settings(model.parameters, budget, _SIZES, _RATIOS) if of_paper else ()
    if request.setting is not None:
        here, there = gain(request.setting), gain(usual)
        if here is None or there is None or there - here <= _SMALL / 2:
            return request.setting, level, []
        return request.setting, level, [Reason(None, f"{usual} is predicted to gain {there - here:.3f} nats more")]

    def passes(setting: Setting) -> float:
        return _schedule(request, setting).raw_tokens(request.latents_per_step) / (request.unique_tokens or math.inf)

    sparing = [setting for setting in level if passes(setting) <= _AS_NEW]
    if passes(usual) <= _AS_NEW or not sparing:
        return usual, level, []
    # As good within what can be told, and it does not wear the text out.
    note = f"{usual} reads the text {passes(usual):.1f} times; {sparing[0]} cannot be told from it, and reads less"
    return sparing[0], level, [Reason(None, note)]


def _schedule(request: Request, setting: Setting) -> Schedule:
    own = request.schedule
    if own is not None and own.total_steps == request.steps and setting == request.setting:
        return own
    try:
        return Schedule(request.steps, setting.bag_size, setting.ratio)
    except ValueError as error:
        raise UserError(f"{setting} does not fit {request.steps:,} steps ({error}); plan more steps") from None


def _of_gain(setting: Setting, prediction: Prediction) -> list[Reason]:
    if prediction.gain is None or prediction.low is None or prediction.high is None:
        found = [Reason("compare first", f"no evidence here, so no number: {'; '.join(prediction.why)}")]
        if prediction.nearest is not None:
            found.append(Reason(None, f"the nearest evidence is {prediction.nearest}"))
        return found
    gain = f"{prediction.gain:.3f} nats (95 % interval {prediction.low:+.3f} to {prediction.high:+.3f})"
    text = f"with {setting} the predicted gain is {gain} at equal FLOPs, by {prediction.basis}"
    if setting.ordinary or prediction.high < 0 or prediction.gain <= 0:
        return [Reason("do not", text)]
    if prediction.low <= 0 or prediction.gain < _SMALL:
        return [Reason("small gain", f"{text}: compare on a small scale first")]
    return [Reason("go", text)]


def _of_steps(steps: int, setting: Setting, prediction: Prediction) -> list[Reason]:
    """Short runs, by our own measurements; where the user has comparisons of the own, by those."""
    if setting.ordinary or prediction.basis.startswith("your own"):
        return []
    too_few, enough = step_limits()
    decision: Decision | None = "do not" if steps <= too_few else "small gain" if steps < enough else None
    return [Reason(decision, sentence) for sentence in few_steps(steps, setting)]


def _of_text(cost: RunCost) -> list[Reason]:
    if cost.epochs is None or cost.ordinary_epochs is None:
        needed = (
            f"it reads {short(cost.raw_tokens)} tokens: so many unique ones are needed to read none twice, and "
            f"{short(cost.raw_tokens / _AS_NEW)} to read each up to {_AS_NEW:.0f} times, which is nearly as good "
            f"(ordinary training: {short(cost.ordinary_tokens)} and {short(cost.ordinary_tokens / _AS_NEW)})"
        )
        return [Reason(None, needed)]
    worn = [
        Reason(
            "small gain",
            f"data-bound: the source {name} is read {passes:.1f} times; give more of it, or a smaller share of mixture",
        )
        for name, passes in cost.source_epochs.items()
        if passes > _AS_NEW
    ]
    return worn + _of_whole_text(cost.epochs, cost.ordinary_epochs)


def _of_whole_text(epochs: float, ordinary_epochs: float) -> list[Reason]:
    if epochs <= 1:
        return []
    passes = f"the text is read {epochs:.1f} times, {ordinary_epochs:.1f} times without bags"
    if epochs <= _AS_NEW:
        return [Reason(None, f"{passes}; up to {_AS_NEW:.0f} times is nearly as good as new text")]
    other = (
        f"mode 'output' (superposition.mode) reads no more than ordinary training, {ordinary_epochs:.1f} times, "
        f"and in the paper's ablation it gained too (s 4, r 0.5), though less than bags on both sides"
    )
    if epochs <= _WORN:
        return [Reason("small gain", f"data-bound: {passes}, and what TST gains is new text; {other}")]
    return [Reason("do not", f"data-bound: {passes}, and beyond {_WORN:.0f} times text is worth nothing more; {other}")]


def _of_model(request: Request, model: ModelFacts) -> list[Reason]:
    found = [Reason("compare first", f"{what}: there is no evidence on it") for what in request.unusual]
    if model.vocab_size <= 300:  # the 256 bytes, and a few special tokens
        text = f"a vocabulary of {model.vocab_size}: all evidence is on tokens of several bytes, and a bag of bytes is "
        found.append(Reason("compare first", f"{text}hardly more than one token"))
    if model.experts:
        steps, nats, times = published_bound()
        text = f"a mixture of experts: the paper's 10B-A1B ended {nats:.3f} nats below an ordinary run of {times:.1f} "
        found.append(Reason(None, f"{text}times its {steps:,} steps; its gain at equal steps is not known"))
    if too_much := what_would_fit(request, model):
        found.append(Reason("do not", too_much))
    return found


def summary(plan: Plan) -> str:
    """The verdict in a sentence."""
    model = f"a model of {short(plan.model.parameters)} parameters"
    text = f"{plan.decision}: {plan.setting} for {plan.request.steps:,} steps of {model}"
    if plan.decision in ("do not", "compare first"):
        return f"{text}; {plan.reasons[0].text}"
    if plan.prediction.speedup is None:
        return text
    low, expected, high = plan.prediction.speedup
    return f"{text}; ordinary training would take about {expected:.1f} times the steps ({low:.1f} to {high:.1f})"
