"""Imports go down only, from floor to floor, as docs/architecture.md has it; and that page names what there is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "superpose"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FLOORS = {
    room: int(floor)
    for floor, rooms in re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE)
    for room in re.findall(r"`(\w+)`", rooms)
} | {"__main__": 11}
LAZY = {"cli", "__main__"}
"""Rooms that import inside functions."""


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Pairs of a room and whether it is imported inside a function."""

    def of(node, inside):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "superpose":
            names = [node.module] if "." in node.module else [f"superpose.{alias.name}" for alias in node.names]
            yield from ((name.split(".")[1], inside) for name in names)
        if isinstance(node, ast.Import):
            yield from ((n.name.split(".")[1], inside) for n in node.names if n.name.startswith("superpose."))
        for child in ast.iter_child_nodes(node):
            yield from of(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)), "relative import"
    return [(room, inside) for room, inside in of(tree, False) if room in FLOORS and room != room_of(path)]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(path):
    here = room_of(path)
    for room, inside in imports(path):
        assert FLOORS[room] < FLOORS[here], f"{here} is not above {room}"
        assert not inside or here in LAZY, f"{room} is imported inside a function"


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in MODULES}
    assert rooms <= set(FLOORS)
    assert set(FLOORS) - rooms <= {"lazy"}


def test_the_page_names_files_that_there_are():
    named = re.findall(r"`((?:\w+/)+\w+\.\w+|\w+\.py)`", PAGE)
    assert len(named) > 30
    for name in named:
        places = (ROOT / name, PACKAGE / name, *(room / name for room in PACKAGE.iterdir() if room.is_dir()))
        assert any(place.exists() for place in places) or "VERB" in name, name


def test_the_picture_shows_every_room():
    picture = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    for room in set(FLOORS) - {"__main__", "errors", "files", "lazy", "places", "copies"}:
        assert re.search(rf">{room}<", picture), room
