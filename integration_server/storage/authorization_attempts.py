"""The store of authorization attempts in SQL: implements the port `AuthorizationAttemptStore`.

An attempt is valid until its `expire_time`. Each state change is one atomic `UPDATE … RETURNING`, so that of concurrent
callers one gets the attempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Insert, Row, bindparam, delete, exists, insert, select, update

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import IntegrationId
from integration_server.service.background.ports import Claim
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.integrations.ports import NewIntegration
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.integrations import matches_integration, new_integration_values
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


_OLDEST_PENDING = (
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


_OLDEST_STARTED = (
    select(_A.attempt_id, _A.integration_id)
    .join(integrations, _I.integration_id == _A.integration_id)
    .where(_A.user_id == bindparam("of_user"), _A.state == AttemptState.STARTED.value, _I.connect_time.is_(None))
    .order_by(_A.create_time)
    .limit(1)
)
"""The user's oldest attempt that still waits for the browser, if its integration is pending."""


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
        add = (
            insert(integrations)
            .values(new_integration_values(integration, attempt.create_time))
            .returning(_I.integration_id)
        )
        async with self._database.write_transaction() as connection:
            await require_client(connection, integration.integration_type, integration.oauth_client)
            await lock_user(connection, attempt.user_id)
            await self._make_room(connection, attempt)
            if not await has_room_for_integration(connection, attempt.user_id, self._quotas):
                oldest = await connection.execute(_OLDEST_STARTED, {"of_user": attempt.user_id})
                await self._drop(connection, oldest.all())
                await require_room_for_integration(connection, attempt.user_id, self._quotas)
            integration_id = IntegrationId((await connection.execute(add)).scalar_one())
            await connection.execute(_insert(attempt, integration_id))
        return integration_id

    async def begin_reconnection(self, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt for an existing integration, which does not change. Raises `IntegrationNotFound`.

        It ends the device authorizations of the integration.
        """
        # The lock keeps the row until the attempt refers to it; a transaction of SQLite does that by itself.
        lock = select(_I.integration_id).where(*matches_integration(integration_id, attempt.user_id)).with_for_update()
        async with self._database.write_transaction() as connection:
            if await connection.scalar(lock) is None:
                raise IntegrationNotFound
            # Before any attempt is deleted, because `_make_room` deletes others of the user: otherwise two transactions
            # could each wait for what the other has deleted.
            await lock_user(connection, attempt.user_id)
            await connection.execute(
                delete(authorization_attempts).where(_A.integration_id == integration_id, is_polled)
            )
            await self._make_room(connection, attempt)
            await connection.execute(_insert(attempt, integration_id))

    async def _make_room(self, connection: AsyncConnection, attempt: AuthorizationAttempt) -> None:
        """Delete the user's oldest attempts beyond the limit, with their pending integrations. The user is locked."""
        parameters = {
            "of_user": attempt.user_id,
            "now": attempt.create_time,
            "kept": self._quotas.authorization_attempts - 1,
        }
        await self._drop(connection, (await connection.execute(_OLDEST_PENDING, parameters)).all())

    @staticmethod
    async def _drop(connection: AsyncConnection, rows: Sequence[Row[Any, Any]]) -> None:
        """Delete attempts with their pending integrations. One that was consumed meanwhile stays."""
        if rows:
            dropped = _A.attempt_id.in_([row.attempt_id for row in rows]), _A.state != AttemptState.CONSUMED.value
            await connection.execute(delete(authorization_attempts).where(*dropped))
            integration_ids = [row.integration_id for row in rows]
            await connection.execute(_REMOVE_ABANDONED.where(_I.integration_id.in_(integration_ids)))

    async def find(self, attempt_id: str) -> AuthorizationAttempt | None:
        """An attempt in any state, also an expired one."""
        row = await self._database.fetch_one(select(authorization_attempts).where(_A.attempt_id == attempt_id))
        return None if row is None else attempt_of(row)

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, encrypted_outcome: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """Keep a callback until it is confirmed. None unless the attempt is started and valid."""
        values = {"encrypted_callback": encrypted_callback, "encrypted_outcome": encrypted_outcome}
        return await self._move(attempt_id, AttemptState.STARTED, AttemptState.CALLBACK_PENDING, values, now)

    async def consume(self, attempt_id: str, encrypted_outcome: bytes, now: datetime) -> AuthorizationAttempt | None:
        """Take a started attempt, for this caller only. None unless the attempt is started and valid."""
        values = {"encrypted_outcome": encrypted_outcome, "poll_due_time": None}
        return await self._move(attempt_id, AttemptState.STARTED, AttemptState.CONSUMED, values, now)

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take an attempt with a pending callback, for this caller only. None unless it has one and is valid."""
        return await self._move(attempt_id, AttemptState.CALLBACK_PENDING, AttemptState.CONSUMED, {}, now)

    async def postpone_poll(
        self, claim: Claim[AuthorizationAttempt], delay: timedelta, *, interval: timedelta, failures: int
    ) -> Claim[AuthorizationAttempt] | None:
        """Make the next poll due after `delay`, unless the attempt has ended or another process has claimed it."""
        values = {"poll_interval_seconds": interval.total_seconds(), "poll_failures": failures}
        row = await self._database.write_one(
            update(authorization_attempts)
            .where(_A.attempt_id == claim.row_id, _A.poll_due_time == claim.due_time, _A.integration_id.is_not(None))
            .values({**values, "poll_due_time": DatabaseTime(delay)})
            .returning(_A.poll_due_time)
        )
        return None if row is None else replace(claim, due_time=row[0])

    async def finish(self, attempt: AuthorizationAttempt, encrypted_outcome: bytes | None) -> None:
        """End a consumed attempt. Its integration is deleted if it is still pending.

        The new outcome replaces that of the attempt, unless it is None. The pending callback is deleted.
        """
        is_of_attempt = _A.attempt_id == attempt.attempt_id, _A.user_id == attempt.user_id
        finished = {
            "state": AttemptState.FINISHED.value,
            "encrypted_callback": None,
            "encrypted_outcome": encrypted_outcome or _A.encrypted_outcome,
            "poll_due_time": None,
            "integration_id": None,
        }
        async with self._database.write_transaction() as connection:
            await connection.execute(update(authorization_attempts).where(*is_of_attempt).values(finished))
            if attempt.integration_id is not None:
                is_integration = matches_integration(attempt.integration_id, attempt.user_id)
                await connection.execute(_REMOVE_ABANDONED.where(*is_integration))

    async def remove_expired(self, before: datetime) -> int:
        """Delete attempts that expired before that time, and their pending integrations. Returns their number."""
        async with self._database.write_transaction() as connection:
            removed = await connection.execute(delete(authorization_attempts).where(_A.expire_time <= before))
            await connection.execute(_REMOVE_ABANDONED)
        return removed.rowcount

    async def _move(
        self, attempt_id: str, before: AttemptState, after: AttemptState, values: Mapping[str, Any], now: datetime
    ) -> AuthorizationAttempt | None:
        """Change the state of an attempt that is valid and whose integration exists."""
        statement = (
            update(authorization_attempts)
            .where(_A.attempt_id == attempt_id, _A.state == before.value)
            .where(_A.expire_time > now, _A.integration_id.is_not(None))
            .values({**values, "state": after.value})
            .returning(authorization_attempts)
        )
        row = await self._database.write_one(statement)
        return None if row is None else attempt_of(row)


def attempt_of(row: Row[Any]) -> AuthorizationAttempt:
    """The attempt in a row."""
    return from_row(AuthorizationAttempt, row)


def _insert(attempt: AuthorizationAttempt, integration_id: IntegrationId) -> Insert:
    values = {**asdict(attempt), "integration_id": integration_id, "state": AttemptState.STARTED.value}
    if attempt.poll_interval_seconds is not None:
        values["poll_due_time"] = DatabaseTime(timedelta(seconds=attempt.poll_interval_seconds))
    return insert(authorization_attempts).values(values)
