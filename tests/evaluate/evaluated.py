"""Models to evaluate: small ones of transformers, and others made by hand."""

from types import SimpleNamespace

import torch
from tokenizers.processors import TemplateProcessing

from superpose.data.tokenizer import load_tokenizer, save_tokenizer
from superpose.evaluate.models import EvaluatedModel
from superpose.models.load import text_tokenizer_of


def evaluated(model, tmp_path, name="model", context=64):
    """A model that reads bytes; its tokenizer's template would put the end of text around them."""
    made = load_tokenizer("bytes")
    save_tokenizer(made, tmp_path)
    end = made.end_of_text_token
    around = TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, made.end_of_text)])
    made.tokenizer.post_processor = around
    made.tokenizer.save(str(tmp_path / "tokenizer.json"))
    text_tokenizer = load_tokenizer(str(tmp_path))
    return EvaluatedModel(
        name, str(tmp_path), tmp_path, model, text_tokenizer_of(tmp_path), text_tokenizer, context, None
    )


class HandMade:
    """Finds one next token likely, as a function of the tokens so far says, and the others all alike."""

    device = torch.device("cpu")
    config = SimpleNamespace(vocab_size=257)

    def __init__(self, predict):
        self._predict = predict

    def __call__(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, 257)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                if (token := self._predict(ids[: place + 1])) is not None:
                    logits[row, place, token] = 10.0
        return SimpleNamespace(logits=logits)


def induction(ids):
    """What followed the longest earlier match of the end of the text."""
    best, following = 0, None
    for end in range(1, len(ids)):
        length = 0
        while length < end and ids[end - 1 - length] == ids[-1 - length]:
            length += 1
        if length > best:
            best, following = length, ids[end]
    return following


def closing_of(tokenizer):
    """The bracket that closes the one opened last."""
    ids = {bracket: tokenizer.tokenizer.token_to_id(bracket) for bracket in "([{)]}"}
    pairs = {ids[opening]: ids[closing] for opening, closing in ("()", "[]", "{}")}

    def predict(text):
        stack = []
        for token in text:
            if token in pairs:
                stack.append(pairs[token])
            elif stack and token == stack[-1]:
                stack.pop()
        return stack[-1] if stack else None

    return predict
