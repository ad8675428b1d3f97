"""From rows of tokens to bags: what goes in, and what has to come out.

    window   t0 t1 t2 t3 | t4 t5 t6 t7 | t8 t9 t10 t11        bag_size 4, latents 2: 4 x (2 + 1) tokens
    inputs   [t0 .. t3]    [t4 .. t7]                         bag j = tokens js to js + s - 1
    targets  [t4 .. t7]    [t8 .. t11]                        bag j predicts bag j + 1

Shapes: B rows of a batch, L latents (positions of bags, what the model sees), S tokens in a bag.

A row carries one bag more than it has latents; that last bag is only ever a target. Windows whose starts lie
S x L tokens apart therefore read every token of a text once as input and predict each once, as the usual
L + 1 tokens do in ordinary training (arXiv 2605.06546, section 3.1).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Marks a token that takes part neither in the mean embedding nor in the loss (PyTorch's own default)."""

Mode = Literal["full", "input", "output"]
"""What a superposition stage changes: both sides, only the input side, only the output side."""

MODES: tuple[Mode, ...] = get_args(Mode)


def window_length(latents: int, bag_size: int, mode: Mode = "full") -> int:
    """Tokens a row needs for `latents` positions: S x (L + 1), or L + S in mode "output"."""
    return latents + bag_size if mode == "output" else bag_size * (latents + 1)


def split_window(
    window: Tensor, bag_size: int, mode: Mode = "full", target_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Splits rows of tokens into model inputs and their targets, with nothing skipped, leaked or padded.

    A latent that holds nothing predicts nothing: where padding comes before text, its targets are ignored.

    Args:
        window: token ids [B, `window_length(L, bag_size, mode)`].
        bag_size: S, tokens in a bag.
        mode: "full" bags in, next bag out; "input" bags in, first token of the next bag out;
            "output" tokens in, the next S tokens out.
        target_mask: [B, as many as the window], 0 for tokens that are read but never asked for: labels of -100.

    Returns:
        inputs, a view of the window, and targets, which may be one too:

        ======== ============ ============
        mode     inputs       targets
        ======== ============ ============
        full     [B, L, S]    [B, L, S]
        input    [B, L, S]    [B, L]
        output   [B, L]       [B, L, S]
        S = 1    [B, L]       [B, L]
        ======== ============ ============

    Raises:
        ValueError: the window's shape does not fit the bag size.
    """
    inputs, targets = _cut(window, bag_size, mode)
    if may_hold_ignored(window):
        empty = (inputs == IGNORE_INDEX) if inputs.dim() == 2 else (inputs == IGNORE_INDEX).all(dim=-1)
        targets = targets.masked_fill(empty if targets.dim() == 2 else empty.unsqueeze(-1), IGNORE_INDEX)
    if target_mask is not None:
        targets = targets.masked_fill(_cut(target_mask, bag_size, mode)[1] == 0, IGNORE_INDEX)
    return inputs, targets


def may_hold_ignored(ids: Tensor) -> bool:
    """Whether any of the ids may be `IGNORE_INDEX`: False saves the passes that would leave such places out.

    Asked on a CPU alone. Elsewhere the host would have to wait for the device, and under a compiler the graph would
    break in two, so there it is True.
    """
    asked = ids.device.type == "cpu" and type(ids) is Tensor and not torch.compiler.is_compiling()
    return not asked or bool((ids == IGNORE_INDEX).any())


def _cut(window: Tensor, bag_size: int, mode: Mode) -> tuple[Tensor, Tensor]:
    if window.dim() != 2:
        raise ValueError(f"window has shape {list(window.shape)}; expected [rows, tokens]")
    length = window.shape[1]
    if bag_size == 1:
        if length < 2:
            raise ValueError(f"a window of {length} token(s) has no next token; give latents + 1 tokens a row")
        inputs, targets = window[:, :-1], window[:, 1:]
    elif mode == "output":
        if length <= bag_size:
            raise ValueError(
                f"a window of {length} tokens has no full target bag; give latents + {bag_size} tokens a row"
            )
        inputs, targets = window[:, :-bag_size], window[:, 1:].unfold(1, bag_size, 1)
    else:
        if length % bag_size or length < 2 * bag_size:
            raise ValueError(
                f"a window of {length} tokens cannot be cut into bags of {bag_size} and one bag to predict; "
                f"give bag_size x (latents + 1) tokens a row"
            )
        bags = fold(window, bag_size)
        inputs, targets = bags[:, :-1], bags[:, 1:] if mode == "full" else bags[:, 1:, 0]
    return inputs, targets


def shift_labels(labels: Tensor, bag_size: int) -> Tensor:
    """Targets for frameworks whose labels are already shifted by one and whose rows lack the extra bag.

    Such a framework hands over ids [B, S x L] and labels with `labels[:, i]` the token after `ids[:, i]`. Bag j
    then has to predict labels (j + 1)S - 1 to (j + 2)S - 2; of the last bag's targets only the first is known.

    Args:
        labels: [B, S x L], shifted by one.
        bag_size: S, tokens in a bag.

    Returns:
        targets [B, L, S] ([B, L], unchanged, at bag size 1); what the row does not hold is `IGNORE_INDEX`.
    """
    if bag_size == 1:
        return labels
    missing = labels.new_full((labels.shape[0], bag_size - 1), IGNORE_INDEX)
    return fold(torch.cat([labels[:, bag_size - 1 :], missing], dim=1), bag_size)


def fold(values: Tensor, bag_size: int) -> Tensor:
    """Cuts a per-token side input (document ids, features, ...) as tokens are cut: [B, S x L, ...] to [B, L, S, ...].

    Raises:
        ValueError: the row is not a whole number of bags.
    """
    if values.dim() < 2 or values.shape[1] % bag_size:
        raise ValueError(
            f"a tensor of shape {list(values.shape)} is not rows of whole bags of {bag_size}; "
            f"cut or pad dimension 1 to a multiple of {bag_size}"
        )
    bags: Tensor = values.unflatten(1, (-1, bag_size))
    return bags


def fold_mask(mask: Tensor, bag_size: int) -> Tensor:
    """Attention mask of the bags: one that holds any token to attend to is attended to. [B, S x L] to [B, L], bool."""
    return fold(mask.bool(), bag_size).any(dim=-1)


def document_positions(inputs: Tensor, end_of_text: int) -> Tensor:
    """Position ids that restart where a document starts: for attention that stays inside documents.

    A latent starts a document if the token before its first is the end of a text, or if a text ends inside its bag
    and another begins there; such a bag, which holds two documents, belongs to the second. A row starts one too.

    Args:
        inputs: [B, L] tokens or [B, L, S] bags; `IGNORE_INDEX` marks places that hold nothing.
        end_of_text: id of the token that ends documents.

    Returns:
        [B, L] int64: for each latent, how many latents of its document are before it in the row.
    """
    bags = inputs if inputs.dim() == 3 else inputs.unsqueeze(-1)
    place = torch.arange(bags.shape[-1], device=bags.device)
    last = torch.where(bags != IGNORE_INDEX, place, -1).amax(dim=-1, keepdim=True)
    ends = bags == end_of_text
    starts = (ends & (place < last)).any(dim=-1)
    starts[:, 1:] |= (ends & (place == last)).any(dim=-1)[:, :-1]
    latent = torch.arange(bags.shape[1], device=bags.device).expand(starts.shape)
    return latent - torch.where(starts, latent, 0).cummax(dim=1).values
