"""The SQL stores of unrouted events and of routes: implement the ports `UnroutedWebhooks` and `WebhookRoutes`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.integration import IntegrationId
from integration_server.domain.webhooks import UnroutedReason
from integration_server.service.webhooks.ports import NewUnroutedWebhook, NewWebhookRoute, UnroutedWebhook
from integration_server.storage.engine import Database, from_row
from integration_server.storage.pruning import prune
from integration_server.storage.tables import integrations, unrouted_webhooks, webhook_routes

_U = unrouted_webhooks.c
_R = webhook_routes.c
_I = integrations.c
_UPSERTS: Mapping[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


@dataclass(frozen=True, slots=True)
class UnroutedLimits:
    """What is kept of the unrouted events of one client. `max_bytes` are of encrypted payloads."""

    max_rows: int = 1000  # more than an operator reads
    max_bytes: int = 16 * 1024 * 1024


_newest = (
    select(
        _U.unrouted_webhook_id,
        func.row_number().over(order_by=_U.unrouted_webhook_id.desc()).label("count"),
        func.sum(func.length(_U.encrypted_payload)).over(order_by=_U.unrouted_webhook_id.desc()).label("bytes"),
    )
    .where(_U.client_key == bindparam("client_key"))
    .subquery()
)
_newest_excess = (
    select(func.max(_newest.c.unrouted_webhook_id))
    .where(or_(_newest.c.count > bindparam("max_rows"), _newest.c.bytes > bindparam("max_bytes")))
    .scalar_subquery()
)
_excess = (
    select(_U.unrouted_webhook_id)
    .where(_U.client_key == bindparam("client_key"), _U.unrouted_webhook_id <= _newest_excess)
    .with_for_update(skip_locked=True)  # another server deletes the same rows
)
_DELETE_EXCESS = delete(unrouted_webhooks).where(_U.unrouted_webhook_id.in_(_excess))


class SqlUnroutedWebhooks:
    """`UnroutedWebhooks` over a SQL database."""

    def __init__(self, database: Database, limits: UnroutedLimits | None = None) -> None:
        self._database = database
        self._limits = limits or UnroutedLimits()

    async def add(self, events: Sequence[NewUnroutedWebhook]) -> None:
        """Store events of one client, and delete the oldest beyond the limits."""
        rows = [
            {
                **asdict(new.event),
                "client_key": new.event.client_key,
                "reason": new.event.reason.value,
                "uid": new.uid,
                "encrypted_payload": new.encrypted_payload,
            }
            for new in sorted(events, key=lambda new: new.event.event_id)  # one order, so that none deadlocks
        ]
        async with self._database.write_transaction() as connection:
            insert = _UPSERTS[connection.dialect.name](unrouted_webhooks)
            await connection.execute(insert.on_conflict_do_nothing(), rows)
        for key in {new.event.client_key for new in events}:
            await self._database.write(_DELETE_EXCESS, {"client_key": key, **asdict(self._limits)})

    async def list(
        self, integration_type: str, allowed_types: AllowedTypes, before: int | None, limit: int
    ) -> Sequence[tuple[int, UnroutedWebhook]]:
        """Events with their numbers, the newest first."""
        columns = [column for column in _U if column is not _U.encrypted_payload]
        query = select(*columns).order_by(_U.unrouted_webhook_id.desc()).limit(limit)
        if integration_type:
            query = query.where(_U.integration_type == integration_type)
        if allowed_types.integration_types is not None:
            query = query.where(_U.integration_type.in_(sorted(allowed_types.integration_types)))
        if before is not None:
            query = query.where(_U.unrouted_webhook_id < before)
        return [
            (row.unrouted_webhook_id, from_row(UnroutedWebhook, row, reason=UnroutedReason(row.reason)))
            for row in await self._database.fetch(query)
        ]

    async def prune(self, before: datetime) -> int:
        """Delete a batch of events received before then. Returns how many."""
        return await prune(self._database, _U.receive_time, before)


_MAX_ROUTES = 200
"""The routes of one integration. A subscription is one, and an account has a few subscriptions."""

_FIND_ROUTES = (
    select(_R.route, _R.integration_id, _R.encrypted_copy)
    .where(_R.integration_type == bindparam("type"), _R.route.in_(bindparam("routes", expanding=True)))
    .limit(bindparam("most"))
)
_latest_routes = (
    select(_R.webhook_route_id)
    .where(_R.integration_id == bindparam("id"))
    .order_by(_R.expire_time.desc().nulls_first(), _R.webhook_route_id.desc())
    .limit(_MAX_ROUTES)
)
_DELETE_EXCESS_ROUTES = delete(webhook_routes).where(
    _R.integration_id == bindparam("id"), _R.webhook_route_id.not_in(_latest_routes)
)
_MAX_FOUND = 10_000  # integrations of the routes of a slice of events


class SqlWebhookRoutes:
    """`WebhookRoutes` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(
        self, integration_type: str, routes: Collection[str]
    ) -> Collection[tuple[str, IntegrationId, bytes]]:
        """The integrations that have one of these routes, with the route and its encrypted copy."""
        lookup = {"type": integration_type, "routes": sorted(routes), "most": _MAX_FOUND}
        rows = await self._database.fetch(_FIND_ROUTES, lookup)
        return [(row.route, IntegrationId(row.integration_id), row.encrypted_copy) for row in rows]

    async def add(self, routes: Collection[NewWebhookRoute], expire_time: datetime | None) -> None:
        """Add routes, or replace their expiry, and delete those beyond the limit."""
        rows = [
            {name: getattr(new.integration, name) for name in ("integration_id", "uid", "user_id", "integration_type")}
            | {"route": new.route, "encrypted_copy": new.encrypted_copy, "expire_time": expire_time}
            # In one order, which prevents deadlocks.
            for new in sorted(routes, key=lambda new: (new.integration.integration_id, new.route))
        ]
        async with self._database.write_transaction() as connection:
            # The lock prevents the deletion of integrations before the routes refer to them.
            ids = sorted({new.integration.integration_id for new in routes})
            existing = select(_I.integration_id).where(_I.integration_id.in_(ids)).order_by(_I.integration_id)
            found = set(await connection.scalars(existing.with_for_update(read=True, key_share=True)))
            rows = [row for row in rows if row["integration_id"] in found]
            if not rows:
                return
            insert = _UPSERTS[connection.dialect.name](webhook_routes)
            upsert = insert.on_conflict_do_update(
                index_elements=[_R.integration_id, _R.route],
                set_={name: insert.excluded[name] for name in ("uid", "encrypted_copy", "expire_time")},
            )
            await connection.execute(upsert, rows)
            for integration_id in sorted(found):
                await connection.execute(_DELETE_EXCESS_ROUTES, {"id": integration_id})

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired routes. Returns how many."""
        return await prune(self._database, _R.expire_time, now)
