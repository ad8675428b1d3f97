from dataclasses import replace

import numpy as np
import pytest
import torch

from superpose.data.tokenizer import load_tokenizer
from superpose.errors import UserError
from superpose.evaluate.choice import answer, continuation_nats
from superpose.evaluate.intervals import paired_shares, wilson
from superpose.evaluate.tasks import TASKS, Item
from tests.conftest import make_model
from tests.evaluate.evaluated import HandMade, closing_of, evaluated, induction


@pytest.fixture
def random_model(family, tmp_path):
    return evaluated(make_model(family, vocab_size=257).eval(), tmp_path)


def _slow(model, tokenizer, context, continuation, longest=10**6):
    """Token by token, each from all before it, in float64."""
    before, after = tokenizer(context)["input_ids"], tokenizer(continuation)["input_ids"]
    total, ids = 0.0, list(before)
    with torch.no_grad():
        for token in after:
            logits = model(input_ids=torch.tensor([ids[-longest:]])).logits[0, -1].double()
            total -= float(logits.log_softmax(0)[token])
            ids.append(token)
    return total


def test_nats_are_those_of_one_token_after_the_other(random_model):
    model = random_model.model
    pairs = [("a bc", " d"), ("x", "yz and more"), ("longer than the others are", "."), ("a bc", " dé")]
    expected = [_slow(model, random_model.tokenizer, *pair) for pair in pairs]
    found = continuation_nats(random_model, pairs)
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_does_not_fit_is_left_out_at_the_start(tmp_path):
    """As lm-eval does it: one row of as many tokens as the context holds."""
    model = make_model("llama", vocab_size=257).eval()
    short = evaluated(model, tmp_path, context=8)
    whole = evaluated(model, tmp_path, context=64)
    text, continuation = "0123456789abcdef", "xyz"
    kept = text[-(8 + 1 - len(continuation)) :]
    assert continuation_nats(short, [(text, continuation)]) == continuation_nats(whole, [(kept, continuation)])
    assert continuation_nats(short, [(text, continuation)]) != continuation_nats(whole, [(text, continuation)])


def test_the_likeliest_is_chosen_as_a_whole_and_by_byte(tmp_path):
    """A model that knows nothing finds the shortest likeliest as a whole, and all alike by byte."""
    knows_nothing = evaluated(HandMade(lambda ids: None), tmp_path)
    score = answer(
        knows_nothing, "t", [Item("a", ("bbb", "c"), 1), Item("a", ("bbb", "c"), 0), Item("a", ("b", "c"), 0)]
    )
    assert score.right.tolist() == [True, False, True]
    assert score.right_by_byte.tolist() == [False, True, True]  # the first of equals
    assert score.chance == 0.5


def test_a_model_that_copies_is_told_from_one_that_does_not(tmp_path):
    items = TASKS["copy"].items(150)
    copies = answer(evaluated(HandMade(induction), tmp_path), "copy", items)
    guesses = answer(evaluated(make_model("llama", vocab_size=257).eval(), tmp_path), "copy", items)
    assert copies.right.all()
    interval = wilson(guesses.right)
    assert interval.low < guesses.chance < interval.high
    assert paired_shares(guesses.right, copies.right).difference.low > 0.5


def test_a_model_that_keeps_a_stack_closes_brackets(tmp_path):
    items = TASKS["brackets"].items(150)
    stack = answer(evaluated(HandMade(closing_of(load_tokenizer("bytes"))), tmp_path), "brackets", items)
    copies = answer(evaluated(HandMade(induction), tmp_path), "brackets", items)
    assert stack.right.all()
    assert copies.right.mean() < 0.5


def test_a_tokenizer_that_leaves_nothing_of_a_choice(tmp_path):
    empty = evaluated(HandMade(induction), tmp_path)
    with pytest.raises(UserError, match="leaves nothing of ''"):
        continuation_nats(empty, [("a", "")])


def test_broken_weights_are_said(tmp_path):
    model = make_model("llama", vocab_size=257).eval()
    with torch.no_grad():
        model.lm_head.weight.fill_(np.nan)
    with pytest.raises(UserError, match="nan predicts numbers that are not finite"):
        answer(replace(evaluated(model, tmp_path), name="nan"), "copy", TASKS["copy"].items(2))
