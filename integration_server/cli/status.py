"""The command `status`: the state of a running server, its types, OAuth clients, webhooks, work and integrations."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Annotated

import typer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from integration_server.cli.integrations import (
    FOUND_INTEGRATION_COLUMNS,
    count_text,
    describe_secrets,
    found_integration_row,
    job_name,
    status_name,
)
from integration_server.cli.options import Json
from integration_server.cli.remote import FAILED, NOT_AVAILABLE, describe, exit_code_of, remote_command
from integration_server.cli.tables import format_table, format_time, output_width, print_json, to_json
from integration_server.client import Integrations, operations
from integration_server.client.errors import IntegrationsError, PermissionDenied
from integration_server.client.operations import ItemT, Operation
from integration_server.client.rpcs import Rpc
from integration_server.domain.integration import Status as StatusName
from integrations.v1.integration_pb2 import Integration
from integrations.v1.operator_service_pb2 import DueWork, IntegrationCount

_CHECK = Rpc("Check", HealthCheckRequest, HealthCheckResponse, timeout=10, service="grpc.health.v1.Health")
_MIN_PAUSE = 9  # times the duration of a read
_MAX_LISTED = 1000  # items that are read to count them, so that the command stays cheap on a large server


@dataclass(frozen=True, slots=True)
class Line:
    """A part of the server, its state, and details."""

    part: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """The state of a server at one time."""

    lines: Sequence[Line]
    exit_code: int
    counts: Sequence[IntegrationCount] = ()
    due_work: Sequence[DueWork] = ()
    integrations: Sequence[Integration] = ()


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
            lists = {"counts": view.counts, "due_work": view.due_work, "integrations": view.integrations}
            print_json({"parts": parts, **{name: list(map(to_json, items)) for name, items in lists.items()}})
        else:
            typer.echo("\n".join(format_view(view, output_width())))
        raise typer.Exit(view.exit_code)
    _update(lambda: read_view(client, users), interval)


def _update(read: Callable[[], View], interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415  # only a terminal needs it
    from rich.text import Text  # noqa: PLC0415

    with Live(Text("Asking the server"), auto_refresh=False) as live:
        while True:
            begin = time.monotonic()
            lines = format_view(read(), output_width())
            live.update(Text("\n".join([f"{datetime.now(UTC):%F %T} UTC", *lines])), refresh=True)
            # Reading very many integrations takes seconds: the server is kept busy for a tenth of the time at most.
            time.sleep(max(interval, _MIN_PAUSE * (time.monotonic() - begin)))


def read_view(client: Integrations, users: Sequence[str]) -> View:
    """Read the state of the server. A part that the caller may not read is marked so, and the others are read."""
    server, exit_code = _server(client)
    if exit_code == NOT_AVAILABLE:  # nothing else would respond either
        return View([server], exit_code)
    counts: list[IntegrationCount] = []
    due_work: list[DueWork] = []
    parts: Mapping[str, Callable[[Integrations], tuple[str, str]]] = {
        "integration types": _types,
        "OAuth clients": _clients,
        "unrouted webhooks": _webhooks,
        "due work": partial(_due_work, due_work),
        "integrations": partial(_counts, counts),
    }
    lines = [server, *(_permitted(part, client, read) for part, read in parts.items())]
    integrations: list[Integration] = []
    for user in users:
        try:
            integrations += client.list(user=user)
        except IntegrationsError as error:
            lines.append(Line(f"user {user}", "failed", describe(error)))
    return View(lines, exit_code, counts, due_work, integrations)


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


def _due_work(found: list[DueWork], client: Integrations) -> tuple[str, str]:
    """The longest due work of each job and client."""
    found += client.due_work(oldest_only=True)
    if not found:
        return "0", ""
    oldest = min(found, key=lambda each: each.due_time.ToNanoseconds())
    of = " ".join(filter(None, (job_name(oldest.job), oldest.integration_type, oldest.oauth_client)))
    since = f"the oldest: {of}, due since {format_time(oldest, 'due_time')} UTC"
    return count_text(sum(each.due_count for each in found), operations.MAX_DUE_COUNT), since


def _counts(found: list[IntegrationCount], client: Integrations) -> tuple[str, str]:
    found += client.count_integrations()
    return f"{sum(each.count for each in found):,}", "of all users"


def _first(client: Integrations, listing: operations.Listing[ItemT]) -> Sequence[ItemT]:
    return list(islice(client.iterate(listing), _MAX_LISTED))


def _count(items: Sequence[object]) -> str:
    return f"{len(items):,}" if len(items) < _MAX_LISTED else f"{_MAX_LISTED:,} or more"


def format_view(view: View, width: int | None) -> Sequence[str]:
    """Return the lines to print."""
    parts = format_table(
        ("!part", "state", "detail"), [[each.part, each.state, each.detail] for each in view.lines], width
    )
    tables = [parts]
    if view.counts:
        tables.append(_format_counts(view.counts, width))
    if view.integrations:
        rows = [found_integration_row(each) for each in view.integrations]
        tables.append(format_table(FOUND_INTEGRATION_COLUMNS, rows, width))
    first, *others = tables
    return [*first, *(line for table in others for line in ("", *table))]


def _format_counts(counts: Sequence[IntegrationCount], width: int | None) -> Sequence[str]:
    """A row for each type, with the number of its integrations in each status."""
    statuses = [status.name for status in StatusName]
    numbers = {(each.integration_type, status_name(each.status)): each.count for each in counts}
    rows = [
        [name, *(f"{numbers.get((name, status), 0):,}" for status in statuses)]
        for name in sorted({each.integration_type for each in counts})
    ]
    return format_table(("type", *(f"!{status}" for status in statuses)), rows, width)
