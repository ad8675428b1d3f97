"""Evaluates models side by side.

places -> models; texts, tasks -> scores of each model -> figures, intervals and differences -> Evaluation
"""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from superpose.data.workers import Progress
from superpose.errors import UserError
from superpose.evaluate.evaluation import Document, Evaluation, PositionFigures, Task, TaskFigures, Text, TextFigures
from superpose.evaluate.intervals import Floats, paired_shares, ratio, wilson
from superpose.evaluate.lm_eval import PAPER, answer_by_lm_eval, expect_lm_eval, write_tasks
from superpose.evaluate.models import EvaluatedModel, load_models
from superpose.evaluate.scores import TaskScore, Told, answer, buckets, score_text
from superpose.evaluate.tables import summary
from superpose.evaluate.tasks import ITEMS, TASKS, Item
from superpose.evaluate.texts import HeldOut, opening, own_texts, read_text
from superpose.files import write_json, write_text

MOST_LATENTS = 2048
"""Length of a row, where models were made for more and nothing else is asked for."""

GROUPS = {"all": tuple(TASKS), "paper": PAPER}
"""Names for several tasks."""


class _Work:
    """How much there is to do, and how far it is: bytes of text, times the parameters of the model that reads them.

    Args:
        sizes: bytes of each text and task, of which every model reads all; None for a task whose size is not known,
            and then nothing is said of how far the work is.
    """

    def __init__(self, models: Sequence[EvaluatedModel], sizes: Sequence[float | None], progress: Progress) -> None:
        self._weights = {model.name: model.facts.parameters for model in models}
        known = [size for size in sizes if size is not None]
        self._whole = sum(known) * sum(self._weights.values()) if len(known) == len(sizes) else math.inf
        self._done, self._progress = 0.0, progress
        amount = f"{sum(known) / 1e6:.2f} MB of text and questions" if self._whole < math.inf else "texts and tasks"
        progress(f"{amount} for {len(models)} model{'s' * (len(models) > 1)}", 0.0)

    def part(self, model: EvaluatedModel, what: str, size: float | None) -> Told:
        """To be told how far a model is with a text or a task."""
        before, own = self._done, (size or 0.0) * self._weights[model.name]
        self._done += own

        def told(share: float) -> None:
            self._progress(f"{model.name}: {what}", (before + share * own) / self._whole)

        told(0.0)
        return told


def evaluate(
    places: Sequence[str | Path],
    texts: Mapping[str, str | Path] | None = None,
    tasks: Sequence[str] = (),
    field: str = "text",
    max_megabytes: float = 1.0,
    latents: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
    device: str = "",
    out: Path | None = None,
    progress: Progress = lambda what, share: None,
) -> Evaluation:
    """Next-token loss of models on held-out text, by document and by position, and their tasks.

    Args:
        places: finished runs and Hugging Face directories.
        texts: by name: what `superpose prepare` reads as text, or a prepared store. By default what the runs held out
            of their training; where it is empty, no text is predicted.
        tasks: "brackets", "copy", "grammar", "identifiers", or "all" of these; "paper" for the paper's eight, or any
            of lm-eval's.
        field: where records of the texts keep their text.
        max_megabytes: of each text, from its start.
        latents: length of a row; by default the shortest of the models' contexts, and at most `MOST_LATENTS`.
        limit: questions of a task at most.
        include: a folder of further tasks for lm-eval; functions that its YAML names are run.
        device: by default a GPU if there is one.
        out: folder for evaluation.json, summary.md and our tasks for lm-eval.
        progress: told what is being done, and the share of all work that is done, 0 to 1.

    Raises:
        UserError: a model, text or task is not there or cannot be scored, or a row is longer than a model's context.
    """
    chosen = list(dict.fromkeys(task for name in tasks for task in GROUPS.get(name, (name,))))
    expect_lm_eval([name for name in chosen if name not in TASKS])
    models = load_models(places, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = max_megabytes * 1e6
    given = [read_text(name, str(location), field, size) for name, location in (texts or {}).items()]
    held_out = own_texts(models, size) if texts is None else given
    evaluation = score(models, held_out, chosen, latents, limit, include, progress)
    if out is not None:
        write_json(out / "evaluation.json", evaluation.model_dump())
        write_text(out / "summary.md", summary(evaluation))
        write_tasks(out / "tasks", {name: TASKS[name].items(limit or ITEMS) for name in chosen if name in TASKS})
    return evaluation


def score(
    models: Sequence[EvaluatedModel],
    texts: Sequence[HeldOut],
    tasks: Sequence[str],
    latents: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
    progress: Progress = lambda what, share: None,
) -> Evaluation:
    """Scores models that are loaded; see `evaluate`."""
    contexts = [(model.context, model.name) for model in models if model.context is not None]
    shortest, name = min(contexts, key=lambda pair: pair[0], default=(MOST_LATENTS, ""))
    length = latents or min(MOST_LATENTS, shortest)
    if contexts and length > shortest:
        raise UserError(f"--latents is {length}, but {name} was made for {shortest}; lower it")

    ours = {task: TASKS[task].items(limit or ITEMS) for task in tasks if task in TASKS}
    sizes = {task: _bytes_of(ours[task]) if task in ours else None for task in tasks}
    work = _Work(models, [*(float(text.sizes.sum()) for text in texts), *sizes.values()], progress)
    by_text = []
    for text in texts:
        size = float(text.sizes.sum())
        scores = [score_text(model, text, length, work.part(model, text.name, size)) for model in models]
        by_text.append(_text(text, models, scores, length))
    by_task = []
    for task in tasks:
        answers = []
        for model in models:
            told = work.part(model, task, sizes[task])
            asked = answer(model, task, ours[task], told) if task in ours else None
            answers.append(asked or answer_by_lm_eval(model, task, include, limit))
        by_task.append(_task(models, answers))
    versions = {name: version(name) for name in ("superpose", "torch", "transformers", "tokenizers")}
    facts = [model.facts for model in models]
    return Evaluation(models=facts, latents=length, texts=by_text, tasks=by_task, versions=versions)


def _bytes_of(items: Sequence[Item]) -> float:
    """UTF-8 bytes that a model reads to answer questions: the context again with every choice."""
    return float(sum(len((item.context + choice).encode()) for item in items for choice in item.choices))


def _text(
    text: HeldOut, models: Sequence[EvaluatedModel], scores: Sequence[tuple[Floats, Floats]], latents: int
) -> Text:
    first, sizes, figures = scores[0][0], text.sizes, []
    for model, (nats, tokens) in zip(models, scores, strict=True):
        # Tokens of different tokenizers are not comparable; bits per byte are.
        alike = nats is not first and model.vocabulary == models[0].vocabulary
        by_position = []
        for (low, high), here, firsts, count in zip(buckets(latents), nats.T, first.T, tokens.T, strict=True):
            if count.any():
                position = PositionFigures(first=low, last=high, tokens=int(count.sum()), loss=ratio(here, count))
                position.minus_first = ratio(here - firsts, count) if alike else None
                by_position.append(position)
        whole, size = nats.sum(axis=1), tokens.sum(axis=1)
        minus_first = None if nats is first else ratio((whole - first.sum(axis=1)) / math.log(2), sizes)
        figures.append(
            TextFigures(
                name=model.name,
                loss=ratio(whole, size),
                bits_per_byte=ratio(whole / math.log(2), sizes),
                tokens=int(size.sum()),
                by_position=by_position,
                document_nats=whole.tolist(),
                document_tokens=size.astype(int).tolist(),
                minus_first=minus_first,
            )
        )
    documents = [Document(starts=opening(document), bytes=len(document.encode())) for document in text.documents]
    return Text(name=text.name, documents=documents, dropped=text.dropped, models=figures)


def _task(models: Sequence[EvaluatedModel], scores: Sequence[TaskScore]) -> Task:
    first = scores[0]
    figures = [
        TaskFigures(
            name=model.name,
            accuracy=wilson(score.right),
            accuracy_by_byte=None if score.right_by_byte is None else wilson(score.right_by_byte),
            minus_first=None if score is first else paired_shares(first.right, score.right),
            right=score.right.astype(int).tolist(),
        )
        for model, score in zip(models, scores, strict=True)
    ]
    return Task(name=first.task, chance=first.chance, items=len(first.right), models=figures)
