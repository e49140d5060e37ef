"""The store of authorization attempts in SQL: implements the port `AuthorizationAttemptStore`.

An attempt is valid until its `expire_time`. Each state change is one atomic `UPDATE … RETURNING`, so that of concurrent
callers one gets the attempt.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Float, LargeBinary, Row, bindparam, delete, exists, func, insert, select, update

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import IntegrationId
from integration_server.service.background.ports import Claim
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.integrations.ports import NewIntegration
from integration_server.storage.driver_queries import DriverConnection, DriverQuery, Values
from integration_server.storage.due_work_claims import is_held, renew
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.integrations import insert_integration, new_integration_values
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.oauth_clients import require_client
from integration_server.storage.tables import AttemptState, authorization_attempts, integrations, is_polled
from integration_server.storage.user_usage import (
    DEFAULT_USER_QUOTAS,
    UserQuotas,
    has_room_for_integration,
    lock_user,
    require_room_for_integration,
)

_A = authorization_attempts.c
_I = integrations.c

_REMOVE_ABANDONED = delete(integrations).where(
    _I.connect_time.is_(None), ~exists().where(_A.integration_id == _I.integration_id)
)
"""Deletes pending integrations without an attempt."""

_REMOVE_IF_ABANDONED = DriverQuery(
    _REMOVE_ABANDONED.where(_I.integration_id == bindparam("of_integration"), _I.user_id == bindparam("of_user"))
)

_COLUMNS = {field.name: _A[field.name] for field in fields(AuthorizationAttempt)}
"""The columns of an attempt, in the order of its fields."""

_FIND = DriverQuery(select(*_COLUMNS.values()).where(_A.attempt_id == bindparam("of_attempt")))


def _move(before: AttemptState, after: AttemptState, **values: Any) -> DriverQuery:  # noqa: ANN401  # of columns
    """Changes the state of an attempt that is valid and whose integration exists; returns the attempt."""
    is_valid = _A.expire_time > bindparam("now"), _A.integration_id.is_not(None)
    return DriverQuery(
        update(authorization_attempts)
        .where(_A.attempt_id == bindparam("of_attempt"), _A.state == before.value, *is_valid)
        .values({**values, "state": after.value})
        .returning(*_COLUMNS.values())
    )


_NEW_OUTCOME = bindparam("new_outcome", type_=LargeBinary)
_HOLD = _move(
    AttemptState.STARTED,
    AttemptState.CALLBACK_PENDING,
    encrypted_callback=bindparam("new_callback", type_=LargeBinary),
    encrypted_outcome=_NEW_OUTCOME,
)
_CONSUME = _move(AttemptState.STARTED, AttemptState.CONSUMED, encrypted_outcome=_NEW_OUTCOME, poll_due_time=None)
_CONSUME_HELD = _move(AttemptState.CALLBACK_PENDING, AttemptState.CONSUMED)

_FINISH = DriverQuery(
    update(authorization_attempts)
    .where(_A.attempt_id == bindparam("of_attempt"), _A.user_id == bindparam("of_user"))
    .values(
        state=AttemptState.FINISHED.value,
        encrypted_callback=None,
        encrypted_outcome=func.coalesce(_NEW_OUTCOME, _A.encrypted_outcome),
        poll_due_time=None,
        integration_id=None,
    )
)


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
_DROP_ABANDONED = DriverQuery(_REMOVE_ABANDONED.where(is_one_of(_I.integration_id, "integration_ids")))

_LOCK = DriverQuery(
    select(_I.integration_id)
    .where(_I.integration_id == bindparam("of_integration"), _I.user_id == bindparam("of_user"))
    .with_for_update()
)
"""Keeps an integration until an attempt refers to it; a transaction of SQLite does that by itself."""

_END_POLLS = DriverQuery(
    delete(authorization_attempts).where(_A.integration_id == bindparam("of_integration"), is_polled)
)

_INSERT = DriverQuery(
    insert(authorization_attempts).values(
        {name: bindparam(f"new_{name}", type_=column.type) for name, column in _COLUMNS.items()}
        | {
            "state": AttemptState.STARTED.value,
            "poll_due_time": DatabaseTime(bindparam("new_poll_interval_seconds", type_=Float)),
        }
    )
)


class SqlAuthorizationAttempts:
    """An `AuthorizationAttemptStore`.

    Beyond a quota, of attempts or of integrations, a new attempt replaces the oldest, so that a user who begins, or
    denies, again and again is not locked out.
    """

    def __init__(self, database: Database, quotas: UserQuotas = DEFAULT_USER_QUOTAS) -> None:
        self._database = database
        self._quotas = quotas

    async def begin(self, attempt: AuthorizationAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration and its attempt. Raises `QuotaExceeded`, or `CallerNotAllowed` without client."""
        async with self._database.driver_transaction() as connection:
            await require_client(connection, integration.integration_type, integration.oauth_client)
            await lock_user(connection, attempt.user_id)
            await self._make_room(connection, attempt)
            if not await has_room_for_integration(connection, attempt.user_id, self._quotas):
                await _drop(connection, await connection.run(_OLDEST_STARTED, of_user=attempt.user_id))
                await require_room_for_integration(connection, attempt.user_id, self._quotas)
            values = new_integration_values(integration, attempt.create_time)
            integration_id = (await insert_integration(connection, values)).integration_id
            await _insert(connection, attempt, integration_id)
        return integration_id

    async def begin_reconnection(self, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt for an existing integration, which does not change. Raises `IntegrationNotFound`.

        It ends the device authorizations of the integration.
        """
        async with self._database.driver_transaction() as connection:
            if not await connection.run(_LOCK, of_integration=integration_id, of_user=attempt.user_id):
                raise IntegrationNotFound
            # Before any attempt is deleted, because `_make_room` deletes others of the user: otherwise two transactions
            # could each wait for what the other has deleted.
            await lock_user(connection, attempt.user_id)
            await connection.run(_END_POLLS, of_integration=integration_id)
            await self._make_room(connection, attempt)
            await _insert(connection, attempt, integration_id)

    async def _make_room(self, connection: DriverConnection, attempt: AuthorizationAttempt) -> None:
        """Delete the user's oldest attempts beyond the limit, with their pending integrations. The user is locked."""
        kept = self._quotas.authorization_attempts - 1
        oldest = await connection.run(_OLDEST_PENDING, of_user=attempt.user_id, now=attempt.create_time, kept=kept)
        await _drop(connection, oldest)

    async def find(self, attempt_id: str) -> AuthorizationAttempt | None:
        """An attempt in any state, also an expired one."""
        rows = await self._database.read(_FIND, of_attempt=attempt_id)
        return AuthorizationAttempt(*rows[0]) if rows else None

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, encrypted_outcome: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """Keep a callback until it is confirmed. None unless the attempt is started and valid."""
        return await self._run(
            _HOLD, of_attempt=attempt_id, now=now, new_callback=encrypted_callback, new_outcome=encrypted_outcome
        )

    async def consume(self, attempt_id: str, encrypted_outcome: bytes, now: datetime) -> AuthorizationAttempt | None:
        """Take a started attempt, for this caller only. None unless the attempt is started and valid."""
        return await self._run(_CONSUME, of_attempt=attempt_id, now=now, new_outcome=encrypted_outcome)

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take an attempt with a pending callback, for this caller only. None unless it has one and is valid."""
        return await self._run(_CONSUME_HELD, of_attempt=attempt_id, now=now)

    async def begin_poll(
        self, claim: Claim[AuthorizationAttempt], claim_duration: timedelta
    ) -> Claim[AuthorizationAttempt] | None:
        """Claim a due poll anew for its request, unless the attempt has ended or another process has claimed it."""
        async with self._database.write_transaction() as connection:
            begin = (
                update(authorization_attempts)
                .where(*is_held(claim, _A.attempt_id, _A.poll_due_time), _A.integration_id.is_not(None))
                .values(poll_due_time=DatabaseTime(claim_duration))
                .returning(_A.poll_due_time)
            )
            due_time = (await connection.execute(begin)).scalar_one_or_none()
            if due_time is None:
                return None
            renewed = claim.renewed(due_time)
            await connection.execute(renew(claim, renewed))
        return renewed

    async def postpone_poll(
        self, claim: Claim[AuthorizationAttempt], delay: timedelta, *, interval: timedelta, failures: int
    ) -> Claim[AuthorizationAttempt] | None:
        """Make the next poll due after `delay`, unless the attempt has ended or another process has claimed it."""
        values = {"poll_interval_seconds": interval.total_seconds(), "poll_failures": failures}
        row = await self._database.write_one(
            update(authorization_attempts)
            .where(*is_held(claim, _A.attempt_id, _A.poll_due_time), _A.integration_id.is_not(None))
            .values({**values, "poll_due_time": DatabaseTime(delay)})
            .returning(_A.poll_due_time)
        )
        return None if row is None else claim.renewed(row[0])

    async def finish(self, attempt: AuthorizationAttempt, encrypted_outcome: bytes | None) -> None:
        """End a consumed attempt. Its integration is deleted if it is still pending.

        The new outcome replaces that of the attempt, unless it is None. The pending callback is deleted.
        """
        of_user = {"of_user": attempt.user_id}
        async with self._database.driver_transaction() as connection:
            await connection.run(_FINISH, of_attempt=attempt.attempt_id, new_outcome=encrypted_outcome, **of_user)
            if attempt.integration_id is not None:
                await connection.run(_REMOVE_IF_ABANDONED, of_integration=attempt.integration_id, **of_user)

    async def remove_expired(self, before: datetime) -> int:
        """Delete attempts that expired before that time, and their pending integrations. Returns their number."""
        async with self._database.write_transaction() as connection:
            removed = await connection.execute(delete(authorization_attempts).where(_A.expire_time <= before))
            await connection.execute(_REMOVE_ABANDONED)
        return removed.rowcount

    async def _run(self, query: DriverQuery, **parameters: Any) -> AuthorizationAttempt | None:  # noqa: ANN401
        rows = await self._database.run(query, **parameters)
        return AuthorizationAttempt(*rows[0]) if rows else None


def attempt_of(row: Row[Any]) -> AuthorizationAttempt:
    """The attempt in a row."""
    return from_row(AuthorizationAttempt, row)


async def _drop(connection: DriverConnection, oldest: Sequence[Values]) -> None:
    """Delete attempts with their pending integrations: rows of both ids. One that was consumed meanwhile stays."""
    if oldest:
        attempt_ids, integration_ids = zip(*oldest, strict=True)
        await connection.run(_DROP, attempt_ids=attempt_ids)
        await connection.run(
            _DROP_ABANDONED,
            integration_ids=[integration_id for integration_id in integration_ids if integration_id is not None],
        )


async def _insert(connection: DriverConnection, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
    values = {**asdict(attempt), "integration_id": integration_id}
    await connection.run(_INSERT, **{f"new_{name}": value for name, value in values.items()})
