"""Docstrings are written to be read in the source; this gives their code and tables the marks that Markdown wants."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from griffe import Extension

RULED = re.compile(r"^=+(?: +=+)+\n(?:.+\n)*=+(?: +=+)+$", re.MULTILINE)
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n((?:    .*\n|\n)+)", re.MULTILINE)
TERM = re.compile(r"(?<=\n\n)([A-Z][^\n.:]*)\n((?:    .+\n)+)")
CODE = re.compile(r"::\n\n((?:    .*\n|\n)+)")


class ForMarkdown(Extension):  # type: ignore[misc]  # griffe is absent where this is checked
    """`::` before code becomes `:`; a table between rules, one of Markdown; parameters of one line, a line each;
    what is returned, a paragraph, since its type stands in the signature."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.is_alias or obj.docstring is None:
            return
        text = obj.docstring.value + "\n"
        text = RETURNS.sub(lambda section: f"**Returns:** {dedent(section[1])}\n", text)
        text = TERM.sub(lambda term: f"**{term[1]}.** {dedent(term[2])}", text)
        text = RULED.sub(_table, text)
        text = SEVERAL.sub(lambda line: "\n".join(f"{line[1]}{name}: {line[3]}" for name in line[2].split(", ")), text)
        obj.docstring.value = CODE.sub(lambda code: f":\n\n{code[1]}", text).rstrip()


def _table(ruled: re.Match[str]) -> str:
    rule, *lines = ruled[0].splitlines()
    places = [column.start() for column in re.finditer("=+", rule)]
    cuts = [slice(start, stop) for start, stop in zip(places, [*places[1:], None], strict=True)]
    rows = [[line[cut].strip() for cut in cuts] for line in lines if not line.startswith("=")]
    head = [rows.pop(0) if lines[1].startswith("=") else [""] * len(cuts), ["---"] * len(cuts)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])
