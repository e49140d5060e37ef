"""Commands of operators: `migrate`, `types` and `expiring`."""

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from integration_server.cli.shared import command, load_settings
from integration_server.providers.base import BaseProvider
from integration_server.providers.http import ProviderHttp
from integration_server.storage.engine import open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.schema import migrate as migrate_schema
from integration_server.text_escaping import escape
from integration_server.wiring.providers import build_providers
from integration_server.wiring.system import utc_now

EXPIRY_NOTICE = timedelta(days=90)
"""How long before the end of an API version the operators are warned: a new one takes a release and its tests."""


@command
async def migrate() -> None:
    """Migrate the database's schema to the newest version. Concurrent migrations are safe."""
    settings, _ = await load_settings(needs_key=False)
    await migrate_schema(settings.database_url)
    typer.echo("The schema is up to date.")


@command
async def types() -> None:
    """List the integration types of this server, and the settings that each still needs.

    Warns of API versions and the like that have ended, or end within ninety days.
    """
    settings, environment = await load_settings(needs_key=False)
    providers = build_providers(settings, environment, ProviderHttp(utc_now)).all()
    table = Table("type", "name", "auth method", Column("missing settings", overflow="fold"))
    for provider in providers:
        missing = "\n".join(provider.missing_settings)
        table.add_row(provider.integration_type, provider.display_name, provider.auth_method, missing)
    Console().print(table)
    for warning in expiry_warnings(providers, utc_now().date()):
        typer.echo(warning, err=True)


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
) -> None:
    """List the integrations whose grant expires within some days, so that their users must connect again.

    A grant expires if its refresh token has a known expiry, or if its access token cannot be refreshed. Inactive and
    expired integrations are not listed.
    """
    settings, _ = await load_settings(needs_key=False)
    now = utc_now()
    table = Table("expires", "in days", "id", "user", "type", "account", "what expires")
    async with open_database(settings.database_url) as database:
        integrations = SqlIntegrations(database, lambda _: None)
        for grant in await integrations.list_expiring(now + timedelta(days=days), limit):
            expire_time = grant.grant_expire_time or now
            table.add_row(
                f"{expire_time:%F %R} UTC",
                f"{(expire_time - now) / timedelta(days=1):.1f}",
                str(grant.integration_id),
                # As texts: a name must neither control the terminal nor be read as Rich's markup.
                Text(escape(grant.user_id), overflow="fold"),
                grant.integration_type,
                Text(escape(grant.account_label or grant.account_id or ""), overflow="fold"),
                "refresh token" if grant.is_renewable else "access token",
            )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo("No grant with a known expiry expires within that time.")
    if table.row_count == limit:
        typer.echo(f"Only the first {limit} are listed; there may be more: --limit.")
