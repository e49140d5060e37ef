"""The command `types` and its subcommands, for operators and for authors of declarations."""

import json
import os
import subprocess  # nosec B404
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import integration_server
from integration_server.bootstrap import registered_providers
from integration_server.cli.operations import types as list_types_of_server
from integration_server.cli.shared import fail, report_errors
from integration_server.providers.toml_providers import json_schema, read_declaration
from integration_server.settings import Settings, read_environment

_SUITE = Path(*integration_server.__path__).parent / "tests" / "conformance" / "test_conformance.py"


def list_types(context: typer.Context) -> None:
    """List the integration types of this server, and the settings that each still needs."""
    if context.invoked_subcommand is None:
        list_types_of_server()


def show_schema() -> None:
    """Print the JSON Schema of declarations, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


@report_errors
def check_declaration(
    file: Annotated[Path, typer.Argument(help="A TOML file that declares a provider.")],
    *,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
) -> None:
    """Validate a declaration, and print all its problems."""
    declaration = read_declaration(file, dev_mode=dev)
    typer.echo(f"{file} declares {declaration.integration_type}.")


@report_errors
def try_declaration(
    declaration: Annotated[str, typer.Argument(help="A TOML file that declares a provider, or a type of this server.")],
    *,
    dev: Annotated[bool, typer.Option(help="Allow plain http to loopback, as the server does in dev mode.")] = False,
) -> None:
    """Run the conformance suite against a server that behaves as the declaration says, and print a table.

    The exit code is 1 if a check fails. Whether the declaration is right, only the provider's documentation can say.
    """
    environment = read_environment(Path.cwd()) | ({"DEV_MODE": "true"} if dev else {})
    needed = {name: value for name, value in environment.items() if name in {"PROVIDERS_DIR", "DEV_MODE"}}
    settings = Settings.from_environment(needed, needs_key=False)
    if declaration not in registered_providers(settings).integration_types:
        if not Path(declaration).exists():
            fail(f"{declaration} is neither a file nor a type of this server.")
        read_declaration(Path(declaration), dev_mode=settings.dev_mode)
    if not _SUITE.is_file() or find_spec("pytest") is None:
        fail(
            "The conformance suite is not part of the installed package: clone the repository, run `make setup` there, "
            "and run this command with its .venv/bin/python."
        )
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:terminal", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--try", declaration, str(_SUITE)]
    run = subprocess.run(command, env={**os.environ, **needed}, check=False)  # noqa: S603  # nosec B603  # our own suite
    raise typer.Exit(run.returncode)
