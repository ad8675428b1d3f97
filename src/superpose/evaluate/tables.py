"""An evaluation in tables and sentences, for the terminal and Markdown."""

import math
from collections.abc import Sequence

import numpy as np

from superpose.data.account import described_drops
from superpose.evaluate.evaluation import Evaluation, Task, Text
from superpose.results.intervals import spoken
from superpose.results.tables import Row, Table, markdown

# Documents shown from each end.
_SHOWN = 3


def tables(evaluation: Evaluation) -> list[Table]:
    """All figures, each with its 95 % interval."""
    shown: list[Table] = []
    for text in evaluation.texts:
        shown += [_text(text, evaluation.latents), _positions(text), *_documents(text)]
    if evaluation.tasks:
        shown.append(_tasks(evaluation.tasks))
    return shown


def verdict(evaluation: Evaluation) -> str:
    """What could not be read of each text, and how every other model compares with the first on it."""
    sentences = []
    for text in evaluation.texts:
        if left_out := described_drops(text.dropped):
            sentences.append(f"Left out of {text.name}, in bytes: {', '.join(left_out)}.")
        first = text.models[0].name
        for model in text.models[1:]:
            difference = model.minus_first
            assert difference is not None
            words, after = f"not told apart from {first}", ""
            if difference.low is None:
                after = " A single document does not tell how sure that is."
            elif difference.excludes_zero:
                words = f"{'better' if difference.value < 0 else 'worse'} than {first}"
            sentences.append(f"On {text.name}, {model.name} is {words}: {spoken(difference)} bits per byte.{after}")
    return "\n".join(sentences)


def summary(evaluation: Evaluation) -> str:
    """Tables and verdict as Markdown, as in summary.md."""
    return markdown(tables(evaluation), verdict(evaluation))


def _text(text: Text, latents: int) -> Table:
    first, *others = text.models
    header: Row = ("model", "nats per token", "bits per byte")
    rows: list[Row] = [(m.name, spoken(m.loss, ".4f"), spoken(m.bits_per_byte, ".4f")) for m in text.models]
    if others:
        header += (f"bits per byte, minus {first.name}",)
        differences = ["", *(spoken(model.minus_first) for model in others if model.minus_first is not None)]
        rows = [(*row, difference) for row, difference in zip(rows, differences, strict=True)]
    count, size = len(text.documents), sum(document.bytes for document in text.documents)
    documents = f"{count:,} document{'s' * (count > 1)}, {size / 1e6:.2f} MB"
    return f"{text.name}: {documents}, in rows of {latents}", header, rows


def _positions(text: Text) -> Table:
    first, *others = text.models
    header = ["tokens of context", *(model.name for model in text.models)]
    columns = [[spoken(place.loss, ".3f") for place in model.by_position] for model in text.models]
    for model in others:
        differences = [place.minus_first for place in model.by_position if place.minus_first is not None]
        if differences:
            header.append(f"{model.name} minus {first.name}")
            columns.append([spoken(difference, "+.3f") for difference in differences])
    spans = [f"{p.first}-{p.last}" if p.last > p.first else f"{p.last}" for p in first.by_position]
    # Under another tokenizer a short text may end before a long row does.
    rows: list[Row] = list(zip(spans, *columns, strict=False))
    return f"{text.name}: nats per token by position in the row", tuple(header), rows


def _documents(text: Text) -> list[Table]:
    names = [model.name for model in text.models]
    sizes = np.array([document.bytes for document in text.documents])
    by_model = [np.array(model.document_nats) / math.log(2) / sizes for model in text.models]
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = [map("{:.4f}".format, np.quantile(bits, shares)) for bits in by_model]
    order = by_model[0].argsort(kind="stable").tolist()
    places = order if len(order) <= 2 * _SHOWN else order[:_SHOWN] + order[-_SHOWN:]
    ends: list[Row] = [
        (text.documents[place].starts, f"{sizes[place]:,}", *(f"{bits[place]:.4f}" for bits in by_model))
        for place in places
    ]
    best_and_worst = f"the documents that {names[0]} predicts best and worst, in bits per byte"
    return [
        (
            f"{text.name}: bits per byte by document",
            ("model", *map("{:.0%}".format, shares)),
            [(name, *row) for name, row in zip(names, quantiles, strict=True)],
        ),
        (f"{text.name}: {best_and_worst}", ("starts with", "bytes", *names), ends),
    ]


def _tasks(tasks: Sequence[Task]) -> Table:
    first, *others = (model.name for model in tasks[0].models)
    header = ["task", "questions", "chance", first, *others]
    for name in others:
        header += [f"{name} minus {first}", "p"]
    rows: list[Row] = []
    for task in tasks:
        row = [task.name, f"{task.items:,}", f"{task.chance:.2f}"]
        row += [spoken(model.accuracy, ".3f") for model in task.models]
        for model in task.models:
            if (paired := model.minus_first) is not None:
                row += [spoken(paired.difference, "+.3f"), f"{paired.p:.2g}"]
        rows.append(tuple(row))
        by_byte = [model.accuracy_by_byte for model in task.models if model.accuracy_by_byte is not None]
        if by_byte and by_byte != [model.accuracy for model in task.models]:
            shares = [spoken(accuracy, ".3f") for accuracy in by_byte]
            rows.append(("  per byte", "", "", *shares, *[""] * (2 * len(others))))
    return "Tasks: share of right answers", tuple(header), rows
