"""Errors of commands: text on standard error, or with `--json` an object. Imports no other module of this package."""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

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


def end_with(command: Callable[[], object], *, as_json: bool = False) -> NoReturn:
    """Run a command, and end the process with the exit code that it returns, or that of its error."""
    try:
        sys.exit(command())  # type: ignore[arg-type]  # of any type
    except CommandFailed as failure:
        failure.report(as_json=as_json)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:  # of `serve`, before it waits for the signal; typer handles that of other commands
        sys.exit(INTERRUPTED)


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
