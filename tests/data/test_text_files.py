import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpose.data import text_files
from superpose.data.text_files import pieces, read_text

texts = st.text(st.sampled_from("ab漢 \n\r\u2029\t.") | st.characters(exclude_categories=["Cs"]), max_size=400)


@given(texts, st.integers(1, 60))
def test_pieces_are_the_text_and_none_is_much_longer_than_asked_for(text, size):
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(found)
    # A paragraph of two pieces may follow what is not yet one.
    assert all(len(piece) <= 3 * size for piece in found)


@given(texts.filter(bool))
def test_without_a_size_a_text_is_one_document(text):
    assert list(pieces(text, 0)) == [text]


@pytest.mark.parametrize("end", ["\r", "\u2029", "\x85", "\u2028", "\x0b", " ", "\r\n"])
def test_long_paragraphs_are_cut_after_a_line_or_a_word(end):
    text = "".join(f"words{number * number}{end}" for number in range(2000))
    found = list(pieces(text, 500))
    assert len(found) > len(text) / 1000
    assert all(piece.endswith(end[-1]) for piece in found)
    assert all(len(piece) > 200 for piece in found[:-1])


def test_what_has_neither_is_cut_between_characters():
    assert list(map(len, pieces("漢" * 1050, 100))) == [100] * 10 + [50]


@given(st.lists(st.text(st.sampled_from("ab漢é\n"), min_size=1, max_size=200), min_size=1, max_size=20), st.data())
def test_ranges_of_a_text_join_to_all_of_it(tmp_path_factory, lines, data):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    text = "".join(lines)
    for encoding in ("utf-8", "cp1252"):
        content = text.encode(encoding, "ignore")
        file.write_bytes(content)
        inner = data.draw(st.lists(st.integers(1, len(content) + 1), max_size=4, unique=True).map(sorted))
        cuts = [0, *(cut for cut in inner if cut < len(content)), len(content)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_files, "_LONGEST_LINE", 50)
            parts = [
                document
                for start, stop in itertools.pairwise(cuts)
                for document in (read_text(str(file), encoding, "", 40, start, stop) if stop else ())
            ]
        assert "".join(parts) == re.sub("\0", "", content.decode(encoding))


def test_one_document_has_to_fit_in_memory(tmp_path):
    (tmp_path / "a.txt").write_text("a line of text\n" * 100)
    assert len(list(read_text(str(tmp_path / "a.txt"), "utf-8", most=2000))) == 1
    parts = list(read_text(str(tmp_path / "a.txt"), "utf-8", most=200))
    assert "".join(parts) == "a line of text\n" * 100
    assert len(parts) > 5
