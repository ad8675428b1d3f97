"""Words of a report that a reader may not know: marked where they stand, explained on hover, focus or touch."""

import re
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Term:
    """A word and what it means; `pattern` finds it in running text."""

    name: str
    pattern: str
    meaning: str


TERMS = (
    Term("TST", r"TST", "Token-Superposition Training: bags first, then single tokens."),
    Term("bags", r"bags?", "Neighbouring tokens read as one: their embeddings are averaged."),
    Term("ordinary training", r"ordinary( training)?", "Next-token training from the first step to the last."),
    Term("s", r"s(?= \d)", "Bag size: how many tokens a bag holds. s 1 is ordinary training."),
    Term("r", r"r(?= \d)", "Ratio: the share of the steps that read bags. With r 0.3 it is the first 30 %."),
    Term(
        "superposition",
        r"superposition",
        "The first phase, in which the model reads bags and predicts bags.",
    ),
    Term(
        "recovery",
        r"[Rr]ecovery",
        "The second phase, after the switch: single tokens, as in ordinary training. The loss first jumps, then heals.",
    ),
    Term(
        "nats",
        r"nats",
        "Unit of loss: the mean of -ln(probability) the model gave to the right token. 0.05 nats less means that right "
        "tokens became 5 % more probable.",
    ),
    Term("bits per byte", r"bits per byte", "The same loss per byte of text, so that tokenizers can be compared."),
    Term(
        "validation loss",
        r"[Vv]alidation loss",
        "Next-token loss on text that no model was trained on, in nats per token. Lower is better.",
    ),
    Term("latents", r"latents", "Positions the model computes: one for each bag, or one for each single token."),
    Term("raw tokens", r"raw tokens", "Tokens of text that were read. In bags a step reads s times as many."),
    Term("epochs", r"epochs", "How often all of the training text was read."),
    Term(
        "budget",
        r"[Bb]udgets?",
        "Length of a whole run in optimizer steps. The learning rate falls to its end there, so each budget is a run "
        "of its own.",
    ),
    Term(
        "seeds",
        r"[Ss]eeds?",
        "A number that sets the initial weights and the order of the text. Runs that differ in it alone show how much "
        "is luck.",
    ),
    Term("FLOPs", r"(?<!equal )FLOPs", "Floating-point operations of training: what it costs in compute."),
    Term(
        "equal FLOPs",
        r"equal FLOPs",
        "Both ways spend the same compute, and their losses are compared. TST reads more text for it.",
    ),
    Term("equal loss", r"equal loss", "How many more steps ordinary training takes to come to the loss of TST."),
    Term(
        "equal data",
        r"equal data",
        "Both ways read the same amount of text; ordinary training computes more for it.",
    ),
    Term("speedup", r"[Ss]peedup", "Steps of ordinary training over those of TST, for the same loss."),
    Term(
        "95 % interval",
        r"(?<=95 % )intervals?",
        "From the spread of the seeds: in 95 of 100 such experiments the interval holds the true value.",
    ),
    Term(
        "learning rate",
        r"[Ll]earning rates?",
        "How far a step moves the weights. Each way has its own best one, so each is tuned for itself.",
    ),
    Term("greedy", r"[Gg]reedy", "Always takes the most probable token, so that the text is the same each time."),
)
_FOUND = re.compile(
    # Not inside of names such as ordinary-600-seed1.
    rf"(?<![\w-])(?:{'|'.join(f'(?P<t{number}>{term.pattern})' for number, term in enumerate(TERMS))})(?![\w-])"
)


def marked(text: str) -> str:
    """Text as HTML in which the first of each term is a button that explains it.

    The text is cut before it is escaped, so whatever it holds stays text.
    """
    parts, end, seen = [], 0, set[str]()
    for found in _FOUND.finditer(text):
        name = found.lastgroup or ""
        if name not in seen:
            seen.add(name)
            parts += [escape(text[end : found.start()]), _button(name, found[0])]
            end = found.end()
    return "".join([*parts, escape(text[end:])])


def _button(name: str, words: str) -> str:
    return f'<button type="button" class="term" aria-describedby="{name}">{escape(words)}</button>'


def glossary(page: str) -> str:
    """The terms that are marked in a page, as HTML: what its buttons show, and a list to read."""
    used = {int(number) for number in re.findall(r'aria-describedby="t(\d+)"', page)}
    entries = "".join(
        f'<dt>{escape(term.name)}</dt><dd id="t{number}">{escape(term.meaning)}</dd>'
        for number, term in enumerate(TERMS)
        if number in used
    )
    return f'<section><h2>Words</h2><dl class="glossary">{entries}</dl></section>' if entries else ""


def words_of(text: str) -> list[tuple[str, str]]:
    """Name and meaning of the terms in a text."""
    used = {found.lastgroup or "" for found in _FOUND.finditer(text)}
    return [(term.name, term.meaning) for number, term in enumerate(TERMS) if f"t{number}" in used]
