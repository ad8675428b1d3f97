"""superpose's own recipes, found by name: demo, cpu-tiny, cpu-small, gpt2-124m and the paper's four models."""

from pathlib import Path

from superpose.errors import UserError

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def find_recipe(name_or_path: Path | str) -> Path:
    """The file of a recipe that is named by a path, or as one of `NAMES`.

    A file wins over a name. What looks like a path, with a folder or a suffix, is left to whoever reads it.

    Raises:
        UserError: a bare name that is neither a file nor one of ours.
    """
    path = Path(name_or_path)
    if path.is_file() or path.suffix or path.name != str(path):
        return path
    if path.name not in NAMES:
        raise UserError(
            f"recipe {path} is no file, and none of superpose's own: {', '.join(NAMES)}; give a file or one of these"
        )
    return FOLDER / f"{path.name}.toml"
