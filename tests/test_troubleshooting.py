"""What goes wrong is explained once: in the message, or on the page where a message cannot say it."""

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
REMEDY = re.compile(r"; |expected |\bgive ")
"""A message that goes on so says what to do: "... is in the way; remove it", "expected 1 or more"."""
HOLE = "\N{HORIZONTAL ELLIPSIS}"
"""What a name or number is replaced by in the text of the source."""

PASSED_ON = {
    text.replace("_", HOLE)
    for text in ("_", "__", "_: _", "--stages: _", "superposition.stages, stage _: _", "_ is _; choose one of _")
}
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


def test_an_error_says_what_to_do_or_the_page_does():
    patterns = [pattern(quote) for quote in QUOTED]
    silent = [text for text in sorted(RAISED) if not REMEDY.search(text)]
    missing = [text for text in silent if not any(known.search(text) for known in patterns)]
    assert len(RAISED) > 200
    assert not missing, f"neither say what to do nor are explained in docs/troubleshooting.md: {missing}"


def test_the_page_explains_what_it_quotes():
    """A cell of its own words beside each quote, and none that stands there twice."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert all(len(line.split(" | ", 1)[1]) > 30 for line in rows)
    assert len(QUOTED) == len(set(QUOTED))


def test_quotes_are_long_enough_to_tell_messages_apart():
    for quote in QUOTED:
        assert len(quote.replace("...", "").strip()) >= 12, quote
