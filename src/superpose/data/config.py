"""What a recipe says of its text, and the store that comes of it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from superpose.data.prepare import Preparation, prepare_store
from superpose.data.readers import PYTHON_SOURCES, Source
from superpose.data.sources import checked_names
from superpose.data.store import TokenStore, is_store
from superpose.data.text_streams import Streams
from superpose.data.token_files import TokenType
from superpose.data.tokenizer import load_tokenizer
from superpose.data.workers import Progress
from superpose.errors import UserError


class SourceArgs(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """One of several sources that are mixed."""

    path: Annotated[str, Field(min_length=1)]
    """See `DataArgs.corpus`; not a prepared store."""
    name: str | None = None
    """What a stage's mixture calls it; several of one name are one source, and all sources have a name or none has."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the text this source is to have, relative to the others'; all sources have one or none has."""
    field: str = "text"
    """Of JSON lines, Parquet and datasets: where a record keeps its text."""
    encoding: str = "utf-8"
    """Of text and JSON lines."""
    dtype: TokenType = "auto"
    """Of .bin files without a header; auto looks at their numbers."""


def _listed(corpus: Any) -> Any:
    """The list of sources that a table of paths by name stands for."""
    if not isinstance(corpus, Mapping):
        return corpus
    sources = []
    for name, given in corpus.items():
        paths = given if isinstance(given, list) else [given]
        if not paths or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"data.corpus gives the source {name} {given!r}; give a path, or a list of paths")
        sources += [{"path": path, "name": name} for path in paths]
    return sources


class DataArgs(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What text to train on, and how it is tokenized."""

    corpus: Annotated[
        Annotated[str, Field(min_length=1)] | Annotated[tuple[SourceArgs, ...], Field(min_length=1)],
        BeforeValidator(_listed),
    ] = PYTHON_SOURCES
    """`python` (the Python sources installed on this machine); a file, folder or pattern of text, JSON lines, Parquet
    or tokens; a saved dataset; a prepared store; each of them also in a place such as `s3://bucket/texts`; what
    `datasets` streams, as `datasets:NAME:CONFIG:SPLIT`; or several sources with weights or names. Sources that need
    no more than a name are written `corpus = { code = "PATH", web = ["PATH", "PATH"] }`."""
    max_megabytes: Annotated[float, Field(gt=0)] = 32
    """Size of the training side, in 10^6 bytes of text."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of the documents that is held out."""
    val_megabytes: Annotated[float, Field(gt=0)] = 0.5
    """Size of the held-out side that is evaluated, in 10^6 bytes of text."""
    tokenizer: str = ""
    """A `tokenizer.json`, a directory that holds one, or `bytes`; empty to train one on the corpus."""
    vocab_size: Annotated[int, Field(ge=257, lt=2**31)] = 1024
    """Entries of the byte-level BPE tokenizer that is trained on the corpus."""
    end_of_text: str = ""
    """The token of `tokenizer` that ends documents; empty for its `eos_token`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the order of the documents, which also decides which of them `max_megabytes` leaves out."""
    max_damaged: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a source that may be damaged, such as bytes that are not in its encoding; more is an error."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.tokenizer and self.vocab_size != DataArgs.model_fields["vocab_size"].default:
            raise ValueError("data.vocab_size is of a tokenizer that is trained; leave it out where one is given")
        if not isinstance(self.corpus, str) and len({source.weight is None for source in self.corpus}) > 1:
            raise ValueError("some sources of data.corpus have a weight and some have none; give all of them one")
        _ = _names(self)  # which says what is wrong with them
        return self

    @property
    def store(self) -> str | None:
        """The location of the prepared store that `corpus` is, if it is one."""
        return self.corpus if isinstance(self.corpus, str) and is_store(self.corpus) else None

    @property
    def preparation(self) -> Preparation:
        """The same as what `prepare_store` is told."""
        sources = [SourceArgs(path=self.corpus)] if isinstance(self.corpus, str) else self.corpus
        weights = [source.weight for source in sources if source.weight is not None]
        return Preparation(
            sources=tuple(Source(one.path, one.field, one.encoding, one.dtype, one.name or "") for one in sources),
            weights=tuple(weights) or None,
            tokenizer=self.tokenizer,
            vocab_size=0 if self.tokenizer else self.vocab_size,
            end_of_text=self.end_of_text,
            max_bytes=self.max_megabytes * 1e6,
            val_fraction=self.val_fraction,
            val_bytes=self.val_megabytes * 1e6,
            seed=self.seed,
            max_damaged=self.max_damaged,
        )


def prepare(
    args: DataArgs, progress: Progress = lambda what, share: None, streams: Streams = MappingProxyType({})
) -> TokenStore:
    """The store of a recipe: opened if it was prepared before, by the user or into the cache, else prepared.

    Args:
        args: the recipe's.
        progress: told what is being done.
        streams: iterables of records for a corpus `stream:NAME`, see `prepare_store`.

    Raises:
        UserError: the text cannot be read, there is too little of it, or a setting does not apply to a store.
    """
    if args.store is None:
        return prepare_store(args.preparation, progress=progress, streams=streams)
    ignored = [
        f"data.{name}"
        for name, field in DataArgs.model_fields.items()
        if name != "corpus" and getattr(args, name) != field.default
    ]
    if ignored:
        raise UserError(f"{args.store} is prepared already, so {', '.join(ignored)} cannot apply; leave it out")
    return TokenStore.open(args.store)


def vocabulary_size(args: DataArgs) -> int:
    """Entries of the vocabulary a recipe's model will have, known before its text is prepared."""
    if args.store is not None:
        return TokenStore.open(args.store).vocab_size
    return load_tokenizer(args.tokenizer, args.end_of_text).vocab_size if args.tokenizer else args.vocab_size


def source_names(args: DataArgs) -> tuple[str, ...]:
    """Names of a recipe's sources, known before its text is prepared; none where they have none."""
    return _names(args) if args.store is None else TokenStore.open(args.store).sources


def _names(args: DataArgs) -> tuple[str, ...]:
    return () if isinstance(args.corpus, str) else checked_names([(one.name or "", one.path) for one in args.corpus])
