"""The paper's experiments, out of experiments.toml: what each trains, and what the paper found (arXiv 2605.06546)."""

import itertools
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from superpose.compare.experiment import ORDINARY
from superpose.paper.published import published_gain

Expected = Literal["lower", "higher", "equal"]
SWEEP_SIZES = (2, 4, 8, 16)
SWEEP_RATIOS = (0.1, 0.3, 0.5, 0.7)
SWEEP = "270m_20k"
"""The published sweep beside which ours is put: the smallest model, the smallest budget, uniform weights."""
EPOCHS = 4.0
"""Passes of the ordinary arm over its text in a data-bound experiment."""


@dataclass(frozen=True)
class Claim:
    """An arm's final loss beside another's.

    Attributes:
        where: table or figure, model and steps of the paper's figure.
        published: the paper's difference in nats, arm minus against; None where it shows a direction alone.
    """

    arm: str
    against: str
    expected: Expected
    where: str
    published: float | None = None


@dataclass(frozen=True)
class Experiment:
    """Arms and claims.

    Attributes:
        arms: settings changed in the scale's recipe, by name; "ordinary" is the arm without superposition.
        claims: what the paper found.
        needs_weights: arms whose weights are the corpus' own power law, by the bag size they are for.
        data_bound: whether the text is cut down so that the ordinary arm reads it several times.
    """

    title: str
    arms: dict[str, list[str]]
    claims: list[Claim]
    needs_weights: dict[str, int] = field(default_factory=dict)
    data_bound: bool = False


def cell(bag_size: int, ratio: float) -> str:
    """Name of a sweep's arm."""
    return f"s{bag_size}-r{ratio:g}"


def _load() -> dict[str, Experiment]:
    text = files("superpose.reproduce").joinpath("experiments.toml").read_text("utf-8")
    found = TypeAdapter(dict[str, Experiment]).validate_python(tomllib.loads(text))
    sweep = found["figure4"]
    for ratio, size in itertools.product(SWEEP_RATIOS, SWEEP_SIZES):
        arm, gain = cell(size, ratio), published_gain(SWEEP, size, ratio)
        sweep.arms[arm] = [f"superposition.bag_size={size}", f"superposition.ratio={ratio}"]
        sweep.claims.append(Claim(arm, ORDINARY, "lower", "270M, 20,000 steps", gain))
    return found


EXPERIMENTS = _load()
