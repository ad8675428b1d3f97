"""The paper's experiments: what each trains, and what the paper found (arXiv 2605.06546).

An experiment is a few arms, each the scale's TST recipe with some settings changed, and claims: one arm ends below
another, above it, or at the same loss. A claim has the paper's figure where the paper gives one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from superpose.compare.experiment import ORDINARY
from superpose.paper.published import published_gain, published_loss

Expected = Literal["lower", "higher", "equal"]


@dataclass(frozen=True)
class Claim:
    """An arm's final loss beside another's.

    Attributes:
        published: the paper's difference in nats, arm minus against; None where it shows a direction alone.
        where: table or figure, model and steps of that figure.
    """

    arm: str
    against: str
    expected: Expected
    published: float | None
    where: str


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
    arms: dict[str, tuple[str, ...]]
    claims: tuple[Claim, ...]
    needs_weights: dict[str, int] = field(default_factory=dict)
    data_bound: bool = False


def _superposition(bag_size: int, ratio: float, *more: str) -> tuple[str, ...]:
    return (f"superposition.bag_size={bag_size}", f"superposition.ratio={ratio}", *more)


def _weighting(name: str) -> str:
    return f"superposition.weighting='{name}'"


SWEEP_SIZES = (2, 4, 8, 16)
SWEEP_RATIOS = (0.1, 0.3, 0.5, 0.7)
SWEEP = "270m_20k"
"""The published sweep beside which ours is put: the smallest model, the smallest budget, uniform weights."""


def cell(bag_size: int, ratio: float) -> str:
    """Name of a sweep's arm."""
    return f"s{bag_size}-r{ratio:g}"


_TST_270M = published_loss("270M", 20000, 6) - published_loss("270M", 20000, None)
_TST_3B = published_loss("3B", 20000, 6) - published_loss("3B", 20000, None)
_REINIT = published_loss("3B", 20000, 6, "re-initialised")

EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Table 1: TST ends below ordinary training at equal FLOPs",
        {ORDINARY: (), "tst": _superposition(6, 0.3)},
        (Claim("tst", ORDINARY, "lower", round(_TST_270M, 4), "270M, 20,000 steps (3B: -0.132)"),),
    ),
    "table2": Experiment(
        "Table 2: new embeddings and a new head at the switch destroy the gain",
        {
            ORDINARY: (),
            "tst": _superposition(6, 0.3),
            "reinit": _superposition(6, 0.3, "train.reinit_embeddings=true"),
        },
        (
            Claim("tst", ORDINARY, "lower", round(_TST_3B, 4), "3B, 20,000 steps"),
            Claim("reinit", "tst", "higher", round(_REINIT - published_loss("3B", 20000, 6), 4), "3B"),
            Claim("reinit", ORDINARY, "higher", round(_REINIT - published_loss("3B", 20000, None), 4), "3B"),
        ),
    ),
    "figure4": Experiment(
        "Figure 4, tables 4 to 6: bag sizes and ratios",
        {ORDINARY: ()}
        | {cell(size, ratio): _superposition(size, ratio) for ratio in SWEEP_RATIOS for size in SWEEP_SIZES},
        tuple(
            Claim(cell(size, ratio), ORDINARY, "lower", published_gain(SWEEP, size, ratio), "270M, 20,000 steps")
            for ratio in SWEEP_RATIOS
            for size in SWEEP_SIZES
        ),
    ),
    "figure6": Experiment(
        "Figure 6: bags at the input alone, at the output alone, and at both (s 4, r 0.5)",
        {
            ORDINARY: (),
            "full": _superposition(4, 0.5),
            "input": _superposition(4, 0.5, "superposition.mode='input'"),
            "output": _superposition(4, 0.5, "superposition.mode='output'"),
        },
        (
            Claim("full", ORDINARY, "lower", published_gain(SWEEP, 4, 0.5), "270M, 20,000 steps"),
            Claim("input", ORDINARY, "lower", None, "figure 6"),
            Claim("output", ORDINARY, "lower", None, "figure 6"),
            Claim("full", "input", "lower", None, "figure 6"),
            Claim("full", "output", "lower", None, "figure 6"),
        ),
    ),
    "figures8-9": Experiment(
        "Figures 8 and 9: weights of a bag's tokens (r 0.3)",
        {ORDINARY: ()}
        | {
            f"{name}-s{size}": _superposition(size, 0.3, _weighting(name))
            for size in (4, 16)
            for name in ("uniform", "power", "exponential", "first")
        },
        (
            Claim(
                "power-s4",
                "uniform-s4",
                "higher",
                round((published_gain("600m_20k_power", 4, 0.3) or 0) - (published_gain("600m_20k", 4, 0.3) or 0), 4),
                "600M, 20,000 steps",
            ),
            Claim("exponential-s4", "uniform-s4", "higher", None, "uniform is best up to s 7"),
            Claim("first-s4", "uniform-s4", "higher", None, "uniform is best up to s 7"),
            Claim("uniform-s16", "power-s16", "higher", None, "power is best from s 8 on (600M, s 13: +0.003)"),
            Claim("exponential-s16", "power-s16", "higher", None, "power is best from s 8 on"),
            Claim("first-s16", "power-s16", "higher", None, "power is best from s 8 on"),
        ),
    ),
    "figure10": Experiment(
        "Figure 10: weights from the corpus' own mutual information (s 16, r 0.3)",
        {
            "uniform-s16": _superposition(16, 0.3, _weighting("uniform")),
            "power-s16": _superposition(16, 0.3, _weighting("power")),
            "information-s16": _superposition(16, 0.3),
        },
        (
            Claim("information-s16", "power-s16", "lower", None, "figure 10, slightly"),
            Claim("information-s16", "uniform-s16", "lower", None, "figure 10"),
        ),
        needs_weights={"information-s16": 16},
    ),
    "appendixC": Experiment(
        "Appendix C: MCE and MCEAlt end equal; hinge and binary cross-entropy end above ordinary training (s 4, r 0.3)",
        {
            ORDINARY: (),
            "mce": _superposition(4, 0.3),
            "mce_alt": _superposition(4, 0.3, "superposition.variant='mce_alt'"),
            "hinge": _superposition(4, 0.3, "superposition.variant='hinge'", _weighting("uniform")),
            "bce": _superposition(4, 0.3, "superposition.variant='bce'", _weighting("uniform")),
        },
        (
            Claim("mce_alt", "mce", "equal", None, "appendix C"),
            Claim("hinge", ORDINARY, "higher", None, "appendix C"),
            Claim("bce", ORDINARY, "higher", None, "appendix C"),
        ),
    ),
    "data-bound": Experiment(
        "Data-bound: the ordinary arm reads its text four times (s 4, r 0.3)",
        {
            ORDINARY: (),
            "full": _superposition(4, 0.3),
            "output": _superposition(4, 0.3, "superposition.mode='output'"),
        },
        (
            Claim("full", ORDINARY, "lower", None, "patch-level training, 60B tokens x 6 epochs, arXiv 2407.12665"),
            Claim("output", ORDINARY, "lower", None, "section 5: reads no more text than ordinary training"),
        ),
        data_bound=True,
    ),
}

EPOCHS = 4.0
"""Passes of the ordinary arm over its text in a data-bound experiment."""
