"""What one step does: what a position sees and is asked for, how the model is used, at what cost. Errors 1 to 7 and 11.

Each check raises `WrongError` with its evidence, `NotCheckedError` with the reason, or returns what it found right.

Shapes: B rows, L latents, S bag, T tokens of a window, R rows of logits, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superpose.conform.probe import Probe
from superpose.conform.reading import (
    LATENTS,
    MIXED,
    ROWS,
    Bench,
    NotCheckedError,
    Reading,
    Replace,
    WrongError,
    largest,
    uneven_from,
)
from superpose.conform.watch import STEPS, Lookup
from superpose.core.fold import MODES


# 1: the shift


def check_shift(bench: Bench) -> str:
    """Error 1: bag j sees tokens js to (j + 1)s - 1 and those before, and is asked for the s that follow them."""
    for bag_size in bench.sizes:
        weights_of(bench, bench.plain(bag_size), bag_size)
    if bench.ordinary:
        return "each token is predicted from those up to the one before it, and no other"
    found = "" if bench.subject.mode else f", in mode {bench.mode!r}, which is found"
    sizes = ", ".join(map(str, bench.sizes))
    return f"each position saw what it has to and was asked for what follows it, at s {sizes}{found}"


def find_mode(bench: Bench) -> None:
    """The first mode that the positions are right in, if there is one."""
    for mode in MODES:
        bench.found_mode = mode
        bench.forget()
        try:
            weights_of(bench, bench.plain(bag_size := min(bench.sizes)), bag_size)
        except (WrongError, NotCheckedError):
            continue
        return
    bench.found_mode = "full"
    bench.forget()


def due(bench: Bench, latent: int, bag_size: int, further: int = 0) -> range:
    """Places of a window that a position is to be asked for; `further` bags on for extra heads."""
    mode = bench.mode
    if bag_size == 1 or mode == "output":
        return range(latent + 1 + further, latent + 1 + further + bag_size)
    start = (latent + 1 + further) * bag_size
    return range(start, start + (1 if mode == "input" else bag_size))


def shares_of(bench: Bench, bag_size: int) -> Tensor:
    """Weights [number of targets] of a position's targets, which sum to 1."""
    return bench.subject.shares("weighting", 1 if bench.mode == "input" else bag_size)


def weights_of(
    bench: Bench, reading: Reading, bag_size: int, strict: bool = True
) -> dict[tuple[int, int], tuple[Tensor, int]]:
    """By row and position: weights [V] of what it is asked for by the main head, and its first row of logits.

    Raises:
        WrongError: with `strict`, a position is asked for other tokens than it should be.
    """
    window, subject = reading.window, bench.subject
    if reading.uneven > uneven_from(reading.tolerance):
        raise NotCheckedError("the loss is no cross-entropy, see error 2")
    counting = reading.asked.any(-1)
    mixed, last = int((reading.row == MIXED).sum()), reading.last[counting]
    if mixed:
        wrong = f"{mixed} of {len(reading.row)} positions depend on more than one row of the batch"
        raise WrongError(wrong) if strict else NotCheckedError(f"{wrong}, see error 1")
    if strict and len(last) > 1 and (last == window.shape[1] - 1).all():
        raise WrongError(f"every position sees token {window.shape[1] - 1}, the last of its window: it is not causal")
    taken = 1 if bag_size == 1 or bench.mode == "output" else bag_size
    latents = _latents(bench, window, bag_size)
    rows: dict[tuple[int, int], list[int]] = {}
    for number, (row, last) in enumerate(zip(reading.row.tolist(), reading.last.tolist(), strict=True)):
        counts = bool(reading.asked[number].any())
        if strict and counts and (row < 0 or last < 0):
            raise WrongError("a position that is asked for tokens depends on no token of the window")
        if strict and counts and (last + 1) % taken:
            saw, asked = reading.seen[number].nonzero().flatten().tolist(), _places(reading.asked[number], window[row])
            raise WrongError(
                f"bags of {bag_size}, row {row}: a position saw {_tokens(saw)} and was asked for {_tokens(asked)}; "
                f"what it sees should end with a bag, at token {taken - 1}, {2 * taken - 1}, ..."
            )
        rows.setdefault((row, last // taken), []).append(number)
    found = {}
    for (row, latent), numbers in sorted(rows.items()):
        total = reading.asked[numbers].sum(0)
        if strict and total.any():
            _compare_places(bench, reading, bag_size, (row, latent), numbers, taken, latents)
        main = torch.zeros_like(total)
        tokens = window[row][[place for place in due(bench, latent, bag_size) if place < window.shape[1]]]
        tokens = tokens[tokens >= 0]
        main[tokens] = total[tokens]
        found[row, latent] = (main if subject.extra_heads else total), numbers[0]
    if strict:
        for row in range(len(window)):
            for latent in range(max(1, latents - 1)):
                if not (row, latent) in found or not found[row, latent][0].any():
                    kind = f"bags of {bag_size}, " if bag_size > 1 else ""
                    raise WrongError(
                        f"{kind}row {row}, position {latent} is asked for nothing; {latents} positions expected"
                    )
    return found


def _compare_places(
    bench: Bench,
    reading: Reading,
    bag_size: int,
    place: tuple[int, int],
    numbers: list[int],
    taken: int,
    latents: int,
) -> None:
    (row, latent), window = place, reading.window
    asked = _places(reading.asked[numbers].sum(0), window[row])
    saw = reading.seen[numbers].any(0).nonzero().flatten().tolist()
    where = f"bags of {bag_size}, row {row}, position {latent}" if bag_size > 1 else f"row {row}, position {latent}"
    own = range(latent * taken, (latent + 1) * taken)
    needed = [place for place, share in zip(own, bench.subject.shares("pooling", taken), strict=True) if share]
    if missing := sorted(set(needed) - set(saw)):
        raise WrongError(f"{where} saw {_tokens(saw)}; its own {_tokens(missing)} it did not see")
    right: set[int] = set()
    for further in range(1 + bench.subject.extra_heads):
        places = due(bench, latent, bag_size, further)
        shares = shares_of(bench, bag_size)
        wanted = {place for place, share in zip(places, shares, strict=True) if share and place < window.shape[1]}
        # A row may not hold all targets of its last bag, and the last bags may have no head for further ones.
        if further == 0 and latent < latents - 1 and not wanted <= set(asked):
            right = wanted
            break
        right |= wanted
    if set(asked) <= right and (len(asked) == len(right) or latent >= latents - 1 or bench.subject.extra_heads):
        return
    leaked, skipped = sorted(set(asked) & set(saw)), sorted(right - set(asked))
    why = f"; {len(leaked)} of {len(asked)} targets were in its own input" if leaked else ""
    if not leaked and skipped and asked:
        why = f"; {_tokens(skipped)} skipped"
    raise WrongError(
        f"{where} saw {_tokens(saw)} and was asked for {_tokens(asked)}, not {_tokens(sorted(right))}{why}"
    )


def _latents(bench: Bench, window: Tensor, bag_size: int) -> int:
    length = window.shape[1]
    if bag_size > 1 and bench.mode == "output":
        return length - bag_size
    return length // bag_size - 1


# 2: how large the loss is


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
    weight = reading.asked.sum(-1)
    near = reading.tolerance * max(1.0, abs(reading.value))
    entropies = reading.cross_entropies
    if reading.uneven > uneven_from(reading.tolerance):
        raise WrongError(
            f"no cross-entropy: tokens that nobody asks for get gradients up to {reading.uneven:.0%} away from their "
            f"probabilities (a hinge, a binary loss, or smoothed labels)"
        )
    z, coefficient = 0.0, 0.0
    value = float(entropies.sum())
    normalizers = reading.logits.logsumexp(-1)
    if reading.extra.abs().max() > 10 * reading.tolerance * weight.abs().max() or not math.isclose(
        value, reading.value, abs_tol=near
    ):
        z = float((reading.extra * normalizers).sum() / 2)
        coefficient = z / max(1e-12, float((weight * normalizers.square()).sum()))
    rest = reading.value - value - z
    shares = reading.asked / weight.clamp(min=1e-12).unsqueeze(-1)
    entropy = -(weight * torch.special.xlogy(shares, shares).sum(-1).neg()).sum()
    for constant in (0.0, float((weight * (reading.asked > 0).sum(-1).clamp(min=1).log()).sum())):
        if abs(rest) > near and abs(reading.value - value - float(entropy) - constant) <= near:
            return Terms(value, 0.0, True, 0.0)
    if z and abs(rest) > near and reading.extra.abs().max() > 0.05 * weight.abs().max():
        raise WrongError(
            f"a position's gradient sums to {float(reading.extra.abs().max()):.3g} over the vocabulary; that of a softmax's "
            f"cross-entropy sums to 0 (a binary loss, or a sum of several softmaxes' terms)"
        )
    if abs(z) < near / 10 and abs(reading.extra).max() < reading.tolerance * 10 * weight.abs().max():
        rest, coefficient = reading.value - value, 0.0
    return Terms(value, coefficient, False, rest)


def check_first_loss(bench: Bench) -> str:
    """Error 2: the weights of all targets sum to 1, so that with equal logits the loss is log V."""
    said = ""
    for bag_size in bench.sizes:
        reading = bench.plain(bag_size)
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
        if abs(terms.rest) > reading.tolerance * max(1.0, abs(reading.value)) and not bench.subject.auxiliary:
            raise WrongError(
                f"the loss is {reading.value:.4f}{size}, of which {terms.rest:.4f} comes from elsewhere than the logits; "
                f"if it is meant (a router's balance), declare `auxiliary = True`"
            )
        extra = f", and a z-loss of {terms.z_loss:.2g}" if terms.z_loss else ""
        extra = " of the bag's total probability (MCEAlt)" if terms.alternative else extra
        said = (
            said or f"the loss is {reading.value:.4f}{size}: a mean of cross-entropies{extra}; log V for equal logits"
        )
    return said


def _total(bench: Bench, reading: Reading, bag_size: int) -> float:
    if not bench.subject.extra_heads:
        return float(reading.asked.sum())
    return float(sum(weights.sum() for weights, _ in weights_of(bench, reading, bag_size).values()))


# 3: work


def check_work(bench: Bench) -> str:
    """Error 3: one head product and one softmax serve all targets of a bag."""
    sizes = (min(bench.sizes), max(bench.sizes))
    if sizes[0] == sizes[1]:
        sizes = (1, sizes[1])
    counted: dict[str, list[float]] = {}
    for bag_size in sizes:
        reading = bench.plain(bag_size)
        positions = len(reading.window) * _latents(bench, reading.window, bag_size)
        watch, vocab_size = reading.watch, reading.logits.shape[-1]
        products = [one.product for node in watch.finals() for one in node.ancestors() if one.product]
        rows = sum(product.values.numel() // vocab_size for product in dict.fromkeys(products))
        counts = {
            "rows of the head's product": rows,
            "rows of softmaxes": watch.softmax_rows,
        }
        if products[0].weight.shape[-1] != vocab_size:
            counts["rows of V numbers in the largest tensor"] = watch.largest // vocab_size
            counts["rows of V numbers kept for the backward pass"] = reading.kept // vocab_size
        for name, count in counts.items():
            counted.setdefault(name, []).append(count / positions)
    grown = [name for name, (few, many) in counted.items() if many > 1.2 * max(few, 1.0)]
    words = [f"{name}: {few:.3g} and {many:.3g}" for name, (few, many) in counted.items() if not grown or name in grown]
    evidence = f"a position, at s {sizes[0]} and s {sizes[1]}: {'; '.join(words)}"
    if grown:
        raise WrongError(f"work or memory grows with the bag. For {evidence}")
    return f"they don't grow with the bag. For {evidence}"


# 4: normalisation


def _need_shift(bench: Bench, sizes: Iterable[int], error: int = 1) -> None:
    """Of checks that ask how much a position's targets count: they have to be its targets."""
    for bag_size in sizes:
        try:
            weights_of(bench, bench.plain(bag_size), bag_size)
        except WrongError:
            what = "positions are asked for the wrong tokens" if error == 1 else "ordinary training is wrong"
            raise NotCheckedError(f"{what}, see error {error}") from None


def check_repeats(bench: Bench) -> str:
    """Error 4: full bags count the same, each target with its weight, twice if it is there twice."""
    _need_shift(bench, bench.sizes)
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


def full_positions(bench: Bench, reading: Reading, bag_size: int) -> list[tuple[tuple[int, int], tuple[Tensor, int]]]:
    """What `weights_of` finds of positions whose targets every row holds."""
    found = weights_of(bench, reading, bag_size, strict=False)
    latents = _latents(bench, reading.window, bag_size)
    full = [(place, one) for place, one in found.items() if 0 <= place[1] < max(1, latents - 1) and place[0] >= 0]
    if not full or not all(one[0].sum() > 0 for _, one in full):
        raise NotCheckedError("positions are not asked for the tokens that follow them, see error 1")
    return full


def check_ignored(bench: Bench) -> str:
    """Error 4: what the loss is a mean over, where some targets are ignored."""
    _need_shift(bench, bench.sizes)
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
    reading = _padded(bench, window, ignored, bag_size)
    if not math.isfinite(reading.value):
        raise WrongError(f"with positions whose targets are all ignored the loss is {reading.value}")
    found = _weights_at(bench, reading, bag_size, places) / scale
    if not torch.isfinite(found).all():
        raise WrongError("with positions whose targets are all ignored gradients are not finite")
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
    for name, way in ways.items():
        way = way.sum(-1, keepdim=True) if terms.alternative else way
        if stray.abs() < near and (compared - way).abs().max() < near:
            break
    else:
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
        if not math.isfinite(_padded(bench, window, last, bag_size).value):
            raise WrongError("where the last place of every bag is ignored the loss is not finite")
    return f"a mean over {name}"


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
    window, sides = _told(bench, window, ignored) if known else (window, {})
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
                    f"the gradient of {name} at number {at} is {float(gradient.flatten()[at]):.6g} of a step in one part, "
                    f"{float(gradients[name].flatten()[at]) if name in gradients else 0:.6g} of the same in {cut}"
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


def _told(bench: Bench, window: Tensor, padding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A window with padding, and the arguments that tell the step of it."""
    subject, sides = bench.subject, {}
    if subject.takes("labels"):
        sides["labels"] = window.masked_fill(padding, subject.ignored)
    if subject.takes("attention_mask"):
        sides["attention_mask"] = (~padding).long()
    if sides:
        return window.masked_fill(padding, subject.pad_id), sides
    return window.masked_fill(padding, subject.ignored), {}


def _padded(bench: Bench, window: Tensor, padding: Tensor, bag_size: int) -> Reading:
    """The reading of a window with padding; its `window` is the one without."""
    given, sides = _told(bench, window, padding)
    reading = bench.read(given, bag_size, **sides)
    return Reading(**{**vars(reading), "window": window})


# 5 and 6: what the body is given, and what its logits go through


def pooled_into(
    bench: Bench,
    window: Tensor,
    bag_size: int,
    ordinary: Tensor,
    valid: Tensor,
    factor: float = 1.0,
    further: tuple[Tensor, Tensor] | None = None,
    at: int = 0,
) -> Replace:
    """For a lookup of the ordinary window's tokens: in place of token j's vector the mean of bag j's.

    So ordinary training, whose embedding gives those vectors, computes what training in bags has to. With `further`,
    a table and shares [S], all other tables give their vectors by these shares. `at` counts the steps that a token's
    vector takes before it is replaced.
    """
    latents = ordinary.shape[1] - 1
    bags = window[:, : latents * bag_size].unflatten(1, (latents, bag_size))
    shares = bench.subject.shares("pooling", bag_size) * factor
    kept = shares * valid[:, : latents * bag_size].unflatten(1, (latents, bag_size))
    kept = kept / kept.sum(-1, keepdim=True).clamp(min=1e-9) * shares.sum()

    def replace(lookup: Lookup, step: int, vectors: Tensor) -> Tensor:
        if step != at or not of_tokens(bench, lookup, ordinary):
            return vectors
        table = lookup.weight.detach().double()
        taken = kept if further is None or lookup.weight is further[0] else further[1].expand_as(kept)
        return _put(ordinary, lookup, vectors, (table[bags.clamp(min=0)] * taken.unsqueeze(-1)).sum(2))

    return replace


def of_tokens(bench: Bench, lookup: Lookup, window: Tensor) -> bool:
    """Whether a lookup is one of a window's tokens, and not of positions or documents."""
    ids = lookup.ids.unique()
    counted = len(ids) > 1 and torch.equal(ids, torch.arange(len(ids)))
    return not counted and len(lookup.weight) == bench.vocab_size and bool(torch.isin(ids, window).any())


def _put(ordinary: Tensor, lookup: Lookup, vectors: Tensor, means: Tensor) -> Tensor:
    """Means [B, L, D] in the places of the tokens of an ordinary window."""
    new = vectors.clone()
    for row in range(means.shape[0]):
        for latent in range(means.shape[1]):
            new[lookup.ids == ordinary[row, latent]] = means[row, latent].to(vectors.dtype)
    return new


def _later(bench: Bench, reading: Reading, bag_size: int, ordinary: Tensor) -> Iterator[Replace]:
    """As `pooled_into`, with means that are taken after the first, second, ... step of what is made of a token's vector."""
    looked_up = [lookup for lookup in reading.watch.lookups if of_tokens(bench, lookup, reading.window)]
    if len(looked_up) != 1 or looked_up[0].ids.numel() % (len(ordinary) * bag_size):
        return
    for number, vectors in enumerate(looked_up[0].steps[1:], start=1):
        bags = vectors.double().reshape(len(ordinary), -1, bag_size, vectors.shape[-1])[:, : ordinary.shape[1] - 1]
        means = (bags * bench.subject.shares("pooling", bag_size).unsqueeze(-1)).sum(2)

        def replace(lookup: Lookup, step: int, vectors: Tensor, at: int = number, means: Tensor = means) -> Tensor:
            return (
                _put(ordinary, lookup, vectors, means) if step == at and of_tokens(bench, lookup, ordinary) else vectors
            )

        yield replace


def difference(bench: Bench, bag_size: int, factor: float = 1.0) -> tuple[str, str]:
    """`_difference`, found once."""
    key = bag_size, factor
    if key not in bench.differences:
        bench.differences[key] = _difference(bench, bag_size, factor)
    return bench.differences[key]


def _difference(bench: Bench, bag_size: int, factor: float) -> tuple[str, str]:
    """Where training in bags departs from ordinary training on the bags' means: nowhere, "hidden" or "logits"."""
    _need_shift(bench, [1], error=7)
    if _longer(bench, bag_size):
        raise NotCheckedError("the body works on more positions than in ordinary training, see error 11")
    reading = bench.plain(bag_size)
    if (0, 0) not in weights_of(bench, reading, bag_size, strict=False):
        raise NotCheckedError("positions see the wrong tokens, see error 1")
    if bench.mode == "output":
        return _departs(bench, reading, bag_size, bench.read(reading.window[:, : LATENTS + 1].contiguous(), 1))
    ordinary = bench.window(1)
    if len(ordinary.unique()) < ordinary.numel():
        raise NotCheckedError(f"a vocabulary of {bench.vocab_size} is too small; take one of 64 or more")
    whole = torch.ones_like(reading.window, dtype=torch.bool)
    expected = bench.read(ordinary, 1, pooled_into(bench, reading.window, bag_size, ordinary, whole, factor))
    if not any(of_tokens(bench, lookup, ordinary) for lookup in expected.watch.lookups):
        raise NotCheckedError("no lookup of tokens was seen in ordinary training; name `embedding`")
    found = _departs(bench, reading, bag_size, expected)
    if found[0] != "hidden" or factor != 1:
        return found
    for replace in _later(bench, reading, bag_size, ordinary):
        if (later := _departs(bench, reading, bag_size, bench.read(ordinary, 1, replace)))[0] != "hidden":
            return later
    if not _departs(bench, reading, bag_size, expected, latest=0)[0]:
        return "sides", f"{found[1]} in ordinary training; position 0 is right, so it is positions, masks or the like"
    farthest = [
        max((int(one.ids.max()) for one in each.watch.lookups if not of_tokens(bench, one, each.window)), default=0)
        for each in (reading, expected)
    ]
    if farthest[0] > farthest[1]:
        return "sides", f"{found[1]} in ordinary training: positions are looked up to {farthest[0]} for {LATENTS} bags"
    tables = dict.fromkeys(one.weight for one in expected.watch.lookups if of_tokens(bench, one, ordinary))
    for name, place in (("first", 0), ("last", -1)) if len(tables) > 1 else ():
        alone = torch.zeros(bag_size, dtype=torch.float64).index_fill_(0, torch.tensor(place % bag_size), 1.0)
        replace = pooled_into(bench, reading.window, bag_size, ordinary, whole, further=(next(iter(tables)), alone))
        if _departs(bench, reading, bag_size, bench.read(ordinary, 1, replace))[0] != "hidden":
            return "sides", f"{found[1]} in ordinary training: a further table gives the vector of a bag's {name} token"
    for number in range(1, STEPS):
        replace = pooled_into(bench, reading.window, bag_size, ordinary, whole, at=number)
        if not _departs(bench, reading, bag_size, bench.read(ordinary, 1, replace))[0]:
            return (
                "sides",
                f"{found[1]} in ordinary training: a token's vector is scaled or normed there, a bag's is not",
            )
    return found


def _departs(
    bench: Bench,
    reading: Reading,
    bag_size: int,
    expected: Reading,
    rows: Any = None,
    first: int = 0,
    latest: int = 10**9,
) -> tuple[str, str]:
    found, wanted = (weights_of(bench, one, size, strict=False) for one, size in ((reading, bag_size), (expected, 1)))
    common = [place for place in found if place in wanted and place[0] >= 0 and place[1] >= first]
    common = [place for place in common if rows is None or place[0] in rows]
    common = [place for place in common if place[1] < min(_latents(bench, reading.window, bag_size), latest + 1)]
    if not common:
        raise NotCheckedError("no position of training in bags is one of ordinary training, see error 1")
    near = 10 * max(reading.tolerance, expected.tolerance)
    for place in common:
        number, other = found[place][1], wanted[place][1]
        apart = (reading.logits[number] - expected.logits[other]).abs()
        if apart.max() <= near * max(largest(expected.logits), 1e-3):
            continue
        token = int(apart.argmax())
        evidence = (
            f"s {bag_size}, row {place[0]}, position {place[1]}: the logit of token {token} is "
            f"{float(reading.logits[number, token]):.4f}, and {float(expected.logits[other, token]):.4f}"
        )
        if len(reading.hidden) and len(expected.hidden) and reading.hidden.shape[1] == expected.hidden.shape[1]:
            hidden = (reading.hidden[number] - expected.hidden[other]).abs().max()
            if hidden <= near * expected.hidden.abs().max():
                return "logits", evidence
        return "hidden", evidence
    return "", ""


def check_mean(bench: Bench) -> str:
    """Error 5: the body is given the mean of each bag's embeddings, and works as in ordinary training."""
    pooling = bench.subject.pooling
    for bag_size in bench.sizes:
        kind, evidence = difference(bench, bag_size)
        if kind != "hidden":
            continue
        what = "means" if pooling == "mean" else "vectors"
        named = {"s times their mean, a sum": bag_size, "sqrt(s) times their mean": math.sqrt(bag_size)}
        why = [
            f". Your bags are {name}"
            for name, factor in named.items()
            if pooling == "mean" and difference(bench, bag_size, factor)[0] != "hidden"
        ]
        raise WrongError(f"{evidence} in ordinary training on the bags' {what}{''.join(why)}")
    return "the logits are, number by number, those of ordinary training on the bags' vectors"


def check_logits(bench: Bench) -> str:
    """Error 6: the embedding's scale, the head's bias, caps and z-loss are those of ordinary training."""
    if any(difference(bench, bag_size)[0] == "hidden" for bag_size in bench.sizes):
        raise NotCheckedError("what the head is given is not what it is in ordinary training, see error 5")
    benches = {"": bench}
    if bench.subject.model is None and bench.subject.step is not None and isinstance(bench.model, Probe):
        full = Probe(bias=True, scale=3.0, softcap=2.0)
        benches = {
            "with a scaled embedding, a head's bias and a soft-cap: ": Bench(
                bench.subject, full, vocab_size=64, found_mode=bench.mode
            )
        }
    for words, one in benches.items():
        for bag_size in one.sizes:
            kind, evidence = difference(one, bag_size)
            if kind:
                what = {"hidden": "a scale of the embedding", "logits": "a bias, scale or cap of the head"}.get(kind)
                raise WrongError(f"{words}{evidence}" + (f" in ordinary training: {what}" if what else ""))
            mine, ordinary = (terms_of(one.plain(size)).z_loss for size in (bag_size, 1))
            near = 0.02 * max(mine, ordinary) + 1e-7
            if not abs(mine - ordinary) <= near and bench.subject.z_loss is None:
                raise WrongError(f"a z-loss of {mine:.2g} at s {bag_size}, of {ordinary:.2g} in ordinary training")
    return "scale, bias, caps and z-loss are those of ordinary training"


def check_positions(bench: Bench) -> str:
    """Error 6: positions of tokens become positions of bags."""
    bag_size, latents = max(bench.sizes), 4
    window, ordinary = bench.window(bag_size, latents), bench.window(1, latents)
    whole = torch.ones_like(window, dtype=torch.bool)
    given = (torch.arange(window.shape[1]) % (2 * bag_size)).expand_as(window)
    reading = bench.read(window, bag_size, position_ids=given)
    evidence = ""
    for apart in (1, bag_size):
        places = (torch.arange(latents + 1) % 2 * apart).expand_as(ordinary)
        replace = pooled_into(bench, window, bag_size, ordinary, whole)
        expected = bench.read(ordinary, 1, replace, position_ids=places)
        kind, evidence = _departs(bench, reading, bag_size, expected)
        if not kind:
            return f"positions restart with the bag that they restart at (0, {apart}, 0, {apart})"
    raise WrongError(f"position_ids that restart at token {2 * bag_size}: {evidence} where they restart at position 2")


def check_padding(bench: Bench) -> str:
    """Error 5: padding is not asked for, is in no mean, and what it holds changes nothing."""
    _need_shift(bench, bench.sizes)
    subject, bag_size = bench.subject, max(bench.sizes)
    window = bench.window(bag_size)
    tail = torch.zeros_like(window, dtype=torch.bool)
    start = int(due(bench, LATENTS - 2, bag_size).start) + 1
    tail[1, start:] = True  # of the last bag but one, one token is left
    said = []
    if subject.padding_side != "left":
        reading = _padded(bench, window, tail, bag_size)
        _not_asked(bench, reading, tail)
        _not_read(bench, window, tail, bag_size)
        said.append("after the text")
    if subject.padding_side != "right":
        head = torch.zeros_like(tail)
        head[1, : bag_size + (bag_size > 1)] = True  # the first bag, and one token of the second
        _compare_padded(bench, window, head, bag_size, first=1)
        _not_read(bench, window, head, bag_size)
        said.append("before it")
    if subject.padding_side == "anywhere" and bag_size > 1 and bench.mode != "output":
        gap = torch.zeros_like(tail)
        gap[1, bag_size + 1 : 2 * bag_size] = True  # of the second bag one token is left
        _compare_padded(bench, window, gap, bag_size, first=0)
        said.append("inside")
    return f"padding {', '.join(said)} is neither asked for nor in a mean"


def _not_asked(bench: Bench, reading: Reading, padding: Tensor) -> None:
    given = reading.asked.clone()
    for number, row in enumerate(reading.row.tolist()):
        if row >= 0:
            text = reading.window[row][~padding[row]]
            given[number, text] = 0
    if given.any():
        number, token = divmod(int(given.argmax()), given.shape[1])
        row = int(reading.row[number])
        at = _places(given[number], reading.window[row])
        what = _tokens(at) if at != [-1] else f"token id {token}"
        raise WrongError(f"padding was asked for: {what} of row {row}, with weight {float(given[number, token]):.4f}")


def _not_read(bench: Bench, window: Tensor, padding: Tensor, bag_size: int) -> None:
    """What stands in padded places is of no matter, where a mask tells of them."""
    if not bench.subject.takes("attention_mask"):
        return
    given, sides = _told(bench, window, padding)
    usable = bench.usable()
    other = torch.where(padding, usable[~torch.isin(usable, window)][0], given)
    values = [float(bench.step(one, bag_size, **sides).detach()) for one in (given, other)]
    if not math.isclose(*values, rel_tol=bench.plain(bag_size).tolerance):
        raise WrongError(f"the loss is {values[0]:.6f}, and {values[1]:.6f} with other tokens in padded places")


def _compare_padded(bench: Bench, window: Tensor, padding: Tensor, bag_size: int, first: int) -> None:
    """Against ordinary training on the means of what is left of each bag."""
    reading = _padded(bench, window, padding, bag_size)
    _not_asked(bench, reading, padding)
    ordinary = bench.window(1)
    empty = torch.zeros_like(ordinary, dtype=torch.bool)
    size = 1 if bench.mode == "output" else bag_size
    empty[:, :LATENTS] = padding[:, : LATENTS * size].unflatten(1, (LATENTS, size)).all(-1)
    given, sides = _told(bench, ordinary, empty)
    replace = pooled_into(bench, window, size, ordinary, ~padding)
    expected = bench.read(given, 1, replace, **sides)
    kind, evidence = _departs(bench, reading, bag_size, Reading(**{**vars(expected), "window": ordinary}), [1], first)
    if kind:
        places = padding[1].nonzero().flatten().tolist()
        raise WrongError(f"with padding at {_tokens(places)}: {evidence} in ordinary training on the means of the rest")


def check_documents(bench: Bench) -> str:
    """Error 5: a position depends on no token of another document."""
    subject, bag_size, latents = bench.subject, max(bench.sizes), 4
    window, sides = bench.window(bag_size, latents), {}
    size = 1 if bench.mode == "output" else bag_size
    border = 2 * size
    if subject.end_of_text is not None:
        window[:, border - 1] = subject.end_of_text
    if subject.takes("document_ids"):
        sides["document_ids"] = (torch.arange(window.shape[1]) >= border).long().expand_as(window)
    bench.documents = True
    try:
        reading = bench.read(window, bag_size, **sides)
    finally:
        bench.documents = False
    for number in (reading.last >= border).nonzero().flatten().tolist():
        before = reading.seen[number, : border - 1].nonzero().flatten().tolist()
        if before and reading.asked[number].any():
            raise WrongError(
                f"documents end at token {border - 1}, and a position that ends at token "
                f"{int(reading.last[number])} depends on {_tokens(before)}, of the document before"
            )
    return "no position depends on another document's tokens"


# 7 and 11: the two phases


def check_recovery(bench: Bench) -> str:
    """Error 7: at bag size 1 it is the cross-entropy of the next token."""
    reading = bench.plain(1, _apart(bench))
    if reading.uneven > uneven_from(reading.tolerance):
        raise WrongError("at bag size 1 the loss is no cross-entropy of a softmax over the vocabulary")
    weights_of(bench, reading, 1)
    terms, total = terms_of(reading), float(reading.asked.sum())
    if not math.isclose(total, 1, rel_tol=10 * reading.tolerance) and not bench.subject.extra_heads:
        raise WrongError(f"at bag size 1 the loss is {total:.4f} times the next token's cross-entropy")
    rest = abs(terms.rest) > reading.tolerance * max(1.0, abs(reading.value)) and not bench.subject.auxiliary
    if rest:
        raise WrongError(
            f"at bag size 1 the loss is {reading.value:.6f}; the next token's cross-entropy is {terms.cross_entropy:.6f}"
        )
    return "at bag size 1 it is the next token's cross-entropy"


def _apart(bench: Bench) -> int:
    """Latents of an ordinary window that could be cut into bags, too."""
    return 2 * max(bench.sizes) - 1


def check_evaluation(bench: Bench) -> str:
    """Error 7: whatever bags train, evaluation is the cross-entropy of the next token."""
    assert bench.subject.evaluate is not None
    _need_shift(bench, [1], error=7)
    latents = _apart(bench)
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
                f"while bags of {bag_size} train, evaluation gives {number:.6f}; the next token's cross-entropy is {expected:.6f}"
            )
    return "evaluation is the next token's cross-entropy whatever bags train"


def check_phases(bench: Bench) -> str:
    """Error 11: both phases use the same parameters, and the body works on as many positions."""
    ordinary = bench.plain(1, _apart(bench))
    for bag_size in bench.sizes:
        reading = bench.plain(bag_size)
        for one, other, words in (
            (reading, ordinary, f"in bags of {bag_size}, which they have in ordinary training"),
            (ordinary, reading, f"in ordinary training, which they have in bags of {bag_size}"),
        ):
            missing = sorted(one.unused - other.unused)
            if missing and not (one is ordinary and bench.subject.extra_heads):
                raise WrongError(f"no gradient {words}: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}")
        if more := _longer(bench, bag_size):
            raise WrongError(
                f"for the same latents the body works on {more:.3g} times as many positions in bags of {bag_size} as in "
                f"ordinary training"
            )
    return "the same parameters have gradients in both phases, and the body sees as many positions"


def _longer(bench: Bench, bag_size: int) -> float:
    """How many times as many positions the body works on in bags as without them; 0 for as many."""
    plain, read = bench.plain(1, _apart(bench)), bench.plain(bag_size)
    ordinary, bags = plain.watch.body_rows, read.watch.body_rows
    here, there = (
        one.window.shape[0] * _latents(bench, one.window, size) for one, size in ((read, bag_size), (plain, 1))
    )
    ratios = [bags[weight] / here / (rows / there) for weight, rows in ordinary.items() if weight in bags and rows]
    # Of rows that end with a bag the last may go through the body, too.
    return next((ratio for ratio in ratios if ratio > (LATENTS + 1) / LATENTS + 0.01), 0)


def _places(weights: Tensor, row: Tensor) -> list[int]:
    """Places in a row of the tokens that have a weight; -1 for one that is not in the row."""
    tokens = weights.nonzero().flatten().tolist()
    return sorted({int(place) for token in tokens for place in ((row == token).nonzero().flatten().tolist() or [-1])})


def _tokens(places: list[int]) -> str:
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"tokens {places[0]} to {places[-1]}"
    return f"token{'s' * (len(places) > 1)} {', '.join(map(str, places))}" if places else "no token"


def _numbers(values: Tensor) -> str:
    return str(values.round(decimals=4).tolist())
