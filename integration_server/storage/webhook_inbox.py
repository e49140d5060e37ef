"""The SQL store of received webhook events: implements the port `WebhookInbox`.

Transactions that add events of one integration are serialized by a lock on the integration's row, so that numbers
become visible in order. Known events are looked up before, without a lock. If another delivery stores one of the events
in the meantime, a unique constraint rejects the insert, and the remaining events are inserted without it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, bindparam, case, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration
from integration_server.service.credentials.grant_confirmation import RECHECK_AFTER
from integration_server.service.webhooks.ports import NewWebhookEvent, StoredWebhookEvent, WebhookPage
from integration_server.storage.driver_queries import ConstraintViolated, DriverConnection, DriverQuery
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.integrations import matches_integration, stored_integration_of
from integration_server.storage.pruning import prune
from integration_server.storage.tables import integrations, user_usage, webhook_consumer_offsets, webhook_events
from integration_server.storage.user_usage import (
    DEFAULT_USER_QUOTAS,
    UserQuotas,
    remove_unused,
    use_webhook_bytes,
)

_I = integrations.c
_E = webhook_events.c
_O = webhook_consumer_offsets.c

RECIPIENTS = (
    select(integrations)
    .where(
        or_(
            _I.account_id.in_(bindparam("account_ids", expanding=True)),
            _I.integration_id.in_(bindparam("integration_ids", expanding=True)),
        ),
        _I.client_key == bindparam("client_key"),
        _I.connect_time.is_not(None),
        _I.integration_id > bindparam("after"),
    )
    .order_by(_I.integration_id)
    .limit(bindparam("limit"))
)
"""The integrations that a webhook's events may be for. The index of accounts and the primary key find them."""

_EXISTING_EVENTS = select(_E.integration_id, _E.event_id).where(
    _E.integration_id.in_(bindparam("integration_ids", expanding=True)),
    _E.event_id.in_(bindparam("event_ids", expanding=True)),
)
_reserve_numbers = (
    update(integrations)
    .where(_I.integration_id == bindparam("id"), _I.connect_time.is_not(None))
    .values(last_webhook_number=_I.last_webhook_number + bindparam("more"))
    .returning(_I.user_id, _I.integration_type, _I.last_webhook_number)
)
_RESERVE_NUMBERS = DriverQuery(_reserve_numbers)
_is_known = exists().where(_E.integration_id == bindparam("id"), _E.event_id == bindparam("event_id"))
_RESERVE_NUMBER_IF_NEW = DriverQuery(_reserve_numbers.where(~_is_known))
_EVENT_VALUES = ("uid", "event_id", "event_type", "receive_time", "encrypted_payload")
_INSERT_EVENT = DriverQuery(
    insert(webhook_events).values(
        {name: bindparam(name) for name in (*_EVENT_VALUES, "integration_id", "user_id", "integration_type", "number")}
    )
)


def _store_one() -> DriverQuery:
    """Stores one event in PostgreSQL, in one round trip; returns whether it is stored now, and whether it was before.

    Nothing is stored, and no number is used, if its user has no room. Each part depends on the one before it, so that
    the row of the integration is locked before that of the user.
    """
    locked = select(_I.user_id).where(_I.integration_id == bindparam("id"), _I.connect_time.is_not(None), ~_is_known)
    owner = locked.with_for_update(key_share=True, of=integrations).cte("owner")
    size = func.octet_length(bindparam("encrypted_payload", type_=_E.encrypted_payload.type))
    max_bytes = bindparam("max_bytes", type_=user_usage.c.webhook_bytes.type)
    used = select(owner.c.user_id, size).where(size <= max_bytes)
    use = postgresql.insert(user_usage).from_select(["user_id", "webhook_bytes"], used)
    total = user_usage.c.webhook_bytes + use.excluded.webhook_bytes
    use_if_free = use.on_conflict_do_update(
        index_elements=[user_usage.c.user_id], set_={"webhook_bytes": total}, where=total <= max_bytes
    )
    usage = use_if_free.returning(user_usage.c.user_id).cte("usage")
    reserved = _reserve_numbers.where(_I.user_id == usage.c.user_id).cte("reserved")
    parameters = [bindparam(name, type_=_E[name].type) for name in (*_EVENT_VALUES, "integration_id")]
    values = select(*parameters, reserved.c.user_id, reserved.c.integration_type, reserved.c.last_webhook_number)
    names = [*_EVENT_VALUES, "integration_id", "user_id", "integration_type", "number"]
    stored = insert(webhook_events).from_select(names, values).returning(_E.webhook_event_id).cte("stored")
    outcome: Sequence[ColumnElement[Any]] = (exists(select(stored.c.webhook_event_id)), _is_known)
    return DriverQuery(select(*outcome))


_STORE_ONE = _store_one()
_RECHECK = DriverQuery(
    update(integrations)
    .where(_I.integration_id == bindparam("id"), _I.check_due_time.is_not(None))
    .values(check_due_time=DatabaseTime(RECHECK_AFTER))
)
_INTEGRATION_ID = attrgetter("integration.integration_id")
_USER_ID = attrgetter("integration.user_id")
_UPSERTS: Mapping[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class SqlWebhookInbox:
    """A `WebhookInbox` over a SQL database."""

    def __init__(self, database: Database, quotas: UserQuotas = DEFAULT_USER_QUOTAS) -> None:
        self._database = database
        self._quotas = quotas

    async def find_recipients(
        self,
        client_key: str,
        account_ids: Collection[str],
        after: IntegrationId,
        limit: int,
        integration_ids: Collection[IntegrationId] = (),
    ) -> Sequence[StoredIntegration]:
        """The connected integrations of these accounts or with these ids, that have an id above `after`, in order."""
        parameters = {
            "account_ids": sorted(account_ids),
            "integration_ids": sorted(integration_ids),
            "client_key": client_key,
            "after": after,
            "limit": limit,
        }
        return [stored_integration_of(row) for row in await self._database.fetch(RECIPIENTS, parameters)]

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Which of these events are stored for these integrations."""
        lookup = {"integration_ids": sorted(integration_ids), "event_ids": sorted(event_ids)}
        rows = await self._database.fetch(_EXISTING_EVENTS, lookup)
        return {(IntegrationId(row.integration_id), row.event_id) for row in rows}

    async def add(self, events: Sequence[NewWebhookEvent]) -> Sequence[NewWebhookEvent]:
        """Store the events of one user that are not stored yet, all or none, and return them."""
        unique: dict[tuple[IntegrationId, str], NewWebhookEvent] = {}
        for event in events:
            unique.setdefault(_key(event), event)
        new = list(unique.values())
        while new:
            try:
                return await self._add(new)
            except ConstraintViolated:
                lookup = {event.integration.integration_id for event in new}, {event.event_id for event in new}
                known = await self.known(*lookup)
                remaining = [event for event in new if _key(event) not in known]
                if len(remaining) == len(new):
                    raise
                new = remaining
        return new

    async def _add(self, events: Sequence[NewWebhookEvent]) -> Sequence[NewWebhookEvent]:
        """Store all events. Raises `ConstraintViolated` if one of them is stored already."""
        added: list[NewWebhookEvent] = []
        if len(events) == 1 and self._database.dialect_name == "postgresql" and not events[0].reports_grant_end:
            is_stored, is_known = await self._store_one(events[0])
            if is_stored or is_known:
                return events if is_stored else added
        async with self._database.driver_transaction() as connection:
            # In the order of the ids, which prevents deadlocks.
            for integration_id, group in groupby(sorted(events, key=_INTEGRATION_ID), _INTEGRATION_ID):
                appended = list(group)
                if await _append(connection, integration_id, appended):
                    added += appended
            # The last lock, and the only one of its kind if the events are of one user.
            for user_id, group in groupby(sorted(added, key=_USER_ID), _USER_ID):
                count = sum(len(event.encrypted_payload) for event in group)
                await use_webhook_bytes(connection, user_id, count, self._quotas)
        return added

    async def _store_one(self, event: NewWebhookEvent) -> Sequence[bool]:
        """Whether the event is stored now, and whether it was before: most deliveries have one."""
        integration_id = event.integration.integration_id
        values = {name: getattr(event, name) for name in _EVENT_VALUES}
        max_bytes = self._quotas.webhook_bytes
        (row,) = await self._database.run(
            _STORE_ONE, id=integration_id, integration_id=integration_id, more=1, max_bytes=max_bytes, **values
        )
        return row

    async def list(self, integration: Integration, after: int, limit: int, max_bytes: int) -> WebhookPage:
        """An integration's events with a number above `after`: at most `limit`, of at most `max_bytes` together."""
        following = (
            select(_E.number, func.length(_E.encrypted_payload).label("size"))
            .select_from(webhook_events.join(integrations))
            .where(*matches_integration(integration.integration_id, integration.user_id), _E.number > after)
            .order_by(_E.number)
            .limit(limit + 1)
        )
        async with self._database.read_connection() as connection:
            sizes = (await connection.execute(following)).all()
            fitting = sum(total <= max_bytes for total in accumulate(row.size for row in sizes[:limit]))
            page = sizes[: max(1, fitting)]
            if not page:
                return WebhookPage([], is_last=True)
            within = (_E.integration_id == integration.integration_id, _E.number > after, _E.number <= page[-1].number)
            rows = (await connection.execute(select(webhook_events).where(*within).order_by(_E.number))).all()
        return WebhookPage([from_row(StoredWebhookEvent, row) for row in rows], is_last=len(page) == len(sizes))

    async def consumer_offset(self, integration: Integration, consumer: str) -> int:
        """The number that the consumer has acknowledged last; 0 for none."""
        query = select(_O.number).where(_O.integration_id == integration.integration_id, _O.consumer == consumer)
        return await self._database.fetch_value(query) or 0

    async def acknowledge(self, integration: Integration, consumer: str, number: int) -> int | None:
        """Advance the consumer's offset, never back. Returns the offset; None if there is no such event."""
        # The lock prevents the deletion of the row before the offset refers to it. On SQLite the transaction does.
        last = (
            select(_I.last_webhook_number)
            .where(*matches_integration(integration.integration_id, integration.user_id))
            .with_for_update(read=True, key_share=True)
        )
        async with self._database.write_transaction() as connection:
            last_number = await connection.scalar(last)
            if last_number is None or number > last_number:
                return None
            move = _UPSERTS[connection.dialect.name](webhook_consumer_offsets).values(
                integration_id=integration.integration_id, consumer=consumer, number=number
            )
            advanced = case((_O.number > move.excluded.number, _O.number), else_=move.excluded.number)
            upsert = move.on_conflict_do_update(
                index_elements=[_O.integration_id, _O.consumer], set_={"number": advanced}
            ).returning(_O.number)
            return int((await connection.execute(upsert)).scalar_one())

    async def prune(self, before: datetime) -> int:
        """Delete a batch of events received before then, of any user. Returns how many."""
        removed = await prune(self._database, _E.receive_time, before)
        if not removed:
            await remove_unused(self._database)
        return removed


async def _append(
    connection: DriverConnection, integration_id: IntegrationId, events: Sequence[NewWebhookEvent]
) -> bool:
    """Number and insert an integration's events; see `WebhookInbox.add`.

    False if the integration was deleted, or if there is one event only and it is stored already.
    """
    # First, because the row lock blocks other deliveries and deletion until the end of the transaction.
    reserve = _RESERVE_NUMBERS if len(events) > 1 else _RESERVE_NUMBER_IF_NEW
    reserved = await connection.run(reserve, id=integration_id, more=len(events), event_id=events[0].event_id)
    if not reserved:
        return False
    ((user_id, integration_type, last_number),) = reserved
    owner = {"integration_id": integration_id, "user_id": user_id, "integration_type": integration_type}
    numbered = [
        {name: getattr(event, name) for name in _EVENT_VALUES} | {**owner, "number": number}
        for number, event in enumerate(events, start=last_number - len(events) + 1)
    ]
    await connection.run_many(_INSERT_EVENT, numbered)
    if any(event.reports_grant_end for event in events):
        await connection.run(_RECHECK, id=integration_id)
    return True


def _key(event: NewWebhookEvent) -> tuple[IntegrationId, str]:
    return event.integration.integration_id, event.event_id
