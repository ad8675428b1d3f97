"""Tokenizers: trained on the spot, plain bytes, or anyone's from disk; saved as Hugging Face saves its own.

One rule turns text into ids, in preparation, generation and evaluation alike: `tokenizer.json` without its template
(nothing is put before or after a text), and a special token that a text spells out is text. Tokens that are added but
not special are found in a text, as their tokenizer has it. The id that ends documents comes of no text at all.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from superpose.errors import UserError, first_line
from superpose.files import cache_directory, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
"""Ends every document, in the tokenizers made here."""

BYTES = "bytes"
"""Names the tokenizer that needs no training: the 256 bytes and the end of text."""

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What Hugging Face may save of a tokenizer of this kind; its settings and templates among them."""

_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that read `tokenizer.json` and nothing else; two names of one."""

TRAINING_BYTES = 16 * 2**20
"""Text a tokenizer is trained on. Merges settle long before: more costs time and changes rare entries only."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the token that ends documents; `train_tokenizer` and `load_tokenizer` make them."""

    tokenizer: Tokenizer
    """Set to take special tokens that are spelled out for text."""
    end_of_text: int
    directory: Path | None = None
    """Where Hugging Face saved it, if it was loaded from such a directory."""

    @property
    def end_of_text_token(self) -> str:
        token = self.tokenizer.id_to_token(self.end_of_text)
        assert token is not None
        return token

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
        return None if None in ids or self.end_of_text in ids else np.array(ids, dtype=np.uint32)

    @cached_property
    def words(self) -> "Words | None":
        """Encodes text by its words, where the tokenizer treats each word by itself: several times faster."""
        settings = json.loads(self.tokenizer.to_str())
        splits = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        before = settings["pre_tokenizer"] or {}
        apart = (
            all(before.get(name) == value for name, value in splits.items())
            and settings["model"]["type"] == "BPE"
            and not settings["model"].get("dropout")
            and not settings["normalizer"]
            and all(added.special for added in self.tokenizer.get_added_tokens_decoder().values())
        )
        return Words(self.encode) if apart else None

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text: nothing is put before or after it, and none of them is `end_of_text`.

        Raises:
            UserError: a text cannot be written without the token that ends documents.
        """
        # The fast variant leaves out the places of tokens in the text, which are seldom asked for.
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        encoded = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return [
            self._encode_apart(text) if (ids == self.end_of_text).any() else ids
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _encode_apart(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of a text that spells out the end of text, cut inside each place where it does."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        found = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == self.end_of_text]
        cuts = [0, *(start + 1 for start, stop in found if stop - start > 1), len(text)]
        if len(cuts) == 2:
            raise UserError(
                f"the tokenizer writes text with {self.end_of_text_token!r}, which is to end documents; "
                f"name another token with end_of_text"
            )
        return np.concatenate(self.encode([text[start:stop] for start, stop in pairwise(cuts)]))


class Words(dict[str, bytes]):
    """The ids of words met before; text repeats its words, and looking one up is cheaper than parsing it."""

    # Where byte-level tokenizers cut text into words (GPT-2's rule), for ASCII, in which all engines agree.
    _CUTS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
    # No word runs from what is seen into a line's end, whatever the text, so lines can be taken apart there.
    _LINES = re.compile(r"(?<=[!-~])(?=\n)")
    _MOST = 2**18

    def __init__(self, encode: Callable[[Sequence[str]], list[npt.NDArray[np.uint32]]]) -> None:
        self._encode = encode

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Ids of a text; of lines that are not ASCII, as the tokenizer has them."""
        if text.isascii():
            return np.frombuffer(self._ascii(text), dtype=np.uint32)
        stretches = [(ascii, "".join(lines)) for ascii, lines in groupby(self._LINES.split(text), str.isascii)]
        others = iter(self._encode([stretch for ascii, stretch in stretches if not ascii]))
        ids = b"".join(self._ascii(stretch) if ascii else next(others).tobytes() for ascii, stretch in stretches)
        return np.frombuffer(ids, dtype=np.uint32)

    def _ascii(self, text: str) -> bytes:
        words = self._CUTS.findall(text)
        ids: list[Any] = list(map(self.get, words))
        if None not in ids:
            return b"".join(ids)
        # New words go to the tokenizer together: a call takes it longer than a word.
        new = list({word for word, known in zip(words, ids, strict=True) if known is None})
        learned = dict(zip(new, (own.tobytes() for own in self._encode(new)), strict=True))
        if len(self) + len(learned) <= self._MOST:
            self.update(learned)
        return b"".join(learned[word] if known is None else known for word, known in zip(words, ids, strict=True))


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
    tokenizer.encode_special_tokens = True
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
    tokenizer = read_tokenizer(file)
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
    tokenizer = _with_special(tokenizer, number)
    tokenizer.encode_special_tokens = True
    return TextTokenizer(tokenizer, number, path if path.is_dir() else None)


def read_tokenizer(file: Path) -> Tokenizer:
    """What is in a tokenizer.json; a UserError if that is no tokenizer."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises its own bare Exception
        raise UserError(
            f"{file} is not a tokenizer ({first_line(error)[:200]}); give a Hugging Face tokenizer.json"
        ) from None


def save_tokenizer(text_tokenizer: TextTokenizer, directory: Path) -> None:
    """Writes a directory from which `AutoTokenizer.from_pretrained` loads a tokenizer that gives the same ids.

    Of one that Hugging Face saved, settings and chat templates go along. The template of its `tokenizer.json`, which
    would put `<s>` or `</s>` around what is encoded, does not, nor does a class that reads it in a way of its own.

    Raises:
        UserError: on a sample of text, what transformers loads gives other ids than training reads.
    """
    if text_tokenizer.directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (text_tokenizer.directory / name).is_file():
                shutil.copy(text_tokenizer.directory / name, directory)
    else:
        from transformers import PreTrainedTokenizerFast

        token = text_tokenizer.end_of_text_token
        fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
            tokenizer_object=text_tokenizer.tokenizer,
            eos_token=token,
            bos_token=token,
            clean_up_tokenization_spaces=False,
        )
        fast.save_pretrained(directory)
    _plain(directory, text_tokenizer.end_of_text_token)
    # To load it with transformers takes seconds, and this decides what comes of it.
    parts = [file.read_bytes() for name in FILES if (file := directory / name).is_file()]
    parts += [version(name).encode() for name in ("superpose", "tokenizers", "transformers")]
    known = cache_directory() / "tokenizers" / hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    if known.exists():
        return
    if other := difference(text_tokenizer, directory):
        place = text_tokenizer.directory or "the tokenizer"
        raise UserError(f"{place}: {other}; give its tokenizer.json alone, with end_of_text")
    known.parent.mkdir(parents=True, exist_ok=True)
    known.touch()


def tokenizer_identity(file: Path) -> str:
    """The same for each `tokenizer.json` that turns text into the same ids; templates are not looked at."""
    settings = read_json(file)
    for name in ("post_processor", "padding", "truncation"):
        settings.pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _plain(directory: Path, end_of_text: str) -> None:
    """Has transformers read `tokenizer.json` alone, that put nothing around a text, and generation stop at the end of
    text; rewrites only what differs."""
    settings = read_json(directory / "tokenizer.json")
    processor = settings.get("post_processor") or {}
    parts = processor.get("processors", [processor] if processor else [])
    kept = [part for part in parts if part["type"] == "ByteLevel"]  # of the places of tokens, not of their ids
    if len(kept) < len(parts):
        write_json(directory / "tokenizer.json", settings | {"post_processor": kept[0] if kept else None})
    file = directory / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    plain: dict[str, Any] = {name: False for name in ("add_bos_token", "add_eos_token") if config.get(name)}
    if _eos_token(file) != end_of_text:
        plain["eos_token"] = end_of_text
    if config.get("tokenizer_class") not in _PLAIN_CLASSES:
        plain["tokenizer_class"] = "PreTrainedTokenizerFast"
    if plain or "auto_map" in config:
        config.pop("auto_map", None)
        try:
            write_json(file, config | plain)
        except ValueError:
            raise UserError(
                f"{file.name} of the tokenizer holds NaN or an infinity, which JSON does not have; write a number there"
            ) from None


def difference(text_tokenizer: TextTokenizer, directory: Path) -> str | None:
    """What `AutoTokenizer.from_pretrained(directory)` makes other ids of than training reads, in words; None if it
    gives the same ids for a sample of text."""
    file = directory / "tokenizer_config.json"
    try:
        named = read_json(file).get("tokenizer_class") if file.is_file() else None
        if named in _PLAIN_CLASSES and not (directory / "config.json").is_file():
            # Without a model's configuration AutoTokenizer takes the class that is named, and is seconds to import.
            from transformers import PreTrainedTokenizerFast as Loader
        else:
            from transformers import AutoTokenizer as Loader
        loaded = Loader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises for settings that do not go together
        return f"AutoTokenizer cannot load it ({first_line(error)[:200]})"
    texts = _sample(text_tokenizer)
    try:
        theirs = loaded(texts, split_special_tokens=True)["input_ids"]
    except Exception as error:  # of settings that do not go together, some show only here
        return f"{type(loaded).__name__}, which AutoTokenizer takes, cannot encode ({first_line(error)[:200]})"
    for text, ids, other in zip(texts, text_tokenizer.encode(texts), theirs, strict=True):
        own = ids.tolist()
        if own != other:
            same = next((n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), 0)
            return (
                f"{type(loaded).__name__}, which AutoTokenizer takes, reads {text[:40]!r} as "
                f"{other[same : same + 4]} where tokenizer.json reads {own[same : same + 4]}"
            )
    return None


def _sample(text_tokenizer: TextTokenizer) -> list[str]:
    """Text in which tokenizers differ: blanks, scripts, bytes, spelled-out tokens, and some of the vocabulary."""
    blanks = ["", " ", "  ", " the", "  the", "the  end ", "\n\tthe\r\n\n end\n", "the\u00a0\u3000end"]
    scripts = [
        "It's 1,234.50 they'LL",
        "naïve Ünïcode",
        "語言 モデル 언어",
        "язык لغة भाषा",
        "e\u0301 ﬁ \uff21",
        "🙂👩‍👩‍👧 \u0000\u200b",
    ]
    added = sorted(text_tokenizer.tokenizer.get_added_tokens_decoder().items())
    words = [token.content for number, token in added if number != text_tokenizer.end_of_text][:100]
    spelled = [f"a{word}b {word} c" for word in words]
    step = max(1, text_tokenizer.vocab_size // 2000)
    ids = [number for number in range(0, text_tokenizer.vocab_size, step) if number != text_tokenizer.end_of_text]
    decoded = text_tokenizer.tokenizer.decode_batch([ids[start : start + 50] for start in range(0, len(ids), 50)])
    return [*blanks, *scripts, *spelled, *decoded]


def _with_special(tokenizer: Tokenizer, number: int) -> Tokenizer:
    """The same tokenizer, with this one of its added tokens special."""
    if getattr(tokenizer.get_added_tokens_decoder().get(number), "special", True):
        return tokenizer
    settings: dict[str, Any] = json.loads(tokenizer.to_str())
    for added in settings["added_tokens"]:
        added["special"] |= added["id"] == number
    return Tokenizer.from_str(json.dumps(settings))


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
