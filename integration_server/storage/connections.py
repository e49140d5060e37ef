"""Connections in SQL: authorization attempts, and the integrations that they connect.

Implements the ports `AuthorizationAttemptStore` and `ConnectionStore`. An attempt is valid until its `expire_time`.
Each of its state changes is one atomic `UPDATE … RETURNING`, so that of concurrent callers one gets the attempt.

A grant is stored only if no revocation may have ended it (`revocations.py` has the other side).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    Float,
    LargeBinary,
    Row,
    String,
    and_,
    bindparam,
    column,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    table,
    update,
)

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.oauth_client import client_key
from integration_server.service.background.ports import Claim
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.connections.revocation_ports import GrantProof, RevocationInProgress
from integration_server.service.integrations.ports import (
    NewAccount,
    NewCredentials,
    NewIntegration,
)
from integration_server.storage.driver_queries import ConstraintViolated, DriverConnection, DriverQuery, Values
from integration_server.storage.due_work_claims import is_held, renew
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.integrations import (
    COMMIT_CREDENTIALS,
    PLAINTEXT_COLUMNS,
    STORED_COLUMNS,
    commit_parameters,
    credential_values,
    insert_integration,
    integration_at,
    new_integration_values,
    new_parameters,
    stored_integration_at,
)
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.oauth_clients import require_client
from integration_server.storage.revocations import REVOCATION_LOCK
from integration_server.storage.tables import AttemptState, authorization_attempts, integrations, is_polled, revocations
from integration_server.storage.user_usage import (
    DEFAULT_USER_QUOTAS,
    REMOVE_ABANDONED,
    UserQuotas,
    lock_user,
    make_room_for_attempt,
    make_room_for_integration,
    require_room_for_integration,
)

_A = authorization_attempts.c
_I = integrations.c
_R = revocations.c

_REMOVE_IF_ABANDONED = DriverQuery(
    REMOVE_ABANDONED.where(_I.integration_id == bindparam("of_integration"), _I.user_id == bindparam("of_user"))
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


_LOCK_INTEGRATION = DriverQuery(
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
            await make_room_for_attempt(connection, attempt.user_id, self._quotas, attempt.create_time)
            await make_room_for_integration(connection, attempt.user_id, self._quotas)
            values = new_integration_values(integration, attempt.create_time)
            integration_id = (await insert_integration(connection, values)).integration_id
            await _insert(connection, attempt, integration_id)
        return integration_id

    async def begin_reconnection(self, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt for an existing integration, which does not change. Raises `IntegrationNotFound`.

        It ends the device authorizations of the integration.
        """
        async with self._database.driver_transaction() as connection:
            if not await connection.run(_LOCK_INTEGRATION, of_integration=integration_id, of_user=attempt.user_id):
                raise IntegrationNotFound
            # Before any attempt is deleted, because `make_room_for_attempt` deletes others of the user: otherwise two
            # transactions could each wait for what the other has deleted.
            await lock_user(connection, attempt.user_id)
            await connection.run(_END_POLLS, of_integration=integration_id)
            await make_room_for_attempt(connection, attempt.user_id, self._quotas, attempt.create_time)
            await _insert(connection, attempt, integration_id)

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
            await connection.execute(REMOVE_ABANDONED)
        return removed.rowcount

    async def _run(self, query: DriverQuery, **parameters: Any) -> AuthorizationAttempt | None:  # noqa: ANN401
        rows = await self._database.run(query, **parameters)
        return AuthorizationAttempt(*rows[0]) if rows else None


def attempt_of(row: Row[Any]) -> AuthorizationAttempt:
    """The attempt in a row."""
    return from_row(AuthorizationAttempt, row)


async def _insert(connection: DriverConnection, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
    values = {**asdict(attempt), "integration_id": integration_id}
    await connection.run(_INSERT, **{f"new_{name}": value for name, value in values.items()})


# --- integrations ----------------------------------------------------------------------------------------------------

_FIND_ACCOUNT = DriverQuery(
    select(*STORED_COLUMNS).where(
        _I.user_id == bindparam("user_id"),
        _I.client_key == bindparam("client_key"),
        _I.account_id == bindparam("account_id"),
        _I.connect_time.is_not(None),
    )
)

_NEXT_ID = select(func.nextval(func.pg_get_serial_sequence(integrations.name, _I.integration_id.name)))
# SQLite's counter of AUTOINCREMENT ids, an ordinary table (SQLite documentation, autoinc.html).
_SQLITE_COUNTERS = table("sqlite_sequence", column("name"), column("seq"))
_RESERVE_SQLITE_ID = (
    update(_SQLITE_COUNTERS)
    .where(_SQLITE_COUNTERS.c.name == integrations.name)
    .values(seq=_SQLITE_COUNTERS.c.seq + 1)
    .returning(_SQLITE_COUNTERS.c.seq)
)
_FIRST_SQLITE_ID = insert(_SQLITE_COUNTERS).values(name=integrations.name, seq=1)

_CONNECTION_COLUMNS = (
    *("name", "config", "account_id", "account_label", "is_active", "connect_time", "webhook_secret_id"),
    *("oauth_client", "client_key"),
)
"""The columns that the credentials of a connection are bound to, beside those that describe the credentials."""

_COMMIT_CONNECTION = DriverQuery(
    COMMIT_CREDENTIALS.values(new_parameters((*_CONNECTION_COLUMNS, "check_due_time"))).returning(*PLAINTEXT_COLUMNS)
)
_DROP_PENDING = DriverQuery(
    delete(integrations).where(
        _I.integration_id == bindparam("of_integration"),
        _I.user_id == bindparam("of_user"),
        _I.connect_time.is_(None),
    )
)

_NOW = DriverQuery(select(DatabaseTime()))

_SHARE_REVOCATIONS = DriverQuery(REVOCATION_LOCK.with_for_update(read=True))
_is_called = or_(
    _R.revoke_time > bindparam("proof_time"), and_(_R.due_time == _R.call_due_time, _R.due_time > DatabaseTime())
)
_is_ended_by = or_(is_one_of(_R.integration_type, "ended_by_types"), is_one_of(_R.client_key, "ended_by_clients"))
_account = bindparam("of_account", type_=String)
_MAY_HAVE_ENDED = DriverQuery(
    select(
        or_(
            *(
                exists().where(_is_called, may_have_ended)
                for may_have_ended in (
                    _R.token_fingerprint == bindparam("of_fingerprint"),
                    and_(_is_ended_by, _R.account_id.is_(None)),
                    and_(_is_ended_by, or_(_account.is_(None), _R.account_id == _account)),
                    and_(
                        _is_ended_by,
                        _R.user_id == bindparam("of_user"),
                        _R.integration_type != bindparam("of_type"),
                    ),
                )
            )
        )
    )
)
"""Whether a revocation, in progress or completed after the proof, may have ended a grant."""


class SqlConnections:
    """A `ConnectionStore`. `on_change` is called at once with the id of each integration that this store changes."""

    def __init__(
        self,
        database: Database,
        on_change: Callable[[IntegrationId], None] = lambda _: None,
        quotas: UserQuotas = DEFAULT_USER_QUOTAS,
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._quotas = quotas

    async def reserve_id(self) -> IntegrationId:
        """A new id, which no other integration gets."""
        async with self._database.write_transaction() as connection:
            if connection.dialect.name == "postgresql":
                return IntegrationId(await connection.scalar(_NEXT_ID) or 0)
            last_id = await connection.scalar(_RESERVE_SQLITE_ID)
            if last_id is None:  # no integration was ever stored
                await connection.execute(_FIRST_SQLITE_ID)
            return IntegrationId(last_id or 1)

    async def find_account(
        self, user_id: UserId, integration_type: str, account_id: str, oauth_client: str = ""
    ) -> StoredIntegration | None:
        """The user's connected integration with that account, of the client."""
        key = client_key(integration_type, oauth_client)
        rows = await self._database.read(_FIND_ACCOUNT, user_id=user_id, client_key=key, account_id=account_id)
        return stored_integration_at(rows[0]) if rows else None

    async def add_connected(
        self,
        integration: NewIntegration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
        proof: GrantProof | None = None,
    ) -> Integration | None:
        """Insert a connected integration. None if another row of the user has its account.

        Raises `QuotaExceeded`, or `RevocationInProgress`.
        """
        new = integration.as_stored(now)
        connected = new.connected_to(account.account_id, account.account_label, now)
        values = {
            **new_integration_values(integration, now),
            **credential_values(credentials),
            "account_id": account.account_id,
            "account_label": account.account_label,
            "check_due_time": check_due_time,
            "connect_time": now,
        }
        added = None
        with _suppress_account_conflict():
            async with self._database.driver_transaction() as connection:
                await _require_valid_grant(connection, connected, credentials.token_fingerprint, proof)
                await require_room_for_integration(connection, integration.user_id, self._quotas)
                added = await insert_integration(connection, values)
        return added

    async def commit_connection(
        self,
        integration: Integration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
        superseded_id: IntegrationId | None = None,
        proof: GrantProof | None = None,
    ) -> Integration | None:
        """Store the credentials of a pending or reconnected integration, and delete the pending `superseded_id`.

        Account fields that the provider does not give keep their values. None, and no change, if the integration is
        gone or has another version or settings version, or if another row has its account. Raises
        `RevocationInProgress`.
        """
        connected = integration.connected_to(account.account_id, account.account_label, now)
        values = {
            **credential_values(credentials),
            **{name: getattr(connected, name) for name in _CONNECTION_COLUMNS},
            "check_due_time": check_due_time,
        }
        rows: Sequence[Values] = ()
        try:
            with _suppress_account_conflict():
                async with self._database.driver_transaction() as connection:
                    await _require_valid_grant(connection, connected, credentials.token_fingerprint, proof)
                    rows = await connection.run(_COMMIT_CONNECTION, **commit_parameters(integration, values, now))
                    if rows and superseded_id is not None:
                        await connection.run(_DROP_PENDING, of_integration=superseded_id, of_user=integration.user_id)
        finally:
            self._on_change(integration.integration_id)
        return integration_at(rows[0]) if rows else None

    async def now(self) -> datetime:
        """The time of the database's clock."""
        ((now,),) = await self._database.read(_NOW)
        return cast("datetime", now)


async def _require_valid_grant(
    connection: DriverConnection, integration: Integration, token_fingerprint: str | None, proof: GrantProof | None
) -> None:
    """Raise `RevocationInProgress` if a revocation may have ended the grant that this transaction stores.

    That is one in progress, or one that was completed after the proof. Without a proof nothing is checked.
    """
    if proof is None:
        return
    await connection.run(_SHARE_REVOCATIONS)
    clients = [(scope.integration_type, scope.oauth_client) for scope in proof.ended_by]
    ((may_have_ended,),) = await connection.run(
        _MAY_HAVE_ENDED,
        proof_time=proof.time,
        of_fingerprint=token_fingerprint,
        of_user=integration.user_id,
        of_type=integration.integration_type,
        of_account=integration.account_id,
        ended_by_types=[integration_type for integration_type, name in clients if name is None],
        ended_by_clients=[client_key(integration_type, name) for integration_type, name in clients if name is not None],
    )
    if may_have_ended:
        raise RevocationInProgress


@contextmanager
def _suppress_account_conflict() -> Iterator[None]:
    """Suppress the error of a row that has the account of another row of the user."""
    try:
        yield
    except ConstraintViolated as error:
        # The only unique index on this column. SQLite names the columns, PostgreSQL the index, which contains their
        # names.
        if "account_id" not in str(error.__cause__):
            raise
