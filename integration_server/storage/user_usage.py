"""The quotas of a user in SQL. Each is counted and used up in one transaction under the lock of the user's row.

A transaction that locks integrations too locks those first, in the order of their ids, and then the user: every
transaction has that order, so that none deadlocks. A pending integration may be locked after the user, because a
transaction that has locked one never waits for its user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam, delete, exists, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.domain.errors import QuotaExceeded
from integration_server.domain.integration import UserId
from integration_server.storage.driver_queries import DriverConnection, DriverQuery, Values
from integration_server.storage.engine import Database
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.tables import (
    AttemptState,
    authorization_attempts,
    integrations,
    user_usage,
    webhook_consumer_offsets,
    webhook_events,
)

_U = user_usage.c
_I = integrations.c
_E = webhook_events.c
_O = webhook_consumer_offsets.c
_A = authorization_attempts.c


@dataclass(frozen=True, slots=True)
class UserQuotas:
    """What one user may have: integrations, pending ones included; attempts that are not consumed; and bytes of
    encrypted webhook payloads.
    """

    # A backend that is one user for all of its tenants needs more; a person never has so many.
    integrations: int = 1_000
    # More than a person opens in the ten minutes that an attempt lasts.
    authorization_attempts: int = 50
    # A week of some 30,000 events of 1 KiB a day, for a consumer that acknowledges nothing.
    webhook_bytes: int = 256 * 1024 * 1024


DEFAULT_USER_QUOTAS = UserQuotas()

_BATCH_SIZE = 1000  # rows that one statement deletes

_COUNT_INTEGRATIONS = DriverQuery(
    select(func.count()).select_from(
        select(literal(1)).where(_I.user_id == bindparam("user_id")).limit(bindparam("most")).subquery()
    )
)

REMOVE_ABANDONED = delete(integrations).where(
    _I.connect_time.is_(None), ~exists().where(_A.integration_id == _I.integration_id)
)
"""Deletes pending integrations without an attempt."""

_OLDEST_PENDING = DriverQuery(
    select(_A.attempt_id, _A.integration_id)
    .where(
        _A.user_id == bindparam("of_user"),
        _A.state != AttemptState.CONSUMED.value,
        _A.expire_time > bindparam("now"),
    )
    # The last are replaced: finished ones, of which only the outcome is left, and then those whose browser has not come
    # back. The others only wait for their confirmation.
    .order_by(_A.state == AttemptState.FINISHED.value, _A.state == AttemptState.STARTED.value, _A.create_time.desc())
    .offset(bindparam("kept"))
)

_OLDEST_STARTED = DriverQuery(
    select(_A.attempt_id, _A.integration_id)
    .join(integrations, _I.integration_id == _A.integration_id)
    .where(_A.user_id == bindparam("of_user"), _A.state == AttemptState.STARTED.value, _I.connect_time.is_(None))
    .order_by(_A.create_time)
    .limit(1)
)
"""The user's oldest attempt that still waits for the browser, if its integration is pending."""

_DROP = DriverQuery(
    delete(authorization_attempts).where(
        is_one_of(_A.attempt_id, "attempt_ids"), _A.state != AttemptState.CONSUMED.value
    )
)
_DROP_ABANDONED = DriverQuery(REMOVE_ABANDONED.where(is_one_of(_I.integration_id, "integration_ids")))

_acknowledged_by_all = (
    select(func.min(_O.number)).where(_O.integration_id == _I.integration_id).correlate(integrations).scalar_subquery()
)
_oldest_acknowledged = (
    select(_E.webhook_event_id)
    .select_from(integrations.join(webhook_events, _E.integration_id == _I.integration_id))
    .where(_I.user_id == bindparam("of_user"), _E.number <= _acknowledged_by_all)
    .order_by(_E.webhook_event_id)
    .limit(_BATCH_SIZE)
    # Rows that another server prunes at this moment wait for the user's row, which this transaction has locked.
    .with_for_update(skip_locked=True, of=webhook_events)
)
_DELETE_OLDEST_ACKNOWLEDGED = DriverQuery(
    delete(webhook_events).where(_E.webhook_event_id.in_(_oldest_acknowledged)).returning(_E.webhook_event_id)
)


def _add_webhook_bytes(upsert: Callable[[Table], Any]) -> DriverQuery:
    """Locks the user's row and adds to its bytes; returns the total."""
    row = upsert(user_usage).values(user_id=bindparam("user_id"), webhook_bytes=bindparam("webhook_bytes"))
    total: ColumnElement[int] = _U.webhook_bytes + row.excluded.webhook_bytes
    add = row.on_conflict_do_update(index_elements=[_U.user_id], set_={"webhook_bytes": total})
    return DriverQuery(add.returning(_U.webhook_bytes))


_ADD_WEBHOOK_BYTES = {"postgresql": _add_webhook_bytes(postgresql.insert), "sqlite": _add_webhook_bytes(sqlite.insert)}

# A row without bytes is needed only as a lock, and created again for that. Locked ones are in use.
_unused = select(_U.user_id).where(_U.webhook_bytes == 0).limit(_BATCH_SIZE).with_for_update(skip_locked=True)
_DELETE_UNUSED = delete(user_usage).where(_U.user_id.in_(_unused))


async def remove_unused(database: Database) -> None:
    """Delete the rows that count nothing, so that no user is named who has nothing here."""
    while await database.write(_DELETE_UNUSED) >= _BATCH_SIZE:
        pass


async def lock_user(connection: DriverConnection, user_id: UserId) -> None:
    """Lock the user's row until the end of the transaction, and create it if there is none."""
    await _add_bytes(connection, user_id, 0)


async def has_room_for_integration(connection: DriverConnection, user_id: UserId, quotas: UserQuotas) -> bool:
    """Lock the user and return whether another integration would not exceed the quota."""
    await lock_user(connection, user_id)
    ((count,),) = await connection.run(_COUNT_INTEGRATIONS, user_id=user_id, most=quotas.integrations)
    return int(count) < quotas.integrations


async def require_room_for_integration(connection: DriverConnection, user_id: UserId, quotas: UserQuotas) -> None:
    """Lock the user and raise `QuotaExceeded` if another integration would exceed the quota."""
    if not await has_room_for_integration(connection, user_id, quotas):
        raise QuotaExceeded.of_user(
            "USER_MAX_INTEGRATIONS",
            f"this user has {quotas.integrations} integrations; disconnect one, or reconnect one with integration_id",
        )


async def make_room_for_integration(connection: DriverConnection, user_id: UserId, quotas: UserQuotas) -> None:
    """Lock the user; if another integration would exceed the quota, delete the oldest attempt that can be begun again.

    Raises `QuotaExceeded` if that does not suffice.
    """
    if not await has_room_for_integration(connection, user_id, quotas):
        await _drop(connection, await connection.run(_OLDEST_STARTED, of_user=user_id))
        await require_room_for_integration(connection, user_id, quotas)


async def make_room_for_attempt(
    connection: DriverConnection, user_id: UserId, quotas: UserQuotas, now: datetime
) -> None:
    """Lock the user, and delete the oldest attempts beyond the quota, with their pending integrations."""
    await lock_user(connection, user_id)
    kept = quotas.authorization_attempts - 1
    await _drop(connection, await connection.run(_OLDEST_PENDING, of_user=user_id, now=now, kept=kept))


async def _drop(connection: DriverConnection, oldest: Sequence[Values]) -> None:
    """Delete attempts with their pending integrations: rows of both ids. One that was consumed meanwhile stays."""
    if oldest:
        attempt_ids, integration_ids = zip(*oldest, strict=True)
        await connection.run(_DROP, attempt_ids=attempt_ids)
        await connection.run(
            _DROP_ABANDONED,
            integration_ids=[integration_id for integration_id in integration_ids if integration_id is not None],
        )


async def use_webhook_bytes(connection: DriverConnection, user_id: UserId, count: int, quotas: UserQuotas) -> None:
    """Count payloads of `count` bytes, which this transaction stores; make room if they exceed the quota.

    The oldest events that every consumer has acknowledged are deleted until an eighth of the quota is free, so that the
    next event does not search again. Raises `QuotaExceeded` if that does not suffice.
    """
    total = await _add_bytes(connection, user_id, count)
    max_bytes = quotas.webhook_bytes
    if total <= max_bytes:
        return
    while total > max_bytes - max_bytes // 8:
        if not await connection.run(_DELETE_OLDEST_ACKNOWLEDGED, of_user=user_id):
            break
        total = await _add_bytes(connection, user_id, 0)
    if total > max_bytes:
        raise QuotaExceeded.of_user(
            "USER_MAX_WEBHOOK_BYTES", f"this user has {max_bytes} bytes of webhook events that are not acknowledged"
        )


async def _add_bytes(connection: DriverConnection, user_id: UserId, count: int) -> int:
    """Lock the user's row and add to its bytes. Returns the total."""
    add = _ADD_WEBHOOK_BYTES[connection.dialect_name]
    ((total,),) = await connection.run(add, user_id=user_id, webhook_bytes=count)
    return int(total)
