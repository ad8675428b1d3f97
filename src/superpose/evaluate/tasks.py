"""Small tasks of our own: choices between continuations, generated from a seed, for models of any size.

Each asks for something that loss alone does not show, and none can be answered from how common a continuation is:
right and wrong choices are drawn alike, and only the context tells them apart.
"""

import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import permutations

CHOICES = 4
"""Choices of an item, one of them right: a guess is right in one of four."""

ITEMS = 500
"""Questions of a task, unless fewer are asked for: a share is then known to 0.04."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        context: text to go on from; it ends in no blank.
        choices: continuations, all different.
        answer: place of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """A way to make questions; `question` draws a context, its right continuation and three or more wrong ones."""

    title: str
    question: Callable[[random.Random], tuple[str, str, Sequence[str]]]

    def items(self, count: int = ITEMS, seed: int = 0) -> list[Item]:
        """The first `count` questions of a seed; fewer are a part of more."""
        # Seeded by text, a generator is the same on every machine and version of Python.
        generator = random.Random(f"{self.title} {seed}")
        items = []
        for _ in range(count):
            context, right, wrong = self.question(generator)
            choices = [right, *generator.sample(list(wrong), CHOICES - 1)]
            generator.shuffle(choices)
            items.append(Item(context, tuple(choices), choices.index(right)))
        return items


_DRAWN = tomllib.loads(files("superpose.evaluate").joinpath("tasks.toml").read_text("utf-8"))


def _identifiers(generator: random.Random) -> tuple[str, str, list[str]]:
    """A name used before in the lines, among names that are not."""
    context, right = generator.choice(_DRAWN["snippets"])
    a, b, *others = generator.sample(_DRAWN["names"], CHOICES + 1)
    names = {"a": a, "b": b, "f": generator.choice(_DRAWN["functions"])}
    blank = right[: len(right) - len(right.lstrip())]
    return context.format(**names), right.format(**names), [blank + other for other in others]


def _brackets(generator: random.Random) -> tuple[str, str, list[str]]:
    """Three brackets are opened, of all three kinds; they close in the reverse order."""
    kinds = [("(", ")"), ("[", "]"), ("{", "}")]
    generator.shuffle(kinds)
    names = generator.sample(_DRAWN["names"], 4)
    context = f"{names[0]} = "
    for (opening, _), name in zip(kinds, names[1:], strict=True):
        context += f"{opening}{name}" if opening == kinds[-1][0] else f"{opening}{name}, "
    right = "".join(closing for _, closing in reversed(kinds))
    return context, right, [wrong for wrong in map("".join, permutations(")]}")) if wrong != right]


def _copy(generator: random.Random) -> tuple[str, str, list[str]]:
    """A sequence of random letters begins again; which letter follows?"""
    letters = generator.sample("abcdefghijklmnopqrstuvwxyz", 8)
    place = generator.randrange(3, 8)
    context = " ".join(letters + letters[:place])
    return context, f" {letters[place]}", [f" {letter}" for letter in letters if letter != letters[place]]


def _grammar(generator: random.Random) -> tuple[str, str, list[str]]:
    """What can follow the start of a line of Python; each part is as likely to be right as the others."""
    parts = _DRAWN["parts"]
    right = generator.choice(list(parts))
    a, b = generator.sample(_DRAWN["names"], 2)
    context = generator.choice(parts[right]).format(a=a, b=b, f=generator.choice(_DRAWN["functions"]))
    return context, right, [part for part in parts if part != right]


TASKS = {
    "brackets": Task("brackets that close what was opened", _brackets),
    "copy": Task("the next letter of a sequence seen before", _copy),
    "grammar": Task("the part of a line that Python asks for", _grammar),
    "identifiers": Task("a Python name that was used before", _identifiers),
}
"""By name."""
