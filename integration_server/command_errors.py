"""Errors of commands: text on standard error, or with `--json` an object. Imports no other module of this package."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

_FAILED = 1

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


class CommandFailed(Exception):
    """A command ends without a result: `message`, the single `problems`, and the exit code.

    `details` are further members of the JSON object.
    """

    def __init__(self, message: str, *problems: str, exit_code: int = 1, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.problems = problems
        self.exit_code = exit_code
        self.details = details

    def report(self, *, as_json: bool) -> None:
        """Print it on standard error, which also has warnings; the object is the last line."""
        if as_json:
            members = {"problems": self.problems, **self.details}
            error = {"message": self.message, **{name: value for name, value in members.items() if value}}
            print(json.dumps({"error": error}), file=sys.stderr)
        else:
            print("\n  ".join([self.message, *self.problems]), file=sys.stderr)


def describe_os_error(error: OSError) -> str:
    """The file, if the error has one, and what the system says."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def end_with(command: Callable[[], object], *, as_json: bool = False) -> NoReturn:
    """Run a command, and end the process with the exit code that it returns, or that of its error.

    Output that cannot be written is an error. If its reader has ended, as `head` does, nothing is reported.
    """
    code = _exit_code(command, as_json=as_json)
    problem = _flush_output()
    if problem is not None and not code:
        code = _FAILED
        if not isinstance(problem, BrokenPipeError):
            CommandFailed(f"standard output: {problem.strerror}").report(as_json=as_json)
    sys.exit(code)  # type: ignore[arg-type]  # of any type


def _exit_code(command: Callable[[], object], *, as_json: bool) -> object:
    try:
        return command()
    except SystemExit as end:  # typer's, of most commands
        return end.code
    except CommandFailed as failure:
        failure.report(as_json=as_json)
        return failure.exit_code
    except KeyboardInterrupt:  # of `serve`, before it waits for the signal; typer handles that of other commands
        return INTERRUPTED
    except BrokenPipeError:
        return _FAILED
    except OSError as error:
        CommandFailed(describe_os_error(error)).report(as_json=as_json)
        return _FAILED


def _flush_output() -> OSError | None:
    """Write what standard output has buffered. Returns why that is not possible; then it is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes again at its end: docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def run_program(program: "typer.Typer", arguments: Sequence[str], name: str) -> NoReturn:
    """Run the command that the arguments name, and end the process with its exit code."""
    from typer import BadParameter  # noqa: PLC0415  # `serve` runs without it

    usage_error: type[Exception] = BadParameter.__bases__[0]  # of a click that typer may bring itself
    as_json = "--json" in takewhile(lambda argument: argument != "--", arguments)

    def run() -> object:
        try:
            # Outside its standalone mode, typer raises wrong arguments instead of printing them.
            return program(list(arguments), prog_name=name, standalone_mode=not as_json)
        except usage_error as error:
            raise CommandFailed(error.format_message(), exit_code=2) from None  # type: ignore[attr-defined]  # click's

    end_with(run, as_json=as_json)
