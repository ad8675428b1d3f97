import pytest

from superpose.results.tables import of_words


@pytest.mark.parametrize(
    "cells",
    [["3.3229", "-0.0356 (-0.0580 to -0.0132)"], ["1,024", "98.5%", "1.30 x"], ["1.38 x (1.15 to 1.65)"],
     ["79.4 to 280.8", "150B", "2,246 EUR"], ["1.66e+12", "54.59"], ["", "7"]],
)  # fmt: skip
def test_numbers_with_their_units_line_up_at_their_ends(cells):
    assert not of_words([(cell,) for cell in cells], 0)


@pytest.mark.parametrize(
    "cells",
    [["3,000 steps are few: models of 0.09M parameters gained +0.037"],
     ["28,610 steps of 1,024 x 2,048", "on 8 x H100"],
     ["go", "1B parameters: the paper has 270M to 3B"]],
)  # fmt: skip
def test_a_sentence_that_begins_with_a_number_is_words(cells):
    assert of_words([(cell,) for cell in cells], 0)
