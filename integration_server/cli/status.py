"""The command `status`: the state of a running server, its types, OAuth clients, webhooks and integrations."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from integration_server.cli.integrations import INTEGRATION_COLUMNS, describe_secrets, integration_row
from integration_server.cli.options import Json
from integration_server.cli.remote import FAILED, NOT_AVAILABLE, describe, exit_code_of, remote_command
from integration_server.cli.tables import format_table, output_width, print_json, to_json
from integration_server.client import Integrations, operations
from integration_server.client.errors import IntegrationsError, PermissionDenied
from integration_server.client.operations import ItemT, Operation
from integration_server.client.rpcs import Rpc
from integrations.v1.integration_pb2 import Integration

_CHECK = Rpc("Check", HealthCheckRequest, HealthCheckResponse, timeout=10, service="grpc.health.v1.Health")
_MAX_LISTED = 1000  # items that are read to count them, so that a look at a large server stays cheap


@dataclass(frozen=True, slots=True)
class Line:
    """A part of the server, its state, and details."""

    part: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What the server has said, at one time."""

    lines: Sequence[Line]
    integrations: Sequence[Integration]
    exit_code: int


@remote_command
def status(
    client: Integrations,
    user: Annotated[
        list[str] | None, typer.Option("--user", help="Also list the integrations of this user; can be repeated.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.5, help="The seconds between two updates, on a terminal.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, also on a terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Show the state of a running server. On a terminal the table updates until Ctrl-C; elsewhere it is printed once.

    The exit code is 3 if the server is not available, and 1 if it does not serve.
    """
    users = user or []
    if as_json or once or not sys.stdout.isatty():
        view = read_view(client, users)
        if as_json:
            parts = [asdict(line) for line in view.lines]
            print_json({"parts": parts, "integrations": [to_json(each) for each in view.integrations]})
        else:
            typer.echo("\n".join(format_view(view, output_width())))
        raise typer.Exit(view.exit_code)
    _update(lambda: read_view(client, users), interval)


def _update(read: Callable[[], View], interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415  # only a terminal needs it
    from rich.text import Text  # noqa: PLC0415

    with Live(Text("Asking the server"), auto_refresh=False) as live:
        while True:
            lines = format_view(read(), output_width())
            live.update(Text("\n".join([f"{datetime.now(UTC):%F %T} UTC", *lines])), refresh=True)
            time.sleep(interval)


def read_view(client: Integrations, users: Sequence[str]) -> View:
    """Ask the server. What the caller may not see says so, and does not hide the rest."""
    server, exit_code = _server(client)
    if exit_code == NOT_AVAILABLE:  # nothing else would respond either
        return View([server], [], exit_code)
    parts = {"integration types": _types, "OAuth clients": _clients, "unrouted webhooks": _webhooks}
    lines = [server, *(_permitted(part, client, read) for part, read in parts.items())]
    integrations: list[Integration] = []
    for user in users:
        try:
            integrations += client.list(user=user)
        except IntegrationsError as error:
            lines.append(Line(f"user {user}", "failed", describe(error)))
    return View(lines, integrations, exit_code)


def _server(client: Integrations) -> tuple[Line, int]:
    operation = Operation(_CHECK, HealthCheckRequest(), lambda response: response.status)
    try:
        state = client.run(operation)
    except PermissionDenied as error:  # it has responded, so it runs
        return Line("server", "responds", describe(error)), 0
    except IntegrationsError as error:
        state = "not available" if exit_code_of(error) == NOT_AVAILABLE else "failed"
        return Line("server", state, describe(error)), exit_code_of(error)
    is_serving = state == HealthCheckResponse.SERVING
    return Line("server", HealthCheckResponse.ServingStatus.Name(state).lower()), 0 if is_serving else FAILED


def _permitted(part: str, client: Integrations, read: Callable[[Integrations], tuple[str, str]]) -> Line:
    try:
        return Line(part, *read(client))
    except PermissionDenied as error:
        return Line(part, "not permitted", describe(error))
    except IntegrationsError as error:
        return Line(part, "failed", describe(error))


def _types(client: Integrations) -> tuple[str, str]:
    types = list(client.types())
    configured = [each.integration_type for each in types if each.configured]
    return f"{len(configured)} of {len(types)}", f"configured: {', '.join(configured) or 'none'}"


def _clients(client: Integrations) -> tuple[str, str]:
    clients = _first(client, operations.list_oauth_clients(""))
    wrong = [each for each in clients if each.secret_state or each.altered]
    names = ", ".join(f"{each.integration_type} {each.name}".strip() + f": {describe_secrets(each)}" for each in wrong)
    return _count(clients), names


def _webhooks(client: Integrations) -> tuple[str, str]:
    webhooks = _first(client, operations.list_unrouted_webhooks(""))
    newest = f"the newest: {webhooks[0].integration_type} {webhooks[0].event_type}" if webhooks else ""
    return _count(webhooks), newest


def _first(client: Integrations, listing: operations.Listing[ItemT]) -> Sequence[ItemT]:
    return list(islice(client.iterate(listing), _MAX_LISTED))


def _count(items: Sequence[object]) -> str:
    return f"{len(items):,}" if len(items) < _MAX_LISTED else f"{_MAX_LISTED:,} or more"


def format_view(view: View, width: int | None) -> Sequence[str]:
    """Return the lines to print."""
    parts = format_table(
        ("!part", "state", "detail"), [[each.part, each.state, each.detail] for each in view.lines], width
    )
    if not view.integrations:
        return parts
    columns = ("user", *INTEGRATION_COLUMNS)
    rows = [[each.user_id, *integration_row(each)] for each in view.integrations]
    return [*parts, "", *format_table(columns, rows, width)]
