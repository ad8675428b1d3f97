"""Runs the command line; turns errors that are the user's to mend into one sentence and exit code 2."""

import atexit
import os
import sys

from superpose.cli import app
from superpose.errors import ReportedError, UserError


def main() -> None:
    code = _exit_code()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _end_rank(code)
    sys.exit(code)


def _exit_code() -> int:
    try:
        app(prog_name="superpose")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ReportedError:
        return 2
    except (UserError, OSError) as error:
        problem = UserError.from_system(error) if isinstance(error, OSError) else error
        rank = os.environ.get("RANK")
        print(f"superpose{f', rank {rank}' if rank else ''}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _end_rank(code: int) -> None:
    """Ends this process without taking the interpreter down.

    Under DDP and FSDP2 the threads of a gloo process group outlive `destroy_process_group`. One that lets go of a
    tensor while the interpreter ends aborts the process, and torchrun would call a finished training a failure.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
