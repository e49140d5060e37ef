"""The audit log shows what was altered or removed, on both databases."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.storage import audit
from integration_server.storage.audit import AuditVerification, SqlAuditLog, list_audit_entries
from integration_server.storage.engine import Database, open_database
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import audit_chains, audit_entries
from tests.fakes.clock import NOON
from tests.keyrings import open_test_keyring

_C, _E = audit_chains.c, audit_entries.c

CHAINS, BATCHES, BATCH = 3, 2, 4


def entry(number: int) -> AuditEntry:
    details = "" if number % 2 else "GET /things 200"  # as before there were any, and with some
    reported = "billing", Action.UPDATE, "ada", number + 1, "acme", "OK", 'why "not" 🦆', details
    return AuditEntry(NOON + timedelta(seconds=number), *reported)


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_test_keyring(database)


@pytest.fixture
async def written_entries(database: Database, keyring: Keyring) -> list[AuditEntry]:
    """What several processes wrote."""
    entries = [entry(number) for number in range(CHAINS * BATCHES * BATCH)]
    for number in range(CHAINS):
        log = SqlAuditLog(database, keyring)
        for batch in range(BATCHES):
            begin = (number * BATCHES + batch) * BATCH
            await log.append(entries[begin : begin + BATCH])
    return entries


async def problems(database: Database, keyring: Keyring) -> list[str]:
    return [problem async for problem in AuditVerification(database, keyring).problems()]


async def change(database: Database, *statements: Any) -> None:
    async with database.write_transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def chain_id(database: Database, number: int) -> str:
    async with database.read_connection() as connection:
        return str(await connection.scalar(select(_C.chain_id).where(_C.number == number)))


async def test_all_is_there_and_as_it_was_written(
    database: Database, keyring: Keyring, written_entries: list[AuditEntry]
) -> None:
    verification = AuditVerification(database, keyring)
    assert [problem async for problem in verification.problems()] == []
    assert (verification.chains, verification.entries) == (CHAINS, len(written_entries))
    assert await list_audit_entries(database, "", 0, 100) == written_entries[::-1]
    assert await list_audit_entries(database, "ada", 3, 100) == [written_entries[2]]
    assert await list_audit_entries(database, "bob", 0, 100) == []
    assert await list_audit_entries(database, "", 0, 1) == [written_entries[-1]]


@pytest.mark.parametrize(
    "values",
    [
        {"caller": "nobody"},
        {"time": NOON - timedelta(microseconds=1)},
        {"action": "disconnect"},
        {"action": "unheard of"},
        {"user_id": "eve"},
        {"integration_id": 999},
        {"integration_type": ""},
        {"outcome": "STORE_UNAVAILABLE"},
        {"purpose": ""},
        {"mac": bytes(32)},
    ],
    ids=str,
)
@pytest.mark.usefixtures("written_entries")
async def test_an_altered_entry_shows(database: Database, keyring: Keyring, values: dict[str, Any]) -> None:
    which = (_E.chain_id == await chain_id(database, 2), _E.sequence == 3)
    await change(database, update(audit_entries).where(*which).values(values))
    assert await problems(database, keyring) == ["chain 2: entry 3 was altered, or what it follows"]


@pytest.mark.parametrize("sequence", [1, 5, BATCHES * BATCH])
@pytest.mark.usefixtures("written_entries")
async def test_a_removed_entry_shows(database: Database, keyring: Keyring, sequence: int) -> None:
    which = (_E.chain_id == await chain_id(database, 1), _E.sequence == sequence)
    await change(database, delete(audit_entries).where(*which))
    assert await problems(database, keyring) == [f"chain 1: entry {sequence} is missing"]


@pytest.mark.usefixtures("written_entries")
async def test_removing_the_last_entry_and_its_chain_head_shows(database: Database, keyring: Keyring) -> None:
    chain = await chain_id(database, 3)
    last = BATCHES * BATCH
    async with database.read_connection() as connection:
        head = await connection.scalar(select(_E.mac).where(_E.chain_id == chain, _E.sequence == last - 1))
    await change(
        database,
        delete(audit_entries).where(_E.chain_id == chain, _E.sequence == last),
        update(audit_chains).where(_C.chain_id == chain).values(entries=last - 1, head=head),
    )
    assert await problems(database, keyring) == ["chain 3: its length or its last entry was altered"]


@pytest.mark.usefixtures("written_entries")
async def test_a_removed_chain_shows(database: Database, keyring: Keyring) -> None:
    chain = await chain_id(database, 2)
    await change(
        database,
        delete(audit_entries).where(_E.chain_id == chain),
        delete(audit_chains).where(_C.chain_id == chain),
    )
    assert await problems(database, keyring) == ["chain 2 is missing"]


@pytest.mark.usefixtures("written_entries")
async def test_an_entry_put_in_or_moved_shows(database: Database, keyring: Keyring) -> None:
    first, second = await chain_id(database, 1), await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == first, _E.sequence == 1))).one()
    inserted = {**row._mapping, "chain_id": second, "sequence": BATCHES * BATCH + 1}
    await change(database, insert(audit_entries).values(inserted))
    assert await problems(database, keyring) == ["chain 2: entry 9 was altered, or what it follows"]


@pytest.mark.parametrize(
    ("chain", "sequence", "reported"),
    [
        ("its own", BATCHES * BATCH + 2, f"chain 2: entry {BATCHES * BATCH + 1} is missing"),
        ("its own", 0, "chain 2: entry 0 was put in"),
        ("its own", -7, "chain 2: entry -7 was put in"),
        ("of nobody", 1, "entries of chain 'of nobody' were put in: there is no such chain"),
    ],
)
@pytest.mark.usefixtures("written_entries")
async def test_an_entry_put_in_where_none_follows_shows(
    database: Database, keyring: Keyring, chain: str, sequence: int, reported: str
) -> None:
    second = await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == second, _E.sequence == 1))).one()
    inserted = {**row._mapping, "chain_id": second if chain == "its own" else chain, "sequence": sequence}
    await change(database, insert(audit_entries).values(inserted))
    assert await problems(database, keyring) == [reported]


@pytest.mark.usefixtures("written_entries")
async def test_an_entry_put_in_hides_nothing_else(database: Database, keyring: Keyring) -> None:
    second = await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == second, _E.sequence == 1))).one()
    await change(
        database,
        insert(audit_entries).values({**row._mapping, "sequence": 0}),
        update(audit_entries).where(_E.chain_id == second, _E.sequence == 5).values(caller="nobody"),
    )
    assert await problems(database, keyring) == [
        "chain 2: entry 0 was put in",
        "chain 2: entry 5 was altered, or what it follows",
    ]


async def move_empty_chain_into_gap(database: Database, keyring: Keyring) -> None:
    for number in range(2):
        await SqlAuditLog(database, keyring).append([entry(number)])
    await SqlAuditLog(database, keyring)._start_chain()  # of a process that died before it wrote
    assert await problems(database, keyring) == []
    second = await chain_id(database, 2)
    await change(
        database,
        delete(audit_entries).where(_E.chain_id == second),
        delete(audit_chains).where(_C.chain_id == second),
        update(audit_chains).where(_C.number == 3).values(number=2),
    )


async def test_a_chain_removed_before_an_empty_one_shows(database: Database, keyring: Keyring) -> None:
    await move_empty_chain_into_gap(database, keyring)
    assert await problems(database, keyring) == ["chain 2: its number was altered"]


async def test_by_beginnings_without_their_numbers_it_would_not(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""

    def chain_without_number(chain_id: str, number: int, key: bytes) -> audit.Chain:
        return audit.Chain(chain_id, number, key, 0, hashlib.sha256(chain_id.encode()).digest())

    monkeypatch.setattr(audit.Chain, "empty", chain_without_number)
    await move_empty_chain_into_gap(database, keyring)
    assert await problems(database, keyring) == []


async def test_what_is_no_action_is_listed_as_it_is(database: Database, written_entries: list[AuditEntry]) -> None:
    await change(database, update(audit_entries).where(_E.integration_id == 3).values(action="unheard of"))
    assert await list_audit_entries(database, "", 3, 100) == [replace(written_entries[2], action="unheard of")]


async def test_what_cannot_be_read_shows_and_the_others_are_read_and_listed(
    database: Database, keyring: Keyring, written_entries: list[AuditEntry]
) -> None:
    # PostgreSQL takes it, and Python has no such time; SQLite takes any text.
    await change(database, text("UPDATE audit_entries SET time = '0044-03-15 BC' WHERE integration_id = 11"))
    verification = AuditVerification(database, keyring)
    reported = [problem async for problem in verification.problems()]
    assert reported == ["chain 2: entry 3 was altered, or what it follows"]
    assert verification.chains == CHAINS
    listed = await list_audit_entries(database, "", 0, 100)
    assert listed.count(None) == 1
    assert [one for one in listed if one is not None] == [
        one for one in written_entries[::-1] if one.integration_id != 11
    ]


@pytest.mark.parametrize(
    ("assignment", "reported"),
    [
        ("time = 'long ago'", "chain 1: entry 2 was altered, or what it follows"),
        ("caller = CAST(x'ff' AS TEXT)", "chain 1: entry 2 was altered, or what it follows"),
        ("purpose = x'00'", "chain 1: entry 2 was altered, or what it follows"),
        ("mac = 'text'", "chain 1: entry 2 was altered, or what it follows"),
    ],
)
async def test_what_only_sqlite_takes_shows(sqlite_url: str, assignment: str, reported: str) -> None:
    async with open_database(sqlite_url) as database:
        keyring = await open_test_keyring(database)
        await SqlAuditLog(database, keyring).append([entry(0), entry(1), entry(2)])
        await change(database, text(f"UPDATE audit_entries SET {assignment} WHERE sequence = 2"))
        assert await problems(database, keyring) == [reported]
        assert len(await list_audit_entries(database, "", 0, 100)) == 3


@pytest.mark.usefixtures("written_entries")
async def test_a_length_that_is_none_shows(database: Database, keyring: Keyring) -> None:
    await change(database, update(audit_chains).where(_C.number == 2).values(entries=-1))
    assert await problems(database, keyring) == ["chain 2: what is kept of it was altered"]


@pytest.mark.usefixtures("written_entries")
async def test_a_key_of_another_chain_does_not_open(database: Database, keyring: Keyring) -> None:
    first, second = await chain_id(database, 1), await chain_id(database, 2)
    async with database.read_connection() as connection:
        key = await connection.scalar(select(_C.encrypted_key).where(_C.chain_id == first))
    await change(database, update(audit_chains).where(_C.chain_id == second).values(encrypted_key=key))
    assert await problems(database, keyring) == ["chain 2: its key does not open"]


async def test_without_the_key_in_it_an_alteration_would_not_show(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with MACs that anybody can make, whoever can write to the database makes them anew."""

    def unkeyed_mac(self: audit.Chain, content: bytes) -> bytes:
        del self
        return hashlib.sha256(content).digest()

    monkeypatch.setattr(audit.Chain, "_mac", unkeyed_mac)
    await SqlAuditLog(database, keyring).append([entry(0), entry(1)])
    chain = audit.Chain.empty(await chain_id(database, 1), 1, b"")
    statements = []
    for number, reported in enumerate((replace(entry(0), user_id="eve"), entry(1)), start=1):
        chain = chain.extended_with(reported)
        values = {"user_id": reported.user_id, "mac": chain.head}
        statements.append(update(audit_entries).where(_E.sequence == number).values(values))
    await change(
        database, *statements, update(audit_chains).values(head=chain.head, checkpoint_mac=chain.checkpoint_mac)
    )
    assert await problems(database, keyring) == []


async def test_many_processes_begin_chains_at_once(database: Database, keyring: Keyring) -> None:
    await asyncio.gather(*(SqlAuditLog(database, keyring).append([entry(number)]) for number in range(10)))
    assert await problems(database, keyring) == []


async def test_after_a_write_that_may_have_failed_another_chain_is_begun(database: Database, keyring: Keyring) -> None:
    log = SqlAuditLog(database, keyring)
    await log.append([entry(0)])
    await change(database, update(audit_chains).values(entries=5))  # somebody has been at it
    batch: Sequence[AuditEntry] = [entry(1)]
    with pytest.raises(StoreUnavailable):
        await log.append(batch)
    await log.append(batch)
    assert await list_audit_entries(database, "", 0, 10) == [entry(1), entry(0)]
    assert await problems(database, keyring) == [
        "chain 1: its length or its last entry was altered",
        "chain 1: entry 2 is missing",
    ]
