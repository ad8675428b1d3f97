import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.report.glossary import TERMS, glossary, marked, words_of
from tests.report.test_write import HOSTILE

NAMES = [term.name for term in TERMS]


@given(st.lists(st.sampled_from([*NAMES, "s 4", "r 0.3", HOSTILE, "<b>", "&amp;", "'\"", " ", ", "])).map(" ".join))
def test_marking_changes_no_text_and_lets_no_markup_in(text):
    html = marked(text)
    bare = re.sub(r'<button type="button" class="term" aria-describedby="t\d+">|</button>', "", html)
    assert unescape(bare) == text
    assert "<" not in bare


@given(st.lists(st.sampled_from(NAMES), min_size=1).map(", ".join))
def test_what_is_marked_is_explained_once(text):
    html = marked(text)
    marks = re.findall(r'aria-describedby="(t\d+)"', html)
    assert len(marks) == len(set(marks))
    assert re.findall(r'<dd id="(t\d+)">', glossary(html)) == sorted(set(marks), key=lambda mark: int(mark[1:]))


@pytest.mark.parametrize("term", TERMS, ids=NAMES)
def test_each_word_is_found_by_its_name(term):
    text = {"s": "s 4", "r": "r 0.3"}.get(term.name, term.name)
    assert (term.name, term.meaning) in words_of(text)


def test_a_word_inside_of_a_name_is_left_alone():
    assert marked("ordinary-600-seed1, TST_2, handbags") == "ordinary-600-seed1, TST_2, handbags"
    assert glossary("") == ""
