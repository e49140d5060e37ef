"""The service as bootstrap builds it, over a database in memory and providers that a test controls."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Row, Table, delete, select, text, update

from integration_server.bootstrap import Service, build_service
from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import AuditQueue, QueuedEntry
from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import IntegrationPending, StoreUnavailable
from integration_server.domain.integration import Integration, StoredIntegration, UserId
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Aead
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.connections.oauth_callback import Callback, ConnectionResult
from integration_server.service.connections.oauth_connection import AuthorizationRequest, ConnectionRequest
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import (
    NewAccount,
)
from integration_server.settings import Settings
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.tables import (
    authorization_attempts,
    health_checks,
    integration_changes,
    integrations,
    revocations,
    webhook_events,
)
from integration_server.wiring.service_parts import Constants
from integration_server.wiring.storage import Stores, sql_stores
from tests.fakes.aead import FakeAead
from tests.fakes.clock import SettableClock
from tests.fakes.database import InMemoryDatabase
from tests.fakes.provider import FakeProvider, FakeProviders
from tests.fakes.random_tokens import CountingTokens
from tests.fakes.stores import InMemoryRefreshJournal, intercepted

T = TypeVar("T")

ADA, EVE = UserId("ada"), UserId("eve")
PUBLIC_URL = "https://localhost"  # dev mode allows no other
OWN_CALLBACK = f"{PUBLIC_URL}/api/v1/integrations/callback/fake"
APP_CALLBACK = "https://app.example/callback"
RETURN_URL = "https://app.example/settings?tab=integrations"
DEFAULT_RETURN_URL = "https://app.example/home"
CONFIRMING: Mapping[str, Any] = {"skip_confirmation": False, "default_return_url": DEFAULT_RETURN_URL}
"""The settings of a system in which a callback without a user has to be confirmed, as in production."""
BUFFER = timedelta(minutes=5)
LEASE = timedelta(seconds=30)
FORCED_INTERVAL = timedelta(seconds=30)
CHECK_INTERVAL = timedelta(minutes=15)
HISTORY_RETENTION = timedelta(days=30)
GIVE_UP_AFTER = timedelta(hours=72)
SECRET_GRACE = timedelta(days=1)
EVENT_RETENTION = timedelta(days=7)
MAX_PAGE_BYTES = 3 * 1024 * 1024


def _result_of(call: Coroutine[None, None, T]) -> T:
    """The result of a coroutine that waits for nothing, as those of `FakeAead` do."""
    try:
        call.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise RuntimeError("the coroutine waits")


@cache
def default_settings() -> Settings:
    return Settings.from_environment(
        {
            "DATABASE_URL": "sqlite:///unused.db",
            "DEV_MODE": "true",
            "PUBLIC_URL": PUBLIC_URL,
            "ALLOWED_REDIRECT_URIS": APP_CALLBACK,
            "ALLOWED_RETURN_URLS": RETURN_URL,
            "REFRESH_BUFFER_SECONDS": str(BUFFER.seconds),
            "REFRESH_LEASE_SECONDS": str(LEASE.seconds),
            "FORCED_REFRESH_MIN_INTERVAL_SECONDS": str(FORCED_INTERVAL.seconds),
            "HEALTH_CHECK_INTERVAL_SECONDS": str(CHECK_INTERVAL.seconds),
            "HEALTH_HISTORY_DAYS": str(HISTORY_RETENTION.days),
            "REVOCATION_GIVE_UP_HOURS": str(GIVE_UP_AFTER // timedelta(hours=1)),
            "WEBHOOK_SECRET_GRACE_HOURS": str(SECRET_GRACE // timedelta(hours=1)),
            "WEBHOOK_RETENTION_DAYS": str(EVENT_RETENTION.days),
            "EVENT_RETENTION_DAYS": str(EVENT_RETENTION.days),
        },
        needs_key=False,
    )


class RecordingAuditQueue(AuditQueue):
    """An audit queue that keeps its entries, of which none shares another."""

    def __init__(self) -> None:
        super().__init__(timedelta(0), 0)
        self.entries: list[AuditEntry] = []
        self.is_full = False

    def enqueue(self, entry: AuditEntry) -> bool:
        """Record an entry, unless the queue is full."""
        if not self.is_full:
            self.entries.append(entry)
        return not self.is_full

    def append(self, entry: AuditEntry) -> QueuedEntry:
        """Record an entry."""
        self.entries.append(entry)
        return super().append(entry)

    def enqueue_again(self, entry: AuditEntry, time: datetime) -> bool:
        """Record a call that is equal to that of an entry."""
        return self.enqueue(replace(entry, time=time))


class RecordingAuditTrail(AuditTrail):
    """An audit trail whose queue keeps its entries."""

    queue: RecordingAuditQueue
    refuses_when_full = True

    def __init__(self) -> None:
        self.queue = RecordingAuditQueue()

    async def enqueue_later(self, entry: AuditEntry, *, waits: bool = True) -> None:
        """Raise `StoreUnavailable`: the queue stays full."""
        raise StoreUnavailable

    async def wait_for_room(self, action: Action) -> None:
        """Raise `StoreUnavailable` while the queue is full, unless `refuses_when_full` is off."""
        if self.refuses_when_full and self.queue.is_full:
            raise StoreUnavailable

    @property
    def entries(self) -> list[AuditEntry]:
        """The entries so far."""
        return self.queue.entries


@dataclass
class FakeSystem:
    """The service over fakes. `settings` overrides the default settings, by field."""

    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Constants that differ, and a cache or metrics."""

    associated_data_is_checked: bool = True
    aead: Aead | None = None
    """Replaces the AEAD of `associated_data_is_checked`."""

    sleep_advances_clock: bool = False
    wrap_stores: Callable[[Stores, InMemoryDatabase], Stores] = lambda stores, _: stores
    """Replaces SQL stores."""

    clock: SettableClock = field(default_factory=SettableClock)
    random_tokens: CountingTokens = field(default_factory=CountingTokens)
    tasks: DetachedTasks = field(default_factory=DetachedTasks)

    def __post_init__(self) -> None:
        self.provider = FakeProvider(self.clock, supports_webhooks=True)
        self.key_provider = FakeProvider(
            self.clock,
            integration_type="fake_key",
            display_name="Fake by key",
            auth_method=AuthMethod.API_KEY,
            required_scopes=(),
            required_fields=("api_key",),
            supports_webhooks=True,
        )
        self.providers = FakeProviders(self.provider, self.key_provider)
        self._aead = self.aead or FakeAead(checks_associated_data=self.associated_data_is_checked)
        self.cipher = CredentialCipher(self._aead)
        self.trail = RecordingAuditTrail()
        self.database = InMemoryDatabase(self.clock)
        self.server_settings = default_settings().model_copy(update=self.settings)
        self.journal = InMemoryRefreshJournal()
        stores = sql_stores(self.server_settings, self.database, lambda _: None)
        stores = self.wrap_stores(replace(stores, journal=self.journal), self.database)
        self.stores = Stores(**{name: intercepted(getattr(stores, name)) for name in Stores.__dataclass_fields__})
        self.integrations = self.stores.integrations
        self.connections = self.stores.connections
        self.attempts = self.stores.attempts
        self.leases = self.stores.leases
        self.revocations = self.stores.revocations
        self.history = self.stores.history
        self.due_work = self.stores.due_work
        self.endpoints = self.stores.endpoints
        self.inbox = self.stores.inbox
        self.change_feed = self.stores.change_feed
        service = self.another_process()
        self.use_cases = service.use_cases
        self.refresher = service.refresher
        self.change_reader = service.reader
        self.worker = service.worker
        self.credentials = self.use_cases.credentials
        self.revocation_service = self.use_cases.revocation_service
        self.oauth_connection = self.use_cases.oauth_connection
        self.oauth_callback = self.use_cases.oauth_callback
        self.api_key_connection = self.use_cases.api_key_connection
        self.integration_manager = self.use_cases.integration_manager
        self.health_checker = self.use_cases.health_checker
        self.webhook_secrets = self.use_cases.webhook_secrets
        self.webhook_ingestion = self.use_cases.webhook_ingestion
        self.webhook_delivery = self.use_cases.webhook_delivery
        self.event_stream = self.use_cases.event_stream
        self.api_proxy = self.use_cases.api_proxy

    def another_process(self, **stores: Any) -> Service:
        """The service of another process: the same database, but its own caches and single flight."""
        return self.another_process_with(stores)

    def another_process_with(self, stores: Mapping[str, Any] | None = None, **options: Any) -> Service:
        """The service of another process, with these stores, constants, cache and metrics."""
        options = {
            "random_token": self.random_tokens,
            "jitter": lambda: 0.5,
            "monotonic": lambda: self.clock().timestamp(),
            "pause": self.pause,
            **self.options,
            **options,
        }
        return build_service(
            self.server_settings,
            replace(self.stores, **(stores or {})),
            self.providers,
            self._aead,
            self.tasks,
            self.trail,
            self.clock,
            None,
            **{name: options.pop(name) for name in ("cache", "metrics") if name in options},
            constants=Constants(**options),
        )

    async def pause(self, seconds: float) -> None:
        """Yield to other tasks; advance the clock if `sleep_advances_clock` is set."""
        await asyncio.sleep(0)
        if self.sleep_advances_clock:
            self.clock.advance(timedelta(seconds=seconds))

    def add_provider(self, integration_type: str, **changes: Any) -> FakeProvider:
        """Add an OAuth 2 provider."""
        provider = FakeProvider(self.clock, integration_type=integration_type, **changes)
        self.providers.by_type[integration_type] = provider
        return provider

    # --- shortcuts ---------------------------------------------------------------------------------------------------

    async def begin(self, user_id: UserId = ADA, integration_type: str = "fake", **fields: Any) -> AuthorizationRequest:
        """Begin a connection."""
        return await self.oauth_connection.begin_connection(ConnectionRequest(user_id, integration_type, **fields))

    async def call_back(self, state: str, *, code: str = "code", **fields: Any) -> ConnectionResult:
        """Handle the provider's callback for a connection."""
        return await self.oauth_callback.handle_callback(Callback(state=state, code=code, **fields))

    async def connect(self, user_id: UserId = ADA, integration_type: str = "fake", **fields: Any) -> Integration:
        """Connect an integration of a signed-in user."""
        authorization = await self.begin(user_id, integration_type, **fields)
        iss = self.providers[integration_type].issuer or ""
        result = await self.call_back(authorization.state, user_id=user_id, iss=iss)
        return self.row(result.integration_id)

    async def connect_account(self, account_id: str | None, user_id: UserId = ADA, **fields: Any) -> Integration:
        """Connect an integration of this account of the fake provider."""
        self.provider.account = NewAccount(account_id, account_id and f"{account_id}@example.com")
        return await self.connect(user_id, **fields)

    async def connect_key(self, user_id: UserId = ADA, api_key: str = "key-1", **fields: Any) -> Integration:
        """Connect an integration with an API key."""
        request = ApiKeyConnectionRequest(user_id, "fake_key", api_key, **fields)
        return await self.api_key_connection.connect_with_api_key(request)

    # --- stored rows -------------------------------------------------------------------------------------------------

    def stored(self, integration_id: int) -> StoredIntegration:
        """An integration of any user, with its encrypted credentials."""
        (row,) = self.database.rows(select(integrations).where(integrations.c.integration_id == integration_id))
        return stored_integration_of(row)

    def row(self, integration_id: int) -> Integration:
        """An integration of any user."""
        return self.stored(integration_id).integration

    def ids(self) -> Sequence[int]:
        """The ids of all integrations."""
        query = select(integrations.c.integration_id).order_by(integrations.c.integration_id)
        return [row.integration_id for row in self.database.rows(query)]

    def attempt_rows(self) -> Sequence[Row[Any]]:
        """All authorization attempts, in the order of their creation."""
        return self.database.rows(select(authorization_attempts).order_by(authorization_attempts.c.create_time))

    def revocation_rows(self) -> Sequence[Row[Any]]:
        """The revocation outbox, without what is revoked."""
        waiting = select(revocations).where(revocations.c.revoke_time.is_(None))
        return self.database.rows(waiting.order_by(revocations.c.revocation_id))

    def check_rows(self) -> Sequence[Row[Any]]:
        """All health checks, oldest first."""
        return self.database.rows(select(health_checks).order_by(health_checks.c.health_check_id))

    def event_rows(self) -> Sequence[Row[Any]]:
        """All recorded events, oldest first."""
        return self.database.rows(select(integration_changes).order_by(integration_changes.c.change_id))

    def webhook_rows(self) -> Sequence[Row[Any]]:
        """All stored webhook events, in the order in which they were stored."""
        return self.database.rows(select(webhook_events).order_by(webhook_events.c.webhook_event_id))

    async def tokens(self, integration_id: int) -> OAuthTokens:
        """The decrypted tokens of an integration."""
        tokens = await self.cipher.decrypt(self.stored(integration_id))
        assert isinstance(tokens, OAuthTokens)
        return tokens

    def set_columns(self, integration_id: int, **values: Any) -> None:
        """Change columns of an integration as the server would, with credentials that are bound to them."""
        credentials: Credentials | None = None
        with suppress(IntegrationPending):
            credentials = _result_of(self.cipher.decrypt(self.stored(integration_id)))
        self.alter(integration_id, **values)
        encrypted = _result_of(self.cipher.encrypt(self.row(integration_id), credentials))
        self.alter(integration_id, encrypted_credentials=encrypted)

    def alter(self, integration_id: int, **values: Any) -> None:
        """Change columns of an integration as somebody with access to the database would."""
        self.database.execute(
            update(integrations).where(integrations.c.integration_id == integration_id).values(values)
        )

    def alter_attempt(self, attempt_id: str, **values: Any) -> None:
        """Change columns of an authorization attempt as somebody with access to the database would."""
        attempts = authorization_attempts
        self.database.execute(update(attempts).where(attempts.c.attempt_id == attempt_id).values(values))

    def corrupt(self, integration_id: int) -> None:
        """Change a byte of an integration's encrypted credentials."""
        encrypted = bytearray(self.stored(integration_id).encrypted_credentials or b"")
        encrypted[-1] ^= 1
        self.alter(integration_id, encrypted_credentials=bytes(encrypted))

    def clear(self, table: Table) -> None:
        """Delete all rows of a table, and number new ones from 1."""
        self.database.execute(delete(table))
        self.database.execute(text("DELETE FROM sqlite_sequence WHERE name = :name").bindparams(name=table.name))
