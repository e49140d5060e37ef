"""Commands that call a running server over its RPCs, through the client package, with an identity of their own.

Each has the options of the connection, which override the environment variables of `Integrations.from_env()`.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import grpc
import typer

from integration_server.cli.shared import fail
from integration_server.client import Integrations
from integration_server.client.configuration import ConfigurationError
from integration_server.client.errors import IntegrationsError
from integration_server.client.hooks import CallHook
from integration_server.command_errors import INTERRUPTED, CommandFailed, describe_os_error
from integration_server.domain.text_escaping import escape

P = ParamSpec("P")

FAILED = 1
WRONG_USE = 2
NOT_AVAILABLE = 3

_DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens by default; that of `make run`."""

_REMEDY = "--address or INTEGRATIONS_ADDRESS names another, --tls and --no-tls the protocol"

_OPTIONS: Mapping[str, tuple[Any, str, str]] = {
    "address": (str | None, "INTEGRATIONS_ADDRESS", f"The server's address; without both, {_DEFAULT_ADDRESS}."),
    "token_file": (Path | None, "INTEGRATIONS_TOKEN_FILE", "A file with the caller's token (JWT)."),
    "tls": (bool | None, "INTEGRATIONS_TLS", "Whether to use TLS: by default, except to this machine."),
    "ca_file": (Path | None, "INTEGRATIONS_CA_FILE", "The authorities of the server's certificate, in PEM."),
    "cert_file": (Path | None, "INTEGRATIONS_CERT_FILE", "The caller's certificate, in PEM."),
    "key_file": (Path | None, "INTEGRATIONS_KEY_FILE", "The key of the caller's certificate, in PEM."),
    "server_name": (str | None, "INTEGRATIONS_SERVER_NAME", "The name in the server's certificate, if it differs."),
}
_PANEL = "Connection"

User = Annotated[str, typer.Option("--user", help="The user. Required, unless the caller's token is the user's own.")]
Type = Annotated[str, typer.Option("--type", help="Only this integration type.")]
IntegrationId = Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The integration's id.")]


def names_server(options: Mapping[str, object]) -> bool:
    """Whether an option of the connection was given, or the environment has the server's address."""
    has_option = any(options.get(name) is not None for name in _OPTIONS)
    return has_option or bool(os.environ.get(_OPTIONS["address"][1]))


def without_connection(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command without those of the connection."""
    return {name: value for name, value in options.items() if name not in _OPTIONS}


def remote_command(
    function: Callable[Concatenate[Integrations, P], None], *, hooks: Sequence[CallHook] = ()
) -> Callable[P, None]:
    """Make a command of a function that uses a client: add the connection's options, and report errors in one line."""

    @wraps(function)
    def run_command(*args: P.args, **kwargs: P.kwargs) -> None:
        connection_options = {name: kwargs.pop(name, None) for name in _OPTIONS}
        _make_output_safe()
        environment = connection_environment(os.environ, connection_options)
        try:
            # Without `watch`: the commands use no credentials.
            with Integrations.from_env(environment, hooks=hooks, watch=False) as client:
                function(client, *args, **kwargs)
        except ConfigurationError as error:
            fail(escape(str(error)), exit_code=WRONG_USE)
        except IntegrationsError as error:
            is_unreachable = (
                exit_code_of(error) == NOT_AVAILABLE and not error.reason
            )  # the server itself gives a reason
            hint = (
                f"; is the server running at {environment['INTEGRATIONS_ADDRESS']}? {_REMEDY}" if is_unreachable else ""
            )
            raise CommandFailed(
                escape(describe(error) + hint),
                exit_code=exit_code_of(error),
                status=error.code.name,
                reason=error.reason,
                fields=[asdict(violation) for violation in error.fields],
            ) from error
        except BrokenPipeError:
            raise  # the reader has ended, as `head` does: typer ends quietly
        except OSError as error:
            fail(escape(describe_os_error(error)), exit_code=WRONG_USE)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in _OPTIONS
    ]
    own = list(inspect.signature(function).parameters.values())[1:]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters = [*keyword_only, *options]
    run_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run_command


def _option(name: str) -> Any:  # noqa: ANN401  # a type form
    kind, variable, help_text = _OPTIONS[name]
    flag = f"--{name.replace('_', '-')}"
    declaration = f"{flag}/--no-{name}" if name == "tls" else flag
    option = typer.Option(
        declaration, help=f"{help_text} Instead of {variable}.", rich_help_panel=_PANEL, show_default=False
    )
    return Annotated[kind, option]


def connection_environment(environment: Mapping[str, str], options: Mapping[str, object]) -> Mapping[str, str]:
    """Return the environment variables of the client, with the options that were given in their place."""
    values = {"INTEGRATIONS_ADDRESS": _DEFAULT_ADDRESS}
    values |= {name: value for name, value in environment.items() if value}
    for name, value in options.items():
        if value is not None:
            values[_OPTIONS[name][1]] = str(value)
    if options.get("token_file") is not None:
        values.pop("INTEGRATIONS_TOKEN", None)
    return values


def describe(error: IntegrationsError) -> str:
    """Return an error in one line: the reason, or the status without one, and the message."""
    hint = " (--user)" if any(violation.field == "user_id" for violation in error.fields) else ""
    return f"{error.reason or error.code.name}: {error}{hint}"


def exit_code_of(error: IntegrationsError) -> int:
    """Return 3 if the server is not available, so that a repetition can succeed; otherwise 1."""
    is_away = error.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    return NOT_AVAILABLE if is_away else FAILED


def _make_output_safe() -> None:
    """Let a terminal or a locale without Unicode show other characters as escapes, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
