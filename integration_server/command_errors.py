"""Errors of commands: text on standard error, or with `--json` an object. Imports no other module of this package."""

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import NoReturn

import typer

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of a click that typer may bring itself


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
            typer.echo(json.dumps({"error": error}), err=True)
        else:
            typer.echo("\n  ".join([self.message, *self.problems]), err=True)


def run_program(program: typer.Typer, arguments: Sequence[str], name: str) -> NoReturn:
    """Run the command that the arguments name, and end the process with its exit code."""
    as_json = "--json" in takewhile(lambda argument: argument != "--", arguments)
    try:
        # Outside its standalone mode, typer raises wrong arguments instead of printing them.
        code = program(list(arguments), prog_name=name, standalone_mode=not as_json)
    except CommandFailed as error:
        failure = error
    except _UsageError as error:
        failure = CommandFailed(error.format_message(), exit_code=2)  # type: ignore[attr-defined]  # click's
    else:
        sys.exit(code)
    failure.report(as_json=as_json)
    sys.exit(failure.exit_code)
