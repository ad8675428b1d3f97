from xml.etree import ElementTree

import pytest

from superpose.report.bags import TST, bags_picture


@pytest.mark.parametrize("size", [1, 2, 3, 4, 16])
def test_the_picture_reads_bags_and_predicts_the_next_one(size):
    figure = ElementTree.fromstring(bags_picture(size))  # noqa: S314  # our own
    drawn = max(2, min(size, 4))
    for picture, tokens in zip(figure.iter("svg"), (drawn, 1), strict=True):
        rows = {}
        for box, text in zip(picture.findall("rect"), picture.findall("text[@class='middle']"), strict=True):
            rows.setdefault(float(box.get("y")), []).append((text.text, box.get("class")))
        predicted, positions, read = (rows[y] for y in sorted(rows))
        assert len(positions) == 2
        assert len(read) == 3 * tokens
        # Each position predicts all of the next group, and the last group is not read.
        assert [word for word, _ in predicted] == [word for word, _ in read[tokens:]]
        assert [kind.endswith("faded") for _, kind in read] == [False] * 2 * tokens + [True] * tokens
        _, _, width, height = map(float, picture.get("viewBox").split())
        for box in picture.findall("rect"):
            assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width + 0.1
            assert float(box.get("y")) + float(box.get("height")) < height
    caption = figure.find("figcaption").text
    assert (f"bags of {size}" in caption) == (size > 4)
    assert f"they read {2 * drawn} tokens" in caption


def test_two_sentences_say_what_it_is():
    assert len(TST) == 2
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in TST)
