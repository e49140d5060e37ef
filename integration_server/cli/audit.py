"""The record of who did what to which integration: `audit ...`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from integration_server.cli.shared import fail, load_settings, prepare_database, run
from integration_server.settings import Settings
from integration_server.storage.audit import AuditVerification, list_audit_entries
from integration_server.storage.engine import open_database
from integration_server.storage.keyring import open_keyring
from integration_server.wiring.keys import open_key_encryptions


def verify_audit() -> None:
    """Check that no entry of the audit log was altered, put in or removed; the exit code is 1 if one was."""
    settings, _ = load_settings()
    run(_verify_audit(settings))


async def _verify_audit(settings: Settings) -> None:
    keys = await open_key_encryptions(settings, await prepare_database(settings))
    async with open_database(settings.database_url) as database:
        log = AuditVerification(database, await open_keyring(database, keys))
        problems = [problem async for problem in log.problems()]
    if problems:
        fail(f"The audit log is not as it was written ({log.entries:,} entries were read):", *problems)
    typer.echo(f"The audit log is as it was written: {log.chains:,} chains, {log.entries:,} entries.")


def list_audit(
    user: Annotated[str, typer.Option(help="Only of this user.")] = "",
    integration: Annotated[int, typer.Option(min=0, help="Only of this integration.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
) -> None:
    """List what was done, the newest first."""
    settings, _ = load_settings(needs_key=False)
    run(_list_audit(settings, user, integration, limit))


async def _list_audit(settings: Settings, user_id: str, integration_id: int, limit: int) -> None:
    table = Table("time", "caller", "action", "user", "integration", "outcome", "purpose", "details")
    async with open_database(settings.database_url) as database:
        for entry in await list_audit_entries(database, user_id, integration_id, limit):
            if entry is None:
                table.add_row("?", *[""] * 6, "cannot be read: see `audit verify`")
                continue
            integration_text = " ".join(filter(None, (str(entry.integration_id or ""), entry.integration_type)))
            cells = (
                entry.caller,
                entry.action,
                entry.user_id,
                integration_text,
                entry.outcome,
                entry.purpose,
                entry.details,
            )
            table.add_row(f"{entry.time:%F %T} UTC", *(Text(str(text), overflow="fold") for text in cells))
    Console().print(table)
