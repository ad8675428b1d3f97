"""Runs the command line; turns errors that are the user's to mend into one sentence and exit code 2."""

import sys

from superpose.cli import app
from superpose.errors import UserError


def main() -> None:
    try:
        app(prog_name="superpose")
    except (UserError, OSError) as error:
        problem = UserError.from_system(error) if isinstance(error, OSError) else error
        print(f"superpose: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
