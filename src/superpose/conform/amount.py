"""How large a loss is, and what it is made of. Errors 2 and 3."""

import math
from dataclasses import dataclass

import torch

from superpose.conform.bench import Bench
from superpose.conform.positions import latents_of, weights_of
from superpose.conform.reading import Reading, WrongError, uneven_from


@dataclass(frozen=True)
class Terms:
    """What a loss is made of beside the cross-entropies of its logits.

    Attributes:
        cross_entropy: sum over positions of weight x cross-entropy.
        z_loss: its coefficient, 0 for none.
        alternative: whether it is that of the bag's total probability (MCEAlt).
        rest: what is left of the value.
    """

    cross_entropy: float
    z_loss: float
    alternative: bool
    rest: float


def terms_of(reading: Reading) -> Terms:
    """Takes a loss apart.

    Raises:
        WrongError: its gradient is not that of one softmax.
    """
    if reading.uneven > uneven_from(reading.tolerance):
        raise WrongError(
            f"no cross-entropy: tokens that nobody asks for get gradients up to {reading.uneven:.0%} away from their "
            f"probabilities (a hinge, a binary loss, or smoothed labels)"
        )
    weight, near = reading.asked.sum(-1), reading.near
    heaviest, extra = float(weight.abs().max()), float(reading.extra.abs().max())
    noticeable = extra > 10 * reading.tolerance * heaviest
    value, z, coefficient = float(reading.cross_entropies.sum()), 0.0, 0.0
    if noticeable or not math.isclose(value, reading.value, abs_tol=near):
        normalizers = reading.logits.logsumexp(-1)
        z = float((reading.extra * normalizers).sum() / 2)
        coefficient = z / max(1e-12, float((weight * normalizers.square()).sum()))
    rest = reading.value - value - z
    shares = reading.asked / weight.clamp(min=1e-12).unsqueeze(-1)
    entropy = -(weight * torch.special.xlogy(shares, shares).sum(-1).neg()).sum()
    for constant in (0.0, float((weight * (reading.asked > 0).sum(-1).clamp(min=1).log()).sum())):
        if abs(rest) > near and abs(reading.value - value - float(entropy) - constant) <= near:
            return Terms(value, 0.0, True, 0.0)
    if z and abs(rest) > near and extra > 0.05 * heaviest:
        raise WrongError(
            f"a position's gradient sums to {extra:.3g} over the vocabulary; that of a softmax's cross-entropy sums "
            f"to 0 (a binary loss, or a sum of several softmaxes' terms)"
        )
    if abs(z) < near / 10 and not noticeable:
        rest, coefficient = reading.value - value, 0.0
    return Terms(value, coefficient, False, rest)


def check_first_loss(bench: Bench) -> str:
    """Error 2: the weights of all targets sum to 1, so that with equal logits the loss is log V."""
    said = ""
    for bag_size in bench.sizes:
        reading = bench.plain(bag_size)
        if not (reading.finite and math.isfinite(reading.value)):
            raise WrongError(f"bags of {bag_size}: the loss is {reading.value}, and its gradients are not all finite")
        terms, total = terms_of(reading), _total(bench, reading, bag_size)
        size = f" at s {bag_size}" if bag_size > 1 else ""
        if not math.isclose(total, 1, rel_tol=10 * reading.tolerance):
            log = math.log(reading.logits.shape[-1])
            kinds = {
                1 / bag_size: ("log(V) / s", "the bag's places were averaged as if most held no target"),
                bag_size: ("s log(V)", "the bag's losses were added up, not averaged"),
            }
            near = next((kind for value, kind in kinds.items() if math.isclose(total, value, rel_tol=0.02)), None)
            cause = f"your loss is {reading.value:.2f}{size}, "
            if near and bag_size > 1:
                cause += f"{near[0]} = {total * log:.2f}, and log(V) = {log:.2f}: {near[1]}"
            else:
                cause += f"{total:.3g} times the cross-entropy of its logits; log(V) = {log:.2f}"
            bench.causes[2] = cause
            raise WrongError(f"the weights of all targets sum to {total:.4f}{size}; expected 1. {cause}")
        loss = f"the loss is {reading.value:.4f}{size}"
        if abs(terms.rest) > reading.near and not bench.subject.auxiliary:
            raise WrongError(
                f"{loss}, of which {terms.rest:.4f} comes from elsewhere than the logits; if it is meant (a router's "
                f"balance), declare `auxiliary = True`"
            )
        extra = f", and a z-loss of {terms.z_loss:.2g}" if terms.z_loss else ""
        extra = " of the bag's total probability (MCEAlt)" if terms.alternative else extra
        said = said or f"{loss}: a mean of cross-entropies{extra}; log V for equal logits"
    return said


def _total(bench: Bench, reading: Reading, bag_size: int) -> float:
    if not bench.subject.extra_heads:
        return float(reading.asked.sum())
    return float(sum(weights.sum() for weights, _ in weights_of(bench, reading, bag_size).values()))


def check_work(bench: Bench) -> str:
    """Error 3: one head product and one softmax serve all targets of a bag."""
    sizes = (min(bench.sizes), max(bench.sizes))
    if sizes[0] == sizes[1]:
        sizes = (1, sizes[1])
    counted: dict[str, list[float]] = {}
    for bag_size in sizes:
        reading = bench.plain(bag_size)
        places = len(reading.window) * latents_of(bench, reading.window, bag_size)
        watch, vocab_size = reading.watch, reading.logits.shape[-1]
        products = [product for node in watch.finals() for product in node.products()]
        rows = sum(product.values.numel() // vocab_size for product in dict.fromkeys(products))
        counts = {"rows of the head's product": rows, "rows of softmaxes": watch.softmax_rows}
        if products[0].weight.shape[-1] != vocab_size:
            counts["rows of V numbers in the largest tensor"] = watch.largest // vocab_size
            counts["rows of V numbers kept for the backward pass"] = reading.kept // vocab_size
        for name, count in counts.items():
            counted.setdefault(name, []).append(count / places)
    grown = [name for name, (few, many) in counted.items() if many > 1.2 * max(few, 1.0)]
    words = [f"{name}: {few:.3g} and {many:.3g}" for name, (few, many) in counted.items() if not grown or name in grown]
    evidence = f"a position, at s {sizes[0]} and s {sizes[1]}: {'; '.join(words)}"
    if grown:
        raise WrongError(f"work or memory grows with the bag. For {evidence}")
    return f"they don't grow with the bag. For {evidence}"
