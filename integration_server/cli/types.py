"""The command `types` and its subcommands, for operators and for authors of declarations."""

import json
from pathlib import Path
from typing import Annotated

import typer

from integration_server.cli.operations import types as list_types_of_server
from integration_server.cli.shared import report_errors
from integration_server.providers.toml_providers import json_schema, read_declaration


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
