import pytest

from superpose.conform import CHECKS, Subject, conform, passes
from superpose.errors import UserError
from tests.conform import implementations as written


def wrong(subject, ordinary=False):
    """The errors found, and what they were found by."""
    return {one.error: one.reason for one in conform(subject, ordinary) if one.state == "wrong"}


def verdict(subject, check, ordinary=False):
    (found,) = (one for one in conform(subject, ordinary) if one.check == check)
    return found


@pytest.mark.parametrize("name", ["SUPERPOSE", "SUPERPOSE_PARTS", "SUPERPOSE_CORE", "SUPERPOSE_MASKED"])
def test_superpose_makes_none_of_the_twelve(name):
    assert passes(found := conform(getattr(written, name))), [one for one in found if one.promised]


@pytest.mark.parametrize("name", written.MUTANTS)
def test_each_planted_error_is_found_and_nothing_else(name):
    errors, mutant = written.MUTANTS[name]
    found = wrong(mutant)
    assert set(found) == set(errors), found


def test_all_twelve_are_planted():
    assert {errors[0] for errors, _ in written.MUTANTS.values()} == {check.error for check in CHECKS}


@pytest.mark.parametrize(
    ("loss", "remark"),
    [
        (written.listing_loss, "a mean over places in the bag"),
        (written.soft_labels_loss, "a mean over positions with a target"),
        (written.total_probability_loss, "a mean over positions with a target"),
        (written.token_loss, "a mean over valid targets"),
    ],
)
def test_the_normalisation_is_named(loss, remark):
    found = verdict(written._core(loss), "ignored")
    assert found.state == "right"
    assert found.reason.startswith(remark)


def test_the_evidence_is_the_index():
    _, mutant = written.MUTANTS["targets shifted by one"]
    assert "position 0 saw tokens 0, 1 and was asked for tokens 1, 2, not tokens 2, 3; 1 of 2" in wrong(mutant)[1]
    _, mutant = written.MUTANTS["targets shifted by one and then by a bag"]
    assert "token 2 skipped" in wrong(mutant)[1]


def test_the_cause_of_a_small_loss_is_named():
    _, mutant = written.MUTANTS["labels flattened to one-hot"]
    found = verdict(mutant, "first loss")
    assert "log(V) / s = " in found.cause
    assert found.cause in found.reason


def test_nothing_to_check_is_refused():
    with pytest.raises(UserError, match="give step, or fold and loss"):
        Subject(fold=written.listing_fold)
