"""The commands `integrations …`, `due-work list`, `webhooks unrouted`, `events tail` and `clients …`.

They call a running server.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from integration_server.cli.options import Json, JsonLines
from integration_server.cli.remote import (
    FAILED,
    NOT_AVAILABLE,
    IntegrationId,
    Type,
    User,
    describe,
    exit_code_of,
    remote_command,
)
from integration_server.cli.shared import confirm, fail
from integration_server.cli.tables import (
    counted,
    format_time,
    print_fields,
    print_json,
    print_json_lines,
    print_table,
    to_json,
    waiting,
)
from integration_server.client import Integrations, operations
from integration_server.client.errors import IntegrationsError, PermissionDenied
from integration_server.client.hooks import End, Metadata
from integration_server.client.store import Key
from integration_server.client.values import FileCursorStore
from integration_server.domain.integration import Status as StatusName
from integration_server.domain.text_escaping import escape
from integration_server.service.background.ports import JobKind
from integrations.v1.event_pb2 import IntegrationEvent, IntegrationEventKind
from integrations.v1.integration_pb2 import AuthMethod, HealthCheck, Integration, RevocationState, Status
from integrations.v1.operator_service_pb2 import DueWork, Job, OAuthClient, SecretState, UnroutedReason

ItemT = TypeVar("ItemT")

# --- integrations ----------------------------------------------------------------------------------------------------


@remote_command
def list_integrations(
    client: Integrations,
    user: Annotated[str, typer.Option("--user", help="Only this user's. For callers who may not `operate`.")] = "",
    integration_type: Type = "",
    status: Annotated[
        StatusName | None, typer.Option(case_sensitive=False, help="Only this status.", show_default=False)
    ] = None,
    account: Annotated[str, typer.Option(help="Only this account id at the provider.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of integrations.")] = 1000,
    as_json: JsonLines = False,
) -> None:
    """List integrations, the oldest first: a user's, or, for callers who may `operate`, those of all users."""
    listed, is_of_all_users = _integrations(client, user, integration_type, status, account)
    integrations = _limited(counted("Listing", listed), limit)
    if as_json:
        print_json_lines(integrations)
    elif is_of_all_users:
        rows = [found_integration_row(each) for each in integrations]
        print_table(FOUND_INTEGRATION_COLUMNS, rows, "No integration meets the conditions.")
    else:
        print_table(INTEGRATION_COLUMNS, [integration_row(each) for each in integrations], "The user has none.")


def _integrations(
    client: Integrations, user: str, integration_type: str, status: StatusName | None, account: str
) -> tuple[Iterator[Integration], bool]:
    """Return the integrations, and whether they are of all users."""
    if not user:
        wanted = f"STATUS_{status.name}" if status else Status.STATUS_UNSPECIFIED
        found = client.find_integrations(type=integration_type, status=wanted, account_id=account)
        try:
            first = next(found, None)
        except PermissionDenied:
            pass  # the caller has a user's own token, or has to name the user
        else:
            return chain([] if first is None else [first], found), True
    own = client.list(user=user, type=integration_type)

    def is_wanted(each: Integration) -> bool:
        return status in {None, StatusName[status_name(each.status)]} and account in {"", each.account_id}

    return filter(is_wanted, own), False


def _limited(items: Iterator[ItemT], limit: int) -> Iterator[ItemT]:
    """The items up to a limit, and a note on standard error if there are more."""
    yield from islice(items, limit)
    if next(items, None) is not None:
        typer.echo(f"There are more than {limit:,}: raise --limit, or narrow the search.", err=True)


FOUND_INTEGRATION_COLUMNS = ("!id", "user", "type", "account", "!status", "!token expires (UTC)", "error")


def found_integration_row(integration: Integration) -> list[str]:
    """Return the cells of `FOUND_INTEGRATION_COLUMNS`, which fit into 80 cells."""
    number, integration_type, _, *others = integration_row(integration)
    return [number, integration.user_id, integration_type, *others]


INTEGRATION_COLUMNS = ("!id", "type", "name", "account", "!status", "!token expires (UTC)", "error")


def integration_row(integration: Integration) -> list[str]:
    """Return the cells of `INTEGRATION_COLUMNS`."""
    return [
        str(integration.integration_id),
        integration.integration_type,
        integration.name,
        integration.account_label or integration.account_id,
        status_name(integration.status),
        format_time(integration, "access_token_expire_time")[:16],
        integration.last_error.error_class,
    ]


def status_name(status: Status) -> str:
    """Return a status without its prefix; empty for none."""
    return Status.Name(status).removeprefix("STATUS_").replace("UNSPECIFIED", "")


@remote_command
def show_integration(
    client: Integrations, integration_id: IntegrationId, user: User = "", as_json: Json = False
) -> None:
    """Show one integration."""
    integration = client.run(operations.get_integration(Key(user, integration_id)))
    if as_json:
        print_json(to_json(integration))
        return
    error = integration.last_error
    print_fields(
        {
            "id": str(integration.integration_id),
            "user": integration.user_id,
            "type": integration.integration_type,
            "name": integration.name,
            "account": " ".join(filter(None, (integration.account_id, integration.account_label))),
            "status": status_name(integration.status),
            "active": "yes" if integration.is_active else "no",
            "connected": "yes" if integration.is_connected else "no",
            "auth method": AuthMethod.Name(integration.auth_method).removeprefix("AUTH_METHOD_"),
            "OAuth client": integration.oauth_client,
            "scopes": " ".join(integration.scopes),
            "missing scopes": " ".join(integration.missing_scopes),
            "last error": f"{error.error_class}: {error.message}" if error.error_class else "",
            "failed at (UTC)": format_time(error, "error_time"),
            "failures in a row": str(integration.error_count or ""),
            "last check (UTC)": format_time(integration, "last_health_check"),
            "token expires (UTC)": format_time(integration, "access_token_expire_time"),
            "grant expires (UTC)": format_time(integration, "refresh_token_expire_time"),
            "created (UTC)": format_time(integration, "create_time"),
            "connected (UTC)": format_time(integration, "connect_time"),
            "changed (UTC)": format_time(integration, "update_time"),
        }
    )


@remote_command
def check_integrations(
    client: Integrations,
    integration_id: Annotated[
        int | None, typer.Argument(min=1, max=2**63 - 1, help="The integration's id. Without it, all of the user.")
    ] = None,
    user: User = "",
    as_json: JsonLines = False,
) -> None:
    """Check at the provider whether credentials work. The exit code is 1 if those of an integration do not."""
    checks, unhealthy = counted("Checking", _checks(client, user, integration_id)), 0

    def tallied() -> Iterator[HealthCheck]:
        nonlocal unhealthy
        for check in checks:
            unhealthy += not check.healthy
            yield check

    if as_json:
        print_json_lines(tallied())
    else:
        columns = ("!id", "type", "name", "!healthy", "!status", "!latency", "error", "message")
        print_table(columns, [_check_row(each) for each in tallied()], "The user has no connected integration.")
    if unhealthy:
        raise typer.Exit(FAILED)


def _checks(client: Integrations, user: str, integration_id: int | None) -> Iterator[HealthCheck]:
    if integration_id is None:
        return client.check_health(user=user)
    return iter([client.run(operations.check_health(Key(user, integration_id)))])


def _check_row(check: HealthCheck) -> list[str]:
    latency = f"{check.latency.ToTimedelta() / timedelta(milliseconds=1):.0f} ms" if check.HasField("latency") else ""
    return [
        str(check.integration_id),
        check.integration_type,
        check.name,
        "yes" if check.healthy else "no",
        status_name(check.status),
        latency,
        check.error_class,
        check.message,
    ]


@remote_command
def refresh_integration(
    client: Integrations,
    integration_id: IntegrationId,
    user: User = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also if the access token is still valid for a while.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Refresh the access token of an integration."""
    with waiting("Refreshing the access token"):
        response = client.run(operations.refresh(Key(user, integration_id), force=force))
    if as_json:
        print_json(to_json(response))
        return
    expiry = format_time(response, "access_token_expire_time")
    typer.echo(escape(response.message) + (f"; the access token expires at {expiry} UTC" if expiry else ""))


@remote_command
def disconnect_integration(
    client: Integrations,
    integration_id: IntegrationId,
    user: User = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete an integration and its credentials, and revoke them at the provider."""
    key = Key(user, integration_id)
    if not yes:
        _confirm_disconnect(client.run(operations.get_integration(key)))
    with waiting("Revoking the grant at the provider"):
        response = client.run(operations.disconnect(key))
    if as_json:
        print_json(to_json(response))
        return
    state = RevocationState.Name(response.revocation_state).removeprefix("REVOCATION_STATE_")
    typer.echo(f"{escape(response.message)}; state at the provider: {state}")


def _confirm_disconnect(integration: Integration) -> None:
    account = integration.account_label or integration.account_id or integration.name
    typer.echo(
        f"Integration {integration.integration_id}: {integration.integration_type}, account {escape(account) or '-'}, "
        f"user {escape(integration.user_id)}",
        err=True,
    )
    confirm("Delete it and revoke its grant? This cannot be undone.")


# --- webhooks --------------------------------------------------------------------------------------------------------


@remote_command
def list_unrouted_webhooks(
    client: Integrations,
    integration_type: Type = "",
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of events.")] = 100,
    as_json: JsonLines = False,
) -> None:
    """List verified webhook events that belong to no integration, the newest first. For callers who may `operate`."""
    webhooks = islice(client.iterate(operations.list_unrouted_webhooks(integration_type)), limit)
    if as_json:
        print_json_lines(webhooks)
        return
    rows = [
        [
            format_time(webhook, "receive_time"),
            webhook.integration_type,
            webhook.event_type,
            UnroutedReason.Name(webhook.reason).removeprefix("UNROUTED_REASON_"),
            webhook.account_id or webhook.route,
            webhook.oauth_client,
            str(webhook.payload_bytes),
        ]
        for webhook in counted("Listing", webhooks)
    ]
    columns = ("!received (UTC)", "type", "event", "reason", "account", "client", "!bytes")
    print_table(columns, rows, "Every webhook event was delivered to an integration.")


# --- due work --------------------------------------------------------------------------------------------------------


@remote_command
def list_due_work(
    client: Integrations,
    integration_type: Type = "",
    job: Annotated[
        JobKind | None, typer.Option(case_sensitive=False, help="Only this job.", show_default=False)
    ] = None,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="Only the longest due of each job and OAuth client, with their number.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of pieces of work.")] = 1000,
    as_json: JsonLines = False,
) -> None:
    """List the background work that is due, the longest due first. For callers who may `operate`."""
    wanted = f"JOB_{job.name}" if job else Job.JOB_UNSPECIFIED
    found = client.due_work(type=integration_type, job=wanted, oldest_only=oldest)
    due_work = _limited(counted("Listing", found), limit)
    if as_json:
        print_json_lines(due_work)
        return
    columns = ("!due since (UTC)", "!job", "type", "client", "user", "!integration", "!attempts")
    rows = [_due_row(each) for each in due_work]
    print_table((*columns, "!due") if oldest else columns, rows, "No work is due.")


def _due_row(due: DueWork) -> list[str]:
    cells = [
        format_time(due, "due_time"),
        job_name(due.job),
        due.integration_type,
        due.oauth_client,
        due.user_id,
        str(due.integration_id or ""),
        str(due.attempts),
    ]
    return [*cells, count_text(due.due_count, operations.MAX_DUE_COUNT)] if due.due_count else cells


def job_name(job: Job) -> str:
    """Return a job without its prefix."""
    return Job.Name(job).removeprefix("JOB_")


def count_text(count: int, maximum: int) -> str:
    """Return a number that is not counted beyond a maximum."""
    return f"{count:,}" if count < maximum else f"{maximum:,}+"


# --- events ----------------------------------------------------------------------------------------------------------


class _ReconnectNotice:
    """Prints on standard error why a stream has ended; the client opens it again."""

    def begin(self, method: str, metadata: Metadata) -> End:
        """Observe a stream."""

        def end(error: IntegrationsError | None) -> None:
            if error is not None and exit_code_of(error) == NOT_AVAILABLE:
                typer.echo(f"{escape(describe(error))}; connecting again", err=True)

        return end


@partial(remote_command, hooks=[_ReconnectNotice()])
def tail_events(
    client: Integrations,
    user: User = "",
    integration_type: Type = "",
    cursor_file: Annotated[
        Path | None, typer.Option(help="Continue after the last event of the previous run, whose cursor is kept here.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after this number of events.")] = None,
    as_json: JsonLines = False,
) -> None:
    """Print the events of integrations as they happen, of one user or of all, until Ctrl-C."""
    if sys.stdout.isatty():
        typer.echo("Waiting for events. Ctrl-C ends.", err=True)
    store = None if cursor_file is None else FileCursorStore(cursor_file)
    with closing(client.events(user=user, type=integration_type, cursor_store=store)) as events:
        for event in islice(events, limit):
            typer.echo(json.dumps(to_json(event)) if as_json else _event_line(event))


def _event_line(event: IntegrationEvent) -> str:
    before, after = status_name(event.status_before), status_name(event.status_after)
    changes = f"{before or 'none'} -> {after or 'none'}" if before != after else after
    number = f"webhook {event.webhook_event_number}" if event.webhook_event_number else ""
    kind = IntegrationEventKind.Name(event.kind).removeprefix("INTEGRATION_EVENT_KIND_")
    fields = (event.integration_type, str(event.integration_id), escape(event.user_id), changes, number)
    return "  ".join([format_time(event, "event_time"), f"{kind:{_KIND_WIDTH}}", *filter(None, fields)])


_KIND_WIDTH = len("CREDENTIALS_REFRESHED")


# --- OAuth clients ---------------------------------------------------------------------------------------------------


@remote_command
def list_clients(client: Integrations, integration_type: Type = "", as_json: JsonLines = False) -> None:
    """List the OAuth clients, also the operator's own, which has no name. For callers who may `operate`."""
    clients = counted("Listing", client.iterate(operations.list_oauth_clients(integration_type)))
    if as_json:
        print_json_lines(clients)
        return
    columns = ("type", "name", "client id", "callers", "!secrets")
    rows = [
        [each.integration_type, each.name, each.client_id, " ".join(each.callers), describe_secrets(each)]
        for each in clients
    ]
    print_table(columns, rows, "There is no OAuth client.")


def describe_secrets(client: OAuthClient) -> str:
    """Return the state of a client's secrets in a word or two."""
    if client.altered:
        return "ALTERED"
    if client.secret_state:
        return SecretState.Name(client.secret_state).removeprefix("SECRET_STATE_")
    return "rotating" if client.has_previous_secret else "ok"


@remote_command
def show_client(
    client: Integrations,
    integration_type: Annotated[str, typer.Argument(help="The integration type.")],
    name: Annotated[str, typer.Argument(help="The client's name. Without it, the operator's own.")] = "",
    as_json: Json = False,
) -> None:
    """Show one OAuth client. No secret is shown."""
    listed = client.iterate(operations.list_oauth_clients(integration_type))
    found = next((each for each in listed if each.name == name), None)
    if found is None:
        fail(f"{escape(integration_type)} has no OAuth client {escape(name) or 'of the operator'}.", exit_code=FAILED)
    if as_json:
        print_json(to_json(found))
        return
    print_fields(
        {
            "type": found.integration_type,
            "name": found.name,
            "client id": found.client_id,
            "callers": " ".join(found.callers),
            "secrets": describe_secrets(found),
            "refused since (UTC)": format_time(found, "refuse_time"),
            "previous secret": "yes" if found.has_previous_secret else "no",
            "webhook secret": "yes" if found.has_webhook_secret else "no",
            "webhook URL": found.webhook_url,
            "added (UTC)": format_time(found, "create_time"),
            "changed (UTC)": format_time(found, "update_time"),
        }
    )
