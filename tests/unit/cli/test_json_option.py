"""`--json` on every command of the tree, also when a command is called wrongly."""

import errno
import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from integration_server.cli.program import new_program
from integration_server.cli.shared import fail, report_errors
from integration_server.command_errors import run_program

WITHOUT_RESULT = {
    "serve": "runs until it is stopped; its log lines are JSON",
    "sidecar": "runs until it is stopped; its log lines are JSON",
    "dev": "runs until it is stopped, and prints for the person at the terminal",
}


def walk(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Each command of the tree with its full name, also groups that are commands themselves."""
    if (subcommands := getattr(command, "commands", None)) is None or command.invoke_without_command:
        yield " ".join(names), command
    for name, subcommand in (subcommands or {}).items():
        yield from walk(subcommand, *names, name)


PROGRAM = new_program()
TREE = dict(walk(typer.main.get_command(PROGRAM)))


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], program: typer.Typer | None = None) -> Any:
    """The exit code and the output of the program."""
    with pytest.raises(SystemExit) as ended:
        run_program(program or PROGRAM, arguments, "test")
    return ended.value.code, *capsys.readouterr()


def test_the_whole_tree_is_walked() -> None:
    assert {"migrate", "types", "types try", "keys rotate", "audit verify", "events tail", "healthcheck"} <= TREE.keys()
    assert WITHOUT_RESULT.keys() <= TREE.keys()


@pytest.mark.parametrize("name", TREE)
def test_every_command_with_a_result_has_the_option(name: str) -> None:
    options = {option for parameter in TREE[name].params for option in parameter.opts}
    assert ("--json" in options) is (name not in WITHOUT_RESULT)


@pytest.mark.parametrize("name", [name for name in TREE if name not in WITHOUT_RESULT])
@pytest.mark.parametrize("wrong", [["--nonsense"], ["--json=1"]])
def test_a_wrong_call_is_an_object_too(name: str, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run([*name.split(), *wrong, "--json"], capsys)
    assert (code, out) == (2, "")
    assert json.loads(err)["error"]["message"]
    # The negative control: without --json the same mistake is text.
    code, out, err = run([*name.split(), "--nonsense"], capsys)
    assert (code, out, "No such option" in err) == (2, "", True)
    with pytest.raises(json.JSONDecodeError):
        json.loads(err)


def test_an_option_before_the_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["types", "--json", "schema"], capsys)
    assert (code, out) == (2, "")
    assert "belongs after schema" in json.loads(err)["error"]["message"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_reader_that_ends_early_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program = typer.Typer(add_completion=False)

    @program.command()
    @report_errors
    def _print(_as_json: bool = typer.Option(False, "--json")) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run(arguments, capsys, program) == (1, "", "")


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--", "--json"]])
def test_an_error_has_its_problems_and_its_exit_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program = typer.Typer(add_completion=False)

    @program.command()
    def _refuse(_name: str = typer.Argument(""), _as_json: bool = typer.Option(False, "--json")) -> None:
        typer.echo("a warning", err=True)
        fail("Two things are wrong:", "this\nand", "that", exit_code=3)

    code, out, err = run(arguments, capsys, program)
    assert (code, out) == (3, "")
    warning, _, error = err.partition("\n")
    assert warning == "a warning"
    if arguments == ["--json"]:
        assert json.loads(error) == {"error": {"message": "Two things are wrong:", "problems": ["this\nand", "that"]}}
    else:  # also an argument that is named like the option
        assert error == "Two things are wrong:\n  this\nand\n  that\n"
