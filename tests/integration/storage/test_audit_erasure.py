"""The erasure of a user: the log stays verifiable, and nothing tells any more whose the entries are."""

import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row, delete, func, select, text, update

from integration_server.domain.audit import Action, AuditEntry
from integration_server.service.operators.ports import AuditFilter
from integration_server.storage.audit import Chain, SqlAuditLog, commitment_of
from integration_server.storage.audit_erasure import UserErasure
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.engine import Database, open_database
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import audit_chains, audit_entries
from tests.audit_lists import list_audit_entries, list_entries
from tests.fakes.clock import NOON
from tests.keyrings import open_test_keyring

_C, _E = audit_chains.c, audit_entries.c

USERS = ("ada", "eve", "ada\u200b", "ada")
CHAINS, BATCH = 2, 8
ADAS = CHAINS * BATCH // 2


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_test_keyring(database)


async def write(database: Database, keyring: Keyring, chain_type: type[Chain] = Chain) -> None:
    for _ in range(CHAINS):
        await SqlAuditLog(database, keyring, chain_type).append([entry(number) for number in range(BATCH)])


def entry(number: int) -> AuditEntry:
    user_id = USERS[number % len(USERS)]
    time = NOON + timedelta(seconds=number)
    return AuditEntry(
        time, "billing", Action.CALL, user_id, number, "acme", "OK", f"for {user_id}", f"GET /{user_id} 200"
    )


async def erase(
    database: Database, keyring: Keyring, user_id: str = "ada", chain_type: type[Chain] = Chain
) -> UserErasure:
    erasure = UserErasure(database, keyring, user_id, chain_type, slice_size=3)
    progress = [erased async for erased in erasure.erase()]
    assert progress == sorted(progress)
    return erasure


async def problems(database: Database, keyring: Keyring, chain_type: type[Chain] = Chain) -> tuple[list[str], int]:
    """What verification reports, and the number of erased entries that it has found."""
    verification = AuditVerification(database, keyring, chain_type)
    return [problem async for problem in verification.problems()], verification.erased


async def execute(database: Database, *statements: Any) -> None:
    async with database.write_transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def rows_of(database: Database, *where: Any) -> list[Row[Any]]:
    return list(await database.fetch(select(audit_entries).where(*where).order_by(_E.chain_id, _E.sequence)))


async def test_an_erased_log_is_intact_and_names_the_user_nowhere(database: Database, keyring: Keyring) -> None:
    await write(database, keyring)
    others = await rows_of(database, _E.user_id != "ada")
    erasure = await erase(database, keyring)
    assert (erasure.erased, erasure.altered) == (ADAS, [])
    assert await problems(database, keyring) == ([], ADAS)
    assert await rows_of(database, _E.salt.is_not(None)) == others
    for row in await rows_of(database, _E.salt.is_(None)):
        assert (row.user_id, row.purpose, row.details) == ("", "", "")
        assert (row.caller, row.action, row.outcome) == ("billing", "call", "OK")
        texts = {value for value in row if isinstance(value, str)} - {row.chain_id}  # which is random
        assert not any("ada" in text for text in texts)
        assert not any(b"ada" in value for value in row if isinstance(value, bytes))
    (page,) = await list_entries(database, AuditFilter())
    assert [found.entry.user_id for found in page if found.entry is not None and found.is_erased] == [""] * ADAS
    listed = [found.entry.user_id for found in page if found.entry is not None and not found.is_erased]
    assert listed.count("ada\\u{200b}") == listed.count("eve") == CHAINS * BATCH // 4
    assert await list_audit_entries(database, "ada", 0, 100) == []
    assert len(await list_audit_entries(database, "ada\u200b", 0, 100)) == CHAINS * BATCH // 4


async def test_an_erased_user_cannot_be_found_by_trying_names(database: Database, keyring: Keyring) -> None:
    await write(database, keyring)
    await erase(database, keyring)
    rows = await rows_of(database, _E.salt.is_(None))
    guess = hashlib.sha256(json.dumps(["ada", "for ada", "GET /ada 200"]).encode()).digest()
    assert guess not in {row.commitment for row in rows}
    assert len({row.commitment for row in rows}) == len(rows)  # each entry has its own salt
    with_salt = (await rows_of(database, _E.user_id == "eve"))[0]
    assert commitment_of(with_salt, with_salt.salt) == with_salt.commitment  # the negative control


async def test_an_interrupted_erasure_continues(database: Database, keyring: Keyring) -> None:
    await write(database, keyring)
    first = UserErasure(database, keyring, "ada", slice_size=3)
    assert await anext(first.erase()) == 3
    assert await problems(database, keyring) == ([], 3)
    second = await erase(database, keyring)
    assert second.erased == ADAS - 3
    assert await problems(database, keyring) == ([], ADAS)
    assert (await erase(database, keyring)).erased == 0


async def test_the_log_continues_after_an_erasure(database: Database, keyring: Keyring) -> None:
    log = SqlAuditLog(database, keyring)
    await log.append([entry(0), entry(1)])
    await erase(database, keyring)
    await log.append([entry(2), entry(3)])
    assert await problems(database, keyring) == ([], 1)


class PlaintextChain(Chain):
    """Negative control: the MAC of an entry covers its user."""

    def _authenticated(self, entry: AuditEntry | Row[Any], commitment: bytes) -> bytes:
        return super()._authenticated(entry, commitment) + entry.user_id.encode()


async def test_negative_control_without_a_commitment_an_erasure_breaks_the_chain(
    database: Database, keyring: Keyring
) -> None:
    await write(database, keyring, PlaintextChain)
    assert await problems(database, keyring, PlaintextChain) == ([], 0)
    await erase(database, keyring, chain_type=PlaintextChain)
    found, _ = await problems(database, keyring, PlaintextChain)
    assert len(found) == CHAINS


# --- tampering -------------------------------------------------------------------------------------------------------

FIRST = (_E.sequence == 1, _E.chain_id == select(_C.chain_id).where(_C.number == 1).scalar_subquery())
BLANK = {"user_id": "", "purpose": "", "details": "", "salt": None}


@pytest.mark.parametrize(
    "values",
    [
        {"user_id": "eve"},
        {"purpose": "x"},
        {"details": "x"},
        {"erasure_mac": None},
        {"erasure_mac": bytes(32)},
        {"erasure_mac": b""},
    ],
    ids=str,
)
async def test_an_altered_erased_entry_is_found(database: Database, keyring: Keyring, values: dict[str, Any]) -> None:
    await write(database, keyring)
    await erase(database, keyring)
    await execute(database, update(audit_entries).where(*FIRST).values(values))
    found, erased = await problems(database, keyring)
    assert found == ["chain 1: entry 1: it was not erased by `audit erase-user`"]
    assert erased == ADAS


@pytest.mark.parametrize("values", [{"caller": "x"}, {"commitment": bytes(32)}, {"integration_id": 99}], ids=str)
async def test_what_an_erased_entry_keeps_is_still_authenticated(
    database: Database, keyring: Keyring, values: dict[str, Any]
) -> None:
    await write(database, keyring)
    await erase(database, keyring)
    await execute(database, update(audit_entries).where(*FIRST).values(values))
    assert (await problems(database, keyring))[0] == ["chain 1: entry 1 or the entry before it was altered"]


class UnkeyedErasure(Chain):
    """Negative control: the MAC of an erasure needs no key."""

    def erasure_mac(self, sequence: int, commitment: bytes) -> bytes:
        """A hash that everybody can compute."""
        return hashlib.sha256(commitment).digest()


@pytest.mark.parametrize("chain_type", [Chain, UnkeyedErasure], ids=["keyed", "negative control"])
async def test_a_writer_to_the_database_cannot_erase_who_did_something(
    database: Database, keyring: Keyring, chain_type: type[Chain]
) -> None:
    await write(database, keyring, chain_type)
    await erase(database, keyring, "eve", chain_type)
    (row,) = await rows_of(database, *FIRST)
    forged = hashlib.sha256(row.commitment).digest()
    await execute(database, update(audit_entries).where(*FIRST).values({**BLANK, "erasure_mac": forged}))
    assert bool((await problems(database, keyring, chain_type))[0]) == (chain_type is Chain)


async def test_the_erasure_of_another_entry_is_not_accepted(database: Database, keyring: Keyring) -> None:
    await write(database, keyring)
    await erase(database, keyring, "eve")
    (erased,) = await rows_of(database, _E.sequence == 2, FIRST[1])
    values = {**BLANK, "erasure_mac": erased.erasure_mac}
    await execute(database, update(audit_entries).where(*FIRST).values(values))
    assert (await problems(database, keyring))[0] == ["chain 1: entry 1: it was not erased by `audit erase-user`"]


async def test_an_entry_that_was_altered_stays_and_is_reported(database: Database, keyring: Keyring) -> None:
    """Otherwise an erasure would hide whose entry it was."""
    await write(database, keyring)
    eves = (_E.sequence == 2, FIRST[1])
    await execute(database, update(audit_entries).where(*eves).values(user_id="ada"))
    erasure = await erase(database, keyring)
    assert (erasure.erased, erasure.altered) == (ADAS, ["entry 2 of chain 1"])
    assert await problems(database, keyring) == (
        ["chain 1: entry 2: its user, purpose or details were altered"],
        ADAS,
    )


async def test_entries_of_a_chain_without_a_key_stay_and_are_reported(database: Database, keyring: Keyring) -> None:
    await write(database, keyring)
    await execute(
        database,
        update(audit_chains).where(_C.number == 1).values(encrypted_key=b"no key"),
        delete(audit_chains).where(_C.number == 2),
    )
    erasure = await erase(database, keyring)
    assert erasure.erased == 0
    assert sorted(erasure.altered) == sorted(
        f"entry {number} of a chain whose key cannot be read" for number in (1, 4, 5, 8) * CHAINS
    )
    count = select(func.count()).select_from(audit_entries).where(_E.user_id == "ada")
    assert await database.fetch_value(count) == ADAS


async def test_an_unreadable_entry_does_not_prevent_the_erasure_of_others_on_sqlite(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as database:
        keyring = await open_test_keyring(database)
        await write(database, keyring)
        await execute(database, text("UPDATE audit_entries SET purpose = CAST(x'ff' AS TEXT) WHERE sequence = 4"))
        erasure = UserErasure(database, keyring, "ada", slice_size=3)
        assert [erased async for erased in erasure.erase()][-1] == ADAS - CHAINS
        assert erasure.altered == ["an entry that cannot be read"] * CHAINS
