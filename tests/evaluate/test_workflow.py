import json
from dataclasses import replace

import numpy as np
import pytest

from superpose.data.account import Count
from superpose.errors import UserError
from superpose.evaluate.evaluation import Evaluation
from superpose.evaluate.tables import tables, verdict
from superpose.evaluate.texts import HeldOut, opening
from superpose.evaluate.workflow import score
from tests.conftest import make_model
from tests.evaluate.evaluated import HandMade, evaluated, induction

TEXT = HeldOut("letters", tuple(f"{word} {word} {word}." for word in ("alpha", "beta", "gamma", "delta", "omega")))


class Known(HandMade):
    """Hand-made, with what facts are told of."""

    def parameters(self):
        return iter(())


@pytest.fixture
def two(tmp_path):
    """One that guesses, and one that goes on as the text did before."""
    Known.config.model_type = "hand-made"
    guesses = evaluated(make_model("llama", vocab_size=257).eval(), tmp_path, "guesses")
    return [guesses, evaluated(Known(induction), tmp_path, "copies", context=None)]


def test_two_models_side_by_side(two):
    told = []
    evaluation = score(two, [TEXT], ["copy"], limit=60, progress=lambda *said: told.append(said))
    assert evaluation.latents == 64  # the shorter context
    parts = ["guesses: letters", "copies: letters", "guesses: copy", "copies: copy"]
    assert [*dict.fromkeys(what for what, _ in told)] == ["0.01 MB of text and questions for 2 models", *parts]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, pytest.approx(1))
    assert "On letters, copies is better than guesses: -" in verdict(evaluation)
    by_title = {title: (header, rows) for title, header, rows in tables(evaluation)}
    header, rows = by_title["Tasks: share of right answers"]
    assert header == ("task", "questions", "chance", "guesses", "copies", "copies minus guesses", "p")
    assert rows[0][:3] == ("copy", "60", "0.25")
    assert rows[0][4].startswith("1.000 (")
    header, rows = by_title["letters: nats per token by position in the row"]
    assert [row[0] for row in rows] == ["1", "2-3", "4-7", "8-15", "16-31", "32-64"]
    assert header[-1] == "copies minus guesses"
    for _, (header, rows) in by_title.items():
        assert all(len(row) == len(header) for row in rows)


def test_all_of_it_is_json_and_says_the_same(two):
    evaluation = score(two, [TEXT], ["copy", "brackets"], limit=30)
    record = json.loads(json.dumps(evaluation.model_dump(), allow_nan=False))
    assert [model["name"] for model in record["models"]] == ["guesses", "copies"]
    (text,) = record["texts"]
    assert [document["bytes"] for document in text["documents"]] == [len(document) for document in TEXT.documents]
    guesses, copies = text["models"]
    for model in (guesses, copies):
        loss = sum(model["document_nats"]) / sum(model["document_tokens"])
        assert model["loss"]["value"] == pytest.approx(loss)
        tokens = [place["tokens"] for place in model["by_position"]]
        assert sum(tokens) == model["tokens"]
        means = [place["loss"]["value"] for place in model["by_position"]]
        assert np.average(means, weights=tokens) == pytest.approx(loss)
        nats = model["bits_per_byte"]["value"] * np.log(2) * TEXT.sizes.sum()
        assert nats == pytest.approx(sum(model["document_nats"]))
    difference = copies["bits_per_byte"]["value"] - guesses["bits_per_byte"]["value"]
    assert copies["minus_first"]["value"] == pytest.approx(difference)
    for before, after in zip(guesses["by_position"], copies["by_position"], strict=True):
        assert after["minus_first"]["value"] == pytest.approx(after["loss"]["value"] - before["loss"]["value"])
    assert "minus_first" not in guesses
    for task in record["tasks"]:
        assert task["items"] == 30
        for model in task["models"]:
            assert np.mean(model["right"]) == pytest.approx(model["accuracy"]["value"])


def test_text_does_not_break_a_table(two):
    from superpose.results.tables import markdown

    evaluation = score(two[:1], [HeldOut("bars", ("a | b", "c || d"))], [])
    lines = [line for line in markdown(tables(evaluation), "").splitlines() if "starts with" in line or "\\|" in line]
    assert len(lines) == 3
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}


def test_one_model_alone_is_compared_with_none(two):
    evaluation = score(two[:1], [TEXT], [])
    assert verdict(evaluation) == ""
    assert not any("minus" in name for _, header, _ in tables(evaluation) for name in header)


def test_what_could_not_be_read_of_a_text_is_said(two):
    text = replace(TEXT, dropped={"records": Count(count=2, bytes=87, first="letters.jsonl, line 3")})
    evaluation = score(two[:1], [text], [])
    left_out = "Left out of letters, in bytes: 87 in 2 broken records (first: letters.jsonl, line 3)."
    assert verdict(evaluation) == left_out
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_equal_models_are_not_told_apart(two, tmp_path):
    evaluation = score([two[0], evaluated(two[0].model, tmp_path, "again")], [TEXT], ["copy"], limit=10)
    assert "again is not told apart from guesses: +0.0000" in verdict(evaluation)


def test_a_single_document_tells_no_models_apart(two):
    said = verdict(score(two, [HeldOut("letters", ("alpha alpha alpha.",))], []))
    assert "copies is not told apart from guesses: -" in said
    assert "A single document does not tell how sure that is." in said


def test_rows_longer_than_a_context_are_refused(two):
    with pytest.raises(UserError, match="--latents is 65, but guesses was made for 64"):
        score(two, [TEXT], [], latents=65)


def test_documents_are_known_by_their_first_words():
    assert opening("  one\n two ") == "one two"
    assert opening("\x1b[31mred\x07") == "[31mred"
    assert opening("word " * 50) == ("word " * 8)[:39] + "…"
