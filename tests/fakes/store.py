"""Both stores in memory. They pass the contract suite that the SQL ones pass."""

import asyncio
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.service.background.ports import HealthCheckRecord, JobKind
from integration_server.service.common_types import Clock
from integration_server.service.connections.ports import AuthorizationAttempt, NewAuthorizationAttempt
from integration_server.service.connections.revocation_ports import OrphanedGrant, Revocation
from integration_server.service.credentials.ports import JournaledRefresh, Lease
from integration_server.service.integrations.ports import (
    NewAccount,
    NewCredentials,
    NewIntegration,
    RemovalResult,
    StoredIntegration,
)

_NO_FAILURE: Mapping[str, Any] = {"last_error": None, "error_count": 0}
_UPDATED = ("name", "config", "is_active", "account_id", "account_label", "scopes", "missing_scopes")
_NO_REFRESH_FAILURE: Mapping[str, Any] = {
    **_NO_FAILURE,
    "reauthorization_required": False,
    "refresh_retry_time": None,
    "refresh_failures": 0,
    "refresh_refusals": 0,
}


@dataclass(slots=True)
class AttemptRow:
    """An attempt and how far it has come."""

    attempt: AuthorizationAttempt
    state: Literal["begun", "held", "taken"] = "begun"


@dataclass(slots=True)
class LeaseRow:
    """Who refreshes which version, until when."""

    version: int
    owner: str
    expire_time: datetime
    call_time: datetime | None
    called_by: str | None


@dataclass(slots=True)
class RevocationRow:
    """A grant in the outbox."""

    grant: OrphanedGrant
    create_time: datetime
    due_time: datetime
    attempts: int = 0


class Rows:
    """What the stores share, with a clock that stands for the database's.

    While `away`, every call fails as if the database did not answer.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.integrations: dict[IntegrationId, StoredIntegration] = {}
        self.attempts: dict[str, AttemptRow] = {}
        self.checks: list[HealthCheck] = []
        self.leases: dict[IntegrationId, LeaseRow] = {}
        self.revocations: dict[int, RevocationRow] = {}
        self.events: list[IntegrationEvent] = []
        self.away = False
        self._last_id = 0
        self._revocation_ids = itertools.count(1)

    async def begin_transaction(self) -> None:
        """Let others go first, as a database does; what follows, up to the next await, is one transaction."""
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable

    def add(self, new: NewIntegration, now: datetime, **values: Any) -> Integration:
        """A row that is still pending, unless these values say otherwise."""
        self._last_id += 1
        integration = Integration(
            integration_id=IntegrationId(self._last_id),
            uid=new.uid,
            user_id=new.user_id,
            integration_type=new.integration_type,
            auth_method=new.auth_method,
            create_time=now,
            update_time=now,
            name=new.name,
            config=new.config,
        )
        encrypted = values.pop("encrypted_credentials", None)
        integration = replace(integration, **values)
        self.integrations[integration.integration_id] = StoredIntegration(integration, encrypted)
        self.record_event(EventKind.CREATED, None, integration)
        return integration

    def set(self, integration: Integration, **values: Any) -> Integration:
        """The row changed; its sealed credentials are a value like the others."""
        before = self.integrations[integration.integration_id]
        encrypted = values.pop("encrypted_credentials", before.encrypted_credentials)
        integration = replace(integration, **values)
        self.integrations[integration.integration_id] = StoredIntegration(integration, encrypted)
        self._record_change(before.integration, integration)
        return integration

    def record_event(
        self, kind: EventKind, before: Integration | None, after: Integration | None, webhook_number: int | None = None
    ) -> None:
        """Write down what happened, as a database's triggers do."""
        row = after or before
        assert row is not None
        is_webhook = kind is EventKind.WEBHOOK_RECEIVED
        self.events.append(
            IntegrationEvent(
                kind,
                self.clock(),
                row.integration_id,
                row.user_id,
                row.integration_type,
                None if before is None or is_webhook else self._recorded_status(before),
                None if after is None or is_webhook else self._recorded_status(after),
                webhook_number,
            )
        )

    def _recorded_status(self, integration: Integration) -> Status:
        """The status, but for ends that nobody has noted yet."""
        return replace(integration, access_token_expire_time=None).status(self.clock())

    def _record_change(self, before: Integration, after: Integration) -> None:
        if before.is_connected and any(getattr(before, name) != getattr(after, name) for name in _UPDATED):
            self.record_event(EventKind.UPDATED, before, after)
        if before.is_connected and before.version != after.version:
            self.record_event(EventKind.CREDENTIALS_REFRESHED, before, after)
        if self._recorded_status(before) != self._recorded_status(after):
            self.record_event(EventKind.STATUS_CHANGED, before, after)

    def enqueue(self, grant: OrphanedGrant) -> int:
        """A grant in the outbox, due now."""
        revocation_id = next(self._revocation_ids)
        self.revocations[revocation_id] = RevocationRow(grant, self.clock(), self.clock())
        return revocation_id

    def claim(self, revocation_id: int, claim_duration: timedelta) -> Revocation:
        """A grant in the outbox, due no more."""
        row = self.revocations[revocation_id]
        row.due_time = self.clock() + claim_duration
        row.attempts += 1
        return Revocation(revocation_id, row.grant, row.attempts, self.clock() - row.create_time)

    def remove(self, integration_id: IntegrationId) -> None:
        """The row gone, with its attempts."""
        removed = self.integrations.pop(integration_id, None)
        if removed is not None:
            self.record_event(EventKind.DISCONNECTED, removed.integration, None)
        for attempt_id, row in list(self.attempts.items()):
            if row.attempt.integration_id == integration_id:
                del self.attempts[attempt_id]

    def remove_unfinishable(self) -> None:
        """Pending rows gone that no attempt is left to finish."""
        finishable = {row.attempt.integration_id for row in self.attempts.values()}
        for integration_id, stored in list(self.integrations.items()):
            if not stored.integration.is_connected and integration_id not in finishable:
                self.remove(integration_id)

    def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's row."""
        stored = self.integrations.get(integration_id)
        return stored if stored and stored.integration.user_id == user_id else None

    def current(self, observed: Integration) -> Integration | None:
        """The row as it is, if it still has the version that was seen."""
        stored = self.find(observed.integration_id, observed.user_id)
        return stored.integration if stored and stored.integration.version == observed.version else None

    def of_user(self, user_id: UserId) -> list[StoredIntegration]:
        """All of the user's rows."""
        return [stored for stored in self.integrations.values() if stored.integration.user_id == user_id]

    def connected(self) -> list[StoredIntegration]:
        """Everybody's connected rows."""
        return [stored for stored in self.integrations.values() if stored.integration.is_connected]

    def list_active(self) -> list[StoredIntegration]:
        """Everybody's rows that are switched on and not dead."""
        return [
            stored
            for stored in self.integrations.values()
            if stored.integration.is_active and not stored.integration.reauthorization_required
        ]


class MemoryIntegrations:
    """An `IntegrationStore`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        await self._rows.begin_transaction()
        return self._rows.find(integration_id, user_id)

    async def find_account(self, user_id: UserId, integration_type: str, account_id: str) -> Integration | None:
        """The user's connected integration of that account."""
        await self._rows.begin_transaction()
        return self._account(user_id, integration_type, account_id)

    async def list(
        self, user_id: UserId, integration_types: Collection[str] | None, after: IntegrationId, limit: int
    ) -> Sequence[Integration]:
        """A page."""
        await self._rows.begin_transaction()
        return [
            stored.integration
            for stored in self._rows.of_user(user_id)
            if (integration_types is None or stored.integration.integration_type in integration_types)
            and stored.integration.integration_id > after
        ][:limit]

    async def list_connected(self, user_id: UserId) -> Sequence[StoredIntegration]:
        """All that is connected."""
        await self._rows.begin_transaction()
        return [stored for stored in self._rows.connected() if stored.integration.user_id == user_id]

    async def shares_grant(self, grant: OrphanedGrant, integration_types: Iterable[str]) -> bool:
        """Whether a row would die with the grant."""
        await self._rows.begin_transaction()
        types = set(integration_types)
        return any(
            stored.integration.integration_type in types and _may_share(stored.integration, grant)
            for stored in self._rows.connected()
        )

    async def list_expiring(self, before: datetime, limit: int) -> Sequence[Integration]:
        """Those that end, unless off or dead."""
        await self._rows.begin_transaction()
        expiring = [
            (grant_expire_time, stored.integration.integration_id, stored.integration)
            for stored in self._rows.list_active()
            if (grant_expire_time := stored.integration.grant_expire_time) is not None and grant_expire_time < before
        ]
        return [integration for _, _, integration in sorted(expiring, key=lambda entry: entry[:2])[:limit]]

    async def add_connected(
        self,
        integration: NewIntegration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
    ) -> Integration | None:
        """A connected row, unless its account has one."""
        await self._rows.begin_transaction()
        if self._account(integration.user_id, integration.integration_type, account.account_id):
            return None
        return self._rows.add(
            integration,
            now,
            **asdict(credentials),
            **asdict(account),
            check_due_time=check_due_time,
            connect_time=now.astimezone(UTC),
        )

    async def commit_connection(
        self,
        integration: Integration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
        superseded_id: IntegrationId | None = None,
    ) -> Integration | None:
        """The row with its credentials, unless version or account stand against it."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        other = self._account(integration.user_id, integration.integration_type, account.account_id)
        if current is None or (other and other.integration_id != integration.integration_id):
            return None
        connected = self._rows.set(
            current,
            **asdict(credentials),
            **_NO_REFRESH_FAILURE,
            account_id=account.account_id or current.account_id,
            account_label=account.account_label or current.account_label,
            is_active=True,
            check_due_time=check_due_time,
            connect_time=now,
            update_time=now,
            version=current.version + 1,
        )
        if superseded_id is not None:
            pending = self._rows.find(superseded_id, integration.user_id)
            if pending and not pending.integration.is_connected:
                self._rows.remove(superseded_id)
        return connected

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """The row with its new credentials, unless the version is another."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        if current is None:
            return None
        return self._rows.set(
            current,
            **asdict(credentials),
            **_NO_REFRESH_FAILURE,
            update_time=now,
            version=current.version + 1,
        )

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure | None,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        failures: int = 0,
        refusals: int = 0,
        refresh_due_time: datetime | None = None,
    ) -> None:
        """Set and count, at the version that was seen."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        if current is not None:
            self._rows.set(
                current,
                last_error=failure or current.last_error,
                error_count=current.error_count + (failure is not None),
                reauthorization_required=current.reauthorization_required or reauthorization_required,
                refresh_retry_time=retry_time,
                refresh_failures=failures,
                refresh_refusals=refusals,
                refresh_due_time=current.refresh_due_time and refresh_due_time,
            )

    async def revert_failure(self, integration: Integration, retry_time: datetime | None) -> None:
        """Clear what was noted, at the version that was seen."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        if current is not None and current.reauthorization_required:
            due_time = current.refresh_due_time and retry_time
            self._rows.set(
                current, **{**_NO_REFRESH_FAILURE, "refresh_retry_time": retry_time, "refresh_due_time": due_time}
            )

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Count or clear, at the version that was seen."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        if current is not None:
            count = 0 if failure is None else current.error_count + 1
            self._rows.set(current, last_error=failure, error_count=count)

    async def update(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        now: datetime,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_active: bool | None = None,
    ) -> Integration | None:
        """What is given, set."""
        await self._rows.begin_transaction()
        stored = self._rows.find(integration_id, user_id)
        if stored is None:
            return None
        given = {"name": name, "config": config, "is_active": is_active}
        values = {key: value for key, value in given.items() if value is not None}
        return self._rows.set(stored.integration, update_time=now, **values)

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_duration: timedelta = timedelta(0)
    ) -> RemovalResult | None:
        """What it was, its credentials in the outbox."""
        await self._rows.begin_transaction()
        stored = self._rows.find(integration_id, user_id)
        if stored is None:
            return None
        row = stored.integration
        lease = self._rows.leases.pop(integration_id, None)
        self._rows.remove(integration_id)
        revocation = None
        if stored.encrypted_credentials is not None:
            grant = OrphanedGrant(
                row.uid, row.user_id, row.integration_type, row.account_id, stored.encrypted_credentials
            )
            revocation = self._rows.claim(self._rows.enqueue(grant), claim_duration)
        is_refreshing = lease is not None and lease.version == row.version and lease.call_time is not None
        return RemovalResult(row, revocation, is_refreshing)

    async def ping(self) -> None:
        """Answer, unless away."""
        await self._rows.begin_transaction()

    def _account(self, user_id: UserId, integration_type: str, account_id: str | None) -> Integration | None:
        for stored in self._rows.connected():
            row = stored.integration
            if (row.user_id, row.integration_type) == (user_id, integration_type) and (
                account_id is not None and row.account_id == account_id
            ):
                return row
        return None


class MemoryHealthHistory:
    """A `HealthHistory`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def record(self, check: HealthCheck, check_due_time: datetime | None) -> None:
        """Keep it, and set or clear the error at the version that was checked."""
        await self._rows.begin_transaction()
        stored = self._rows.find(check.integration.integration_id, check.integration.user_id)
        if stored is None:
            return
        self._rows.checks.append(check)
        row = self._rows.set(stored.integration, last_health_check=check.check_time, check_due_time=check_due_time)
        if row.version != check.integration.version:
            return
        if check.error_class is None:
            self._rows.set(row, **_NO_FAILURE)
        else:
            failure = Failure(check.error_class, check.check_time, check.message)
            is_counted = row.last_error is not None and row.last_error.time >= check.check_time
            self._rows.set(row, last_error=failure, error_count=row.error_count + (not is_counted))

    async def error_rates(
        self, integration: Integration, windows: Sequence[timedelta], now: datetime
    ) -> Sequence[ErrorRate]:
        """Counted."""
        await self._rows.begin_transaction()
        checks = [check for _, check in self._numbered(integration)]
        within = [[check for check in checks if check.check_time > now - window] for window in windows]
        return [
            ErrorRate(window, len(found), sum(not check.healthy for check in found))
            for window, found in zip(windows, within, strict=True)
        ]

    async def prune(self, before: datetime) -> int:
        """Forget all of them."""
        await self._rows.begin_transaction()
        old = [check for check in self._rows.checks if check.check_time < before]
        for check in old:
            self._rows.checks.remove(check)
        return len(old)

    def _numbered(self, integration: Integration) -> list[tuple[int, HealthCheck]]:
        is_there = self._rows.find(integration.integration_id, integration.user_id) is not None
        return [
            (number, check)
            for number, check in enumerate(self._rows.checks, start=1)
            if is_there and check.integration.integration_id == integration.integration_id
        ]

    async def list(self, integration: Integration, before: int | None, limit: int) -> Sequence[HealthCheckRecord]:
        """Newest first."""
        await self._rows.begin_transaction()
        pending = [
            HealthCheckRecord(number, replace(check, integration=integration))
            for number, check in self._numbered(integration)
            if before is None or number < before
        ]
        return pending[::-1][:limit]


class MemoryDueWork:
    """An `DueWork`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def due_types(self, job_kind: JobKind, now: datetime) -> Sequence[str]:
        """Of what is due."""
        await self._rows.begin_transaction()
        return sorted({stored.integration.integration_type for _, stored in self._due(job_kind, now)})

    async def claim(
        self, job_kind: JobKind, integration_type: str, now: datetime, next_due_time: datetime, limit: int
    ) -> Sequence[StoredIntegration]:
        """What has waited longest."""
        await self._rows.begin_transaction()
        due = sorted(
            (due_time, stored.integration.integration_id)
            for due_time, stored in self._due(job_kind, now)
            if stored.integration.integration_type == integration_type
        )
        claimed = []
        for _, integration_id in due[:limit]:
            self._rows.set(
                self._rows.integrations[integration_id].integration, **{f"{job_kind.value}_due_time": next_due_time}
            )
            claimed.append(self._rows.integrations[integration_id])
        return claimed

    def _due(self, job_kind: JobKind, now: datetime) -> list[tuple[datetime, StoredIntegration]]:
        due_times = [
            (getattr(stored.integration, f"{job_kind.value}_due_time"), stored) for stored in self._rows.list_active()
        ]
        return [(due_time, stored) for due_time, stored in due_times if due_time is not None and due_time <= now]


class MemoryLeases:
    """`RefreshLeases`, on a clock that stands for the database's. Without `exclusive` everybody gets one."""

    def __init__(self, rows: Rows, clock: Clock, *, duration: timedelta, exclusive: bool = True) -> None:
        self._rows = rows
        self._clock = clock
        self._duration = duration
        self.exclusive = exclusive

    async def is_free(self, integration: Integration) -> bool:
        """Unless somebody else's lasts."""
        await self._rows.begin_transaction()
        return self._is_free(integration)

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """Take it, with what is known of a call."""
        await self._rows.begin_transaction()
        current = self._rows.current(integration)
        if current is None or not current.is_active or current.reauthorization_required:
            return None
        if not self._is_free(integration):
            return None
        now = self._clock()
        row = self._rows.leases.get(integration.integration_id)
        call_time = row.call_time if row and row.version == integration.version and self.exclusive else None
        called_by = row.called_by if row and call_time else owner
        self._rows.leases[integration.integration_id] = LeaseRow(
            integration.version, owner, now + self._duration, call_time or now, called_by
        )
        previous_call_age = None if call_time is None else now - call_time
        return Lease(integration.integration_id, integration.version, owner, previous_call_age)

    async def release(self, lease: Lease, *, outcome_known: bool) -> None:
        """Only one's own."""
        await self._rows.begin_transaction()
        row = self._rows.leases.get(lease.integration_id)
        if row is None:
            return
        if row.owner == lease.owner:
            row.owner, row.expire_time = "", self._clock()
        if outcome_known and row.called_by == lease.owner:
            row.call_time, row.called_by = (self._clock(), row.owner) if row.owner else (None, None)

    def _is_free(self, integration: Integration) -> bool:
        row = self._rows.leases.get(integration.integration_id)
        return (
            not self.exclusive or row is None or row.version < integration.version or row.expire_time <= self._clock()
        )


class MemoryRevocationOutbox:
    """`RevocationOutbox`. Without `exclusive` a claim keeps nobody from claiming too."""

    def __init__(self, rows: Rows, *, exclusive: bool = True) -> None:
        self._rows = rows
        self._exclusive = exclusive

    async def add(self, grant: OrphanedGrant) -> None:
        """Due at once."""
        await self._rows.begin_transaction()
        self._rows.enqueue(grant)

    async def due_types(self) -> Sequence[str]:
        """Of all that is due."""
        await self._rows.begin_transaction()
        return sorted({self._rows.revocations[number].grant.integration_type for number in self._due()})

    async def claim_due(self, integration_type: str, limit: int, *, claim_duration: timedelta) -> Sequence[Revocation]:
        """Longest due first."""
        await self._rows.begin_transaction()
        due = [
            number
            for number in self._due()
            if self._rows.revocations[number].grant.integration_type == integration_type
        ]
        return [self._rows.claim(number, claim_duration) for number in due[:limit]]

    async def postpone(self, revocation: Revocation, pause: timedelta) -> None:
        """By the last who claimed it."""
        await self._rows.begin_transaction()
        row = self._rows.revocations.get(revocation.revocation_id)
        if row is not None and row.attempts == revocation.attempts:
            row.due_time = self._rows.clock() + pause

    async def remove(self, revocation: Revocation) -> None:
        """Gone."""
        await self._rows.begin_transaction()
        self._rows.revocations.pop(revocation.revocation_id, None)

    def _due(self) -> Sequence[int]:
        rows = self._rows.revocations
        now = self._rows.clock()
        return sorted(
            (number for number in rows if not self._exclusive or rows[number].due_time <= now),
            key=lambda number: rows[number].due_time,
        )


class MemoryRefreshJournal:
    """A `RefreshJournal`."""

    def __init__(self) -> None:
        self.refreshes: list[JournaledRefresh] = []

    async def append(self, refresh: JournaledRefresh) -> None:
        """Keep it."""
        self.refreshes.append(refresh)

    async def pending(self) -> Sequence[JournaledRefresh]:
        """All."""
        return tuple(self.refreshes)

    async def remove(self, refresh: JournaledRefresh) -> None:
        """Forget it."""
        self.refreshes.remove(refresh)


class MemoryAttempts:
    """An `AuthorizationAttemptStore`. Without `atomic` an attempt is looked at in one step and taken in another."""

    def __init__(self, rows: Rows, *, atomic: bool = True) -> None:
        self._rows = rows
        self._atomic = atomic

    async def begin(self, attempt: NewAuthorizationAttempt, integration: NewIntegration) -> IntegrationId:
        """Both rows."""
        await self._rows.begin_transaction()
        integration_id = self._rows.add(integration, attempt.create_time).integration_id
        self._add(attempt, integration_id)
        return integration_id

    async def begin_reconnection(self, attempt: NewAuthorizationAttempt, integration_id: IntegrationId) -> None:
        """The attempt's row."""
        await self._rows.begin_transaction()
        if self._rows.find(integration_id, attempt.user_id) is None:
            raise IntegrationNotFound
        self._add(attempt, integration_id)

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """From begun to held."""
        await self._rows.begin_transaction()
        row = self._rows.attempts.get(attempt_id)
        if row is None or row.state != "begun" or row.attempt.expire_time <= now:
            return None
        row.state = "held"
        row.attempt = replace(row.attempt, encrypted_callback=encrypted_callback)
        return row.attempt

    async def consume(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """From begun to taken."""
        return await self._take(attempt_id, "begun", now)

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """From held to taken."""
        return await self._take(attempt_id, "held", now)

    async def abandon(self, attempt: AuthorizationAttempt) -> None:
        """The attempt gone, and its integration if that leaves nobody to finish it."""
        await self._rows.begin_transaction()
        self._rows.attempts.pop(attempt.attempt_id, None)
        self._rows.remove_unfinishable()

    async def remove_expired(self, before: datetime) -> int:
        """Those that were over by then gone, with what waited for them."""
        await self._rows.begin_transaction()
        expired = [key for key, row in self._rows.attempts.items() if row.attempt.expire_time <= before]
        for attempt_id in expired:
            del self._rows.attempts[attempt_id]
        self._rows.remove_unfinishable()
        return len(expired)

    async def _take(self, attempt_id: str, state: str, now: datetime) -> AuthorizationAttempt | None:
        await self._rows.begin_transaction()
        row = self._rows.attempts.get(attempt_id)
        if row is None or row.state != state or row.attempt.expire_time <= now:
            return None
        if not self._atomic:
            await self._rows.begin_transaction()
        row.state = "taken"
        return row.attempt

    def _add(self, attempt: NewAuthorizationAttempt, integration_id: IntegrationId) -> None:
        stored = AuthorizationAttempt(
            attempt_id=attempt.attempt_id,
            integration_id=integration_id,
            user_id=attempt.user_id,
            integration_type=attempt.integration_type,
            redirect_uri=attempt.redirect_uri,
            return_url=attempt.return_url,
            scopes=attempt.scopes,
            encrypted_verifier=attempt.encrypted_verifier,
            encrypted_callback=None,
            is_reconnection=attempt.is_reconnection,
            expire_time=attempt.expire_time,
        )
        self._rows.attempts[attempt.attempt_id] = AttemptRow(stored)


def _may_share(row: Integration, grant: OrphanedGrant) -> bool:
    if row.account_id is not None and row.account_id == grant.account_id:
        return True
    is_distinct = row.integration_type == grant.integration_type and None not in (row.account_id, grant.account_id)
    return row.user_id == grant.user_id and not is_distinct
