"""The audit log in SQL: implements the port `AuditLog`.

Each writing process has its own chain, with its own key, which is stored encrypted. Each entry has a MAC over itself
and the previous MAC; each chain has a MAC over its length and its last MAC; chains are numbered without gaps. An
attacker with write access to the database, but without a data key, therefore cannot alter, insert or remove an entry,
or remove a chain other than the newest, without detection by `AuditVerification`. After a write with an unknown result
the process starts another chain: an entry may then be in both.

The MAC of an entry covers a commitment to its personal fields, not the fields. With the salt of the commitment, they
can be erased (`audit_erasure.py`), and nobody can find out what they were by trying names.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from json.encoder import encode_basestring_ascii as _quote
from operator import attrgetter
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from integration_server.domain.associated_data import chain_key_aad
from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.service.audit.audit_heads import AUDIT_CHAIN, Head
from integration_server.service.common_types import Aead
from integration_server.storage.driver_queries import DriverConnection, DriverQuery
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.tables import audit_chains, audit_entries

_C = audit_chains.c
_E = audit_entries.c

TEXTS = ("caller", "action", "user_id", "integration_type", "outcome", "purpose", "details")
_NUMBERS = ("time", "integration_id", "integration_version", "call_count")
_FIELDS = attrgetter(*TEXTS, *_NUMBERS)
_COLUMNS = (*TEXTS, *_NUMBERS, "chain_id", "sequence", "mac", "salt", "commitment")
_AUTHENTICATED = attrgetter(
    "caller", "action", "integration_id", "integration_type", "integration_version", "outcome", "call_count"
)
_PERSONAL = attrgetter("user_id", "purpose", "details")
_SALT_BYTES = 32
_PARAMETERS = tuple(f"new_{name}" for name in _COLUMNS)
_LOCK = DriverQuery(select(_C.entries).where(_C.chain_id == bindparam("of_chain")).with_for_update())
_INSERT = DriverQuery(
    insert(audit_entries).values({name: bindparam(f"new_{name}", type_=_E[name].type) for name in _COLUMNS})
)
_ADVANCE = DriverQuery(
    update(audit_chains)
    .where(_C.chain_id == bindparam("of_chain"))
    .values({name: bindparam(f"new_{name}", type_=_C[name].type) for name in ("entries", "head", "checkpoint_mac")})
)
# Entries hold the event loop for about 0.1 ms each, and one call in a hundred waits for a part: their p99. Between two
# parts all that is ready runs, so that many small parts of a large batch would be slower than the calls.
_MIN_PART, _MAX_PART, _PARTS = 10, 50, 20
_MIN_COPY = 20  # entries: COPY takes three round trips, as many as the parts of so many

ERASED = {"user_id": "", "purpose": "", "details": "", "salt": None}
"""The values of an erased entry's columns. `purpose` and `details` may name the user too, or the account."""

UNREADABLE = (ValueError, TypeError, ArithmeticError, AttributeError, DBAPIError)
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

    def extended_with(self, entry: "AuditEntry | Row[Any]", commitment: bytes) -> "Chain":
        """Return the chain after one more entry."""
        return self.extended_to(self.entries + 1, self.next_head(self.head, entry, commitment))

    def extended_to(self, entries: int, head: bytes) -> "Chain":
        """Return the chain with so many entries, of which the last has this head."""
        return type(self)(self.chain_id, self.number, self.key, entries, head)

    def next_head(self, head: bytes, entry: "AuditEntry | Row[Any]", commitment: bytes) -> bytes:
        """Return the MAC of an entry that follows the one with this head."""
        return self._mac(head + self._authenticated(entry, commitment))

    def erasure_mac(self, sequence: int, commitment: bytes) -> bytes:
        """The MAC that shows that an entry was erased by this program: a writer to the database cannot compute it."""
        return self._mac(b"erased" + sequence.to_bytes(8, "big") + commitment)

    @property
    def checkpoint_mac(self) -> bytes:
        """The MAC over length and head. The entries of a chain do not reveal it for a shorter chain."""
        return self._mac(b"chain" + self.entries.to_bytes(8, "big") + self.head)

    @property
    def record(self) -> dict[str, Any]:
        """The columns that change with each entry."""
        return {"entries": self.entries, "head": self.head, "checkpoint_mac": self.checkpoint_mac}

    @property
    def recorded_head(self) -> Head:
        """The head to record outside the database."""
        return Head(AUDIT_CHAIN, self.chain_id, self.number, self.entries, self.head)

    def _authenticated(self, entry: AuditEntry | Row[Any], commitment: bytes) -> bytes:
        """A JSON array, as `json.dumps` writes it, in a quarter of the time. Raises for a value of another type."""
        time = entry.time if entry.time.tzinfo is UTC else entry.time.astimezone(UTC)
        caller, action, integration_id, integration_type, version, outcome, call_count = _AUTHENTICATED(entry)
        return (
            f'["{time.isoformat(timespec="microseconds")}", {_quote(caller)}, {_quote(action)}, {integration_id:d}, '
            f'{_quote(integration_type)}, {version:d}, {_quote(outcome)}, {call_count:d}, "{commitment.hex()}"]'
        ).encode()

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self.key, content, "sha256")


def commitment_of(entry: AuditEntry | Row[Any], salt: bytes) -> bytes:
    """Return the commitment to the personal fields of an entry. Raises `ValueError` for a salt of another length."""
    if len(salt) != _SALT_BYTES:
        raise ValueError("a salt of another length")
    return hashlib.sha256(salt + f"[{', '.join(map(_quote, _PERSONAL(entry)))}]".encode()).digest()


async def decrypt_chain_key(aead: Aead, row: Row[Any]) -> bytes:
    """Return the key of a chain. Raises `CredentialsUnreadable`."""
    return await aead.decrypt(row.encrypted_key, chain_key_aad(row.chain_id))


class SqlAuditLog:
    """The `AuditLog` of one process. `append` must not be called concurrently."""

    def __init__(
        self,
        database: Database,
        aead: Aead,
        chain_type: type[Chain] = Chain,
        *,
        part_size: int | None = None,
        min_copy: int = _MIN_COPY,
    ) -> None:
        self._database = database
        self._aead = aead
        self._chain_type = chain_type
        self._part_size = part_size
        self._min_copy = min_copy
        self._chain: Chain | None = None
        self._heads: dict[str, Head] = {}

    def heads(self) -> Sequence[Head]:
        """The heads of this process's chains, as far as they are certainly stored: one, and more after failures."""
        return tuple(self._heads.values())

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Append entries to this process's chain, all or none. Raises `StoreUnavailable`."""
        before = self._chain or await self._start_chain()
        self._chain = None  # until the commit is certain
        async with self._database.driver_transaction() as connection:
            if list(map(tuple, await connection.run(_LOCK, of_chain=before.chain_id))) != [(before.entries,)]:
                raise StoreUnavailable  # the chain was changed: the retry starts another one
            chain = await self._insert(connection, before, entries)
            record = {f"new_{name}": value for name, value in chain.record.items()}
            await connection.run(_ADVANCE, of_chain=chain.chain_id, **record)
        self._chain = chain
        self._heads[chain.chain_id] = chain.recorded_head

    async def _insert(self, connection: DriverConnection, chain: Chain, entries: Sequence[AuditEntry]) -> Chain:
        """Insert entries into the chain in parts, between which other tasks run. Return the chain after them."""

        async def parts() -> AsyncIterator[Sequence[tuple[Any, ...]]]:
            nonlocal chain
            size = self._part_size or min(max(_MIN_PART, len(entries) // _PARTS), _MAX_PART)
            for begin in range(0, len(entries), size):
                chain, rows = _extend(chain, entries[begin : begin + size])
                yield rows
                await asyncio.sleep(0)

        if connection.dialect_name == "postgresql" and len(entries) > self._min_copy:
            await connection.copy_rows(audit_entries, _COLUMNS, parts())
        else:
            async for rows in parts():
                await connection.run_many(_INSERT, [dict(zip(_PARAMETERS, row, strict=True)) for row in rows])
        return chain

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


def _extend(chain: Chain, entries: Sequence[AuditEntry]) -> tuple[Chain, Sequence[tuple[Any, ...]]]:
    """Return the chain after the entries, and their rows: the values of `_COLUMNS`."""
    rows = []
    chain_id, sequence, head = chain.chain_id, chain.entries, chain.head
    salts = secrets.token_bytes(_SALT_BYTES * len(entries))
    for number, entry in enumerate(entry.escaped() for entry in entries):
        salt = salts[number * _SALT_BYTES : (number + 1) * _SALT_BYTES]
        commitment = commitment_of(entry, salt)
        sequence, head = sequence + 1, chain.next_head(head, entry, commitment)
        rows.append((*_FIELDS(entry), chain_id, sequence, head, salt, commitment))
    return chain.extended_to(sequence, head), rows
