"""Changes of the SQL stores for unit tests: calls that fail or race, and defences that are off."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import select, update

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.integration import Integration
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.connections.revocation_ports import CallDecision, Revocation
from integration_server.service.credentials.ports import JournaledRefresh, Lease, LeaseState
from integration_server.storage.connections import SqlAuthorizationAttempts, attempt_of
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.revocations import SqlRevocationOutbox
from integration_server.storage.tables import AttemptState, authorization_attempts
from integration_server.wiring.storage import Stores
from tests.fakes.database import InMemoryDatabase

T = TypeVar("T")


class _Intercepted:
    """A store whose methods a test can replace with `intercept`. Counts the calls of each method."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.replaced: dict[str, Any] = {}
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.replaced.get(name) or getattr(self._store, name)


def intercepted(store: T) -> T:
    """The store behind an interceptor."""
    return _Intercepted(store)  # type: ignore[return-value]  # it forwards every call


def intercept(store: object, **methods: Any) -> None:
    """Call these functions instead of the store's methods."""
    assert isinstance(store, _Intercepted)
    store.replaced.update(methods)


def restore(store: object) -> None:
    """Call the store's own methods again."""
    assert isinstance(store, _Intercepted)
    store.replaced.clear()


def count_calls(store: object, method: str) -> int:
    """The number of calls of a method."""
    assert isinstance(store, _Intercepted)
    return store.calls.get(method, 0)


class InMemoryRefreshJournal:
    """A `RefreshJournal` without a disk."""

    def __init__(self) -> None:
        self.refreshes: list[JournaledRefresh] = []

    async def append(self, refresh: JournaledRefresh) -> None:
        """Record a refresh."""
        self.refreshes.append(refresh)

    async def pending(self) -> Sequence[JournaledRefresh]:
        """All recorded refreshes."""
        return tuple(self.refreshes)

    async def remove(self, refresh: JournaledRefresh) -> None:
        """Remove a refresh."""
        self.refreshes.remove(refresh)


# --- negative controls -----------------------------------------------------------------------------------------------


def allow_shared_leases(leases: object) -> None:
    """Negative control: give a lease to every caller."""

    async def state(_integration: Integration) -> LeaseState:
        return LeaseState()

    async def claim(integration: Integration, owner: str, _cause: RefreshCause) -> Lease:
        return Lease(integration.integration_id, integration.version, owner, previous_call_age=None)

    intercept(leases, state=state, claim=claim)


class RacyAttempts(SqlAuthorizationAttempts):
    """Negative control: reads an attempt in one transaction and consumes it in another."""

    async def consume(self, attempt_id: str, encrypted_outcome: bytes, now: datetime) -> AuthorizationAttempt | None:
        """Consume an attempt that an earlier transaction found unconsumed."""
        columns = authorization_attempts.c
        async with self._database.read_connection() as connection:
            found = await connection.scalar(
                select(columns.state).where(columns.attempt_id == attempt_id, columns.expire_time > now)
            )
        if found != AttemptState.STARTED.value:
            return None
        statement = (
            update(authorization_attempts)
            .where(columns.attempt_id == attempt_id)
            .values(state=AttemptState.CONSUMED.value, encrypted_outcome=encrypted_outcome)
            .returning(authorization_attempts)
        )
        async with self._database.write_transaction() as connection:
            return attempt_of((await connection.execute(statement)).one())


class NonExclusiveRevocations(SqlRevocationOutbox):
    """Negative control: sends a revocation whoever has claimed it."""

    async def begin_call(self, claim: Claim[Revocation], *_: Any, **__: Any) -> tuple[CallDecision, Claim[Revocation]]:
        """Send it."""
        return CallDecision.SEND, claim


class NonExclusiveDueWork(SqlDueWork):
    """Negative control: claimed rows stay due."""

    async def claim(
        self, job_kind: JobKind, job_type: str, limit: int, *, claim_duration: timedelta
    ) -> Sequence[Claim[Any]]:
        """Claim rows with a claim that expires at once."""
        return await super().claim(job_kind, job_type, limit, claim_duration=timedelta(0))


def with_racy_attempts(stores: Stores, database: InMemoryDatabase) -> Stores:
    """The stores without atomic consumption of authorization attempts."""
    return replace(stores, attempts=RacyAttempts(database))


def with_non_exclusive_claims(stores: Stores, database: InMemoryDatabase) -> Stores:
    """The stores without exclusive claims of due work."""
    return replace(stores, due_work=NonExclusiveDueWork(database), revocations=NonExclusiveRevocations(database))
