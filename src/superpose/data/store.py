"""Tokens on disk: memory-mapped shards with document boundaries, and a manifest that says what they are.

    STORE/manifest.json         format, versions, sources, tokenizer, and for each shard its counts and checksums
    STORE/tokenizer/            as Hugging Face saves it
    STORE/train-00000.tokens    uint16 or uint32, by vocabulary, little-endian; documents one after another,
    STORE/val-00000.tokens      each ended by the end-of-text token
    STORE/train-00000.offsets   uint64: where each document of the shard starts, and where the last one ends
    STORE/val-00000.offsets
    STORE/train-00000.sources   uint16, of named sources only: the number of each document's source
    STORE/val-00000.sources

`superpose.data.prepare` writes stores; a directory with a manifest is whole.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from superpose.copies import local_copy
from superpose.data.account import Account
from superpose.data.sources import MOST_SOURCES, SOURCE_NAME, NamedSource, SourceTokens, sources_of
from superpose.data.tokens import TokenArray, TokenText
from superpose.errors import UserError
from superpose.files import file_sha256, read_json
from superpose.places import is_file, is_remote, join

FORMAT = "superpose tokens 3"


@dataclass(frozen=True)
class Split:
    """One side of a store."""

    tokens: TokenText
    """All documents one after another."""
    offsets: npt.NDArray[np.int64]
    """Start of each document and end of the last, [documents + 1]."""
    bytes: int
    """UTF-8 bytes of the text, ends of documents not counted."""
    sources: Mapping[str, NamedSource] = field(default_factory=dict)
    """By name; empty where sources have none."""

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    def alone(self, name: str) -> "Split":
        """The side as if its documents of one named source were all there is."""
        source = self.sources[name]
        return Split(SourceTokens(self.tokens, source), source.offsets, source.bytes)


class _Counts(BaseModel):
    """Of one named source in a shard."""

    tokens: Annotated[int, Field(ge=0)]
    documents: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]


class _Shard(BaseModel):
    name: Annotated[str, Field(pattern=r"^(train|val)-\d{5,}$")]
    tokens: Annotated[int, Field(gt=0)]
    documents: Annotated[int, Field(gt=0)]
    bytes: Annotated[int, Field(ge=0)]
    sources: list[_Counts] = []


_Side = Annotated[dict[Literal["shards"], Annotated[list[_Shard], Field(min_length=1)]], Field(min_length=1)]


def _balanced(account: Account) -> Account:
    if account.balance:
        raise ValueError(f"{account.balance} bytes are unaccounted for; expected none")
    return account


_Balanced = Annotated[Account, AfterValidator(_balanced)]


class _Manifest(BaseModel, strict=True):
    """What is relied on; paths stay inside the store."""

    fingerprint: str
    inputs: str
    vocab_size: Annotated[int, Field(gt=0)]
    end_of_text: Annotated[int, Field(ge=0)]
    dtype: Literal["<u2", "<u4"]
    splits: Annotated[dict[Literal["train", "val"], _Side], Field(min_length=2)]
    preparation: dict[str, Any]
    accounts: Annotated[list[_Balanced], Field(min_length=1)]
    sources: Annotated[list[Annotated[str, Field(pattern=SOURCE_NAME)]], Field(max_length=MOST_SOURCES)] = []
    sha256: dict[Annotated[str, Field(pattern=r"^([\w-][\w.-]*|tokenizer/[\w-][\w.-]*\.(json|jinja))$")], str]

    @model_validator(mode="after")
    def _each_shard_counts_every_source(self) -> Self:
        if any(len(shard.sources) != len(self.sources) for side in self.splits.values() for shard in side["shards"]):
            raise ValueError(f"a shard counts other sources than those named; expected {len(self.sources)} of them")
        return self


def is_store(location: str) -> bool:
    """Whether there is a prepared store; a UserError if a remote place does not answer."""
    return is_file(join(location, "manifest.json"))


def _on_this_machine(location: str) -> Path:
    """The copy in the cache of a store in a remote place, made unless it is there."""
    if not is_store(location):
        raise UserError(f"{location} holds no manifest.json; give the place of a whole store")
    alone = local_copy(location, {"manifest.json": None})
    try:
        checksums = _Manifest.model_validate(read_json(alone / "manifest.json")).sha256
    except ValidationError:
        # What is wrong with it is said where it is opened.
        return alone
    return local_copy(location, {**checksums, "manifest.json": file_sha256(alone / "manifest.json")})


@dataclass(frozen=True)
class TokenStore:
    """An opened store; `TokenStore.open` checks that it is whole."""

    path: Path
    """Its directory; of a store in a remote place, that of the copy in the cache."""
    manifest: dict[str, Any]

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Opens a store and maps its tokens; one in a remote place is first copied into the cache.

        Raises:
            UserError: a file is missing, altered, of another size than the manifest says, or of an unknown format.
        """
        path = _on_this_machine(location) if isinstance(location, str) and is_remote(location) else Path(location)
        manifest, where = read_json(path / "manifest.json"), join(str(location), "manifest.json")
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{where} has format {manifest.get('format')!r}, this version reads {FORMAT!r}; "
                f"remove {location} and prepare it again"
            )
        try:
            _Manifest.model_validate(manifest)
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{where} was altered: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; "
                f"remove {location} and prepare it again"
            ) from None
        store = cls(path, manifest)
        _ = store.train, store.val
        return store

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def val(self) -> Split:
        return self._split("val")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that a stage's mixture shares out; empty where they have none."""
        return tuple(self.manifest.get("sources", ()))

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def end_of_text(self) -> int:
        return int(self.manifest["end_of_text"])

    @property
    def accounts(self) -> list[Account]:
        """Where the bytes of each source went."""
        return [Account.model_validate(account) for account in self.manifest["accounts"]]

    @property
    def fingerprint(self) -> str:
        """Identifies tokens and tokenizer; equal for equal text and settings, wherever the text lay."""
        return str(self.manifest["fingerprint"])

    @property
    def facts(self) -> dict[str, Any]:
        """What results tell of their text."""
        return {name: self.manifest[name] for name in ("fingerprint", "preparation", "vocab_size", "splits")}

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer"

    def tokenizer_files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file of the tokenizer, as it was written.

        Raises:
            UserError: one was altered, or is not there.
        """
        for name, checksum in self.manifest["sha256"].items():
            if name.startswith("tokenizer/"):
                content = (self.path / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != checksum:
                    raise UserError(f"{self.path / name} was altered; remove {self.path} and prepare it again")
                yield name.removeprefix("tokenizer/"), content

    def describe(self) -> str:
        """What the store holds, in a few lines."""
        lines = []
        for side in ("train", "val"):
            split = self._split(side)
            shards = len(self.manifest["splits"][side]["shards"])
            lines.append(
                f"{side}: {split.documents:,} documents, {len(split.tokens):,} tokens, {split.bytes / 1e6:,.1f} MB of "
                f"text ({split.bytes / len(split.tokens):.2f} bytes per token), {shards} shard{'s' * (shards > 1)}"
            )
            lines += (
                f"  {name}: {source.documents:,} documents, {source.num_tokens:,} tokens "
                f"({source.num_tokens / len(split.tokens):.1%}), {source.bytes / 1e6:,.1f} MB of text"
                for name, source in split.sources.items()
            )
        lines.append(f"vocabulary {self.vocab_size:,}, end of text {self.end_of_text}")
        lines += (account.describe() for account in self.accounts)
        return "\n".join(lines)

    def verify(self) -> list[str]:
        """Compares every file with its checksum, every id with the vocabulary, every offset with its neighbours.

        Returns:
            What is wrong, a sentence for each file; empty if all is well.
        """
        problems = []
        for name, checksum in sorted(self.manifest["sha256"].items()):
            file = self.path / name
            if not file.is_file():
                problems.append(f"{file} is missing")
            elif file_sha256(file) != checksum:
                problems.append(f"{file} was altered since it was written")
        for side in ("train", "val"):
            offsets = self._split(side).offsets
            if offsets[0] != 0 or (np.diff(offsets) < 1).any():
                problems.append(f"{self.path}: the offsets of {side} do not ascend")
        return problems

    def _split(self, side: str) -> Split:
        shards = self.manifest["splits"][side]["shards"]
        tokens = [self._map(f"{shard['name']}.tokens", self.manifest["dtype"], shard["tokens"]) for shard in shards]
        offsets = [np.zeros(1, dtype=np.int64)]
        for shard in shards:
            within = self._map(f"{shard['name']}.offsets", "<u8", shard["documents"] + 1)
            offsets.append(within[1:].astype(np.int64) + offsets[-1][-1])
        bounds = np.concatenate(offsets)
        files = [str(self.path / f"{shard['name']}.tokens") for shard in shards]
        return Split(
            TokenArray(tokens, files, self.vocab_size),
            bounds,
            sum(shard["bytes"] for shard in shards),
            self._sources(shards, bounds),
        )

    def _sources(self, shards: list[dict[str, Any]], offsets: npt.NDArray[np.int64]) -> Mapping[str, NamedSource]:
        if not self.sources:
            return {}
        origins = [self._map(f"{shard['name']}.sources", "<u2", shard["documents"]) for shard in shards]
        sizes = [sum(shard["sources"][number]["bytes"] for shard in shards) for number in range(len(self.sources))]
        sources = sources_of(self.sources, np.concatenate(origins), offsets, sizes)
        for number, (name, source) in enumerate(sources.items()):
            counted = sum(shard["sources"][number]["tokens"] for shard in shards)
            if counted != source.num_tokens:
                raise UserError(
                    f"{self.path} has {source.num_tokens:,} tokens of the source {name}, its manifest says "
                    f"{counted:,}; remove it and prepare it again"
                )
        return sources

    def _map(self, name: str, dtype: str, length: int) -> npt.NDArray[Any]:
        path = self.path / name
        expected = length * np.dtype(dtype).itemsize
        actual = path.stat().st_size if path.is_file() else 0
        if actual != expected or expected == 0:
            raise UserError(
                f"{path} has {actual} bytes, its manifest says {expected}; remove {self.path} and prepare it again"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
