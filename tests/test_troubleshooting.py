"""The page of messages holds the messages that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    quote
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]
HOLE = "\N{HORIZONTAL ELLIPSIS}"
"""What a name or number is replaced by in the text of the source."""

PASSED_ON = {text.replace("_", HOLE) for text in ("_", "__", "_: _", "--stages: _", "_ is _; choose one of _")}
"""Messages that say what another says, and have no words of their own."""


def words(node):
    """The text of a string, formatted or not, with holes for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else HOLE for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words(node.left) + words(node.right)
    return HOLE


NODES = [
    node
    for path in sorted((ROOT / "src").rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Raise | ast.Constant | ast.JoinedStr)
]
STRINGS = {words(node) for node in NODES if not isinstance(node, ast.Raise)}
RAISED = {
    words(node.exc.args[0])
    for node in NODES
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    if node.exc.func.id in ("UserError", "ValueError", "LostRankError") and node.exc.args
} - PASSED_ON


def pattern(quote):
    return re.compile(".*".join(re.escape(part.strip()) for part in quote.split("...")), re.DOTALL)


def test_every_quoted_message_is_in_the_source():
    for quote in QUOTED:
        assert any(map(pattern(quote).search, STRINGS)), f"no message of superpose says: {quote}"


def test_every_error_is_on_the_page():
    patterns = [pattern(quote) for quote in QUOTED]
    missing = [text for text in sorted(RAISED) if not any(known.search(text) for known in patterns)]
    assert len(RAISED) > 200
    assert not missing, f"docs/troubleshooting.md explains none of: {missing}"


def test_quotes_are_long_enough_to_tell_messages_apart():
    for quote in QUOTED:
        assert len(quote.replace("...", "").strip()) >= 12, quote
