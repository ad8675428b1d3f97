"""Errors that are the user's to mend, and nobody's to read a traceback for."""


class UserError(ValueError):
    """One clear sentence: which file or setting, what was expected, what to do. The command line exits with 2."""

    @classmethod
    def from_system(cls, error: OSError) -> "UserError":
        """A file that cannot be made, read or written: no permission, no such folder, no space left."""
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or type(error).__name__
        return cls(f"{place}{reason}; check the path, your permission to write there and the space on its disk")


class ReportedError(UserError):
    """One that another process tells the user about: several that fail for the same reason speak once."""
