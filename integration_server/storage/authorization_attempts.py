"""Attempts to connect, in SQL: fulfils the port `AuthorizationAttemptStore`.

An attempt is over from its `expire_time` on. Each of its steps is one atomic `UPDATE … RETURNING`, so that of many
callers one gets it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, exists, insert, select, update

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import IntegrationId
from integration_server.service.connections.ports import AuthorizationAttempt, NewAuthorizationAttempt
from integration_server.service.integrations.ports import NewIntegration
from integration_server.storage.engine import Database
from integration_server.storage.integrations import new_integration_values
from integration_server.storage.tables import AttemptState, authorization_attempts, integrations

_A = authorization_attempts.c
_I = integrations.c

_REMOVE_ABANDONED = delete(integrations).where(
    _I.connect_time.is_(None), ~exists().where(_A.integration_id == _I.integration_id)
)
"""Removes integrations that are pending, with no attempt left that could finish them."""


class SqlAuthorizationAttempts:
    """An `AuthorizationAttemptStore` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, attempt: NewAuthorizationAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration together with the attempt that may finish it."""
        add = (
            insert(integrations)
            .values(new_integration_values(integration, attempt.create_time))
            .returning(_I.integration_id)
        )
        async with self._database.write_transaction() as connection:
            integration_id = IntegrationId((await connection.execute(add)).scalar_one())
            await connection.execute(insert(authorization_attempts).values(_values(attempt, integration_id)))
        return integration_id

    async def begin_reconnection(self, attempt: NewAuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt to reconnect; the integration stays as it is. Raises `IntegrationNotFound`."""
        # The lock keeps the row from going before the attempt refers to it; SQLite's transaction does so by itself.
        lock = (
            select(_I.integration_id)
            .where(_I.integration_id == integration_id, _I.user_id == attempt.user_id)
            .with_for_update()
        )
        async with self._database.write_transaction() as connection:
            if await connection.scalar(lock) is None:
                raise IntegrationNotFound
            await connection.execute(insert(authorization_attempts).values(_values(attempt, integration_id)))

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """Keep the callback until it is confirmed. None if the attempt is not in its beginning, or over."""
        pending = {"state": AttemptState.CALLBACK_PENDING.value, "encrypted_callback": encrypted_callback}
        return await self._move(attempt_id, AttemptState.STARTED, pending, now)

    async def consume(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take a begun attempt, to be finished by this caller alone. None if it is taken, held or over."""
        return await self._move(attempt_id, AttemptState.STARTED, {"state": AttemptState.CONSUMED.value}, now)

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take a held attempt, to be finished by this caller alone. None if it is not held, or over."""
        return await self._move(attempt_id, AttemptState.CALLBACK_PENDING, {"state": AttemptState.CONSUMED.value}, now)

    async def abandon(self, attempt: AuthorizationAttempt) -> None:
        """Remove a taken attempt, and its integration if it is pending and no other attempt may finish it."""
        async with self._database.write_transaction() as connection:
            await connection.execute(
                delete(authorization_attempts).where(_A.attempt_id == attempt.attempt_id, _A.user_id == attempt.user_id)
            )
            await connection.execute(
                _REMOVE_ABANDONED.where(_I.integration_id == attempt.integration_id, _I.user_id == attempt.user_id)
            )

    async def remove_expired(self, before: datetime) -> int:
        """Remove attempts that were over by then, with the integrations still pending on them; how many there were."""
        async with self._database.write_transaction() as connection:
            removed = await connection.execute(delete(authorization_attempts).where(_A.expire_time <= before))
            await connection.execute(_REMOVE_ABANDONED)
        return removed.rowcount

    async def _move(
        self, attempt_id: str, state: AttemptState, values: Mapping[str, Any], now: datetime
    ) -> AuthorizationAttempt | None:
        statement = (
            update(authorization_attempts)
            .where(_A.attempt_id == attempt_id, _A.state == state.value, _A.expire_time > now)
            .values(values)
            .returning(authorization_attempts)
        )
        async with self._database.write_transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else attempt_of(row)


def attempt_of(row: Row[Any]) -> AuthorizationAttempt:
    """The attempt in a row."""
    return AuthorizationAttempt(
        attempt_id=row.attempt_id,
        integration_id=row.integration_id,
        user_id=row.user_id,
        integration_type=row.integration_type,
        redirect_uri=row.redirect_uri,
        return_url=row.return_url,
        scopes=tuple(row.scopes),
        encrypted_verifier=row.encrypted_verifier,
        encrypted_callback=row.encrypted_callback,
        is_reconnection=row.is_reconnection,
        expire_time=row.expire_time,
    )


def _values(attempt: NewAuthorizationAttempt, integration_id: IntegrationId) -> dict[str, Any]:
    return {
        "attempt_id": attempt.attempt_id,
        "integration_id": integration_id,
        "user_id": attempt.user_id,
        "integration_type": attempt.integration_type,
        "redirect_uri": attempt.redirect_uri,
        "return_url": attempt.return_url,
        "scopes": attempt.scopes,
        "encrypted_verifier": attempt.encrypted_verifier,
        "is_reconnection": attempt.is_reconnection,
        "state": AttemptState.STARTED.value,
        "create_time": attempt.create_time,
        "expire_time": attempt.expire_time,
    }
