"""Errors that are the user's to mend, and nobody's to read a traceback for."""

import re

_LONGEST = 800
"""Characters of a message; a person reads no more, and what is quoted in it may be of any size."""


def first_line(error: BaseException) -> str:
    """What an error of others says first, with types as people write them; its class, if it says nothing."""
    return _without_classes((str(error).strip() or type(error).__name__).splitlines()[0])


def last_line(error: BaseException) -> str:
    """What an error of others says at its end, with types as people write them."""
    return _without_classes((str(error).strip() or type(error).__name__).splitlines()[-1].strip())


def _without_classes(line: str) -> str:
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)


def printable(text: str) -> str:
    """Text from outside with blanks for its control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


class UserError(ValueError):
    """One clear sentence: which file or setting, what was expected, what to do. The command line exits with 2.

    What it quotes comes from anywhere, so control characters are spelled out, and of a long message the two ends stay.
    """

    def __init__(self, message: str) -> None:
        shown = "".join(part if part.isprintable() or part == "\n" else repr(part)[1:-1] for part in message)
        half = _LONGEST // 2
        super().__init__(shown if len(shown) <= _LONGEST else f"{shown[: half - 3]} ... {shown[-half:]}")

    @classmethod
    def from_system(cls, error: OSError) -> "UserError":
        """A file that cannot be made, read or written: no permission, no such folder, no space left."""
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or type(error).__name__
        return cls(f"{place}{reason}; check the path, your permission to write there and the space on its disk")


class ReportedError(UserError):
    """One that another process tells the user about: several that fail for the same reason speak once."""


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Which extra brings a package that is not there, by its metadata; raises it again if none does."""
    from importlib import metadata  # takes longer to import than all the rest

    package = (error.name or "").partition(".")[0]
    try:
        requirements = metadata.requires("superpose") or []
    except metadata.PackageNotFoundError:
        requirements = []
    named = re.compile(rf"{package.replace('_', '-')}\b(?![-[]).*\bextra == .(\w+)")
    extra = next((found[1] for found in map(named.match, requirements) if found), None)
    if not package or extra is None:
        raise error
    return UserError(f"this needs {package}, which is not installed; pip install 'superpose[{extra}]'")
