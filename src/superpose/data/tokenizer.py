"""Tokenizers: trained on the spot, plain bytes, or anyone's from disk; saved as Hugging Face saves its own."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from superpose.errors import UserError, first_line
from superpose.files import read_json

END_OF_TEXT = "<|endoftext|>"
"""Ends every document, in the tokenizers made here."""

BYTES = "bytes"
"""Names the tokenizer that needs no training: the 256 bytes and the end of text."""

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What Hugging Face may save of a tokenizer of this kind; its settings and templates among them."""

TRAINING_BYTES = 16 * 2**20
"""Text a tokenizer is trained on. Merges settle long before: more costs time and changes rare entries only."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the token that ends documents."""

    tokenizer: Tokenizer
    end_of_text: int
    directory: Path | None = None
    """Where Hugging Face saved it, if it was loaded from such a directory."""

    @cached_property
    def vocab_size(self) -> int:
        """Ids are below this number; it counts gaps in the ids too."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def byte_ids(self) -> npt.NDArray[np.uint32] | None:
        """The id of each byte [256], where every byte is a token and nothing is merged; text is not parsed then."""
        settings = json.loads(self.tokenizer.to_str())
        byte_level = (settings["pre_tokenizer"] or {}).get("type") == "ByteLevel"
        if not byte_level or settings["normalizer"] or settings["model"].get("merges") != []:
            return None
        ids = [self.tokenizer.token_to_id(character) for character in _byte_characters()]
        return None if None in ids else np.array(ids, dtype=np.uint32)

    @cached_property
    def words(self) -> "Words | None":
        """Encodes ASCII text by its words, where the tokenizer treats each word by itself: several times faster."""
        settings = json.loads(self.tokenizer.to_str())
        splits = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        before = settings["pre_tokenizer"] or {}
        apart = (
            all(before.get(name) == value for name, value in splits.items())
            and settings["model"]["type"] == "BPE"
            and not settings["model"].get("dropout")
            and not settings["normalizer"]
            and all(added.special for added in self.tokenizer.get_added_tokens_decoder().values())
            and self.tokenizer.encode_special_tokens
        )
        return Words(self.tokenizer) if apart else None


class Words(dict[str, bytes]):
    """The ids of words met before; text repeats its words, and looking one up is cheaper than parsing it."""

    # Where byte-level tokenizers cut text into words (GPT-2's rule), for ASCII, in which all engines agree.
    _CUTS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
    _MOST = 2**18

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, dtype=np.uint32).tobytes()
        if len(self) < self._MOST:
            self[word] = ids
        return ids

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Ids of an ASCII text."""
        return np.frombuffer(b"".join(map(self.__getitem__, self._CUTS.findall(text))), dtype=np.uint32)


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> TextTokenizer:
    """Byte-level BPE: any text can be encoded, and decoding gives it back exactly.

    Args:
        texts: what to train on.
        vocab_size: entries; the 256 bytes, the end of text and the special tokens included, or it is a ValueError.
        special_tokens: more of them, which text never turns into.
    """
    special = list(dict.fromkeys([END_OF_TEXT, *special_tokens]))
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone take {256 + len(special)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None
    return TextTokenizer(tokenizer, end_of_text)


def load_tokenizer(location: str, end_of_text: str = "") -> TextTokenizer:
    """Reads a tokenizer from disk; a UserError if there is none, or nothing says which token ends documents.

    Args:
        location: a `tokenizer.json`, a directory that holds one (as Hugging Face saves them), or `BYTES`.
        end_of_text: the token that ends documents; by default the directory's `eos_token`.
    """
    if location == BYTES:
        return train_tokenizer([], 257)
    path = Path(location)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"tokenizer {location} is not there; give a tokenizer.json, a directory that holds one, or '{BYTES}'"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises its own bare Exception
        raise UserError(
            f"{file} is not a tokenizer ({first_line(error)[:200]}); give a Hugging Face tokenizer.json"
        ) from None
    token = end_of_text or _eos_token(file.parent / "tokenizer_config.json")
    special = [added.content for added in tokenizer.get_added_tokens_decoder().values()]
    if not token:
        raise UserError(
            f"{file} does not say which token ends a document; name it with end_of_text"
            + (f", such as one of its special tokens: {', '.join(special[:8])}" if special else "")
        )
    # Half a surrogate pair, which JSON can spell, is in no vocabulary.
    number = None if re.search("[\ud800-\udfff]", token) else tokenizer.token_to_id(token)
    if number is None:
        raise UserError(f"{file} has no token {token!r} to end documents; its special tokens: {', '.join(special[:8])}")
    # Padding and truncation are for inference: here every token of a document counts.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return TextTokenizer(tokenizer, number, path if path.is_dir() else None)


def save_tokenizer(text_tokenizer: TextTokenizer, directory: Path) -> None:
    """Writes a directory that `AutoTokenizer.from_pretrained` loads."""
    if text_tokenizer.directory is not None:
        # Its settings and templates go with it unchanged.
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (text_tokenizer.directory / name).is_file():
                shutil.copy(text_tokenizer.directory / name, directory)
        return
    from transformers import PreTrainedTokenizerFast

    token = text_tokenizer.tokenizer.id_to_token(text_tokenizer.end_of_text)
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=text_tokenizer.tokenizer,
        eos_token=token,
        bos_token=token,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def _byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes in byte-level vocabularies: visible ones for themselves."""
    characters, others = set(pre_tokenizers.ByteLevel.alphabet()), iter(range(256, 512))
    return [chr(byte if chr(byte) in characters else next(others)) for byte in range(256)]


def _eos_token(config: Path) -> str:
    if not config.is_file():
        return ""
    token = read_json(config).get("eos_token")
    if isinstance(token, dict):  # an AddedToken written out
        token = token.get("content")
    return token if isinstance(token, str) else ""
