"""What each target counts, and what a loss is a mean over. Error 4."""

import math
from typing import Any

import torch
from torch import Tensor

from superpose.conform.amount import terms_of
from superpose.conform.bench import Bench
from superpose.conform.padding import padded_reading, told
from superpose.conform.positions import due, full_positions, need_shift, shares_of, weights_of
from superpose.conform.reading import NotCheckedError, Reading, WrongError


def check_repeats(bench: Bench) -> str:
    """Error 4: full bags count the same, each target with its weight, twice if it is there twice."""
    need_shift(bench, bench.sizes)
    for bag_size in bench.sizes:
        window = bench.window(bag_size)
        places = list(due(bench, 0, bag_size))
        if len(places) > 1:
            window[:, places[1]] = window[:, places[0]]
        reading = bench.read(window, bag_size)
        whole = full_positions(bench, reading, bag_size)
        counts = torch.stack([weights.sum() for _, (weights, _) in whole])
        if (counts - counts[0]).abs().max() > 10 * reading.tolerance * counts[0]:
            raise WrongError(f"positions with full bags count {_numbers(counts)} at s {bag_size}; expected the same")
        shares = shares_of(bench, bag_size)
        # Where each place of the bag has a mean of its own, one that fewer positions are asked for counts more.
        by_place = shares / _askers(bench, bag_size)
        for (row, latent), (weights, number) in whole:
            tokens = window[row][list(due(bench, latent, bag_size))]
            by_probability = reading.logits[number][tokens].softmax(-1)
            ways = [
                torch.zeros_like(weights).index_add_(0, tokens, way)
                for way in (shares, by_place / by_place.sum(), by_probability)
            ]
            given = weights / weights.sum()
            if not any((given - way).abs().max() <= 10 * reading.tolerance for way in ways):
                token = int((given - ways[0]).abs().argmax())
                times = int((tokens == token).sum())
                raise WrongError(
                    f"s {bag_size}, row {row}, position {latent}: token {token}, {times} times in the target, has "
                    f"weight {float(given[token]):.4f}; expected {float(ways[0][token]):.4f}"
                )
    return "full bags count the same, and a token that is twice in a bag counts twice"


def _askers(bench: Bench, bag_size: int) -> Tensor:
    """How many positions are asked for each place of their target bag."""
    reading = bench.plain(bag_size)
    asked = torch.zeros(len(shares_of(bench, bag_size)), dtype=torch.float64)
    for (row, latent), (weights, _) in weights_of(bench, reading, bag_size).items():
        places = list(due(bench, latent, bag_size))
        if row >= 0 and places[-1] < reading.window.shape[1]:
            asked += weights[reading.window[row][places]] > 0
    return asked.clamp(min=1)


def check_ignored(bench: Bench) -> str:
    """Error 4: what the loss is a mean over, where some targets are ignored."""
    need_shift(bench, bench.sizes)
    bag_size, latents = max(bench.sizes), 2
    window = bench.window(bag_size, latents, rows=3)
    places = torch.tensor([list(due(bench, latent, bag_size)) for latent in range(latents)])
    whole = _weights_at(bench, bench.read(window, bag_size), bag_size, places)
    if not whole[:, 0].sum(-1).min() > 0:
        raise NotCheckedError("positions are not asked for the tokens that follow them, see error 1")
    scale = float(whole.sum())
    ignored = torch.zeros_like(window, dtype=torch.bool)
    ignored[1, int(places[0, 0]) + 1 :] = True  # one target of the first position is left
    ignored[2, int(places[0, 0]) :] = True  # nothing is
    reading = padded_reading(bench, window, ignored, bag_size)
    if not math.isfinite(reading.value):
        raise WrongError(f"with positions whose targets are all ignored the loss is {reading.value}")
    if not reading.finite:
        raise WrongError("with positions whose targets are all ignored gradients are not finite")
    found = _weights_at(bench, reading, bag_size, places) / scale
    stray = reading.asked.sum() / scale - found.sum()
    near = 10 * reading.tolerance
    # A row may not hold all targets of its last bag; those it does hold have a weight.
    valid = (whole > 0) & ~ignored[:, places]
    mass = valid * shares_of(bench, bag_size)
    of_places = valid * whole.sum(dim=(0, 1)) / whole.sum()
    ways = {
        "positions with a target": mass / mass.sum(-1, keepdim=True).clamp(min=1e-9) / valid.any(-1).sum(),
        "valid targets": mass / mass.sum(),
        "places in the bag, each a mean over its valid targets": of_places / valid.sum(dim=(0, 1)).clamp(min=1),
    }
    terms = terms_of(bench.plain(bag_size))
    compared = found.sum(-1, keepdim=True) if terms.alternative else found
    mean_over = None
    for name, way in ways.items():
        shown = way.sum(-1, keepdim=True) if terms.alternative else way
        if mean_over is None and stray.abs() < near and (compared - shown).abs().max() < near:
            mean_over = name
    if mean_over is None:
        if abs(float(stray)) >= near and not bench.subject.extra_heads:
            raise WrongError(
                f"ignored targets are asked for: tokens that should not count have weight {float(stray):.4f}"
            )
        by_rows, by_targets, _ = (_numbers(way[:, 0]) for way in ways.values())
        raise WrongError(
            f"of positions with {places.shape[1]}, 1 and no valid targets these count {_numbers(found[:, 0])}; a mean "
            f"over positions would have {by_rows}, one over valid targets {by_targets}"
        )
    if places.shape[1] > 1 and bench.subject.padding_side == "anywhere":
        last = torch.zeros_like(ignored)
        last[:, bag_size - 1 :: bag_size] = True
        if not math.isfinite(padded_reading(bench, window, last, bag_size).value):
            raise WrongError("where the last place of every bag is ignored the loss is not finite")
    return f"a mean over {mean_over}"


def check_parts(bench: Bench) -> str:
    """Error 4: with one normalizer, the parts of a step add up to the step."""
    bag_size = max(bench.sizes)
    window = bench.window(bag_size)
    total, *parts = (
        float(bench.step(rows, bag_size, normalizer=5.0).detach()) for rows in (window, window[:1], window[1:])
    )
    if not math.isclose(total, sum(parts), rel_tol=bench.plain(bag_size).tolerance):
        raise WrongError(f"with one normalizer the parts of a step give {sum(parts):.6f}, the step {total:.6f}")
    return "with one normalizer, the parts of a step add up to it"


def check_accumulation(bench: Bench) -> str:
    """Error 4: a step's gradients do not depend on how it is cut into parts."""
    subject, bag_size = bench.subject, max(bench.sizes)
    assert subject.accumulate is not None
    window = bench.window(bag_size, rows=4)
    ignored = torch.zeros_like(window, dtype=torch.bool)
    known = subject.takes("labels") or subject.ignore_index is not None
    if known:
        first = due(bench, 0, bag_size)
        ignored[0, first.stop :], ignored[1, first.stop + bag_size :] = True, True
    window, sides = told(bench, window, ignored) if known else (window, {})
    labels = sides.get("labels")
    state = {name: parameter.detach().clone() for name, parameter in bench.parameters().items()}
    results: list[tuple[dict[str, Tensor], Any]] = []
    for cut in (1, 2, 4):
        windows = window.chunk(cut)
        parts = list(zip(windows, labels.chunk(cut), strict=True)) if labels is not None else list(windows)
        for name, parameter in bench.parameters().items():
            parameter.grad = None
            with torch.no_grad():
                parameter.copy_(state[name])
        size = None if bench.ordinary else bag_size
        value = bench.run("accumulate", subject.accumulate, parts, size)
        gradients = {
            name: parameter.grad.detach().clone()
            for name, parameter in bench.parameters().items()
            if parameter.grad is not None
        }
        if not any(gradient.any() for gradient in gradients.values()):
            raise NotCheckedError("accumulate left no gradients; it runs backward() itself and zeroes nothing after it")
        results.append((gradients, value))
    (whole, value), tolerance = results[0], 10 * max(bench.plain(bag_size).tolerance, 1e-6)
    for (gradients, other), cut in zip(results[1:], (2, 4), strict=True):
        for name, gradient in whole.items():
            difference = (gradients.get(name, torch.zeros_like(gradient)) - gradient).abs()
            if difference.max() > tolerance * gradient.abs().max():
                at = int(difference.argmax())
                raise WrongError(
                    f"the gradient of {name} at number {at} is {float(gradient.flatten()[at]):.6g} of a step in one "
                    f"part, {float(gradients[name].flatten()[at]) if name in gradients else 0:.6g} of the same in {cut}"
                    + (" with unequal numbers of targets" if known else "")
                )
        if value is not None and other is not None and not math.isclose(float(value), float(other), rel_tol=tolerance):
            raise WrongError(f"the loss of a step is {float(value):.6f} in one part and {float(other):.6f} in {cut}")
    uneven = "" if known else "; parts with unequal numbers of targets were not tried: step takes no labels"
    return f"the same gradients in 1, 2 and 4 parts{uneven}"


def _weights_at(bench: Bench, reading: Reading, bag_size: int, places: Tensor) -> Tensor:
    """Weights [B, L, targets] of targets at `places` [L, targets]."""
    window = reading.window
    found = weights_of(bench, reading, bag_size, strict=False)
    nothing = reading.asked.new_zeros(reading.asked.shape[-1]), 0
    rows = [
        torch.stack(
            [found.get((row, latent), nothing)[0][window[row][at].clamp(min=0)] for latent, at in enumerate(places)]
        )
        for row in range(len(window))
    ]
    return torch.stack(rows)


def _numbers(values: Tensor) -> str:
    return str(values.round(decimals=4).tolist())
