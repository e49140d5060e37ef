"""The `audit` commands: list and verify the audit log, and erase a user from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from integration_server.cli.options import Json, JsonLines
from integration_server.cli.shared import command, confirm, fail, load_settings, open_prepared_storage
from integration_server.cli.tables import print_json, print_records, print_result
from integration_server.domain.audit import OPERATOR, Action, AuditEntry
from integration_server.setting_types import is_url
from integration_server.settings import Settings
from integration_server.storage.audit import list_audit_entries
from integration_server.storage.audit_erasure import UserErasure
from integration_server.storage.audit_head_file import RecordedHeads, read_heads
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.engine import open_database
from integration_server.text_escaping import escape_again
from integration_server.wiring.audit_heads import open_head_recorder
from integration_server.wiring.system import utc_now

ALTERED, WRONG_OPTION, NOT_VERIFIED = 1, 2, 3
"""Exit codes of `audit verify`; 0 means intact."""

_MAX_ID = 2**63 - 1  # of both databases
_MAX_LIMIT = 1_000_000  # entries, which are all in memory
_MAX_SHOWN_LINES = 10


@partial(command, exit_code=NOT_VERIFIED)
async def verify_audit(
    heads: Annotated[
        Path | None, typer.Option(help="The file of recorded heads to compare with; default: the file AUDIT_HEADS.")
    ] = None,
    record_heads: Annotated[
        bool,
        typer.Option("--record-heads", help="If the log is intact, record the heads of all chains at AUDIT_HEADS."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify that no entry of the audit log was altered, inserted or removed.

    Exit codes: 0 intact, 1 altered, 2 wrong options, 3 not verified, such as without a database or a readable FILE.
    """
    async with open_prepared_storage() as (settings, storage):
        if record_heads and settings.audit_heads is None:
            fail("AUDIT_HEADS is not set: there is nowhere to record heads.", exit_code=NOT_VERIFIED)
        recorded = _read_recorded_heads(settings, heads, may_be_missing=record_heads)
        states = [storage.keyring.head]
        log = AuditVerification(storage.database, storage.keyring, recorded_heads=recorded, states=states)
        with _progress("Verifying", await log.count_entries()) as (progress, task):
            log.on_page = lambda: progress.update(task, completed=log.entries)
            problems = [problem async for problem in log.problems()]
        if record_heads and not problems:
            async with open_head_recorder(settings, lambda: [*log.heads, *states], utc_now) as recorder:
                if recorder is None or not await recorder.record():
                    fail("The audit log is intact, but its heads could not be recorded.", exit_code=NOT_VERIFIED)
    if as_json:
        print_json(
            {
                "intact": not problems,
                "problems": problems,
                "chains": log.chains,
                "entries": log.entries,
                "erased_entries": log.erased,
                "compared_chains": len(recorded.chain_ids) if recorded else 0,
            }
        )
        raise typer.Exit(ALTERED if problems else 0)
    erased = f", of which {log.erased:,} name no user any more" if log.erased else ""
    if problems:
        fail(
            f"The audit log was altered ({log.entries:,} entries were read{erased}):",
            *map(escape_again, problems),
            exit_code=ALTERED,
        )
    compared = f" {len(recorded.chain_ids):,} chains were compared with their recorded heads." if recorded else ""
    typer.echo(f"The audit log is intact: {log.chains:,} chains, {log.entries:,} entries{erased}.{compared}")


def _read_recorded_heads(settings: Settings, path: Path | None, *, may_be_missing: bool) -> RecordedHeads | None:
    """The heads in the given file, else in the configured one, which may be missing before heads are first recorded."""
    if path is None and settings.audit_heads is not None:
        if is_url(settings.audit_heads):
            typer.echo("AUDIT_HEADS is a URL: to detect an older database, compare with --heads FILE.", err=True)
            return None
        path = Path(settings.audit_heads)
        if may_be_missing and not path.exists():
            return None
    if path is None:
        typer.echo("Without recorded heads (AUDIT_HEADS, --heads), an older database is not detected.", err=True)
        return None
    recorded = read_heads(path)
    for number in recorded.unreadable_lines[:_MAX_SHOWN_LINES]:
        typer.echo(f"{path}: line {number} is not a head and was ignored", err=True)
    if (more := len(recorded.unreadable_lines) - _MAX_SHOWN_LINES) > 0:
        typer.echo(f"{path}: {more:,} more lines are not heads and were ignored", err=True)
    if not recorded.heads and not may_be_missing:
        fail(f"{path} has no heads. `audit verify --record-heads` records them.", exit_code=NOT_VERIFIED)
    return recorded


@command
async def list_audit(
    user: Annotated[str, typer.Option(help="List only this user's entries.")] = "",
    integration: Annotated[int, typer.Option(min=0, max=_MAX_ID, help="List only this integration's entries.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LIMIT, help="The maximum number of entries.")] = 100,
    as_json: JsonLines = False,
) -> None:
    """List the entries of the audit log, the newest first. Names are escaped: docs/audit.md describes how."""
    settings, _ = await load_settings(needs_key=False)
    columns = ("!time (UTC)", "caller", "action", "user", "integration", "outcome", "purpose", "details")
    async with open_database(settings.database_url) as database:
        entries = await list_audit_entries(database, user, integration, limit)
    records = [
        ("?", *[""] * 6, "cannot be read: see `audit verify`")
        if entry is None
        else (
            entry.time,
            entry.caller,
            entry.action,
            entry.user_id,
            " ".join(filter(None, (str(entry.integration_id or ""), entry.integration_type))),
            entry.outcome if entry.call_count == 1 else f"{entry.outcome} ({entry.call_count:,} calls)",
            entry.purpose,
            entry.details,
        )
        for entry in entries
    ]
    print_records(columns, records, "No entry.", as_json=as_json, clean=escape_again)


@command
async def erase_user(
    user: Annotated[str, typer.Argument(help="The user_id, as callers send it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a user from the audit log: user, purpose and details of all entries about this user.

    The entries stay, and `audit verify` still detects what was altered. After a failure, run it again: it continues.
    """
    if not user:  # entries without a user, and those that are erased already
        fail("The user is empty.", exit_code=WRONG_OPTION)
    async with open_prepared_storage() as (_, storage):
        erasure = UserErasure(storage.database, storage.keyring, user)
        if not (count := await erasure.count_entries()):
            print_result({"erased_entries": 0, "altered_entries": []}, "No entry names this user.", as_json=as_json)
            return
        if not yes:
            confirm(f"Erase the user from {count:,} entries? This cannot be undone.")
        # Before the erasure: a crash in between repeats the audit entry, and does not lose it.
        entry = AuditEntry(utc_now(), OPERATOR, Action.ERASE_USER, details=f"{count} entries")
        await storage.audit_log.append([entry])
        with _progress("Erasing", count) as (progress, task):
            async for erased in erasure.erase():
                progress.update(task, completed=erased)
    document = {"erased_entries": erasure.erased, "altered_entries": erasure.altered}
    print_result(document, f"The user is erased from {erasure.erased:,} entries.", as_json=as_json)
    if erasure.altered:
        fail(
            f"Entries that were altered and therefore stay: {len(erasure.altered):,}",
            *erasure.altered[:10],
            "Run `audit verify`, and keep what it reports before you delete these entries.",
        )


@contextmanager
def _progress(description: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(description, total=total)
