import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superpose.data.tokenizer import load_tokenizer
from superpose.errors import UserError
from superpose.evaluate.intervals import paired_shares, wilson
from superpose.evaluate.models import load_models
from superpose.evaluate.scores import _sums, answer, buckets, continuation_nats, score_text, token_losses, tokenize
from superpose.evaluate.tasks import TASKS, Item
from superpose.evaluate.texts import HeldOut, own_texts
from superpose.files import read_json
from tests.conftest import make_model
from tests.evaluate.evaluated import HandMade, closing_of, evaluated, induction

L = 16


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return evaluated(make_model("llama", vocab_size=257).eval(), tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("count", [2, L, L + 1, L + 2, 3 * L])
def test_losses_are_those_of_one_token_after_the_other(family, count):
    """Each in float64, from the tokens before it in its row alone."""
    model = make_model(family).eval()
    tokens = torch.from_numpy(np.random.default_rng(count).integers(0, 50, count))
    expected = []
    with torch.no_grad():
        for place in range(1, count):
            row = (place - 1) // L * L
            logits = model(input_ids=tokens[None, row:place]).logits[0, -1].double()
            expected.append(-float(logits.log_softmax(0)[tokens[place]]))
    losses = token_losses(model, tokens, L)
    assert losses.dtype == np.float64
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_run_scores_as_its_validation_did(run):
    (one,) = load_models([run], "cpu")
    (text,) = own_texts([one], math.inf)
    nats, tokens = score_text(one, text, 16)
    result = read_json(run / "result.json")
    assert nats.sum() / tokens.sum() == pytest.approx(result["val_loss"], rel=1e-5)
    assert nats.sum() / math.log(2) / text.sizes.sum() == pytest.approx(result["val_bits_per_byte"], rel=1e-5)


@settings(max_examples=25)
@given(st.lists(st.text("ab é\n日", min_size=1, max_size=40), min_size=1, max_size=8), st.integers(2, 40))
def test_documents_positions_and_the_whole_agree(small, documents, latents):
    text = HeldOut("t", tuple(documents))
    nats, tokens = score_text(small, text, latents)
    ids, offsets = tokenize(small, text)
    losses = token_losses(small.model, ids, latents)
    # Byte tokens, one end of text for each document, and the very first is not predicted.
    assert text.sizes.tolist() == [len(document.encode()) for document in documents]
    assert tokens.sum() == len(ids) - 1 == text.sizes.sum() + len(documents) - 1
    for number, (start, stop) in enumerate(pairwise(offsets)):
        assert nats[number].sum() == pytest.approx(sum(losses[max(start, 1) - 1 : stop - 1]))
    assert nats.sum() == pytest.approx(losses.sum())
    assert tokens.shape == nats.shape == (len(documents), len(buckets(latents)))


def test_positions_are_tokens_of_context():
    """A model that knows what follows from the fourth token of its row on."""

    def alphabet(ids):
        return ids[-1] + 1 if len(ids) >= 4 else None

    first = int(load_tokenizer("bytes").byte_ids[ord("a")])
    losses = token_losses(HandMade(alphabet), torch.arange(first, first + 17), 8)
    nats, count = _sums(losses, np.array([0, 4, 17]), 8)
    loss = nats.sum(axis=0) / count.sum(axis=0)
    assert buckets(8) == [(1, 1), (2, 3), (4, 8)]
    assert loss[:2] == pytest.approx([math.log(257)] * 2)
    assert loss[2] < 0.1
    assert count.tolist() == [[1, 2, 0], [1, 2, 10]]


@given(st.integers(1, 5000))
def test_buckets_cover_every_position_once(latents):
    spans = buckets(latents)
    assert [place for low, high in spans for place in range(low, high + 1)] == list(range(1, latents + 1))
    assert all(low & (low - 1) == 0 for low, _ in spans)
    assert all(high - low + 1 >= low // 2 for low, high in spans)


def test_a_text_that_spells_out_the_end_of_text_is_text(run):
    (one,) = load_models([run], "cpu")
    ids, offsets = tokenize(one, HeldOut("t", ("<|endoftext|>",)))
    assert len(ids) > 2
    assert (ids == one.text_tokenizer.end_of_text).tolist() == [False] * (len(ids) - 1) + [True]
    assert offsets.tolist() == [0, len(ids)]


@given(st.text() | st.text("<|endoftx>").map("a{}<|endoftext|>".format))
def test_tasks_and_lm_eval_read_what_texts_read(small, text):
    """And nothing that the tokenizer's template would put around it."""
    (ids,) = small.text_tokenizer.encode([text])
    assert small.text_tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert small.tokenizer(text)["input_ids"] == small.tokenizer.encode(text, add_special_tokens=False) == ids.tolist()


def test_broken_weights_are_said(small, tmp_path):
    model = make_model("llama", vocab_size=257).eval()
    with torch.no_grad():
        model.lm_head.weight.fill_(np.nan)
    with pytest.raises(UserError, match="nan predicts numbers that are not finite on t"):
        score_text(replace(small, model=model, name="nan"), HeldOut("t", ("abc",)), L)


# Choices


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


def test_broken_weights_are_said_of_a_task(tmp_path):
    model = make_model("llama", vocab_size=257).eval()
    with torch.no_grad():
        model.lm_head.weight.fill_(np.nan)
    with pytest.raises(UserError, match="nan predicts numbers that are not finite"):
        answer(replace(evaluated(model, tmp_path), name="nan"), "copy", TASKS["copy"].items(2))
