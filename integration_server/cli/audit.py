"""The `audit` commands: list and verify the audit log."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from integration_server.cli.shared import command, fail, load_settings, open_prepared_storage
from integration_server.storage.audit import AuditVerification, list_audit_entries
from integration_server.storage.engine import open_database


@command
async def verify_audit() -> None:
    """Verify that no entry of the audit log was altered, inserted or removed. The exit code is 1 if one was."""
    async with open_prepared_storage() as (_, storage):
        log = AuditVerification(storage.database, storage.keyring)
        problems = [problem async for problem in log.problems()]
    if problems:
        fail(f"The audit log was altered ({log.entries:,} entries were read):", *problems)
    typer.echo(f"The audit log is intact: {log.chains:,} chains, {log.entries:,} entries.")


@command
async def list_audit(
    user: Annotated[str, typer.Option(help="List only this user's entries.")] = "",
    integration: Annotated[int, typer.Option(min=0, help="List only this integration's entries.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of entries.")] = 100,
) -> None:
    """List the entries of the audit log, the newest first."""
    settings, _ = await load_settings(needs_key=False)
    table = Table("time", "caller", "action", "user", "integration", "outcome", "purpose", "details")
    async with open_database(settings.database_url) as database:
        for entry in await list_audit_entries(database, user, integration, limit):
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
