"""Errors that are the user's to mend, and nobody's to read a traceback for."""


class UserError(ValueError):
    """One clear sentence: which file or setting, what was expected, what to do. The command line exits with 2."""
