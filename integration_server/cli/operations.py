"""What operators do and look up now and then."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from integration_server.bootstrap import build_providers
from integration_server.cli.shared import fail, load_settings, run
from integration_server.providers.factory import ProvidersError
from integration_server.providers.http import ProviderHttp
from integration_server.settings import Settings
from integration_server.storage.engine import open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.schema import migrate as migrate_schema
from integration_server.wiring.system import utc_now


def migrate() -> None:
    """Bring the database's schema up to date. Safe to run beside other replicas that do the same."""
    settings, _ = load_settings(needs_key=False)
    run(migrate_schema(settings.database_url))
    typer.echo("The schema is up to date.")


def types() -> None:
    """List the integration types that this server knows, and what they still need."""
    settings, environment = load_settings(needs_key=False)
    try:
        providers = build_providers(settings, environment, ProviderHttp(utc_now))
    except ProvidersError as error:
        fail("These providers are wrong:", *error.problems)
    table = Table("type", "name", "auth method", Column("missing settings", overflow="fold"))
    for provider in providers.all():
        missing = "\n".join(provider.missing_settings)
        table.add_row(provider.integration_type, provider.display_name, provider.auth_method, missing)
    Console().print(table)


def expiring(
    days: Annotated[float, typer.Option(min=0, help="How far to look ahead.")] = 30,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most, the soonest first.")] = 1000,
) -> None:
    """List the integrations that will die within some days, unless their users connect them again.

    They are those whose refresh token has a known end, or whose access token cannot be renewed. Those that are switched
    off, or dead already, are left out.
    """
    settings, _ = load_settings(needs_key=False)
    run(_expiring(settings, timedelta(days=days), limit))


async def _expiring(settings: Settings, within: timedelta, limit: int) -> None:
    now = utc_now()
    table = Table("ends", "in days", "id", "user", "type", "account", "what ends")
    async with open_database(settings.database_url) as database:
        for ending in await SqlIntegrations(database).list_expiring(now + within, limit):
            grant_expire_time = ending.grant_expire_time or now
            table.add_row(
                f"{grant_expire_time:%F %R} UTC",
                f"{(grant_expire_time - now) / timedelta(days=1):.1f}",
                str(ending.integration_id),
                ending.user_id,
                ending.integration_type,
                ending.account_label or ending.account_id or "",
                "refresh token" if ending.is_renewable else "access token",
            )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo("No integration ends within that time, as far as the providers have told.")
    if table.row_count == limit:
        typer.echo(f"These are the first {limit}; there may be more: --limit.")
