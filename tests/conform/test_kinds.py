"""The ways in which people write a step, and what is to come of each; and what the documentation shows."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from superpose import multi_hot_cross_entropy, split_window
from superpose.conform import Subject, conform, load, passes
from superpose.errors import UserError

SHOWN = dict(
    re.findall(
        r"```python\n# (\w+\.py)\n(.*?)```",
        (Path(__file__).parents[2] / "docs/conform.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)


class Recurrent(nn.Module):
    """Takes tokens [B, L] or bags [B, L, S]."""

    def __init__(self, vocab_size=64, width=24):
        super().__init__()
        self.tokens, self.body = nn.Embedding(vocab_size, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        vectors = self.tokens(ids)
        return self.head(self.body(vectors.mean(dim=2) if ids.dim() == 3 else vectors)[0])


def bags_of(window, bag_size):
    return window.view(len(window), -1, bag_size)


def mean_loss(logits, targets):
    return (logits.logsumexp(dim=-1) - logits.gather(-1, targets).mean(dim=-1)).mean()


def place_by_place(logits, targets):
    flat, targets = logits.flatten(0, 1), targets.flatten(0, 1)
    return sum(F.cross_entropy(flat, targets[:, place]) for place in range(targets.shape[1])) / targets.shape[1]


def step(model, window, bag_size):
    bags = bags_of(window, bag_size)
    return mean_loss(model(bags[:, :-1]), bags[:, 1:])


def model_of_its_own():
    mine = Recurrent()

    def step(model, window, bag_size):
        bags = bags_of(window, bag_size)
        return place_by_place(mine(bags)[:, :-1], bags[:, 1:])

    return Subject(step=step)


def casts_to_bfloat16():
    def step(model, window, bag_size):
        bags = bags_of(window, bag_size)
        vectors = model.get_input_embeddings()(bags).to(torch.bfloat16).mean(dim=2)
        return mean_loss(model(inputs_embeds=vectors).logits[:, :-1].float(), bags[:, 1:])

    return Subject(step=step)


def output_only():
    def step(model, window, bag_size):
        inputs, targets = split_window(window, bag_size, "output")
        return multi_hot_cross_entropy(model(input_ids=inputs).logits, targets.view(*inputs.shape, -1))

    return Subject(step=step)


def input_only():
    def step(model, window, bag_size):
        inputs, targets = split_window(window, bag_size, "input")
        vectors = model.get_input_embeddings()(inputs)
        logits = model(inputs_embeds=vectors.mean(dim=2) if inputs.dim() == 3 else vectors).logits
        return multi_hot_cross_entropy(logits, targets.unsqueeze(-1))

    return Subject(step=step)


def sums_its_bags():
    return Subject(
        embed=lambda model, bags: model.get_input_embeddings()(bags.clamp(min=0)).sum(dim=2) * 7.0,
        fold=lambda window, s: (bags_of(window, s)[:, :-1], bags_of(window, s)[:, 1:]),
        loss=mean_loss,
    )


def short_rows():
    def step(model, window, bag_size):
        bags = bags_of(window, bag_size)
        vectors = model.get_input_embeddings()(bags[:, :-1]).mean(dim=2)
        hidden = model.base_model(inputs_embeds=vectors).last_hidden_state[:, :-1]
        return place_by_place(model.lm_head(hidden), bags[:, 1:-1])

    return Subject(step=step)


def lookups_added_up():
    def step(model, window, bag_size):
        bags, embed = bags_of(window, bag_size), model.get_input_embeddings()
        vectors = embed(bags[:, :-1, 0])
        for place in range(1, bag_size):
            vectors = vectors + embed(bags[:, :-1, place])
        return mean_loss(model(inputs_embeds=vectors / bag_size).logits, bags[:, 1:])

    return Subject(step=step)


KINDS = {
    "a model of its own, a cross-entropy for each place": (model_of_its_own, {3}),
    "casts to bfloat16": (casts_to_bfloat16, set()),
    "output-only": (output_only, set()),
    "input-only": (input_only, set()),
    "sums its bags": (sums_its_bags, {5}),
    "rows without the last position, a cross-entropy for each place": (short_rows, {3}),
    "one product, one softmax, s lookups": (lookups_added_up, set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_judged_as_it_is(kind):
    make, errors = KINDS[kind]
    verdicts = conform(make())
    assert {one.error for one in verdicts if one.state == "wrong"} == errors
    assert passes(verdicts) == (not errors)


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_documentation_shows_passes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(SHOWN[name], encoding="utf-8")
    verdicts = conform(load(name), ordinary=name == "my_loop.py")
    assert passes(verdicts), [one for one in verdicts if one.promised and one.state != "right"]


@pytest.mark.parametrize("bag_size", [5, 8])
def test_bags_may_be_large(bag_size):
    def step(model, window, bag_size):
        bags = bags_of(window, bag_size)
        vectors = model.get_input_embeddings()(bags[:, :-1]).mean(dim=2)
        return mean_loss(model(inputs_embeds=vectors).logits, bags[:, 1:])

    verdicts = conform(Subject(step=step, bag_sizes=(bag_size,)))
    assert passes(verdicts), [one for one in verdicts if one.promised and one.state != "right"]


def test_a_vocabulary_that_is_too_small_for_the_bags_is_named():
    with pytest.raises(UserError, match="a vocabulary of less than 72 is too small"):
        conform(Subject(step=step, model=Recurrent(), bag_sizes=(16,)))


def test_a_mode_that_is_declared_is_not_looked_for():
    found = {one.check: one.state for one in conform(Subject(step=input_only().step, mode="full"))}
    assert found["shift"] == "wrong"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": lambda model, window, bag_size: {}["labels"]}, "step raised KeyError at bag size 2: 'labels'"),
        ({"step": lambda model, window, bag_size: model(window).logits}, "expected the loss, one number"),
        ({"step": lambda model, window, bag_size: 3.0}, "step returned float"),
        ({"step": lambda window, bag_size: torch.zeros((), requires_grad=True)}, "it has to read its window"),
        ({"step": step, "model": Recurrent().to("meta")}, "the model is on meta"),
        ({"step": step, "model": lambda: 1 / 0}, "model() raised ZeroDivisionError"),
        ({"step": step, "model": Recurrent(10)}, "a vocabulary of less than 20 is too small"),
        ({"fold": lambda window, s: (window, window), "loss": mean_loss}, "fold returned inputs [2, 8]; expected [2, "),
        ({"fold": lambda window, s: window, "loss": mean_loss}, "fold returned Tensor; expected inputs and targets"),
    ],
    ids=["raises", "logits", "float", "no window", "meta", "model raises", "few tokens", "fold's shape", "fold's type"],
)
def test_what_cannot_be_judged_is_one_sentence(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        conform(Subject(**given))


def test_a_step_that_keeps_count_is_refused():
    calls = []

    def counting(model, window, bag_size):
        calls.append(1)
        return step(model, window, bag_size) * len(calls)

    with pytest.raises(UserError, match="keeps something between calls"):
        conform(Subject(step=counting, model=Recurrent()))


def test_bags_alone_leave_what_needs_ordinary_training_unchecked():
    def bags_only(model, window, bag_size):
        if bag_size == 1:
            raise ValueError("no bags of 1")
        return step(model, window, bag_size)

    verdicts = conform(Subject(step=bags_only, model=Recurrent()))
    found = {one.check: one for one in verdicts if one.promised}
    assert not passes(verdicts)
    assert {one.state for one in verdicts if one.promised} == {"right", "not checked"}
    assert "give ordinary(model, window)" in found["mean"].reason
    assert found["mean"].cause == found["recovery"].cause
    ordinary = Subject(step=bags_only, model=Recurrent(), ordinary=lambda model, window: step(model, window, 1))
    assert passes(conform(ordinary))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_was_asked_for_comes_back_out_of_the_gradient(dtype):
    """Weights of places, declared and given, in any dtype; others are found out."""
    weights = {2: [0.9, 0.1], 3: [0.6, 0.3, 0.1]}

    def weighted(model, window, bag_size):
        bags = bags_of(window, bag_size)
        logits = model(bags[:, :-1]).double()
        picked = logits.gather(-1, bags[:, 1:]) @ torch.tensor(weights.get(bag_size, [1.0]), dtype=torch.float64)
        return (logits.logsumexp(dim=-1) - picked).mean()

    model = Recurrent().to(dtype)
    assert passes(conform(Subject(step=weighted, model=model, weighting=weights.get)))
    found = {one.check: one for one in conform(Subject(step=weighted, model=model))}
    assert found["repeats"].state == "wrong"
