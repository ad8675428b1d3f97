"""What each position sees and is asked for. Error 1."""

from collections.abc import Iterable

import torch
from torch import Tensor

from superpose.conform.bench import Bench
from superpose.conform.reading import MIXED, NotCheckedError, Reading, WrongError, uneven_from
from superpose.core.fold import MODES


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
        try:
            weights_of(bench, bench.plain(bag_size := min(bench.sizes)), bag_size)
        except (WrongError, NotCheckedError):
            continue
        return
    bench.found_mode = "full"


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
    counts = reading.asked.any(-1)
    if mixed := int((reading.row == MIXED).sum()):
        wrong = f"{mixed} of {len(reading.row)} positions depend on more than one row of the batch"
        raise WrongError(wrong) if strict else NotCheckedError(f"{wrong}, see error 1")
    ends = reading.last[counts]
    if strict and len(ends) > 1 and (ends == window.shape[1] - 1).all():
        raise WrongError(f"every position sees token {window.shape[1] - 1}, the last of its window: it is not causal")
    taken, latents = taken_by(bench, bag_size), latents_of(bench, window, bag_size)
    rows: dict[tuple[int, int], list[int]] = {}
    for number, (row, last) in enumerate(zip(reading.row.tolist(), reading.last.tolist(), strict=True)):
        if strict and counts[number] and (row < 0 or last < 0):
            raise WrongError("a position that is asked for tokens depends on no token of the window")
        if strict and counts[number] and (last + 1) % taken:
            saw, asked = _saw_and_was_asked(reading, row, [number])
            raise WrongError(
                f"bags of {bag_size}, row {row}: a position saw {tokens_at(saw)} and was asked for {tokens_at(asked)}; "
                f"what it sees should end with a bag, at token {taken - 1}, {2 * taken - 1}, ..."
            )
        rows.setdefault((row, last // taken), []).append(number)
    found = {}
    for (row, latent), numbers in sorted(rows.items()):
        total = reading.asked[numbers].sum(0)
        if strict and total.any():
            _compare_places(bench, reading, bag_size, (row, latent), numbers)
        main = torch.zeros_like(total)
        tokens = window[row][[place for place in due(bench, latent, bag_size) if place < window.shape[1]]]
        tokens = tokens[tokens >= 0]
        main[tokens] = total[tokens]
        found[row, latent] = (main if subject.extra_heads else total), numbers[0]
    if strict:
        for row in range(len(window)):
            for latent in range(max(1, latents - 1)):
                if (row, latent) not in found or not found[row, latent][0].any():
                    where = _where(bag_size, row, latent)
                    raise WrongError(f"{where} is asked for nothing; {latents} positions expected")
    return found


def _compare_places(bench: Bench, reading: Reading, bag_size: int, place: tuple[int, int], numbers: list[int]) -> None:
    """What a position, whose rows of logits are `numbers`, saw and was asked for, with what is due."""
    (row, latent), window, where = place, reading.window, _where(bag_size, *place)
    taken, latents = taken_by(bench, bag_size), latents_of(bench, window, bag_size)
    saw, asked = _saw_and_was_asked(reading, row, numbers)
    own = range(latent * taken, (latent + 1) * taken)
    needed = [place for place, share in zip(own, bench.subject.shares("pooling", taken), strict=True) if share]
    if missing := sorted(set(needed) - set(saw)):
        raise WrongError(f"{where} saw {tokens_at(saw)}; its own {tokens_at(missing)} it did not see")
    right: set[int] = set()
    shares = shares_of(bench, bag_size)
    for further in range(1 + bench.subject.extra_heads):
        places = due(bench, latent, bag_size, further)
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
        why = f"; {tokens_at(skipped)} skipped"
    raise WrongError(
        f"{where} saw {tokens_at(saw)} and was asked for {tokens_at(asked)}, not {tokens_at(sorted(right))}{why}"
    )


def _saw_and_was_asked(reading: Reading, row: int, numbers: list[int]) -> tuple[list[int], list[int]]:
    """Places of a window's row, of some rows of logits together."""
    saw = reading.seen[numbers].any(0).nonzero().flatten().tolist()
    return saw, places_of(reading.asked[numbers].sum(0), reading.window[row])


def _where(bag_size: int, row: int, latent: int) -> str:
    return f"bags of {bag_size}, " * (bag_size > 1) + f"row {row}, position {latent}"


def taken_by(bench: Bench, bag_size: int) -> int:
    """Tokens of a window that a position takes."""
    return 1 if bench.mode == "output" else bag_size


def latents_of(bench: Bench, window: Tensor, bag_size: int) -> int:
    length = window.shape[1]
    if bag_size > 1 and bench.mode == "output":
        return length - bag_size
    return length // bag_size - 1


def need_shift(bench: Bench, sizes: Iterable[int], error: int = 1) -> None:
    """Of checks that ask how much a position's targets count: they have to be its targets."""
    for bag_size in sizes:
        try:
            weights_of(bench, bench.plain(bag_size), bag_size)
        except WrongError:
            what = "positions are asked for the wrong tokens" if error == 1 else "ordinary training is wrong"
            raise NotCheckedError(f"{what}, see error {error}") from None


def full_positions(bench: Bench, reading: Reading, bag_size: int) -> list[tuple[tuple[int, int], tuple[Tensor, int]]]:
    """What `weights_of` finds of positions whose targets every row holds."""
    found = weights_of(bench, reading, bag_size, strict=False)
    latents = latents_of(bench, reading.window, bag_size)
    full = [(place, one) for place, one in found.items() if 0 <= place[1] < max(1, latents - 1) and place[0] >= 0]
    if not full or not all(one[0].sum() > 0 for _, one in full):
        raise NotCheckedError("positions are not asked for the tokens that follow them, see error 1")
    return full


def places_of(weights: Tensor, row: Tensor) -> list[int]:
    """Places in a row of the tokens that have a weight; -1 for one that is not in the row."""
    tokens = weights.nonzero().flatten().tolist()
    return sorted({int(place) for token in tokens for place in ((row == token).nonzero().flatten().tolist() or [-1])})


def tokens_at(places: list[int]) -> str:
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"tokens {places[0]} to {places[-1]}"
    return f"token{'s' * (len(places) > 1)} {', '.join(map(str, places))}" if places else "no token"
