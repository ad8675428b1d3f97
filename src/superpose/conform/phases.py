"""The two phases: ordinary training, evaluation, and what both share. Errors 7 and 11."""

import math

import torch

from superpose.conform.amount import terms_of
from superpose.conform.bench import Bench
from superpose.conform.positions import latents_of, need_shift, weights_of
from superpose.conform.reading import LATENTS, Reading, WrongError, uneven_from


def check_recovery(bench: Bench) -> str:
    """Error 7: at bag size 1 it is the cross-entropy of the next token."""
    reading = bench.plain(1, apart(bench))
    if reading.uneven > uneven_from(reading.tolerance):
        raise WrongError("at bag size 1 the loss is no cross-entropy of a softmax over the vocabulary")
    weights_of(bench, reading, 1)
    terms, total = terms_of(reading), float(reading.asked.sum())
    if not math.isclose(total, 1, rel_tol=10 * reading.tolerance) and not bench.subject.extra_heads:
        raise WrongError(f"at bag size 1 the loss is {total:.4f} times the next token's cross-entropy")
    if abs(terms.rest) > reading.near and not bench.subject.auxiliary:
        raise WrongError(
            f"at bag size 1 the loss is {reading.value:.6f}; the next token's cross-entropy is "
            f"{terms.cross_entropy:.6f}"
        )
    return "at bag size 1 it is the next token's cross-entropy"


def apart(bench: Bench) -> int:
    """Latents of an ordinary window that could be cut into bags, too."""
    return 2 * max(bench.sizes) - 1


def check_evaluation(bench: Bench) -> str:
    """Error 7: whatever bags train, evaluation is the cross-entropy of the next token."""
    assert bench.subject.evaluate is not None
    need_shift(bench, [1], error=7)
    latents = apart(bench)
    reading = bench.plain(1, latents)
    found = weights_of(bench, reading, 1, strict=False)
    rows = {place: reading.logits[number].log_softmax(-1) for place, (_, number) in found.items() if place[0] >= 0}
    losses = {
        place: -float(log[reading.window[place[0], place[1] + 1]]) for place, log in rows.items() if place[1] < latents
    }
    expected = sum(losses.values()) / max(1, len(losses))
    for bag_size in (1, *bench.sizes):
        with torch.no_grad():
            value = bench.run("evaluate", bench.subject.evaluate, reading.window, bag_size)
        number = float(getattr(value, "loss", value))
        if not math.isclose(number, expected, rel_tol=10 * reading.tolerance):
            raise WrongError(
                f"while bags of {bag_size} train, evaluation gives {number:.6f}; the next token's "
                f"cross-entropy is {expected:.6f}"
            )
    return "evaluation is the next token's cross-entropy whatever bags train"


def check_phases(bench: Bench) -> str:
    """Error 11: both phases use the same parameters, and the body works on as many positions."""
    ordinary = bench.plain(1, apart(bench))
    for bag_size in bench.sizes:
        reading = bench.plain(bag_size)
        for one, other, words in (
            (reading, ordinary, f"in bags of {bag_size}, which they have in ordinary training"),
            (ordinary, reading, f"in ordinary training, which they have in bags of {bag_size}"),
        ):
            missing = sorted(one.unused - other.unused)
            if missing and not (one is ordinary and bench.subject.extra_heads):
                raise WrongError(f"no gradient {words}: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}")
        cut = _cut_off(reading) & _cut_off(ordinary)
        if never := sorted(name for name, one in bench.parameters(reading.watch).items() if id(one) in cut):
            raise WrongError(f"what is looked up gets no gradient, in neither phase: {', '.join(never)}")
        if more := longer(bench, bag_size):
            raise WrongError(
                f"for the same latents the body works on {more:.3g} times as many positions in bags of {bag_size} as "
                f"in ordinary training"
            )
    return "the same parameters have gradients in both phases, and the body sees as many positions"


def _cut_off(reading: Reading) -> set[int]:
    """Tables whose vectors get no gradient, also where a tied head's does get one."""
    trained = [one for one in reading.watch.lookups if one.output.grad is not None and one.output.grad.any()]
    return {id(one.weight) for one in reading.watch.lookups} - {id(one.weight) for one in trained}


def longer(bench: Bench, bag_size: int) -> float:
    """How many times as many positions the body works on in bags as without them; 0 for as many."""
    plain, read = bench.plain(1, apart(bench)), bench.plain(bag_size)
    ordinary, bags = plain.watch.body_rows, read.watch.body_rows
    here, there = (
        one.window.shape[0] * latents_of(bench, one.window, size) for one, size in ((read, bag_size), (plain, 1))
    )
    ratios = [bags[weight] / here / (rows / there) for weight, rows in ordinary.items() if weight in bags and rows]
    # Of rows that end with a bag the last may go through the body, too.
    return next((ratio for ratio in ratios if ratio > (LATENTS + 1) / LATENTS + 0.01), 0)
