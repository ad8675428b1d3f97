"""Runs the command line; turns errors that are the user's to mend into one sentence and exit code 2."""

import os
import sys

from superpose.cli import app
from superpose.errors import ReportedError, UserError


def main() -> None:
    try:
        app(prog_name="superpose")
    except ReportedError:
        sys.exit(2)
    except (UserError, OSError) as error:
        problem = UserError.from_system(error) if isinstance(error, OSError) else error
        rank = os.environ.get("RANK")
        print(f"superpose{f', rank {rank}' if rank else ''}: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
