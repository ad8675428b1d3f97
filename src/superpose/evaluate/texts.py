"""Held-out text by name: what the user gives, or what a run held out of its own training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from superpose.data.account import Dropped, Drops, note
from superpose.data.readers import Source, find_parts, read_part
from superpose.data.store import TokenStore, is_store
from superpose.data.tokenizer import read_tokenizer
from superpose.errors import UserError, printable
from superpose.evaluate.intervals import Floats
from superpose.evaluate.models import EvaluatedModel
from superpose.runs.disk import open_run

OWN = "held-out"
"""Names the documents that a run held out."""


@dataclass(frozen=True)
class HeldOut:
    """Documents to predict, as text: every model reads them with its own tokenizer.

    Attributes:
        dropped: what was met beside them that cannot be read as text, see `superpose.data.account`.
    """

    name: str
    documents: tuple[str, ...]
    dropped: Drops = field(default_factory=dict)

    @property
    def sizes(self) -> Floats:
        """UTF-8 bytes of each document, float64 [D]."""
        return np.array([len(document.encode()) for document in self.documents], dtype=np.float64)


def read_text(name: str, location: str, text_field: str, max_bytes: float) -> HeldOut:
    """The first documents of a source, until there are `max_bytes`; or the held-out side of a prepared store."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"--text {name}={location}: the name is not in UTF-8; give another") from None
    if is_store(location):
        return _held_out_of(TokenStore.open(location), name, max_bytes)
    dropped: Drops = {}
    documents = _first(_documents(name, location, text_field, dropped), max_bytes)
    if not documents:
        raise UserError(f"--text {name}={location} holds no text; give another source")
    return HeldOut(name, documents, dropped)


def _documents(name: str, location: str, text_field: str, dropped: Drops) -> Iterator[str]:
    """The documents of a source; what is none is noted in `dropped`."""
    for part in find_parts(Source(location, text_field)):
        if part.is_tokens:
            raise UserError(f"--text {name}={location} holds tokens; give text, or a store that superpose prepared")
        for document in read_part(part):
            if isinstance(document, Dropped):
                note(dropped, document)
            elif isinstance(document, str):
                yield document


def _first(documents: Iterable[str], max_bytes: float) -> tuple[str, ...]:
    """Those that are not empty, until there are `max_bytes` of them; no more is read."""
    chosen: list[str] = []
    for document in filter(None, documents):
        chosen.append(document)
        max_bytes -= len(document.encode())
        if max_bytes <= 0:
            break
    return tuple(chosen)


def own_texts(models: Sequence[EvaluatedModel], max_bytes: float) -> list[HeldOut]:
    """What the runs among some models held out of training; runs on the same text share one set."""
    stores: dict[str, tuple[str, TokenStore]] = {}
    for model in models:
        if model.run is not None:
            store = open_run(model.run).whole_store("it cannot be predicted; name held-out text with --text")
            stores.setdefault(store.fingerprint, (model.name, store))
    if not stores:
        raise UserError(
            "a Hugging Face directory does not say what text was held out; name some, such as --text mine=texts/, "
            "or ask for --tasks alone"
        )
    alone = len(stores) == 1
    return [_held_out_of(store, OWN if alone else f"{OWN} of {name}", max_bytes) for name, store in stores.values()]


def _held_out_of(store: TokenStore, name: str, max_bytes: float) -> HeldOut:
    """The text that a store's held-out tokens stand for, by the store's own tokenizer."""
    split = store.val
    tokenizer = read_tokenizer(store.tokenizer_path / "tokenizer.json")
    # A document ends with the end of text, which is not part of it.
    documents = (
        tokenizer.decode(split.tokens.read(start, stop - start - 1).tolist(), skip_special_tokens=False)
        for start, stop in pairwise(split.offsets.tolist())
    )
    return HeldOut(name, _first(documents, max_bytes))


def opening(document: str) -> str:
    """A document's first words, to know it by."""
    words = " ".join(printable(document[:200]).split())
    return words if len(words) <= 40 else words[:39] + "…"
