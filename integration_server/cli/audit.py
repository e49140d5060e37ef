"""The `audit` commands: list and verify the audit log, and erase a user from it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from integration_server.cli.options import Json, JsonLines
from integration_server.cli.remote import names_server, remote_command, without_connection
from integration_server.cli.shared import command, confirm, fail, load_settings, open_prepared_storage
from integration_server.cli.tables import (
    counted,
    format_time,
    print_json,
    print_json_lines,
    print_result,
    print_table,
)
from integration_server.client import Integrations
from integration_server.domain.audit import OPERATOR, Action, AuditEntry
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.text_escaping import escape_again
from integration_server.rpc.operator_service import encode_audit_entry
from integration_server.service.operators.ports import AuditFilter
from integration_server.setting_types import is_url
from integration_server.settings import Settings
from integration_server.storage.audit_erasure import UserErasure
from integration_server.storage.audit_head_file import RecordedHeads, read_heads
from integration_server.storage.audit_reading import SqlAuditEntries
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.engine import open_database
from integration_server.wiring.audit_heads import open_head_recorder
from integration_server.wiring.system import utc_now
from integrations.v1.operator_service_pb2 import AuditEntry as AuditEntryMessage

ALTERED, WRONG_OPTION, NOT_VERIFIED = 1, 2, 3
"""Exit codes of `audit verify`; 0 means intact."""

_MAX_ID = 2**63 - 1  # of both databases
_PAGE_SIZE = 1000  # entries
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


_UserEntries = Annotated[str, typer.Option("--user", help="List only this user's entries.")]
_IntegrationEntries = Annotated[
    int, typer.Option("--integration", min=0, max=_MAX_ID, help="List only this integration's entries.")
]
_CallerEntries = Annotated[str, typer.Option("--caller", help="List only this caller's entries.")]
_ActionEntries = Annotated[str, typer.Option("--action", help="List only entries of this action, such as connect.")]
_Since = Annotated[datetime | None, typer.Option("--since", help="List only entries from this time on, in UTC.")]
_Until = Annotated[datetime | None, typer.Option("--until", help="List only entries before this time, in UTC.")]
_Limit = Annotated[int, typer.Option("--limit", min=1, help="The maximum number of entries.")]


@remote_command
def _list_of_server(
    client: Integrations,
    user: _UserEntries = "",
    integration: _IntegrationEntries = 0,
    caller: _CallerEntries = "",
    action: _ActionEntries = "",
    since: _Since = None,
    until: _Until = None,
    limit: _Limit = 100,
    as_json: JsonLines = False,
) -> None:
    """List the entries of the audit log, the newest first. Names are escaped: docs/audit.md describes how.

    With the address of a running server, by option or variable, that server is asked. Otherwise the database in the
    settings of this machine is read.
    """
    entries = client.audit_entries(
        user=user,
        integration_id=integration,
        caller=caller,
        action=action,
        start_time=_as_utc(since),
        end_time=_as_utc(until),
    )
    _print_entries(counted("Listing", islice(entries, limit)), as_json=as_json)


@command
async def _list_of_database(
    user: str,
    integration: int,
    caller: str,
    action: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    settings, _ = await load_settings(needs_key=False)
    condition = AuditFilter(UserId(user), IntegrationId(integration), caller, action, _as_utc(since), _as_utc(until))
    listed: list[AuditEntryMessage] = []
    async with open_database(settings.database_url) as database:
        log, position = SqlAuditEntries(database), None
        while True:
            page = await log.list(condition, position, min(limit - len(listed), _PAGE_SIZE))
            listed += map(encode_audit_entry, page.items)
            position = page.last
            if position is None or len(listed) == limit:
                break
    _print_entries(listed, as_json=as_json)


@wraps(_list_of_server)
def list_audit(**options: Any) -> None:  # noqa: ANN401  # the options of the command
    if names_server(options):
        _list_of_server(**options)
    else:
        _list_of_database(**without_connection(options))


def _as_utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)


def _print_entries(entries: Iterable[AuditEntryMessage], *, as_json: bool) -> None:
    if as_json:
        print_json_lines(entries)
        return
    columns = ("!time (UTC)", "caller", "action", "user", "integration", "outcome", "purpose", "details")
    print_table(columns, list(map(_entry_row, entries)), "No entry.", clean=escape_again)


def _entry_row(entry: AuditEntryMessage) -> list[str]:
    if entry.unreadable:
        return ["?", *[""] * 6, "cannot be read: see `audit verify`"]
    return [
        format_time(entry, "time"),
        entry.caller,
        entry.action,
        "\\{erased}" if entry.erased else entry.user_id,  # no name is escaped to this
        " ".join(filter(None, (str(entry.integration_id or ""), entry.integration_type))),
        entry.outcome if entry.call_count == 1 else f"{entry.outcome} ({entry.call_count:,} calls)",
        entry.purpose,
        entry.details,
    ]


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
