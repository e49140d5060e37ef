"""The audit log, in SQL: fulfils the port `AuditLog`.

Each writing process has a chain of its own, with a key of its own that lies sealed beside it. Every entry carries a MAC
over itself and the MAC before it, and the chain one over its length and its last MAC; chains are numbered without gaps.
So who can write to the database, and has no data key, can neither alter an entry, put one in, nor remove one, nor a
whole chain but the newest, without `AuditVerification` telling. A chain whose last write is uncertain is left, and
another is begun: an entry may then be in both.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import chain_key_aad
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import audit_chains, audit_entries

_C = audit_chains.c
_E = audit_entries.c

_PAGE = 5000

_CHAINS: Select[Any] = select(
    _C.chain_id, _C.number, _C.encrypted_key, _C.entries, _C.head, _C.checkpoint_mac
).order_by(_C.number)

_UNREADABLE = (ValueError, TypeError, ArithmeticError, AttributeError, DBAPIError)
"""What comes of a row that nobody here can have written: a time before year 1, a length below 0, and on SQLite, where
any column takes anything, a text that is none."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain as far as it has come: `head` is the MAC of its last entry, or stands for its beginning."""

    chain_id: str
    number: int
    key: bytes = field(repr=False)
    entries: int
    head: bytes

    @classmethod
    def empty(cls, chain_id: str, number: int, key: bytes) -> "Chain":
        """A chain without entries."""
        return cls(chain_id, number, key, 0, hashlib.sha256(f"{chain_id}/{number}".encode()).digest())

    def extended_with(self, entry: "AuditEntry | Row[Any]") -> "Chain":
        """The chain after one more entry."""
        return replace(self, entries=self.entries + 1, head=self._mac(self.head + _canonical(entry)))

    @property
    def checkpoint_mac(self) -> bytes:
        """What vouches for length and head: it cannot be made for a shorter chain from what the entries show."""
        return self._mac(b"chain" + self.entries.to_bytes(8, "big") + self.head)

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self.key, content, "sha256")


def _canonical(entry: AuditEntry | Row[Any]) -> bytes:
    """What is vouched for, of an entry or its row. Entries without details are as they were before there were any."""
    return json.dumps(
        [
            entry.time.astimezone(UTC).isoformat(timespec="microseconds"),
            entry.caller,
            entry.action,
            entry.user_id,
            entry.integration_id,
            entry.integration_type,
            entry.outcome,
            entry.purpose,
            *([entry.details] if entry.details else []),
        ]
    ).encode()


class SqlAuditLog:
    """An `AuditLog` over a SQL database, for one process: only one call of `append` at a time."""

    def __init__(self, database: Database, aead: Aead) -> None:
        self._database = database
        self._aead = aead
        self._chain: Chain | None = None

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Write entries, all or none, at the end of this process's chain. Raises `StoreUnavailable`."""
        before = self._chain or await self._start_chain()
        self._chain = None  # unless this commits for certain
        chain, rows = before, []
        for entry in entries:
            chain = chain.extended_with(entry)
            rows.append(_row(entry, chain))
        advance = (
            update(audit_chains)
            .where(_C.chain_id == chain.chain_id, _C.entries == before.entries)
            .values(entries=chain.entries, head=chain.head, checkpoint_mac=chain.checkpoint_mac)
        )
        async with self._database.write_transaction() as connection:
            await connection.execute(insert(audit_entries), rows)
            if (await connection.execute(advance)).rowcount != 1:
                raise StoreUnavailable  # somebody has been at the chain: what is written goes into another
        self._chain = chain

    async def _start_chain(self) -> Chain:
        chain_id, key = secrets.token_hex(16), secrets.token_bytes(32)
        encrypted_key = await self._aead.encrypt(key, chain_key_aad(chain_id))
        while True:
            async with self._database.read_connection() as connection:
                number = int(await connection.scalar(select(func.coalesce(func.max(_C.number), 0) + 1)) or 1)
            chain = Chain.empty(chain_id, number, key)
            values = {
                "chain_id": chain_id,
                "number": number,
                "encrypted_key": encrypted_key,
                "begin_time": DatabaseTime(),
            }
            try:
                async with self._database.write_transaction() as connection:
                    await connection.execute(
                        insert(audit_chains).values(
                            **values, entries=0, head=chain.head, checkpoint_mac=chain.checkpoint_mac
                        )
                    )
            except IntegrityError:
                continue  # another process took the number
            return chain


class AuditVerification:
    """Reads the whole log, and tells what is wrong with it. `chains` and `entries` count what was read."""

    def __init__(self, database: Database, aead: Aead) -> None:
        self._database = database
        self._aead = aead
        self.chains = 0
        self.entries = 0

    async def problems(self) -> AsyncIterator[str]:
        """What is wrong, in words; nothing if all of it is as it was written."""
        with_entries = [chain_id async for chain_id in self._chains_with_entries()]
        async with self._database.read_connection() as connection:
            rows = (await connection.execute(_CHAINS)).all()  # after those: each is begun before it has an entry
        for row in rows:
            try:
                for number in range(self.chains + 1, row.number):
                    yield f"chain {number} is missing"
                self.chains = row.number
                async for problem in self._problems_of_chain(row):
                    yield f"chain {row.number}: {problem}"
            except _UNREADABLE:
                yield f"chain {row.number}: what is kept of it was altered"
        begun = {row.chain_id for row in rows}
        for chain_id in with_entries:
            if chain_id not in begun:
                yield f"entries of chain {chain_id!r} were put in: there is no such chain"

    async def _chains_with_entries(self) -> AsyncIterator[str]:
        """One step through the index for each: to look at every entry at once can take longer than a statement may."""
        first = select(func.min(_E.chain_id))
        following = first
        while True:
            async with self._database.read_connection() as connection:
                chain_id = await connection.scalar(following)
            if chain_id is None:
                return
            yield chain_id
            following = first.where(_E.chain_id > chain_id)

    async def _problems_of_chain(self, row: Row[Any]) -> AsyncIterator[str]:
        try:
            key = await self._aead.decrypt(row.encrypted_key, chain_key_aad(row.chain_id))
        except CredentialsUnreadable:
            yield "its key does not open"
            return
        chain = Chain.empty(row.chain_id, row.number, key)
        recorded = replace(chain, entries=row.entries, head=row.head)
        if not hmac.compare_digest(recorded.checkpoint_mac, row.checkpoint_mac):
            yield "its length or its last entry was altered"
        if row.entries == 0 and not hmac.compare_digest(chain.head, row.head):
            yield "its number was altered"
        async for problem in self._problems_of_entries(row, chain):
            yield problem

    async def _problems_of_entries(self, row: Row[Any], chain: Chain) -> AsyncIterator[str]:
        try:
            async for entry in self._entries_of(row.chain_id):
                if entry.sequence <= chain.entries:
                    yield f"entry {entry.sequence} was put in"
                    continue
                if entry.sequence > chain.entries + 1:
                    break
                extended = chain.extended_with(entry)
                if not hmac.compare_digest(extended.head, entry.mac):
                    raise ValueError  # as if it could not be read
                chain = extended
            else:
                if chain.entries >= row.entries:
                    return
            yield f"entry {chain.entries + 1} is missing"
        except _UNREADABLE:
            yield f"entry {chain.entries + 1} was altered, or what it follows"

    async def _entries_of(self, chain_id: str) -> AsyncIterator[Row[Any]]:
        """In pages; what is written meanwhile is read as well."""
        every = select(audit_entries).where(_E.chain_id == chain_id).order_by(_E.sequence)
        rest, size = every, _PAGE
        while True:
            try:
                async with self._database.read_connection() as connection:
                    rows = (await connection.execute(rest.limit(size))).all()
            except _UNREADABLE:
                if size == 1:
                    raise
                size = 1  # as far as the one that cannot be read
                continue
            for row in rows:
                self.entries += 1
                yield row
            if len(rows) < size:
                return
            rest = every.where(_E.sequence > rows[-1].sequence)


async def list_audit_entries(
    database: Database, user_id: str, integration_id: int, limit: int
) -> Sequence[AuditEntry | None]:
    """The newest entries first; an empty user and 0 mean all. None stands for one that cannot be read any more."""
    query = select(audit_entries).order_by(_E.time.desc(), _E.sequence.desc()).limit(limit)
    if user_id:
        query = query.where(_E.user_id == user_id)
    if integration_id:
        query = query.where(_E.integration_id == integration_id)
    try:
        async with database.read_connection() as connection:
            return [_entry_of(row) for row in (await connection.execute(query)).all()]
    except _UNREADABLE:
        return await _list_readable(database, query)


async def _list_readable(database: Database, query: Select[Any]) -> Sequence[AuditEntry | None]:
    async with database.read_connection() as connection:
        keys = (await connection.execute(query.with_only_columns(_E.chain_id, _E.sequence))).all()
    entries: list[AuditEntry | None] = []
    for key in keys:
        one = select(audit_entries).where(_E.chain_id == key.chain_id, _E.sequence == key.sequence)
        try:
            async with database.read_connection() as connection:
                entries.append(_entry_of((await connection.execute(one)).one()))
        except _UNREADABLE:
            entries.append(None)
    return entries


def _row(entry: AuditEntry, chain: Chain) -> dict[str, Any]:
    return {
        "chain_id": chain.chain_id,
        "sequence": chain.entries,
        "time": entry.time,
        "caller": entry.caller,
        "action": str(entry.action),
        "user_id": entry.user_id,
        "integration_id": entry.integration_id,
        "integration_type": entry.integration_type,
        "outcome": entry.outcome,
        "purpose": entry.purpose,
        "details": entry.details,
        "mac": chain.head,
    }


def _entry_of(row: Row[Any]) -> AuditEntry:
    """The entry of a row, also if nobody here can have written it: who reads the log should see that."""
    return AuditEntry(
        row.time,
        row.caller,
        row.action,
        row.user_id,
        row.integration_id,
        row.integration_type,
        row.outcome,
        row.purpose,
        row.details,
    )
