"""What both models of a comparison write: greedy continuations of a held-out text, made once and kept.

RUNS/NAME/samples.json    prompt and texts, and of which runs: another page of the same comparison reads it
"""

import itertools
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from superpose.compare.comparison import Comparison, Trained
from superpose.compare.experiment import ORDINARY, TST
from superpose.data.store import Split
from superpose.errors import UserError
from superpose.files import read_json, write_json
from superpose.models.load import load_with_tokenizer
from superpose.models.sampling import sample
from superpose.runs.disk import model_directory, open_run

_FORMAT = "superpose samples 1"
_PROMPT, _NEW = 32, 64
"""Tokens of the prompt, and of what follows; fewer where a row of training has fewer."""
_DOCUMENTS = 20
"""Of so many documents, the prompt is the beginning of the one with most letters: others begin with lines of signs."""
_LARGEST = 200_000_000
"""Parameters up to which a CPU continues a text in seconds."""
_Text = Annotated[str, Field(max_length=10_000)]


@dataclass(frozen=True)
class Samples:
    """Continuations of one prompt.

    Attributes:
        texts: what follows the prompt, by whose it is; empty if there are none.
        note: how they were made, or why there are none.
        runs: directories of the pool whose models wrote them, each named by what it computed.
    """

    note: _Text
    prompt: _Text = ""
    texts: dict[_Text, _Text] = field(default_factory=dict)
    runs: list[_Text] = field(default_factory=list)


def samples_of(comparison: Comparison, directory: Path) -> Samples:
    """The texts of both models of the first seed at the main budget: those kept in `directory`, or made now.

    Whatever is missing, the answer is a sentence and no error: a report is whole without it.
    """
    seed = comparison.seeds[0]
    arms = {
        run.arm: run
        for run in comparison.runs
        if run.arm in (ORDINARY, TST) and (run.steps, run.seed) == (comparison.steps, seed)
    }
    runs = [arms[arm].directory.name for arm in (ORDINARY, TST)]
    path = directory / "samples.json"
    if (kept := _kept(path, runs)) is not None:
        return kept
    try:
        made = _made(arms[ORDINARY], arms[TST], comparison.tst_label, runs)
    except UserError as error:
        return Samples(f"No sample texts: {error}.")
    with suppress(OSError):  # a place that is only read
        write_json(path, {"format": _FORMAT, **asdict(made)})
    return made


def _kept(path: Path, runs: list[str]) -> Samples | None:
    """What samples.json holds, if it is of these runs and was not altered."""
    if not path.is_file():
        return None
    try:
        saved = read_json(path)
        if saved.pop("format", None) != _FORMAT:
            return None
        kept = TypeAdapter(Samples).validate_python(saved)
    except (UserError, ValidationError):
        return None
    return kept if kept.runs == runs and kept.texts else None


def _made(ordinary: Trained, tst: Trained, label: str, runs: list[str]) -> Samples:
    parameters = ordinary.result.get("parameters") or 0
    if parameters > _LARGEST:
        raise UserError(
            f"a model of {parameters:,} parameters is slow to ask on a CPU; ask it yourself with: superpose generate"
        )
    store = open_run(ordinary.directory).whole_store("there is no prompt")
    loaded = {"ordinary": ordinary, label: tst}
    models = {name: load_with_tokenizer(model_directory(run.directory)) for name, run in loaded.items()}
    (first, tokenizer), *_ = models.values()
    room: int = getattr(first.config, "max_position_embeddings", None) or _PROMPT + _NEW
    length = min(_PROMPT, room // 2)
    new = min(_NEW, room - length)
    ids = max(_openings(store.val, length + new), key=lambda ids: _letters(tokenizer.decode(ids[:length])))
    prompt = tokenizer.decode(ids[:length]).rstrip("\ufffd")  # half a character
    texts = {"the text itself": tokenizer.decode(ids).removeprefix(prompt).rstrip("\ufffd")}
    for name, (model, of_model) in models.items():
        # A prompt that was cut may be other tokens, and more of them.
        most = min(new, room - len(of_model(prompt)["input_ids"]))
        texts[name] = sample(model, of_model, prompt, most, temperature=0).removeprefix(prompt)
    note = (
        f"Both models go on from the first {length} tokens of a held-out document by up to {new} tokens, by greedy "
        f"choice; seed {ordinary.seed}, {tst.steps:,} steps. One text proves nothing: compare the losses."
    )
    return Samples(note, prompt, texts, runs)


def _openings(val: Split, length: int) -> list[list[int]]:
    """The beginnings of the first held-out documents that are long enough, or of the whole text."""
    documents = zip(val.offsets[:-1], val.offsets[1:], strict=True)
    long_enough = (int(start) for start, stop in documents if stop - start >= length)
    starts = [*itertools.islice(long_enough, _DOCUMENTS)] or [0]
    return [val.tokens.read(start, length).tolist() for start in starts]


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))
