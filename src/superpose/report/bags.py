"""What TST is, for a reader who has never heard of it: two sentences and a picture, in the page's own colours."""

from collections.abc import Sequence
from html import escape

TST = (
    "Token-Superposition Training (TST) reads bags for the first part of training: a bag is s neighbouring tokens, its "
    "vector is the mean of theirs, and the model predicts all tokens of the next bag, so that a step takes in s times "
    "the text for the same compute.",
    "Then it switches to single tokens, as in ordinary training, and ends as an ordinary model with the same "
    "architecture and the same tokenizer.",
)
_WORDS = ["the", "old", "dog", "ran", "out", "of", "the", "hut", "and", "sat", "by", "me"]
_MOST = 4
"""Tokens of a bag that are drawn."""
_COLOURS = "abc"
_WIDTH, _GAP, _HIGH = 340.0, 6.0, 24.0
_TARGETS, _POSITIONS, _TOKENS = 30.0, 80.0, 130.0
"""Upper edges of the three rows, from what is predicted down to what is read."""


def bags_picture(bag_size: int = _MOST) -> str:
    """Both phases as two drawings of the same width in HTML: the same two positions, bags and single tokens.

    Args:
        bag_size: s; of larger bags four tokens are drawn, and the caption says so.
    """
    drawn = max(2, min(bag_size, _MOST))
    bags, tokens = _drawing(f"1. Superposition: bags of {drawn}", drawn), _drawing("2. Recovery: single tokens", 1)
    less = f" Bags of {drawn} are drawn; these runs have bags of {bag_size}." if bag_size > drawn else ""
    caption = (
        f"From below: what the model reads, its positions, and what each must predict. Two positions cost the same in "
        f"both phases; in bags they read {2 * drawn} tokens, later 2.{less}"
    )
    return f'<figure><div class="bags">{bags}{tokens}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _drawing(title: str, size: int) -> str:
    """Three groups of tokens: two are read, and each position predicts the group after its own."""
    width = (_WIDTH - 2 * _GAP) / 3
    words = [_WORDS[size * group : size * (group + 1)] for group in range(3)]
    lefts = [group * (width + _GAP) for group in range(3)]
    parts = [_text(0, 14, title, "strong")]
    for group, left in enumerate(lefts):
        parts += _tokens(left, _TOKENS, width, words[group], _COLOURS[group] + " faded" * (group == 2))
        if group < 2:
            middle = left + width / 2
            parts.append(_arrow(middle, _TOKENS, _POSITIONS + _HIGH))
            parts.append(_box(left, _POSITIONS, width, "mean" if size > 1 else words[group][0], _COLOURS[group]))
            parts.append(_arrow(middle, _POSITIONS, _TARGETS + _HIGH))
            parts += _tokens(left, _TARGETS, width, words[group + 1], _COLOURS[group + 1])
    # What the rows are stands where they have no boxes.
    beside, below = _HIGH / 2 + 4, _TOKENS + _HIGH + 16
    parts += [_text(lefts[2], _TARGETS + beside, "predicted"), _text(lefts[2], _POSITIONS + beside, "2 positions")]
    parts += [_text(0, below, "read"), _text(lefts[2], below, "not read yet")]
    told = escape(f"{title}. From “{' '.join(words[0])}” one position predicts “{' '.join(words[1])}”.")
    box = f"0 0 {_WIDTH:g} {_TOKENS + _HIGH + 22:g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def _tokens(left: float, top: float, width: float, words: Sequence[str], kind: str) -> list[str]:
    each = (width - 2 * (len(words) - 1)) / len(words)
    return [_box(left + place * (each + 2), top, each, word, kind) for place, word in enumerate(words)]


def _box(left: float, top: float, width: float, word: str, kind: str) -> str:
    box = f'<rect class="{kind}" x="{left:.1f}" y="{top:g}" width="{width:.1f}" height="{_HIGH:g}" rx="4"/>'
    return box + _text(left + width / 2, top + _HIGH / 2 + 4, word, "middle")


def _arrow(x: float, start: float, end: float) -> str:
    return f'<path d="M{x:.1f} {start - 1:g}V{end + 3:g}m-4 5l4-5l4 5"/>'


def _text(x: float, y: float, words: str, kind: str = "soft") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}">{escape(words)}</text>'
