"""What the body is given, and what its logits go through, against ordinary training. Errors 5 and 6."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from superpose.conform.amount import terms_of
from superpose.conform.bench import Bench
from superpose.conform.phases import longer
from superpose.conform.positions import latents_of, need_shift, weights_of
from superpose.conform.probe import Probe
from superpose.conform.reading import LATENTS, NotCheckedError, Reading, Replace, WrongError, largest
from superpose.conform.subject import shares_of_valid
from superpose.conform.watch import STEPS, Lookup


def pooled_into(
    bench: Bench,
    window: Tensor,
    bag_size: int,
    ordinary: Tensor,
    valid: Tensor | None = None,
    factor: float = 1.0,
    further: tuple[Tensor, Tensor] | None = None,
    at: int = 0,
) -> Replace:
    """For a lookup of the ordinary window's tokens: in place of token j's vector the mean of bag j's.

    So ordinary training, whose embedding gives those vectors, computes what training in bags has to. Places that are
    not `valid` [B, T] are in no mean. With `further`, a table and shares [S], all other tables give their vectors by
    these shares. `at` counts the steps that a token's vector takes before it is replaced.
    """
    latents = ordinary.shape[1] - 1
    bags, there = (
        one[:, : latents * bag_size].unflatten(1, (latents, bag_size))
        for one in (window, torch.ones_like(window, dtype=torch.bool) if valid is None else valid)
    )
    kept = shares_of_valid(bench.subject.shares("pooling", bag_size) * factor, there)

    def means_of(lookup: Lookup) -> Tensor:
        table = lookup.weight.detach().double()
        taken = kept if further is None or lookup.weight is further[0] else further[1].expand_as(kept)
        return (table[bags.clamp(min=0)] * taken.unsqueeze(-1)).sum(2)

    return _in_place(bench, ordinary, at, means_of)


def _in_place(bench: Bench, ordinary: Tensor, at: int, means_of: Callable[[Lookup], Tensor]) -> Replace:
    """At one step of the vectors of an ordinary window's tokens: means [B, L, D] in their places."""

    def replace(lookup: Lookup, step: int, vectors: Tensor) -> Tensor:
        if step != at or not of_tokens(bench, lookup, ordinary):
            return vectors
        new, means = vectors.clone(), means_of(lookup)
        for row in range(means.shape[0]):
            for latent in range(means.shape[1]):
                new[lookup.ids == ordinary[row, latent]] = means[row, latent].to(vectors.dtype)
        return new

    return replace


def of_tokens(bench: Bench, lookup: Lookup, window: Tensor) -> bool:
    """Whether a lookup is one of a window's tokens, and not of positions or documents."""
    ids = lookup.ids.unique()
    counted = len(ids) > 1 and torch.equal(ids, torch.arange(len(ids)))
    return not counted and len(lookup.weight) == bench.vocab_size and bool(torch.isin(ids, window).any())


def _later(bench: Bench, reading: Reading, bag_size: int, ordinary: Tensor) -> Iterator[Replace]:
    """As `pooled_into`, with means taken after the first, second, ... step of a token's vector."""
    looked_up = [lookup for lookup in reading.watch.lookups if of_tokens(bench, lookup, reading.window)]
    if len(looked_up) != 1 or looked_up[0].ids.numel() % (len(ordinary) * bag_size):
        return
    shares = bench.subject.shares("pooling", bag_size).unsqueeze(-1)

    def after(number: int, vectors: Tensor) -> Replace:
        bags = vectors.double().reshape(len(ordinary), -1, bag_size, vectors.shape[-1])[:, : ordinary.shape[1] - 1]
        means = (bags * shares).sum(2)
        return _in_place(bench, ordinary, number, lambda lookup: means)

    for number, vectors in enumerate(looked_up[0].steps[1:], start=1):
        yield after(number, vectors)


def difference(bench: Bench, bag_size: int, factor: float = 1.0) -> tuple[str, str]:
    """`_difference`, found once."""
    key = bag_size, factor
    if key not in bench.differences:
        bench.differences[key] = _difference(bench, bag_size, factor)
    return bench.differences[key]


def _difference(bench: Bench, bag_size: int, factor: float) -> tuple[str, str]:
    """Where training in bags departs from ordinary training on the bags' means: nowhere, "hidden" or "logits"."""
    need_shift(bench, [1], error=7)
    if longer(bench, bag_size):
        raise NotCheckedError("the body works on more positions than in ordinary training, see error 11")
    reading = bench.plain(bag_size)
    if (0, 0) not in weights_of(bench, reading, bag_size, strict=False):
        raise NotCheckedError("positions see the wrong tokens, see error 1")
    if bench.mode == "output":
        return departs(bench, reading, bag_size, bench.read(reading.window[:, : LATENTS + 1].contiguous(), 1))
    ordinary = bench.window(1)
    if len(ordinary.unique()) < ordinary.numel():
        raise NotCheckedError(f"a vocabulary of {bench.vocab_size} is too small; take one of 64 or more")
    expected = bench.read(ordinary, 1, pooled_into(bench, reading.window, bag_size, ordinary, factor=factor))
    if not any(of_tokens(bench, lookup, ordinary) for lookup in expected.watch.lookups):
        raise NotCheckedError("no lookup of tokens was seen in ordinary training; name `embedding`")
    found = departs(bench, reading, bag_size, expected)
    if found[0] != "hidden" or factor != 1:
        return found
    for replace in _later(bench, reading, bag_size, ordinary):
        if (later := departs(bench, reading, bag_size, bench.read(ordinary, 1, replace)))[0] != "hidden":
            return later
    if not departs(bench, reading, bag_size, expected, latest=0)[0]:
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
        replace = pooled_into(bench, reading.window, bag_size, ordinary, further=(next(iter(tables)), alone))
        if departs(bench, reading, bag_size, bench.read(ordinary, 1, replace))[0] != "hidden":
            return "sides", f"{found[1]} in ordinary training: a further table gives the vector of a bag's {name} token"
    for number in range(1, STEPS):
        replace = pooled_into(bench, reading.window, bag_size, ordinary, at=number)
        if not departs(bench, reading, bag_size, bench.read(ordinary, 1, replace))[0]:
            return (
                "sides",
                f"{found[1]} in ordinary training: a token's vector is scaled or normed there, a bag's is not",
            )
    return found


def departs(
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
    common = [place for place in common if place[1] < min(latents_of(bench, reading.window, bag_size), latest + 1)]
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
    words = ""
    if bench.subject.model is None and bench.subject.step is not None:
        words = "with a scaled embedding, a head's bias and a soft-cap: "
        full = Probe(bias=True, scale=3.0, softcap=2.0)
        bench = Bench(bench.subject, full, vocab_size=64, tokens=64, found_mode=bench.mode)
    for bag_size in bench.sizes:
        kind, evidence = difference(bench, bag_size)
        if kind:
            what = {"hidden": "a scale of the embedding", "logits": "a bias, scale or cap of the head"}.get(kind)
            raise WrongError(f"{words}{evidence}" + (f" in ordinary training: {what}" if what else ""))
        mine, ordinary = (terms_of(bench.plain(size)).z_loss for size in (bag_size, 1))
        near = 0.02 * max(mine, ordinary) + 1e-7
        if not abs(mine - ordinary) <= near and bench.subject.z_loss is None:
            raise WrongError(f"a z-loss of {mine:.2g} at s {bag_size}, of {ordinary:.2g} in ordinary training")
    return "scale, bias, caps and z-loss are those of ordinary training"


def check_positions(bench: Bench) -> str:
    """Error 6: positions of tokens become positions of bags."""
    bag_size, latents = max(bench.sizes), 4
    window, ordinary = bench.window(bag_size, latents), bench.window(1, latents)
    given = (torch.arange(window.shape[1]) % (2 * bag_size)).expand_as(window)
    reading = bench.read(window, bag_size, position_ids=given)
    evidence = ""
    for apart in (1, bag_size):
        places = (torch.arange(latents + 1) % 2 * apart).expand_as(ordinary)
        replace = pooled_into(bench, window, bag_size, ordinary)
        expected = bench.read(ordinary, 1, replace, position_ids=places)
        kind, evidence = departs(bench, reading, bag_size, expected)
        if not kind:
            return f"positions restart with the bag that they restart at (0, {apart}, 0, {apart})"
    raise WrongError(f"position_ids that restart at token {2 * bag_size}: {evidence} where they restart at position 2")
