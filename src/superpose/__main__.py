"""Runs the command line; turns errors that are the user's to mend into one sentence and exit code 2."""

import atexit
import os
import sys

from superpose.errors import ReportedError, UserError, missing_package


def main() -> None:
    code = _exit_code()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _end_rank(code)
    sys.exit(code)


def _exit_code() -> int:
    try:
        # Not at the top: superpose may be installed for its core alone, without what the command line needs.
        from superpose.cli import app

        app(prog_name="superpose")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ReportedError:
        return 2
    except UserError as error:
        return _say(error)
    except OSError as error:
        return _say(UserError.from_system(error))
    except ModuleNotFoundError as error:
        return _say(missing_package(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _say(problem: UserError) -> int:
    rank = os.environ.get("RANK")
    print(f"superpose{f', rank {rank}' if rank else ''}: {problem}", file=sys.stderr)
    return 2


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
