"""Docstrings are written to be read in the source; this gives their code and tables the marks that Markdown wants."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

RULED = re.compile(r"^=+(?: +=+)+\n(?:.*\n)+?=+(?: +=+)+$", re.MULTILINE)
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
CODE = re.compile(r"::\n\n((?:    .*\n|\n)+)")


class ForMarkdown(Extension):  # type: ignore[misc]  # griffe is absent where this is checked
    """`::` before code becomes `:`; a table between rules, text as it stands; parameters of one line, a line each."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.is_alias or obj.docstring is None:
            return
        text = obj.docstring.value + "\n"
        text = RULED.sub(lambda table: f"```text\n{table[0]}\n```", text)
        text = SEVERAL.sub(lambda line: "\n".join(f"{line[1]}{name}: {line[3]}" for name in line[2].split(", ")), text)
        obj.docstring.value = CODE.sub(lambda code: f":\n\n{code[1]}", text).rstrip()
