"""The verification of the audit log: finds what somebody has altered past this program.

Without heads that were recorded outside the database it cannot tell an older state of the log from the newest.
"""

import hmac
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, Select, func, select

from integration_server.domain.audit import SUCCESS, Action
from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.audit.audit_heads import Head
from integration_server.service.common_types import Aead
from integration_server.storage.audit import ERASED, UNREADABLE, Chain, commitment_of, decrypt_chain_key
from integration_server.storage.audit_head_file import RecordedHeads
from integration_server.storage.engine import Database
from integration_server.storage.tables import audit_chains, audit_entries, integrations

_C = audit_chains.c
_E = audit_entries.c
_I = integrations.c

_PAGE = 5000

_CHAINS: Select[Any] = select(
    _C.chain_id, _C.number, _C.encrypted_key, _C.entries, _C.head, _C.checkpoint_mac
).order_by(_C.number)


class AuditVerification:
    """Verifies the whole log, once.

    `chains`, `entries` and `erased` count what was read. `heads` are those of the chains without a problem.
    `on_page` is called after each page of entries. `states` are the present heads of what is not in the log, to compare
    with the recorded ones; recorded heads of other kinds are ignored.
    """

    def __init__(
        self,
        database: Database,
        aead: Aead,
        chain_type: type[Chain] = Chain,
        recorded_heads: RecordedHeads | None = None,
        states: Sequence[Head] = (),
    ) -> None:
        self._database = database
        self._aead = aead
        self._chain_type = chain_type
        self._recorded_heads = recorded_heads or RecordedHeads()
        self._states = states
        self._versions: dict[int, int] = {}
        self._disconnected: set[int] = set()
        self.on_page: Callable[[], None] = lambda: None
        self.chains = 0
        self.entries = 0
        self.erased = 0
        self.heads: list[Head] = []

    async def count_entries(self) -> int:
        """The number of entries to verify, as the chains state it."""
        return int(await self._database.fetch_value(select(func.sum(_C.entries))) or 0)

    async def problems(self) -> AsyncIterator[str]:
        """Report all problems; none if the log is intact."""
        with_entries = [chain_id async for chain_id in self._chains_with_entries()]
        rows = await self._database.fetch(_CHAINS)  # read second: a chain is stored before its entries
        for row in rows:
            try:
                first, last = self.chains + 1, row.number - 1
                if first <= last:  # one line: an altered number may be huge
                    yield f"chain {first} is missing" if first == last else f"chains {first} to {last} are missing"
                self.chains = row.number
                async for problem in self._problems_of_chain(row):
                    yield f"chain {row.number}: {problem}"
            except UNREADABLE:
                yield f"chain {row.number}: its record was altered"
        stored = {row.chain_id for row in rows}
        for chain_id in with_entries:
            if chain_id not in stored:
                yield f"entries of chain {chain_id!r} were inserted: the chain does not exist"
        for problem in (*self._missing_chains(stored), *self._problems_of_states()):
            yield problem
        async for problem in self._problems_of_integrations():
            yield problem

    def _missing_chains(self, stored: Collection[str]) -> Iterator[str]:
        for chain_id in self._recorded_heads.chain_ids:
            if chain_id not in stored:
                head = max(self._recorded_heads.of_chain(chain_id), key=lambda head: head.number)
                yield f"chain {head.number} ({chain_id!r}) is missing: it had {head.version} entries, as its head shows"

    def _problems_of_states(self) -> Iterator[str]:
        for state in self._states:
            for head in self._recorded_heads.heads.get((state.kind, state.name), ()):
                if head.version > state.version:
                    yield f"{state.kind}: set back to version {state.version}: it had {head.version}, as its head shows"
                elif head.version == state.version and head.mac != state.mac:
                    yield f"{state.kind}: version {state.version} is not the one that its head shows"

    async def _chains_with_entries(self) -> AsyncIterator[str]:
        """Yield the ids of chains with entries. A scan of all entries could exceed the statement timeout."""
        first = select(func.min(_E.chain_id))
        chain_id = await self._database.fetch_value(first)
        while chain_id is not None:
            yield chain_id
            chain_id = await self._database.fetch_value(first.where(_E.chain_id > chain_id))

    async def _problems_of_chain(self, row: Row[Any]) -> AsyncIterator[str]:
        try:
            key = await decrypt_chain_key(self._aead, row)
        except CredentialsUnreadable:
            yield "its key cannot be decrypted"
            return
        is_intact = True
        chain = self._chain_type.empty(row.chain_id, row.number, key)
        stored = replace(chain, entries=row.entries, head=row.head)
        if not hmac.compare_digest(stored.checkpoint_mac, row.checkpoint_mac):
            is_intact = False
            yield "its length or its last entry was altered"
        if row.entries == 0 and not hmac.compare_digest(chain.head, row.head):
            is_intact = False
            yield "its number was altered"
        for head in self._recorded_heads.of_chain(row.chain_id):
            if head.version > row.entries:
                is_intact = False
                yield f"it was set back to {row.entries} entries: it had {head.version}, as its head shows"
        async for problem in self._problems_of_entries(row, chain):
            is_intact = False
            yield problem
        if is_intact and row.entries:
            self.heads.append(stored.recorded_head)

    async def _problems_of_entries(self, row: Row[Any], chain: Chain) -> AsyncIterator[str]:
        heads = self._recorded_heads.of_chain(row.chain_id)
        try:
            async for entry in self._entries_of(row.chain_id):
                if entry.sequence <= chain.entries:
                    yield f"entry {entry.sequence} was inserted"
                    continue
                if entry.sequence > chain.entries + 1:
                    break
                extended = chain.extended_with(entry, entry.commitment)
                if not hmac.compare_digest(extended.head, entry.mac):
                    raise ValueError  # reported like an unreadable entry
                chain = extended
                if problem := self._problem_of_personal_fields(entry, chain):
                    yield f"entry {entry.sequence}: {problem}"
                if any(head.version == chain.entries and head.mac != chain.head for head in heads):
                    yield f"entry {entry.sequence} or an entry before it is not the one that its head shows"
                if entry.action == Action.DISCONNECT and entry.outcome == SUCCESS:
                    self._disconnected.add(entry.integration_id)
                if entry.integration_version > self._versions.get(entry.integration_id, 0):
                    self._versions[entry.integration_id] = entry.integration_version
            else:
                if chain.entries >= row.entries:
                    return
            yield f"entry {chain.entries + 1} is missing"
        except UNREADABLE:
            yield f"entry {chain.entries + 1} or the entry before it was altered"

    def _problem_of_personal_fields(self, entry: Row[Any], chain: Chain) -> str:
        """Compare the fields with the commitment, or an erased entry with its erasure MAC; empty without a problem."""
        try:
            if entry.salt is not None:
                is_valid = hmac.compare_digest(commitment_of(entry, entry.salt), entry.commitment)
            else:
                self.erased += 1
                expected = chain.erasure_mac(entry.sequence, entry.commitment)
                is_blank = all(getattr(entry, name) == value for name, value in ERASED.items())
                is_valid = is_blank and hmac.compare_digest(expected, entry.erasure_mac)
        except UNREADABLE:  # also values of another type
            is_valid = False
        if is_valid:
            return ""
        if entry.salt is not None:
            return "its user, purpose or details were altered"
        return "it was not erased by `audit erase-user`"

    async def _problems_of_integrations(self) -> AsyncIterator[str]:
        """Compare the integrations with the log: versions never become lower, and what is disconnected stays away."""
        query = select(_I.integration_id, _I.version).order_by(_I.integration_id).limit(_PAGE)
        rows = await self._database.fetch(query) if self._versions or self._disconnected else ()
        while rows:
            for row in rows:
                if row.integration_id in self._disconnected:
                    yield f"integration {row.integration_id} was put back: the log has its disconnection"
                newest = self._versions.get(row.integration_id, 0)
                if newest and not (isinstance(row.version, int) and row.version >= newest):
                    yield (
                        f"the credentials of integration {row.integration_id} were set back to version {row.version}: "
                        f"the log has version {newest}"
                    )
            rows = await self._database.fetch(query.where(_I.integration_id > rows[-1].integration_id))

    async def _entries_of(self, chain_id: str) -> AsyncIterator[Row[Any]]:
        """Yield the entries of a chain in pages, including entries that are written meanwhile."""
        query = select(audit_entries).where(_E.chain_id == chain_id).order_by(_E.sequence)
        rest, size = query, _PAGE
        while True:
            try:
                rows = await self._database.fetch(rest.limit(size))
            except UNREADABLE:
                if size == 1:
                    raise
                size = 1  # read up to the unreadable entry
                continue
            for row in rows:
                self.entries += 1
                yield row
            self.on_page()
            if len(rows) < size:
                return
            rest = query.where(_E.sequence > rows[-1].sequence)
