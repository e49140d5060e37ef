"""The audit log in SQL: implements the port `AuditLog`.

Each writing process has its own chain, with its own key, which is stored encrypted. Each entry has a MAC over itself
and the previous MAC; each chain has a MAC over its length and its last MAC; chains are numbered without gaps. An
attacker with write access to the database, but without a data key, therefore cannot alter, insert or remove an entry,
or remove a chain other than the newest, without detection by `AuditVerification`. After a write with an unknown result
the process starts another chain: an entry may then be in both.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC
from operator import attrgetter
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import chain_key_aad
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database, from_row
from integration_server.storage.tables import audit_chains, audit_entries

_C = audit_chains.c
_E = audit_entries.c

_AUTHENTICATED = attrgetter("caller", "action", "user_id", "integration_id", "integration_type", "outcome", "purpose")
_PAGE = 5000

_CHAINS: Select[Any] = select(
    _C.chain_id, _C.number, _C.encrypted_key, _C.entries, _C.head, _C.checkpoint_mac
).order_by(_C.number)

_UNREADABLE = (ValueError, TypeError, ArithmeticError, AttributeError, DBAPIError)
"""The errors of reading a row that this program cannot have written: a time before the year 1, a negative length, or on
SQLite, where columns accept values of any type, a text that is not valid UTF-8."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of entries. `head` is the MAC of the last entry, or a hash of id and number without entries."""

    chain_id: str
    number: int
    key: bytes = field(repr=False)
    entries: int
    head: bytes

    @classmethod
    def empty(cls, chain_id: str, number: int, key: bytes) -> "Chain":
        """Return a chain without entries."""
        return cls(chain_id, number, key, 0, hashlib.sha256(f"{chain_id}/{number}".encode()).digest())

    def extended_with(self, entry: "AuditEntry | Row[Any]") -> "Chain":
        """Return the chain after one more entry."""
        return replace(self, entries=self.entries + 1, head=self._mac(self.head + _canonical(entry)))

    @property
    def checkpoint_mac(self) -> bytes:
        """The MAC over length and head. The entries of a chain do not reveal it for a shorter chain."""
        return self._mac(b"chain" + self.entries.to_bytes(8, "big") + self.head)

    @property
    def record(self) -> dict[str, Any]:
        """The columns that change with each entry."""
        return {"entries": self.entries, "head": self.head, "checkpoint_mac": self.checkpoint_mac}

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self.key, content, "sha256")


def _canonical(entry: AuditEntry | Row[Any]) -> bytes:
    """Return the authenticated bytes of an entry or its row. Without details, they have the format of older entries."""
    time = entry.time.astimezone(UTC).isoformat(timespec="microseconds")
    return json.dumps([time, *_AUTHENTICATED(entry), *([entry.details] if entry.details else [])]).encode()


class SqlAuditLog:
    """The `AuditLog` of one process. `append` must not be called concurrently."""

    def __init__(self, database: Database, aead: Aead, chain_type: type[Chain] = Chain) -> None:
        self._database = database
        self._aead = aead
        self._chain_type = chain_type
        self._chain: Chain | None = None

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Append entries to this process's chain, all or none. Raises `StoreUnavailable`."""
        before = self._chain or await self._start_chain()
        self._chain = None  # until the commit is certain
        chain, rows = before, []
        for entry in entries:
            chain = chain.extended_with(entry)
            position = {"chain_id": chain.chain_id, "sequence": chain.entries, "mac": chain.head}
            rows.append({**asdict(entry), "action": str(entry.action), **position})
        advance = (
            update(audit_chains).where(_C.chain_id == chain.chain_id, _C.entries == before.entries).values(chain.record)
        )
        async with self._database.write_transaction() as connection:
            await connection.execute(insert(audit_entries), rows)
            if (await connection.execute(advance)).rowcount != 1:
                raise StoreUnavailable  # the chain was changed: the retry starts another one
        self._chain = chain

    async def _start_chain(self) -> Chain:
        chain_id, key = secrets.token_hex(16), secrets.token_bytes(32)
        encrypted_key = await self._aead.encrypt(key, chain_key_aad(chain_id))
        while True:
            number = (await self._database.fetch_value(select(func.max(_C.number))) or 0) + 1
            chain = self._chain_type.empty(chain_id, number, key)
            values = {
                **chain.record,
                "chain_id": chain_id,
                "number": number,
                "encrypted_key": encrypted_key,
                "begin_time": DatabaseTime(),
            }
            with suppress(IntegrityError):  # another process took the number
                await self._database.write(insert(audit_chains).values(values))
                return chain


class AuditVerification:
    """Verifies the whole log. `chains` and `entries` count what was read."""

    def __init__(self, database: Database, aead: Aead, chain_type: type[Chain] = Chain) -> None:
        self._database = database
        self._aead = aead
        self._chain_type = chain_type
        self.chains = 0
        self.entries = 0

    async def problems(self) -> AsyncIterator[str]:
        """Report all problems; none if the log is intact."""
        with_entries = [chain_id async for chain_id in self._chains_with_entries()]
        rows = await self._database.fetch(_CHAINS)  # read second: a chain is stored before its entries
        for row in rows:
            try:
                for number in range(self.chains + 1, row.number):
                    yield f"chain {number} is missing"
                self.chains = row.number
                async for problem in self._problems_of_chain(row):
                    yield f"chain {row.number}: {problem}"
            except _UNREADABLE:
                yield f"chain {row.number}: its record was altered"
        stored = {row.chain_id for row in rows}
        for chain_id in with_entries:
            if chain_id not in stored:
                yield f"entries of chain {chain_id!r} were inserted: the chain does not exist"

    async def _chains_with_entries(self) -> AsyncIterator[str]:
        """Yield the ids of chains with entries. A scan of all entries could exceed the statement timeout."""
        first = select(func.min(_E.chain_id))
        chain_id = await self._database.fetch_value(first)
        while chain_id is not None:
            yield chain_id
            chain_id = await self._database.fetch_value(first.where(_E.chain_id > chain_id))

    async def _problems_of_chain(self, row: Row[Any]) -> AsyncIterator[str]:
        try:
            key = await self._aead.decrypt(row.encrypted_key, chain_key_aad(row.chain_id))
        except CredentialsUnreadable:
            yield "its key cannot be decrypted"
            return
        chain = self._chain_type.empty(row.chain_id, row.number, key)
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
                    yield f"entry {entry.sequence} was inserted"
                    continue
                if entry.sequence > chain.entries + 1:
                    break
                extended = chain.extended_with(entry)
                if not hmac.compare_digest(extended.head, entry.mac):
                    raise ValueError  # reported like an unreadable entry
                chain = extended
            else:
                if chain.entries >= row.entries:
                    return
            yield f"entry {chain.entries + 1} is missing"
        except _UNREADABLE:
            yield f"entry {chain.entries + 1} or the entry before it was altered"

    async def _entries_of(self, chain_id: str) -> AsyncIterator[Row[Any]]:
        """Yield the entries of a chain in pages, including entries that are written meanwhile."""
        query = select(audit_entries).where(_E.chain_id == chain_id).order_by(_E.sequence)
        rest, size = query, _PAGE
        while True:
            try:
                rows = await self._database.fetch(rest.limit(size))
            except _UNREADABLE:
                if size == 1:
                    raise
                size = 1  # read up to the unreadable entry
                continue
            for row in rows:
                self.entries += 1
                yield row
            if len(rows) < size:
                return
            rest = query.where(_E.sequence > rows[-1].sequence)


async def list_audit_entries(
    database: Database, user_id: str, integration_id: int, limit: int
) -> Sequence[AuditEntry | None]:
    """Return entries, the newest first. An empty user and 0 mean all. None stands for an unreadable entry."""
    query = select(audit_entries).order_by(_E.time.desc(), _E.sequence.desc()).limit(limit)
    if user_id:
        query = query.where(_E.user_id == user_id)
    if integration_id:
        query = query.where(_E.integration_id == integration_id)
    try:
        # Also rows that this program cannot have written: readers must see them.
        return [from_row(AuditEntry, row) for row in await database.fetch(query)]
    except _UNREADABLE:
        return await _list_readable(database, query)


async def _list_readable(database: Database, query: Select[Any]) -> Sequence[AuditEntry | None]:
    entries: list[AuditEntry | None] = []
    for key in await database.fetch(query.with_only_columns(_E.chain_id, _E.sequence)):
        one = select(audit_entries).where(_E.chain_id == key.chain_id, _E.sequence == key.sequence)
        try:
            entries += [from_row(AuditEntry, row) for row in await database.fetch(one)]
        except _UNREADABLE:
            entries.append(None)
    return entries
