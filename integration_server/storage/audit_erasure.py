"""The erasure of a user from the audit log: the entries stay, without what tells whose they are."""

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import bindparam, func, select, update

from integration_server.domain.audit import recorded_user_id
from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.common_types import Aead
from integration_server.storage.audit import ERASED, UNREADABLE, Chain, commitment_of, decrypt_chain_key
from integration_server.storage.engine import Database
from integration_server.storage.tables import audit_chains, audit_entries

_C = audit_chains.c
_E = audit_entries.c

_SLICE = 500  # entries in a transaction: SQLite has one writer, and servers wait for it


class UserErasure:
    """Erases a user from all entries, in slices. After a crash, run it again: it continues.

    An entry whose personal fields do not match their commitment stays, because an erasure would hide that somebody has
    altered it. `altered` lists these.
    """

    def __init__(
        self,
        database: Database,
        aead: Aead,
        user_id: str,
        chain_type: type[Chain] = Chain,
        *,
        slice_size: int = _SLICE,
    ) -> None:
        self._database = database
        self._aead = aead
        self._is_users = _E.user_id == recorded_user_id(user_id)
        self._chain_type = chain_type
        self._slice_size = slice_size
        self._chains: dict[str, Chain | None] = {}
        self.erased = 0
        self.altered: list[str] = []

    async def count_entries(self) -> int:
        """The number of entries that name the user."""
        query = select(func.count()).select_from(audit_entries).where(self._is_users)
        return int(await self._database.fetch_value(query) or 0)

    async def erase(self) -> AsyncIterator[int]:
        """Erase the user's entries. Yields the number of erased entries after each slice."""
        columns = (_E.chain_id, _E.sequence, _E.user_id, _E.purpose, _E.details, _E.salt, _E.commitment)
        # Erased entries no longer match: what remains at the beginning are the entries that were left.
        query = select(*columns).where(self._is_users).order_by(_E.time, _E.chain_id, _E.sequence)
        erase = (
            update(audit_entries)
            .where(_E.chain_id == bindparam("id"), _E.sequence == bindparam("at"), self._is_users)
            .values({**ERASED, "erasure_mac": bindparam("new_mac")})
        )
        size = self._slice_size
        while True:
            try:
                rows = await self._database.fetch(query.limit(size).offset(len(self.altered)))
            except UNREADABLE:
                if size == 1:
                    self.altered.append("an entry that cannot be read")
                size = self._slice_size if size == 1 else 1  # read up to the unreadable entry
                continue
            if not rows:
                return
            values = [value for row in rows if (value := await self._erasure_of(row)) is not None]
            if values:
                async with self._database.write_transaction() as connection:
                    await connection.execute(erase, values)
            self.erased += len(values)
            yield self.erased

    async def _erasure_of(self, row: Any) -> dict[str, Any] | None:  # noqa: ANN401  # a row
        chain = await self._chain(row.chain_id)
        try:
            is_valid = chain is not None and commitment_of(row, row.salt) == row.commitment
        except UNREADABLE:
            is_valid = False
        if chain is None or not is_valid:
            number = "of a chain whose key cannot be read" if chain is None else f"of chain {chain.number}"
            self.altered.append(f"entry {row.sequence} {number}")
            return None
        return {"id": row.chain_id, "at": row.sequence, "new_mac": chain.erasure_mac(row.sequence, row.commitment)}

    async def _chain(self, chain_id: str) -> Chain | None:
        """The chain with its key, without entries; None if it does not exist or cannot be decrypted."""
        if chain_id not in self._chains:
            query = select(_C.chain_id, _C.number, _C.encrypted_key).where(_C.chain_id == chain_id)
            row = await self._database.fetch_one(query)
            chain = None
            if row is not None:
                try:
                    key = await decrypt_chain_key(self._aead, row)
                    chain = self._chain_type.empty(row.chain_id, row.number, key)
                except CredentialsUnreadable:
                    pass
            self._chains[chain_id] = chain
        return self._chains[chain_id]
