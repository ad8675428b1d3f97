"""Real text of the machine for training: sources and pages of what Python and the system have installed, as tokens.

    python -m gpu.text FOLDER MEGABYTES VOCAB_SIZE [ROOT ...]

A process of its own that writes train.npy and val.npy (uint16) and, last, text.json into FOLDER.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = frozenset((".py", ".pyi", ".h", ".hpp", ".cuh", ".cu", ".c", ".cpp", ".md", ".rst", ".txt", ".js", ".html"))
END = "<|end|>"


def main(folder: Path, megabytes: int, vocab_size: int, roots: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    began = time.monotonic()
    texts = list(files(1_000_000 * megabytes, roots))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[:: max(1, megabytes // 20)], trainer)
    end = tokenizer.token_to_id(END)
    parts: dict[str, list[np.ndarray[Any, Any]]] = {"train": [], "val": []}
    for start in range(0, len(texts), 1000):
        for number, encoding in enumerate(tokenizer.encode_batch_fast(texts[start : start + 1000])):
            name = "val" if (start + number) % 100 == 99 else "train"
            parts[name].append(np.array([*encoding.ids, end], np.uint16))
    tokens = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    for name, array in tokens.items():
        np.save(folder / f"{name}.npy", array)
    facts = {
        **{"documents": len(texts), "megabytes": round(sum(len(text) for text in texts) / 1e6, 1)},
        **{f"{name}_tokens": len(array) for name, array in tokens.items()},
        **{"vocab_size": tokenizer.get_vocab_size(), "seconds": round(time.monotonic() - began, 1)},
    }
    (folder / "text.tmp").write_text(json.dumps(facts))
    (folder / "text.tmp").replace(folder / "text.json")


def files(characters: int, roots: list[str]) -> Iterator[str]:
    """Texts of 500 to 200,000 characters, each once, in an order that mixes packages, until there are `characters`."""
    found = (
        Path(folder) / name
        for root in roots
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix in SUFFIXES
    )
    seen: set[int] = set()
    # By a name's bytes, and not by its hash(), which is another in each process.
    for path in sorted(dict.fromkeys(found), key=lambda path: (sum(map(ord, path.stem)) * 7919 % 1009, str(path))):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 500 <= len(text) <= 200_000 and hash(text) not in seen:
            seen.add(hash(text))
            yield text
            characters -= len(text)
        if characters <= 0:
            return


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4:] or [*sys.path, "/usr/include", "/usr/share/doc"],
    )
