"""An evaluation in tables and sentences, for the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from superpose.evaluate.choice import TaskScore
from superpose.evaluate.evaluation import (
    Evaluation,
    accuracy,
    bits_difference,
    opening,
    position_differences,
    task_difference,
)
from superpose.evaluate.scores import TextScore, buckets
from superpose.results.intervals import spoken
from superpose.results.tables import Row, Table

# Documents shown from each end.
_SHOWN = 3


def tables(evaluation: Evaluation) -> list[Table]:
    """All figures, each with its 95 % interval."""
    shown: list[Table] = []
    for scores in evaluation.texts:
        shown += [_text(evaluation, scores), _positions(evaluation, scores), *_documents(evaluation, scores)]
    if evaluation.tasks:
        shown.append(_tasks(evaluation))
    return shown


def verdict(evaluation: Evaluation) -> str:
    """What a comparison with the first model comes to, a sentence for each text and other model."""
    first, *others = evaluation.names
    sentences = []
    for scores in evaluation.texts:
        for name, score in zip(others, scores[1:], strict=True):
            difference = bits_difference(scores[0], score)
            words, after = f"not told apart from {first}", ""
            if difference.low is None:
                after = " A single document does not tell how sure that is."
            elif difference.excludes_zero:
                words = f"{'better' if difference.value < 0 else 'worse'} than {first}"
            sentences.append(f"On {score.text.name}, {name} is {words}: {spoken(difference)} bits per byte.{after}")
    return "\n".join(sentences)


def _text(evaluation: Evaluation, scores: Sequence[TextScore]) -> Table:
    text, first = scores[0].text, evaluation.names[0]
    rows: list[Row] = []
    for name, score in zip(evaluation.names, scores, strict=True):
        row = name, spoken(score.loss, ".4f"), spoken(score.bits_per_byte, ".4f")
        if len(scores) > 1:
            row = *row, "" if score is scores[0] else spoken(bits_difference(scores[0], score))  # type: ignore[assignment]
        rows.append(row)
    header: Row = ("model", "nats per token", "bits per byte")
    if len(scores) > 1:
        header = (*header, f"bits per byte, minus {first}")
    count = len(text.documents)
    documents = f"{count:,} document{'s' * (count > 1)}, {text.bytes / 1e6:.2f} MB"
    return f"{text.name}: {documents}, in rows of {evaluation.latents}", header, rows


def _positions(evaluation: Evaluation, scores: Sequence[TextScore]) -> Table:
    first = evaluation.names[0]
    header: list[str] = ["tokens of context", *evaluation.names]
    columns = [[spoken(loss, ".3f") for loss in score.by_position] for score in scores]
    for name, score in zip(evaluation.names[1:], scores[1:], strict=True):
        if (differences := position_differences(scores[0], score)) is not None:
            header.append(f"{name} minus {first}")
            columns.append([spoken(difference, "+.3f") for difference in differences])
    spans = [f"{low}-{high}" if high > low else f"{low}" for low, high in buckets(evaluation.latents)]
    # Under another tokenizer a short text may end before a long row does.
    count = min(map(len, columns))
    rows: list[Row] = [(spans[place], *(column[place] for column in columns)) for place in range(count)]
    return f"{scores[0].text.name}: nats per token by position in the row", tuple(header), rows


def _documents(evaluation: Evaluation, scores: Sequence[TextScore]) -> list[Table]:
    text = scores[0].text
    by_model = [score.document_bits_per_byte for score in scores]
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles: Table = (
        f"{text.name}: bits per byte by document",
        ("model", *(f"{share:.0%}" for share in shares)),
        [
            (name, *(f"{value:.4f}" for value in np.quantile(bits, shares)))
            for name, bits in zip(evaluation.names, by_model, strict=True)
        ],
    )
    order = by_model[0].argsort(kind="stable").tolist()
    places = order if len(order) <= 2 * _SHOWN else order[:_SHOWN] + order[-_SHOWN:]
    ends: Table = (
        f"{text.name}: the documents that {evaluation.names[0]} predicts best and worst, in bits per byte",
        ("starts with", "bytes", *evaluation.names),
        [
            (
                opening(text.documents[place]),
                f"{scores[0].bytes[place]:,.0f}",
                *(f"{bits[place]:.4f}" for bits in by_model),
            )
            for place in places
        ],
    )
    return [quantiles, ends]


def _tasks(evaluation: Evaluation) -> Table:
    first, *others = evaluation.names
    header = ["task", "questions", "chance", *evaluation.names]
    for name in others:
        header += [f"{name} minus {first}", "p"]
    rows: list[Row] = []
    for scores in evaluation.tasks:
        row = [scores[0].task, f"{len(scores[0].right):,}", f"{scores[0].chance:.2f}"]
        row += [spoken(accuracy(score), ".3f") for score in scores]
        for score in scores[1:]:
            paired = task_difference(scores[0], score)
            row += [spoken(paired.difference, "+.3f"), f"{paired.p:.2g}"]
        rows.append(tuple(row))
        if any(_by_byte_differs(score) for score in scores):
            shares = [spoken(accuracy(score, by_byte=True), ".3f") for score in scores]
            rows.append(("  per byte", "", "", *shares, *[""] * (2 * len(others))))
    return "Tasks: share of right answers", tuple(header), rows


def _by_byte_differs(score: TaskScore) -> bool:
    return score.right_by_byte is not None and not np.array_equal(score.right, score.right_by_byte)
