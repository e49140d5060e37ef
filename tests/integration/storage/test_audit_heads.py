"""Verification against heads recorded outside the database finds an older state of the log, on both databases.

Each kind of tampering is consistent in itself. The negative control is the same verification without heads: it finds
nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, delete, insert, select, update

from integration_server.domain.audit import SERVER, Action, AuditEntry
from integration_server.service.audit.audit_heads import Head, HeadRecorder, encode_head
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.audit_head_file import HeadFile, RecordedHeads, read_heads
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.engine import Database
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import audit_chains, audit_entries, integrations
from tests.contracts.integration_rows import SqlRows, create_connected
from tests.fakes.clock import NOON
from tests.keyrings import open_test_keyring

_C, _E = audit_chains.c, audit_entries.c
CHAINS, BATCH = 3, 4
Rows = Mapping[Table, Sequence[Mapping[str, Any]]]


def entry(number: int, version: int = 0) -> AuditEntry:
    time = NOON + timedelta(seconds=number)
    return AuditEntry(time, SERVER, Action.REFRESH, "ada", number + 1, "acme", integration_version=version)


class WrittenLog:
    """A log of several processes that have recorded their heads. `older` is its state before their last batch."""

    def __init__(self, database: Database, keyring: Keyring, path: Path) -> None:
        self.database = database
        self.keyring = keyring
        self.path = path
        self.older: Rows = {}

    async def write(self) -> None:
        """Write the chains, all of them to the same file of heads."""
        logs = [SqlAuditLog(self.database, self.keyring) for _ in range(CHAINS)]
        for log in logs[:-1]:
            await log.append([entry(number) for number in range(BATCH)])
        self.older = await self.snapshot()
        for log in logs:
            await log.append([entry(BATCH + number) for number in range(BATCH)])
            async with HeadRecorder(log.heads, HeadFile(self.path), lambda: NOON) as recorder:
                assert await recorder.record()

    async def snapshot(self, *, with_integrations: bool = False) -> Rows:
        """All rows of the log: a backup."""
        tables = (audit_chains, audit_entries, *([integrations] if with_integrations else []))
        return {table: [dict(row._mapping) for row in await self.database.fetch(select(table))] for table in tables}

    async def put_back(self, rows: Rows) -> None:
        """Put a backup in the place of the present rows."""
        async with self.database.write_transaction() as connection:
            for table, values in rows.items():
                await connection.execute(delete(table))
                if values:
                    await connection.execute(insert(table), list(values))

    async def execute(self, *statements: Any) -> None:
        """Alter the database."""
        async with self.database.write_transaction() as connection:
            for statement in statements:
                await connection.execute(statement)

    async def chain_id(self, number: int) -> str:
        """The id of a chain."""
        return str(await self.database.fetch_value(select(_C.chain_id).where(_C.number == number)))

    async def problems(self, heads: RecordedHeads | None = None) -> list[str]:
        """What verification reports, with these heads or without any."""
        log = AuditVerification(self.database, self.keyring, recorded_heads=heads)
        return [problem async for problem in log.problems()]


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> WrittenLog:
    written = WrittenLog(database, await open_test_keyring(database), tmp_path / "heads")
    await written.write()
    return written


async def set_back_a_chain(log: WrittenLog) -> None:
    """The record that a chain had, without the entries since."""
    chain_id = await log.chain_id(2)
    (row,) = (row for row in log.older[audit_chains] if row["number"] == 2)
    await log.execute(
        update(audit_chains).where(_C.chain_id == chain_id).values(dict(row)),
        delete(audit_entries).where(_E.chain_id == chain_id, _E.sequence > BATCH),
    )


async def set_back_all(log: WrittenLog) -> None:
    await log.put_back(log.older)


async def remove_the_newest_chain(log: WrittenLog) -> None:
    chain_id = await log.chain_id(CHAINS)
    tables = (audit_entries, audit_chains)
    await log.execute(*(delete(table).where(table.c.chain_id == chain_id) for table in tables))


async def remove_all_chains(log: WrittenLog) -> None:
    await log.execute(delete(audit_entries), delete(audit_chains))


async def replace_the_newest_chain(log: WrittenLog) -> None:
    """A process that starts afterwards takes the number, with as many entries."""
    await remove_the_newest_chain(log)
    await SqlAuditLog(log.database, log.keyring).append([entry(number) for number in range(BATCH)])


async def set_back_all_and_go_on(log: WrittenLog) -> None:
    """Servers write more entries than were there before, in chains with new numbers."""
    await set_back_all(log)
    for _ in range(3):
        await SqlAuditLog(log.database, log.keyring).append([entry(number) for number in range(3 * BATCH)])


NEWEST = f"had {BATCH} entries, as its head shows"
SET_BACK = f"it was set back to {BATCH} entries: it had {2 * BATCH}, as its head shows"
TAMPERINGS: dict[str, tuple[Callable[[WrittenLog], Awaitable[None]], list[str]]] = {
    "a chain is set back": (set_back_a_chain, [f"chain 2: {SET_BACK}"]),
    "the whole log is set back": (
        set_back_all,
        [f"chain 1: {SET_BACK}", f"chain 2: {SET_BACK}", f"chain 3 (…) is missing: it {NEWEST}"],
    ),
    "the newest chain is removed": (remove_the_newest_chain, [f"chain 3 (…) is missing: it {NEWEST}"]),
    "all chains are removed": (
        remove_all_chains,
        [
            *(f"chain {number} (…) is missing: it had {2 * BATCH} entries, as its head shows" for number in (1, 2)),
            f"chain 3 (…) is missing: it {NEWEST}",
        ],
    ),
    "the newest chain is replaced": (replace_the_newest_chain, [f"chain 3 (…) is missing: it {NEWEST}"]),
    "servers go on after the log was set back": (
        set_back_all_and_go_on,
        [f"chain 1: {SET_BACK}", f"chain 2: {SET_BACK}", f"chain 3 (…) is missing: it {NEWEST}"],
    ),
}


@pytest.mark.parametrize(("tamper", "reported"), TAMPERINGS.values(), ids=TAMPERINGS)
async def test_an_older_state_is_found_with_heads_only(
    log: WrittenLog, tamper: Callable[[WrittenLog], Awaitable[None]], reported: list[str]
) -> None:
    ids = {await log.chain_id(number) for number in range(1, CHAINS + 1)}
    await tamper(log)
    problems = await log.problems(read_heads(log.path))
    for chain_id in ids:
        problems = [problem.replace(f"({chain_id!r})", "(…)") for problem in problems]
    assert problems == reported
    assert await log.problems() == []  # the negative control


async def test_an_intact_log_agrees_with_its_heads_also_after_further_entries(log: WrittenLog) -> None:
    heads = read_heads(log.path)
    assert len(heads.chain_ids) == CHAINS
    assert await log.problems(heads) == []
    await SqlAuditLog(log.database, log.keyring).append([entry(0)])
    assert await log.problems(heads) == []


async def test_another_head_of_the_same_length_is_found(log: WrittenLog) -> None:
    """As when a process with a copy of the database went on with a chain: both are authentic."""
    (recorded,) = read_heads(log.path).of_chain(await log.chain_id(2))
    await HeadFile(log.path).append([encode_head(replace(recorded, mac=bytes(32)), "")])
    reported = f"chain 2: entry {2 * BATCH} or an entry before it is not the one that its head shows"
    assert await log.problems(read_heads(log.path)) == [reported]


async def test_verification_returns_the_heads_of_intact_chains(log: WrittenLog) -> None:
    """They are recorded when recording begins with a log that exists already."""
    verification = AuditVerification(log.database, log.keyring)
    assert [problem async for problem in verification.problems()] == []
    recorded = read_heads(log.path)
    assert {head for chain_id in recorded.chain_ids for head in recorded.of_chain(chain_id)} == set(verification.heads)
    await log.execute(update(audit_entries).where(_E.chain_id == await log.chain_id(2)).values(caller="nobody"))
    verification = AuditVerification(log.database, log.keyring)
    assert len([problem async for problem in verification.problems()]) == 1
    assert [head.number for head in verification.heads] == [1, 3]


async def test_entries_after_the_last_head_can_be_removed_undetected(log: WrittenLog) -> None:
    """The limit of heads, as docs/security/stored-data.md states."""
    heads, before = read_heads(log.path), await log.snapshot()
    await SqlAuditLog(log.database, log.keyring).append([entry(0)])
    await log.put_back(before)
    assert await log.problems(heads) == []


@pytest.mark.parametrize(
    ("version", "mac", "reported"),
    [
        (5, b"\x05", []),
        (6, b"\x06", []),
        (4, b"\x04", ["data_keys: set back to version 4: it had 5, as its head shows"]),
        (5, b"\x06", ["data_keys: version 5 is not the one that its head shows"]),
    ],
)
async def test_the_heads_of_other_kinds_are_compared_too(
    log: WrittenLog, version: int, mac: bytes, reported: list[str]
) -> None:
    recorded = Head("data_keys", "all", 0, 5, b"\x05")
    await HeadFile(log.path).append([encode_head(recorded, ""), encode_head(replace(recorded, kind="future"), "")])
    state = replace(recorded, version=version, mac=mac)
    verification = AuditVerification(
        log.database, log.keyring, recorded_heads=read_heads(log.path), states=[state, replace(state, kind="unknown")]
    )
    assert [problem async for problem in verification.problems()] == reported


# --- versions of credentials ----------------------------------------------------------------------------------------


async def stored_integration(log: WrittenLog) -> int:
    store = SqlRows(log.database, lambda _: None)
    return int((await create_connected(store)).integration_id)


async def test_an_integration_row_that_is_put_back_is_found(log: WrittenLog) -> None:
    integration_id = await stored_integration(log)
    with_version = replace(entry(0), integration_id=integration_id, integration_version=7)
    await log.execute(update(integrations).values(version=7))
    older = await log.snapshot(with_integrations=True)
    await SqlAuditLog(log.database, log.keyring).append([with_version, replace(with_version, integration_version=8)])
    await log.execute(update(integrations).values(version=8))
    assert await log.problems() == []
    await log.put_back({integrations: older[integrations]})
    assert await log.problems() == [
        f"the credentials of integration {integration_id} were set back to version 7: the log has version 8"
    ]
    await log.execute(update(integrations).values(version=9))  # not yet in the log
    assert await log.problems() == []
    await log.execute(delete(integrations))
    assert await log.problems() == []


async def test_the_row_of_a_disconnected_integration_that_is_put_back_is_found(log: WrittenLog) -> None:
    integration_id = await stored_integration(log)
    older = await log.snapshot(with_integrations=True)
    disconnected = replace(entry(0), action=Action.DISCONNECT, integration_id=integration_id)
    writer = SqlAuditLog(log.database, log.keyring)
    await writer.append([replace(disconnected, outcome="INTEGRATION_NOT_FOUND")])  # by another user
    assert await log.problems() == []
    await writer.append([disconnected])
    await log.execute(delete(integrations))
    assert await log.problems() == []
    await log.put_back({integrations: older[integrations]})
    assert await log.problems() == [f"integration {integration_id} was put back: the log has its disconnection"]


async def test_the_row_and_the_whole_log_put_back_are_found_with_heads_only(log: WrittenLog) -> None:
    integration_id = await stored_integration(log)
    older = await log.snapshot(with_integrations=True)
    writer = SqlAuditLog(log.database, log.keyring)
    await writer.append([replace(entry(0), integration_id=integration_id, integration_version=8)])
    await log.execute(update(integrations).values(version=8))
    async with HeadRecorder(writer.heads, HeadFile(log.path), lambda: NOON):
        pass
    await log.put_back(older)
    assert await log.problems() == []  # the negative control
    assert len(await log.problems(read_heads(log.path))) == 1
