"""Commands of operators: `migrate`, `restored`, `types` and `expiring`."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Column, Table

from integration_server.cli.options import Json, JsonLines
from integration_server.cli.shared import command, load_settings
from integration_server.cli.tables import print_records, print_result
from integration_server.providers.base import BaseProvider
from integration_server.providers.http import ProviderHttp
from integration_server.storage.database_identity import declare_restored
from integration_server.storage.engine import open_database
from integration_server.storage.integration_lists import SqlIntegrationLists
from integration_server.storage.schema import check_schema
from integration_server.storage.schema import migrate as migrate_schema
from integration_server.wiring.providers import build_providers
from integration_server.wiring.system import utc_now

EXPIRY_NOTICE = timedelta(days=90)
"""How long before the end of an API version the operators are warned: a new one takes a release and its tests."""


@command
async def migrate(as_json: Json = False) -> None:
    """Migrate the database's schema to the newest version. Concurrent migrations are safe."""
    settings, _ = await load_settings(needs_key=False)
    await migrate_schema(settings.database_url)
    print_result({"schema": "up to date"}, "The schema is up to date.", as_json=as_json)


@command
async def restored(as_json: Json = False) -> None:
    """Declare that the database was restored from a backup: cursors from before are refused from now on.

    To be run after each restore, before servers start. It changes nothing else.
    """
    settings, _ = await load_settings(needs_key=False)
    async with open_database(settings.database_url) as database:
        await check_schema(database)
        await declare_restored(database)
    text = "Cursors of event streams from before the restore are refused: consumers begin again with the current state."
    print_result({"database": "restored"}, text, as_json=as_json)


@command
async def types(*, as_json: bool = False) -> None:
    """List the integration types of this server, and the settings that each still needs.

    Warns of API versions and the like that have ended, or end within ninety days.
    """
    settings, environment = await load_settings(needs_key=False)
    providers = build_providers(settings, environment, ProviderHttp(utc_now)).all()
    columns = ("type", "name", "auth method", "missing settings")
    records = [
        (provider.integration_type, provider.display_name, provider.auth_method, list(provider.missing_settings))
        for provider in providers
    ]
    if sys.stdout.isatty() and not as_json:
        _print_folded(columns, records)
    else:
        print_records(columns, records, "This server has no integration type.", as_json=as_json)
    for warning in expiry_warnings(providers, utc_now().date()):
        typer.echo(warning, err=True)


def _print_folded(columns: Sequence[str], records: Sequence[Sequence[object]]) -> None:
    """Print a table for a terminal whose last column has lists, one item below the other, because none may be cut."""
    table = Table(*columns[:-1], Column(columns[-1], overflow="fold"))
    for *cells, items in records:
        table.add_row(*map(str, cells), "\n".join(cast(list[str], items)))
    Console().print(table)


def expiry_warnings(providers: Iterable[BaseProvider], today: date) -> Iterator[str]:
    """A warning for each fact about a provider that has ended, or ends soon."""
    for provider in providers:
        for fact in provider.facts_ending_by(today + EXPIRY_NOTICE):
            verb = "ended" if fact.end <= today else "ends"
            yield f"warning: {provider.integration_type}: {fact.subject} {verb} on {fact.end}"


@command
async def expiring(
    days: Annotated[float, typer.Option(min=0, help="The number of days from now.")] = 30,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of integrations, the soonest first.")] = 1000,
    as_json: JsonLines = False,
) -> None:
    """List the integrations whose grant expires within some days, so that their users must connect again.

    A grant expires if its refresh token has a known expiry, or if its access token cannot be refreshed. Inactive and
    expired integrations are not listed.
    """
    settings, _ = await load_settings(needs_key=False)
    now = utc_now()
    async with open_database(settings.database_url) as database:
        grants = await SqlIntegrationLists(database).list_expiring(now + timedelta(days=days), limit)
    records = [
        (
            grant.grant_expire_time or now,
            round(((grant.grant_expire_time or now) - now) / timedelta(days=1), 1),
            grant.integration_id,
            grant.user_id,
            grant.integration_type,
            grant.account_label or grant.account_id or "",
            "refresh token" if grant.is_renewable else "access token",
        )
        for grant in grants
    ]
    columns = ("!expires (UTC)", "!in days", "!id", "user", "type", "account", "what expires")
    print_records(columns, records, "No grant with a known expiry expires within that time.", as_json=as_json)
    if len(grants) == limit:
        typer.echo(f"Only the first {limit} are listed; there may be more: --limit.", err=True)
