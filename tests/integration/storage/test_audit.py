"""Tests of the audit log on both databases: verification finds altered, inserted and removed entries."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import delete, insert, select, text, update

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.audit import Chain, SqlAuditLog, commitment_of
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.engine import Database, open_database
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import audit_chains, audit_entries
from tests.audit_lists import list_audit_entries
from tests.fakes.clock import NOON
from tests.keyrings import open_test_keyring
from tests.loop_hold.meter import MAX_HOLD, LoopHolds
from tests.postgres import PostgresServer

_C, _E = audit_chains.c, audit_entries.c

CHAINS, BATCHES, BATCH = 3, 2, 4


def entry(number: int) -> AuditEntry:
    details = "" if number % 2 else "GET /things 200"  # without details, as in older entries, and with them
    fields = "billing", Action.UPDATE, "ada", number + 1, "acme", "OK", 'why "not" 🦆', details
    return AuditEntry(NOON + timedelta(seconds=number), *fields)


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_test_keyring(database)


@pytest.fixture
async def written_entries(database: Database, keyring: Keyring) -> list[AuditEntry]:
    """Write the entries of several processes, each to its own chain."""
    entries = [entry(number) for number in range(CHAINS * BATCHES * BATCH)]
    for number in range(CHAINS):
        log = SqlAuditLog(database, keyring)
        for batch in range(BATCHES):
            begin = (number * BATCHES + batch) * BATCH
            await log.append(entries[begin : begin + BATCH])
    return entries


async def problems(database: Database, keyring: Keyring, chain_type: type[Chain] = Chain) -> list[str]:
    return [problem async for problem in AuditVerification(database, keyring, chain_type).problems()]


async def execute(database: Database, *statements: Any) -> None:
    async with database.write_transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def chain_id(database: Database, number: int) -> str:
    async with database.read_connection() as connection:
        return str(await connection.scalar(select(_C.chain_id).where(_C.number == number)))


async def test_an_intact_log_has_no_problems(
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
        {"action": "unknown"},
        {"integration_id": 999},
        {"integration_type": ""},
        {"integration_version": 1},
        {"call_count": 2},
        {"outcome": "STORE_UNAVAILABLE"},
        {"commitment": bytes(32)},
        {"mac": bytes(32)},
        # With a salt and a commitment of the forger's own.
        {
            "user_id": "eve",
            "salt": bytes(32),
            "commitment": commitment_of(replace(entry(10), user_id="eve"), bytes(32)),
        },
    ],
    ids=str,
)
@pytest.mark.usefixtures("written_entries")
async def test_an_altered_entry_is_found(database: Database, keyring: Keyring, values: dict[str, Any]) -> None:
    which = (_E.chain_id == await chain_id(database, 2), _E.sequence == 3)
    await execute(database, update(audit_entries).where(*which).values(values))
    assert await problems(database, keyring) == ["chain 2: entry 3 or the entry before it was altered"]


@pytest.mark.parametrize(
    "values",
    [
        {"user_id": "eve"},
        {"user_id": ""},
        {"user_id": "ad\u0430"},  # a Cyrillic letter
        {"user_id": "ada\u200b"},
        {"purpose": ""},
        {"details": "GET /other 200"},
        {"salt": bytes(32)},
        {"salt": b""},
        {"salt": bytes(33)},
    ],
    ids=str,
)
@pytest.mark.usefixtures("written_entries")
async def test_altered_personal_fields_are_found(database: Database, keyring: Keyring, values: dict[str, Any]) -> None:
    which = (_E.chain_id == await chain_id(database, 2), _E.sequence == 3)
    await execute(database, update(audit_entries).where(*which).values(values))
    assert await problems(database, keyring) == ["chain 2: entry 3: its user, purpose or details were altered"]


@pytest.mark.usefixtures("written_entries")
async def test_a_huge_number_of_a_chain_is_one_line(database: Database, keyring: Keyring) -> None:
    number = 2**62
    await execute(database, update(audit_chains).where(_C.number == CHAINS).values(number=number))
    reported = await problems(database, keyring)
    assert reported[0] == f"chains {CHAINS} to {number - 1} are missing"
    assert len(reported) < 5


@pytest.mark.parametrize("sequence", [1, 5, BATCHES * BATCH])
@pytest.mark.usefixtures("written_entries")
async def test_a_removed_entry_is_found(database: Database, keyring: Keyring, sequence: int) -> None:
    which = (_E.chain_id == await chain_id(database, 1), _E.sequence == sequence)
    await execute(database, delete(audit_entries).where(*which))
    assert await problems(database, keyring) == [f"chain 1: entry {sequence} is missing"]


@pytest.mark.usefixtures("written_entries")
async def test_a_removed_last_entry_is_found(database: Database, keyring: Keyring) -> None:
    chain = await chain_id(database, 3)
    last = BATCHES * BATCH
    async with database.read_connection() as connection:
        head = await connection.scalar(select(_E.mac).where(_E.chain_id == chain, _E.sequence == last - 1))
    await execute(
        database,
        delete(audit_entries).where(_E.chain_id == chain, _E.sequence == last),
        update(audit_chains).where(_C.chain_id == chain).values(entries=last - 1, head=head),
    )
    assert await problems(database, keyring) == ["chain 3: its length or its last entry was altered"]


@pytest.mark.usefixtures("written_entries")
async def test_a_removed_chain_is_found(database: Database, keyring: Keyring) -> None:
    chain = await chain_id(database, 2)
    await execute(
        database,
        delete(audit_entries).where(_E.chain_id == chain),
        delete(audit_chains).where(_C.chain_id == chain),
    )
    assert await problems(database, keyring) == ["chain 2 is missing"]


@pytest.mark.usefixtures("written_entries")
async def test_an_entry_copied_to_another_chain_is_found(database: Database, keyring: Keyring) -> None:
    first, second = await chain_id(database, 1), await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == first, _E.sequence == 1))).one()
    inserted = {**row._mapping, "chain_id": second, "sequence": BATCHES * BATCH + 1}
    await execute(database, insert(audit_entries).values(inserted))
    assert await problems(database, keyring) == ["chain 2: entry 9 or the entry before it was altered"]


@pytest.mark.parametrize(
    ("chain", "sequence", "reported"),
    [
        ("existing", BATCHES * BATCH + 2, f"chain 2: entry {BATCHES * BATCH + 1} is missing"),
        ("existing", 0, "chain 2: entry 0 was inserted"),
        ("existing", -7, "chain 2: entry -7 was inserted"),
        ("unknown", 1, "entries of chain 'unknown' were inserted: the chain does not exist"),
    ],
)
@pytest.mark.usefixtures("written_entries")
async def test_an_inserted_entry_is_found(
    database: Database, keyring: Keyring, chain: str, sequence: int, reported: str
) -> None:
    second = await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == second, _E.sequence == 1))).one()
    inserted = {**row._mapping, "chain_id": second if chain == "existing" else chain, "sequence": sequence}
    await execute(database, insert(audit_entries).values(inserted))
    assert await problems(database, keyring) == [reported]


@pytest.mark.usefixtures("written_entries")
async def test_an_inserted_entry_hides_no_other_problem(database: Database, keyring: Keyring) -> None:
    second = await chain_id(database, 2)
    async with database.read_connection() as connection:
        row = (await connection.execute(select(audit_entries).where(_E.chain_id == second, _E.sequence == 1))).one()
    await execute(
        database,
        insert(audit_entries).values({**row._mapping, "sequence": 0}),
        update(audit_entries).where(_E.chain_id == second, _E.sequence == 5).values(caller="nobody"),
    )
    assert await problems(database, keyring) == [
        "chain 2: entry 0 was inserted",
        "chain 2: entry 5 or the entry before it was altered",
    ]


async def move_empty_chain_into_gap(database: Database, keyring: Keyring, chain_type: type[Chain]) -> None:
    for number in range(2):
        await SqlAuditLog(database, keyring, chain_type).append([entry(number)])
    await SqlAuditLog(
        database, keyring, chain_type
    )._start_chain()  # as by a process that crashed before its first write
    assert await problems(database, keyring, chain_type) == []
    second = await chain_id(database, 2)
    await execute(
        database,
        delete(audit_entries).where(_E.chain_id == second),
        delete(audit_chains).where(_C.chain_id == second),
        update(audit_chains).where(_C.number == 3).values(number=2),
    )


class ChainWithoutNumber(Chain):
    """Negative control: a chain whose start does not authenticate its number."""

    @classmethod
    def empty(cls, chain_id: str, number: int, key: bytes) -> Chain:
        return cls(chain_id, number, key, 0, hashlib.sha256(chain_id.encode()).digest())


@pytest.mark.parametrize(
    ("chain_type", "found"),
    [(Chain, ["chain 2: its number was altered"]), (ChainWithoutNumber, [])],
    ids=["authenticated number", "negative control"],
)
async def test_a_removed_chain_is_found_when_an_empty_chain_takes_its_number(
    database: Database, keyring: Keyring, chain_type: type[Chain], found: list[str]
) -> None:
    await move_empty_chain_into_gap(database, keyring, chain_type)
    assert await problems(database, keyring, chain_type) == found


async def test_an_unknown_action_is_listed_unchanged(database: Database, written_entries: list[AuditEntry]) -> None:
    await execute(database, update(audit_entries).where(_E.integration_id == 3).values(action="unknown"))
    assert await list_audit_entries(database, "", 3, 100) == [replace(written_entries[2], action="unknown")]


async def test_an_unreadable_entry_is_found_and_the_others_are_listed(
    database: Database, keyring: Keyring, written_entries: list[AuditEntry]
) -> None:
    # PostgreSQL stores this time and Python cannot represent it; SQLite stores any text.
    await execute(database, text("UPDATE audit_entries SET time = '0044-03-15 BC' WHERE integration_id = 11"))
    verification = AuditVerification(database, keyring)
    reported = [problem async for problem in verification.problems()]
    assert reported == ["chain 2: entry 3 or the entry before it was altered"]
    assert verification.chains == CHAINS
    listed = await list_audit_entries(database, "", 0, 100)
    assert listed.count(None) == 1
    assert [entry for entry in listed if entry is not None] == [
        entry for entry in written_entries[::-1] if entry.integration_id != 11
    ]


@pytest.mark.parametrize(
    ("assignment", "reported"),
    [
        ("time = 'long ago'", "chain 1: entry 2 or the entry before it was altered"),
        ("caller = CAST(x'ff' AS TEXT)", "chain 1: entry 2 or the entry before it was altered"),
        ("purpose = x'00'", "chain 1: entry 2: its user, purpose or details were altered"),
        ("salt = 'text'", "chain 1: entry 2: its user, purpose or details were altered"),
        ("mac = 'text'", "chain 1: entry 2 or the entry before it was altered"),
    ],
)
async def test_values_of_the_wrong_type_are_found_on_sqlite(sqlite_url: str, assignment: str, reported: str) -> None:
    async with open_database(sqlite_url) as database:
        keyring = await open_test_keyring(database)
        await SqlAuditLog(database, keyring).append([entry(0), entry(1), entry(2)])
        await execute(database, text(f"UPDATE audit_entries SET {assignment} WHERE sequence = 2"))
        assert await problems(database, keyring) == [reported]
        assert len(await list_audit_entries(database, "", 0, 100)) == 3


@pytest.mark.usefixtures("written_entries")
async def test_a_negative_length_is_found(database: Database, keyring: Keyring) -> None:
    await execute(database, update(audit_chains).where(_C.number == 2).values(entries=-1))
    assert await problems(database, keyring) == ["chain 2: its record was altered"]


@pytest.mark.usefixtures("written_entries")
async def test_the_key_of_another_chain_is_found(database: Database, keyring: Keyring) -> None:
    first, second = await chain_id(database, 1), await chain_id(database, 2)
    async with database.read_connection() as connection:
        key = await connection.scalar(select(_C.encrypted_key).where(_C.chain_id == first))
    await execute(database, update(audit_chains).where(_C.chain_id == second).values(encrypted_key=key))
    assert await problems(database, keyring) == ["chain 2: its key cannot be decrypted"]


class UnkeyedChain(Chain):
    """Negative control: a chain whose MACs need no key."""

    def _mac(self, content: bytes) -> bytes:
        return hashlib.sha256(content).digest()


@pytest.mark.parametrize("chain_type", [Chain, UnkeyedChain], ids=["keyed", "negative control"])
async def test_macs_recomputed_without_the_key_are_found(
    database: Database, keyring: Keyring, chain_type: type[Chain]
) -> None:
    await SqlAuditLog(database, keyring, chain_type).append([entry(0), entry(1)])
    chain = chain_type.empty(await chain_id(database, 1), 1, b"")
    statements = []
    for number, forged in enumerate((replace(entry(0), user_id="eve"), entry(1)), start=1):
        commitment = commitment_of(forged, bytes(32))
        chain = chain.extended_with(forged, commitment)
        values = {"user_id": forged.user_id, "salt": bytes(32), "commitment": commitment, "mac": chain.head}
        statements.append(update(audit_entries).where(_E.sequence == number).values(values))
    await execute(
        database, *statements, update(audit_chains).values(head=chain.head, checkpoint_mac=chain.checkpoint_mac)
    )
    assert bool(await problems(database, keyring, chain_type)) == (chain_type is Chain)


async def test_many_processes_start_chains_concurrently(database: Database, keyring: Keyring) -> None:
    await asyncio.gather(*(SqlAuditLog(database, keyring).append([entry(number)]) for number in range(10)))
    assert await problems(database, keyring) == []


async def test_a_write_to_a_changed_chain_fails_and_starts_another_chain(database: Database, keyring: Keyring) -> None:
    log = SqlAuditLog(database, keyring)
    await log.append([entry(0)])
    await execute(database, update(audit_chains).values(entries=5))  # as by another writer
    batch: Sequence[AuditEntry] = [entry(1)]
    with pytest.raises(StoreUnavailable):
        await log.append(batch)
    await log.append(batch)
    assert await list_audit_entries(database, "", 0, 10) == [entry(1), entry(0)]
    assert await problems(database, keyring) == [
        "chain 1: its length or its last entry was altered",
        "chain 1: entry 2 is missing",
    ]


class Failure:
    """Something that happens once, while the fourth entry of the second batch is being written."""

    def __init__(self, happen: Callable[[], object]) -> None:
        self._happen: Callable[[], object] | None = happen

    def chain_type(self) -> type[Chain]:
        failure = self

        @dataclass(frozen=True, slots=True)
        class InterruptedChain(Chain):
            def next_head(self, head: bytes, entry: Any, commitment: bytes) -> bytes:
                if self.entries == BATCH + 3 and failure._happen is not None:
                    happen, failure._happen = failure._happen, None
                    happen()
                return Chain.next_head(self, head, entry, commitment)

        return InterruptedChain


def fail() -> None:
    raise OverflowError


def cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def append_interrupted(
    database: Database, keyring: Keyring, happen: Callable[[], object], error: type[BaseException]
) -> None:
    """Write a batch, and a second one that fails with `error` because of what happens. Then write it again."""
    entries = [entry(number) for number in range(2 * BATCH)]
    log = SqlAuditLog(database, keyring, Failure(happen).chain_type(), part_size=1, min_copy=1)
    await log.append(entries[:BATCH])
    with pytest.raises(error):
        await asyncio.create_task(log.append(entries[BATCH:]))
    assert await list_audit_entries(database, "", 0, 100) == entries[:BATCH][::-1]
    for _ in range(3):  # the connection can be used again
        await log.append(entries[BATCH:])
    assert await list_audit_entries(database, "", 0, 100) == sorted(
        [*entries[:BATCH], *3 * entries[BATCH:]], key=lambda one: one.time, reverse=True
    )
    assert await problems(database, keyring) == []


@pytest.mark.parametrize(("happen", "error"), [(fail, OverflowError), (cancel, asyncio.CancelledError)])
async def test_a_batch_that_fails_in_the_middle_leaves_nothing_and_no_broken_chain(
    database: Database, keyring: Keyring, happen: Callable[[], object], error: type[BaseException]
) -> None:
    await append_interrupted(database, keyring, happen, error)


@pytest.mark.postgres
async def test_a_batch_whose_connection_is_lost_in_the_middle_is_written_later(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    name = urlsplit(postgres_url).path.strip("/")

    def terminate() -> None:
        backends = f"pg_stat_activity WHERE datname = '{name}' AND state <> 'idle'"
        with ThreadPoolExecutor() as pool:  # it has an event loop of its own
            pool.submit(postgres_server.run, f"SELECT pg_terminate_backend(pid, 10000) FROM {backends}").result()

    async with open_database(postgres_url, monitor_timeout=60) as database:
        keyring = await open_test_keyring(database)
        await append_interrupted(database, keyring, terminate, StoreUnavailable)


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
@pytest.mark.parametrize(
    ("open_log", "is_short"),
    [(SqlAuditLog, True), (partial(SqlAuditLog, part_size=10_000), False)],
    ids=["parts", "negative control"],
)
async def test_a_large_batch_does_not_hold_the_loop(
    open_log: Callable[[Database, Keyring], SqlAuditLog],
    is_short: bool,
    database: Database,
    keyring: Keyring,
    holds: LoopHolds,
) -> None:
    """Of entries that are expensive to escape and to store."""
    worst = [replace(entry(number), user_id="\0" * 128, purpose="\u200b" * 256) for number in range(4000)]
    await asyncio.sleep(0)
    holds.take()

    await open_log(database, keyring).append(worst)

    longest = holds.take()
    assert (longest.seconds < MAX_HOLD) is is_short, longest
    assert not await problems(database, keyring)
