import ast
import re
from collections import Counter

import pytest

from superpose.evaluate.tasks import CHOICES, ITEMS, TASKS, Item

NAMES = sorted(TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_questions_depend_on_the_seed_alone(name):
    items = TASKS[name].items()
    assert len(items) == ITEMS
    assert items == TASKS[name].items()
    assert items[:20] == TASKS[name].items(20)
    assert items != TASKS[name].items(seed=1)
    assert len({(item.context, item.choices) for item in items}) > 0.95 * ITEMS


def test_questions_are_the_same_on_every_machine():
    assert TASKS["copy"].items(1) == [Item("y x v g i s f c y x v g i", (" g", " s", " y", " c"), 1)]


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_different_and_short_and_the_right_ones_place_tells_nothing(name):
    items = TASKS[name].items()
    for item in items:
        assert len(set(item.choices)) == len(item.choices) == CHOICES
        assert not item.context.endswith((" ", "\n"))
        assert len(item.context) < 150
    places = Counter(item.answer for item in items)
    assert all(abs(places[place] / ITEMS - 1 / CHOICES) < 0.07 for place in range(CHOICES))


@pytest.mark.parametrize("name", ["brackets", "grammar"])
def test_how_common_a_continuation_is_tells_nothing(name):
    """Of few different choices, each is right as often as any when it is among the choices."""
    offered, right = Counter(), Counter()
    for item in TASKS[name].items(3000):
        offered.update(item.choices)
        right[item.choices[item.answer]] += 1
    assert len(offered) in (5, 6)
    assert all(right[choice] / offered[choice] == pytest.approx(1 / CHOICES, abs=0.04) for choice in offered)


@pytest.mark.parametrize("name", ["copy", "identifiers"])
def test_right_choices_are_as_long_as_wrong_ones(name):
    right = wrong = 0
    for item in TASKS[name].items(3000):
        sizes = [len(choice) for choice in item.choices]
        right += sizes[item.answer]
        wrong += sum(sizes) - sizes[item.answer]
    assert right / 3000 == pytest.approx(wrong / 3000 / (CHOICES - 1), rel=0.02)


def _parses(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_only_the_right_brackets_close():
    for item in TASKS["brackets"].items():
        assert [_parses(item.context + choice) for choice in item.choices] == [
            place == item.answer for place in range(CHOICES)
        ]


def test_only_the_right_part_can_follow():
    """Whatever comes after: a list of ways to go on, at least one of which fits each right part."""
    ways = ["", " x", " x:\n pass", " x]", ":\n pass", "\n pass", ":\n  return", " x.y", "(x)", ")", ", x"]
    ways += [" x in y]", ": int):\n pass", "=None):\n pass", ".x:\n pass", " x else y", ")\n", " else x"]
    for item in TASKS["grammar"].items():
        inside = "def outer():\n " + item.context
        fits = [any(_parses(inside + choice + way.replace("\n ", "\n  ")) for way in ways) for choice in item.choices]
        assert fits == [place == item.answer for place in range(CHOICES)], item


def test_only_the_right_name_was_used_before():
    for item in TASKS["identifiers"].items():
        used = set(re.findall(r"\w+", item.context))
        assert [choice.strip() in used for choice in item.choices] == [place == item.answer for place in range(CHOICES)]


def test_the_right_letter_followed_the_last_one_before():
    for item in TASKS["copy"].items():
        letters = item.context.split()
        before = letters.index(letters[-1])
        assert item.choices[item.answer] == f" {letters[before + 1]}"
        assert before < len(letters) - 1
        assert all(choice.strip() in letters for choice in item.choices)
