"""Lists entries of the audit log: implements the port `AuditEntries`.

Rows that the server cannot have written are listed too, as unreadable, and hide no other: their times cannot be read,
so a position names the last readable entry and counts the others.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Select, literal, or_, select, tuple_

from integration_server.domain.audit import AuditEntry, recorded_caller, recorded_user_id
from integration_server.domain.text_escaping import EscapedText
from integration_server.service.operators.ports import AuditFilter, AuditPage, AuditPosition, ListedEntry
from integration_server.storage.audit import TEXTS, UNREADABLE
from integration_server.storage.engine import Database, from_row
from integration_server.storage.tables import audit_entries

_E = audit_entries.c
_KEY = (_E.chain_id, _E.sequence)
_UNREADABLE_ENTRY = ListedEntry(None)

MAX_EXAMINED = 10_000
"""Entries that one call reads, which take a database some tens of milliseconds."""


class SqlAuditEntries:
    """`AuditEntries` over a SQL database. A call examines at most `max_examined` entries.

    The indexes have the time, and the user with the time. Other conditions are compared row by row.
    """

    def __init__(self, database: Database, *, max_examined: int = MAX_EXAMINED) -> None:
        self._database = database
        self._max_examined = max_examined

    async def list(self, condition: AuditFilter, after: AuditPosition | None, limit: int) -> AuditPage:
        """At most `limit` entries that follow a position."""
        after = after or AuditPosition(None)
        end = await self._last_examined(condition, after)
        query = page_statement(condition, after, end).limit(limit + 1)
        found = await self._read(query)
        page = found[:limit]
        if len(found) > len(page):
            return AuditPage(_listed(page), _position(page, after))
        return AuditPage(_listed(page), end)

    async def _last_examined(self, condition: AuditFilter, after: AuditPosition) -> AuditPosition | None:
        """The last entry that a call examines; None if it examines all, or if every entry that it reads is listed."""
        if not _other_conditions(condition):
            return None
        try:
            row = await self._database.fetch_one(window_statement(condition, after, self._max_examined))
        except UNREADABLE:
            return None  # without a bound: what was altered is to be seen
        return None if row is None else AuditPosition(row.time, row.chain_id, row.sequence)

    async def _read(self, query: Select[Any]) -> Sequence[Row[Any] | None]:
        """The rows of a query; None for one that cannot be read."""
        try:
            rows = await self._database.fetch(query)
            return [row if _is_readable(row) else None for row in rows]
        except UNREADABLE:
            return await self._read_one_by_one(query)

    async def _read_one_by_one(self, query: Select[Any]) -> Sequence[Row[Any] | None]:
        rows: list[Row[Any] | None] = []
        for key in await self._database.fetch(query.with_only_columns(*_KEY)):
            single_entry = select(audit_entries).where(_E.chain_id == key.chain_id, _E.sequence == key.sequence)
            try:
                rows += [row if _is_readable(row) else None for row in await self._database.fetch(single_entry)]
            except UNREADABLE:
                rows.append(None)
        return rows


def page_statement(condition: AuditFilter, after: AuditPosition, end: AuditPosition | None) -> Select[Any]:
    """The entries that meet the conditions and follow a position, up to an `end` that is included."""
    query = _following(select(audit_entries), condition, after)
    if end is not None:
        query = query.where(_order(condition) >= _values(condition, end))
    return query.where(*_indexed_conditions(condition), *_other_conditions(condition))


def window_statement(condition: AuditFilter, after: AuditPosition, max_examined: int) -> Select[Any]:
    """The last entry that a call examines, if there are as many."""
    query = _following(select(_E.time, *_KEY), condition, replace(after, skipped=0))
    return query.where(*_indexed_conditions(condition)).offset(max_examined - 1).limit(1)


def _following(query: Select[Any], condition: AuditFilter, after: AuditPosition) -> Select[Any]:
    """The rows from a position on. To be the first condition: of those on one column, SQLite searches by the first."""
    if after.time is not None:
        # Not `<`: PostgreSQL would compare the user only, expect no row, and read and sort all of the user's.
        is_other = or_(_E.chain_id != after.chain_id, _E.sequence != after.sequence)
        query = query.where(_order(condition) <= _values(condition, after), is_other)
    return query.order_by(*(column.desc() for column in _columns(condition))).offset(after.skipped or None)


def _columns(condition: AuditFilter) -> Sequence[Column[Any]]:
    """The columns that entries are ordered by. Those of an index come first.

    The user is one of them, although it is the same in all: in the order of the time alone, PostgreSQL would read the
    entries of all users, where it expects many of this one, and examine any number of newer ones first.
    """
    return (*((_E.user_id,) if condition.user_id else ()), _E.time, *_KEY)


def _order(condition: AuditFilter) -> ColumnElement[Any]:
    return tuple_(*_columns(condition))


def _values(condition: AuditFilter, position: AuditPosition) -> ColumnElement[Any]:
    """A position as a value of `_order`."""
    user = (recorded_user_id(condition.user_id),) if condition.user_id else ()
    values = (*user, position.time, position.chain_id, position.sequence)
    return tuple_(*(literal(value, column.type) for value, column in zip(values, _columns(condition), strict=True)))


def _indexed_conditions(condition: AuditFilter) -> Sequence[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if condition.user_id:
        user_id = recorded_user_id(condition.user_id)
        conditions += [_E.user_id >= user_id, _E.user_id <= user_id]  # with `=`, the order would lose its first column
    if condition.start_time is not None:
        conditions.append(_E.time >= condition.start_time)
    if condition.end_time is not None:
        conditions.append(_E.time < condition.end_time)
    return conditions


def _other_conditions(condition: AuditFilter) -> Sequence[ColumnElement[bool]]:
    conditions = []
    if condition.integration_id:
        conditions.append(_E.integration_id == condition.integration_id)
    if condition.caller:
        conditions.append(_E.caller == recorded_caller(condition.caller))
    if condition.action:
        conditions.append(_E.action == condition.action)
    return conditions


def _position(page: Sequence[Row[Any] | None], after: AuditPosition) -> AuditPosition:
    """The position of the last entry of a page, which began at another."""
    for skipped, row in enumerate(reversed(page)):
        if row is not None:
            return AuditPosition(row.time, row.chain_id, row.sequence, skipped)
    return replace(after, skipped=after.skipped + len(page))


def _listed(page: Sequence[Row[Any] | None]) -> Sequence[ListedEntry]:
    return [_UNREADABLE_ENTRY if row is None else ListedEntry(_entry_of(row), row.salt is None) for row in page]


def _is_readable(row: Row[Any]) -> bool:
    try:
        _entry_of(row)
    except UNREADABLE:
        return False
    return True


def _entry_of(row: Row[Any]) -> AuditEntry:
    return from_row(AuditEntry, row, **{name: EscapedText(getattr(row, name)) for name in TEXTS})
