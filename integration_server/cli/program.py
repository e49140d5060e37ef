"""The command line: `python -m integration_server --help` lists the commands."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from integration_server import healthcheck
from integration_server.cli import audit, doctor, integrations, keys, operations, serving, status, types
from integration_server.command_errors import run_program


def _print_version(is_asked: bool) -> None:
    from importlib.metadata import version  # noqa: PLC0415  # commands need none of it

    if is_asked:
        typer.echo(f"integration-server {version('integration-server')}")
        raise typer.Exit


def _main_options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The options of the program itself."""


def main() -> None:
    """Run the command in the process's arguments."""
    run_program(new_program(), sys.argv[1:], program_name(sys.argv))


def program_name(argv: Sequence[str]) -> str:
    """The name in the texts of help: as the program was started.

    Shells complete by the name of a command: their scripts are those of `integration-server`, whatever printed them.
    They pass what to complete in a variable that is named after the program, and no name has a space.
    """
    is_module = Path(argv[0]).name == "__main__.py" and not any("-completion" in argument for argument in argv)
    return "python -m integration_server" if is_module else "integration-server"


def new_program() -> typer.Typer:
    """The program with its commands."""
    app = typer.Typer(
        help="Connects users' third-party accounts, stores their credentials encrypted, refreshes them, and returns "
        "valid ones. Settings are environment variables, also read from .env; .env.example lists them.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_main_options,
        pretty_exceptions_enable=False,
    )
    serving_commands = (serving.serve, serving.sidecar, serving.dev, healthcheck.healthcheck)
    operators = (operations.migrate, operations.restored, doctor.doctor, operations.expiring, status.status)
    for function in (*serving_commands, *operators):
        app.command()(function)

    types_app = typer.Typer(invoke_without_command=True, callback=types.list_types)
    types_app.command("schema")(types.show_schema)
    types_app.command("check")(types.check_declaration)
    types_app.command("new")(types.new_declaration)
    types_app.command("show")(types.show_requests)
    types_app.command("try")(types.try_declaration)
    app.add_typer(types_app, name="types")

    keys_app = typer.Typer(help="The keys that encrypt credentials.", no_args_is_help=True)
    keys_app.command("show")(keys.show_keys)
    keys_app.command("add")(keys.add_key)
    keys_app.command("rotate")(keys.rotate_keys)
    keys_app.command("rewrap")(keys.rewrap_keys)
    keys_app.command("remove")(keys.remove_key)
    app.add_typer(keys_app, name="keys")

    audit_app = typer.Typer(help="The audit log of operations on integrations.", no_args_is_help=True)
    audit_app.command("verify")(audit.verify_audit)
    audit_app.command("list")(audit.list_audit)
    audit_app.command("erase-user")(audit.erase_user)
    app.add_typer(audit_app, name="audit")

    integrations_app = typer.Typer(help="Integrations, on a running server.", no_args_is_help=True)
    integrations_app.command("list")(integrations.list_integrations)
    integrations_app.command("show")(integrations.show_integration)
    integrations_app.command("check")(integrations.check_integrations)
    integrations_app.command("refresh")(integrations.refresh_integration)
    integrations_app.command("disconnect")(integrations.disconnect_integration)
    app.add_typer(integrations_app, name="integrations")

    due_work_app = typer.Typer(help="Background work, on a running server.", no_args_is_help=True)
    due_work_app.command("list")(integrations.list_due_work)
    app.add_typer(due_work_app, name="due-work")

    webhooks_app = typer.Typer(help="Webhook events, on a running server.", no_args_is_help=True)
    webhooks_app.command("unrouted")(integrations.list_unrouted_webhooks)
    app.add_typer(webhooks_app, name="webhooks")

    events_app = typer.Typer(help="Events of integrations, on a running server.", no_args_is_help=True)
    events_app.command("tail")(integrations.tail_events)
    app.add_typer(events_app, name="events")

    clients_app = typer.Typer(help="OAuth clients, on a running server.", no_args_is_help=True)
    clients_app.command("list")(integrations.list_clients)
    clients_app.command("show")(integrations.show_client)
    app.add_typer(clients_app, name="clients")
    return app
