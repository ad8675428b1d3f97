import dataclasses
import json
from pathlib import Path

import pytest

from superpose.compare.comparison import Comparison, Trained
from superpose.compare.experiment import CONTEXT, ORDINARY, TST
from superpose.compare.tuned import LR, Trial, Tuning
from superpose.core import Schedule
from superpose.errors import UserError
from superpose.results.tables import describe, markdown
from superpose.train.config import Recipe


def made_up(recipe, losses, **more):
    """A comparison with given losses: {(arm, steps): one a seed, from seed 1 on}."""
    trained = [
        Trained(arm, seed, steps, 1e-3, Path(), {"val_loss": loss, "val_bits_per_byte": loss / 2})
        for (arm, steps), of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds, 1)
        if loss is not None
    ]
    return Comparison(recipe, tuple(trained), **more)


def pairs(recipe, losses):
    """Both arms at the main budget, from pairs of (ordinary, tst)."""
    ordinary, tst = zip(*losses, strict=True)
    return made_up(recipe, {(ORDINARY, 20): ordinary, (TST, 20): tst})


@pytest.mark.error(n=12)
def test_flops_are_equal_and_raw_tokens_are_not(compared):
    _, comparison = compared
    for name in ("flops", "latents"):
        assert comparison.values(ORDINARY, name) == comparison.values(TST, name)
    assert comparison.values(TST, "raw_tokens") == [
        2.2 * tokens for tokens in comparison.values(ORDINARY, "raw_tokens")
    ]


def test_what_is_written(compared):
    directory, comparison = compared
    saved = json.loads((directory / "comparison.json").read_text())
    assert Recipe.model_validate(saved["recipe"]) == comparison.recipe
    assert saved["answers"]["equal_flops"]["20"]["mean"] == comparison.equal_flops().value
    assert saved["verdict"] == comparison.verdict()
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = (directory / "summary.md").read_text()
    for words in ("| raw tokens read | 1,280 | 2,816 | 2.20 x |", "equal", "95 % interval", "(best)", "control"):
        assert words in summary


def test_it_is_read_back_as_it_was(compared):
    directory, comparison = compared
    again = Comparison.load(directory)
    assert again.tables() == comparison.tables()
    assert again.verdict() == comparison.verdict()
    assert {run.directory.resolve() for run in again.runs} == {run.directory.resolve() for run in comparison.runs}


def without_a_trial(tunings):
    tunings[0]["trials"].pop()


def another_setting(tunings):
    tunings[0]["trials"][0]["settings"] = {"train.eps": 1e-8}


def nothing_finished(tunings):
    for trial in tunings[1]["trials"]:
        trial["val_loss"] = None


def one_arm_less(tunings):
    tunings.pop()


@pytest.mark.parametrize("alter", [without_a_trial, another_setting, nothing_finished, one_arm_less])
def test_arms_that_were_not_tuned_alike_are_refused(compared, tmp_path, alter):
    directory, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    alter(saved["tunings"])
    (tmp_path / "comparison.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="was altered"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize("tunings", [[], 3, {"tst": 3}, {"tst": {"losses": {"fast": 3.0}}}, {"tst": {"losses": [3]}}])
def test_so_are_altered_ones_of_an_older_format(compared, tmp_path, tunings):
    directory, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    saved |= {"format": "superpose comparison 3", "tunings": tunings}
    (tmp_path / "comparison.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="was altered"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"runs": 3}, {"recipe": {"train": 1}}, {"tunings": [{"arm": "a"}]}]
)
def test_an_altered_file_is_one_sentence(compared, tmp_path, change):
    directory, _ = compared
    saved = json.loads((directory / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps(saved | change))
    with pytest.raises(UserError, match="run the comparison again"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([(3.0, 2.9)], ["TST won", "0.1000 nats", "lower", "anecdote"]),
        ([(3.0, 3.1)], ["TST lost", "higher", "anecdote"]),
        ([(3.0, 2.9), (3.1, 3.01), (3.2, 3.1)], ["TST won", "95 % interval"]),
        ([(3.0, 3.1), (3.1, 3.19), (3.2, 3.3)], ["TST lost", "95 % interval"]),
        ([(3.0, 2.9), (3.1, 3.3), (3.2, 3.1)], ["Undecided", "includes 0", "lower at 2 of 3 seeds", "takes"]),
    ],
)
def test_the_verdict_says_which_way_it_went(recipe, losses, words):
    verdict = pairs(recipe, losses).verdict()
    for word in words:
        assert word in verdict


def test_a_seed_of_which_one_arm_failed_is_left_out(recipe):
    assert pairs(recipe, [(3.1, None), (3.1, 3.0)]).seeds == [2]
    assert pairs(recipe, [(3.0, 2.9), (3.1, 3.0)]).seeds == [1, 2]


FALLING = {(ORDINARY, 20 * 2**n): [3.0 - 0.1 * n, 3.0 - 0.1 * n] for n in range(4)}


def test_the_seeds_table_says_how_sure_it_is(recipe):
    *seeds, mean, bootstrap, first, _, _ = pairs(recipe, [(3.0, 2.9), (3.1, 3.02), (3.2, 3.08)]).seed_rows()
    assert [row[0] for row in seeds] == ["1", "2", "3"]
    assert mean[3].startswith("-0.1000 (-0.1497 to -0.0503)")
    assert bootstrap[3] == "-0.1200 to -0.0800"
    assert first == ("seeds for +- 0.05 nats", "", "", "3")
    assert len(pairs(recipe, [(3.0, 2.9)]).seed_rows()) == 1


class TestThreeQuestions:
    """Ordinary losses of 3.0, 2.9, 2.8 and 2.7 at 20, 40, 80 and 160 steps; TST reads as much in 20 as that in 44."""

    def test_equal_loss(self, recipe):
        comparison = made_up(recipe, {**FALLING, (TST, 20): [2.85, 2.85]})
        assert comparison.equal_loss().ratio == pytest.approx(2**1.5)
        assert "ordinary training takes 2.83 times TST's steps" in comparison.verdict()

    def test_equal_data(self, recipe):
        comparison = made_up(recipe, {**FALLING, (TST, 20): [2.85, 2.85]})
        between = 3.0 - 0.1 * 1.1375035237499351  # log2(44 / 20)
        assert comparison.equal_data().value == pytest.approx(2.85 - between)
        assert "computes 2.20 times as much" in comparison.verdict()

    def test_beyond_the_budgets_there_is_no_answer(self, recipe):
        comparison = made_up(recipe, {**FALLING, (TST, 20): [2.6, 2.6]})
        assert "At equal loss there is no answer" in comparison.verdict()
        assert "--ordinary-budgets" in comparison.verdict()
        assert "beyond the last budget" in comparison.budget_rows()[0]

    def test_with_one_budget_only_equal_flops_is_answered(self, recipe):
        comparison = pairs(recipe, [(3.0, 2.9), (3.1, 3.05)])
        assert comparison.equal_loss() is comparison.equal_data() is None
        assert "equal loss" not in comparison.verdict()

    def test_a_budget_of_which_a_run_failed_costs_its_seed_alone(self, recipe):
        losses = {**FALLING, (TST, 20): [2.85, 2.85], (ORDINARY, 160): [2.7, None]}
        comparison = made_up(recipe, losses, failures={"ordinary-160-seed2": "died"})
        assert comparison.equal_flops().seeds == 2
        assert comparison.equal_data().seeds == 1
        assert "1 runs failed" in comparison.verdict()


def test_a_rate_at_the_edge_is_said(recipe):
    comparison = pairs(recipe, [(3.0, 2.9), (3.1, 3.05)])
    trials = (Trial({LR: 1e-3}, 3.1), Trial({LR: 2e-3}, 3.0))
    warned = dataclasses.replace(comparison, tunings=tuple(Tuning(arm, 20, trials) for arm in (ORDINARY, TST)))
    assert "at the edge" in warned.verdict()
    assert warned.tuning_rows(20)[1] == ("0.002", "3.0000 (best)", "3.0000 (best)")


def test_the_control_is_told_from_the_arms(recipe):
    losses = {(ORDINARY, 20): [3.0, 3.1], (TST, 20): [2.9, 3.0], (CONTEXT, 20): [2.95, 3.06]}
    comparison = made_up(recipe, losses)
    assert comparison.equal_flops(arm=CONTEXT).value == pytest.approx(-0.045)
    assert comparison.equal_flops().value == pytest.approx(-0.1)


def test_schedules_in_the_papers_letters():
    assert describe(Schedule(1000, 4, 0.3)) == "s 4, r 0.3"
    assert describe(Schedule(1000, (8, 4), (0.1, 0.2))) == "s 8, r 0.1; s 4, r 0.2"
    assert describe(Schedule(1000, 4, 0.3, "output")) == "s 4, r 0.3, output only"


def test_markdown_tables():
    text = markdown([("Title", ("a", "b"), [("1", "2")])], "So it is.")
    assert text == "Title\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\nSo it is.\n"


@pytest.mark.parametrize("place", ["/etc", "../../elsewhere", "../pool/../../elsewhere/run", "pool/a/b"])
def test_runs_lie_in_the_pool(compared, tmp_path, place):
    """A comparison that somebody else made names no other files to read."""
    saved = json.loads((compared[0] / "comparison.json").read_text())
    saved["runs"][0]["directory"] = place
    (tmp_path / "comparison.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="was altered"):
        Comparison.load(tmp_path)
