"""English text from two Debian packages, as JSON lines: a dictionary of 1913 and an encyclopedic FAQ, 51 MB.

    apt-get download dict-gcide anarchism
    python benchmarks/corpora.py dict-gcide_*.deb anarchism_*.deb --out english.jsonl

An entry of the dictionary and a chapter of the FAQ is a document. What is written depends on the packages alone:
Debian 12 has dict-gcide 0.48.5+nmu2 and anarchism 15.3-3. `dpkg-deb` unpacks them; nothing is installed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

SHORTEST = 40
"""Characters of an entry worth keeping; shorter ones only refer to others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        for package in arguments.packages:
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        documents = [*faq(Path(folder)), *dictionary(Path(folder))]
    arguments.out.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    print(f"{len(documents):,} documents, {sum(map(len, documents)) / 1e6:.1f} million characters: {arguments.out}")


def faq(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("usr/share/doc/anarchism/markdown/*.md*")):
        raw = path.read_bytes()
        yield (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace")


def dictionary(root: Path) -> Iterator[str]:
    """Entries: what follows a line that is not indented, up to the next."""
    for path in root.glob("usr/share/dictd/gcide.dict.dz"):
        text = gzip.decompress(path.read_bytes()).decode(errors="replace")
        yield from (entry for entry in re.split(r"\n(?=\S)", text) if len(entry) > SHORTEST)


if __name__ == "__main__":
    main()
