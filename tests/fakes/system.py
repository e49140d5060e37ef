"""The use cases over fakes: what bootstrap builds, without a world around it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from integration_server.domain.audit import AuditEntry
from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.background.due_times import Schedule
from integration_server.service.connections.account_linking import AccountLinker
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest, ApiKeyConnectionService
from integration_server.service.connections.oauth_connection import (
    AuthorizationRequest,
    Callback,
    ConnectionRequest,
    ConnectionResult,
    OAuthConnectionService,
)
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist
from integration_server.service.connections.revocation import RevocationService, RevocationTimes
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresher import LeaseTimeouts, TokenRefresher
from integration_server.service.events.event_stream import EventStream
from integration_server.service.health.health_checks import HealthChecker
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.service.integrations.ports import NewAccount, StoredIntegration
from integration_server.service.proxy.calls import ApiProxy, ProxyLimits
from integration_server.service.proxy.rate_limiter import NoDistributedLimiter, RateLimiters
from integration_server.service.webhooks.webhook_delivery import WebhookDelivery
from integration_server.service.webhooks.webhook_ingestion import EndpointCache, WebhookIngestion
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets
from tests.fakes.aead import FakeAead
from tests.fakes.clock import SettableClock
from tests.fakes.provider import FakeProvider, FakeProviders
from tests.fakes.random_tokens import CountingTokens
from tests.fakes.store import (
    MemoryAttempts,
    MemoryDueWork,
    MemoryHealthHistory,
    MemoryIntegrations,
    MemoryLeases,
    MemoryRefreshJournal,
    MemoryRevocationOutbox,
    Rows,
)
from tests.fakes.webhooks import MemoryEventLog, MemoryWebhookEndpoints, MemoryWebhookInbox

ADA, EVE = UserId("ada"), UserId("eve")
PUBLIC_URL = "https://hooks.example"
OWN_CALLBACK = f"{PUBLIC_URL}/api/v1/integrations/callback/fake"
APP_CALLBACK = "https://app.example/callback"
RETURN_URL = "https://app.example/settings?tab=integrations"
BUFFER = timedelta(minutes=5)
LEASE = timedelta(seconds=30)
CHECK_INTERVAL = timedelta(minutes=15)
HISTORY_KEPT = timedelta(days=30)
GIVE_UP_AFTER = timedelta(hours=72)
SECRET_GRACE = timedelta(days=1)
EVENTS_KEPT = timedelta(days=7)
MAX_PAGE_BYTES = 3 * 1024 * 1024


@dataclass
class FakeSystem:
    """Everything that a test may want to look at or to change, wired up by `start`."""

    skip_confirmation: bool = True
    atomic_attempts: bool = True
    associated_data_is_checked: bool = True
    leases_are_exclusive: bool = True
    claims_are_exclusive: bool = True
    health_deadline: timedelta = timedelta(seconds=10)
    first_response: timedelta = timedelta(seconds=10)

    heartbeat: timedelta = timedelta(seconds=15)

    sleep_advances_clock: bool = False
    proxy_limits: ProxyLimits = field(default_factory=ProxyLimits)

    redirects: RedirectAllowlist = field(
        default_factory=lambda: RedirectAllowlist(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
    )
    clock: SettableClock = field(default_factory=SettableClock)
    random_tokens: CountingTokens = field(default_factory=CountingTokens)
    tasks: DetachedTasks = field(default_factory=DetachedTasks)
    audit_entries: list[AuditEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Rows(self.clock)
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
        self.aead = FakeAead(checks_associated_data=self.associated_data_is_checked)
        self.cipher = CredentialCipher(self.aead)
        self.integrations = MemoryIntegrations(self.rows)
        self.attempts = MemoryAttempts(self.rows, atomic=self.atomic_attempts)
        self.leases = MemoryLeases(self.rows, self.clock, duration=LEASE, exclusive=self.leases_are_exclusive)
        self.revocations = MemoryRevocationOutbox(self.rows, exclusive=self.claims_are_exclusive)
        self.journal = MemoryRefreshJournal()
        self.history = MemoryHealthHistory(self.rows)
        self.due_work = MemoryDueWork(self.rows)
        self.schedule = Schedule(BUFFER, CHECK_INTERVAL, lambda: 0.5)
        self.account_linker = AccountLinker(self.integrations, self.providers, self.cipher, self.clock, self.schedule)
        self.refresher = self.another_process()
        self.credentials = CredentialService(
            self.integrations, self.integrations, self.providers, self.cipher, self.refresher, self.clock, buffer=BUFFER
        )
        self.revocation_service = self.another_revoker()
        self.oauth_connection = OAuthConnectionService(
            self.attempts,
            self.integrations,
            self.account_linker,
            self.revocation_service,
            self.providers,
            self.aead,
            self.redirects,
            self.tasks,
            self.clock,
            self.random_tokens,
            skip_confirmation=self.skip_confirmation,
        )
        self.api_key_connection = ApiKeyConnectionService(
            self.account_linker, self.providers, self.tasks, self.random_tokens
        )
        self.integration_manager = IntegrationManager(self.integrations, self.providers, self.aead, self.clock)
        self.endpoints = MemoryWebhookEndpoints(self.rows)
        self.inbox = MemoryWebhookInbox(self.rows)
        self.log = MemoryEventLog(self.rows)
        self.webhook_secrets = WebhookSecrets(
            self.endpoints,
            self.providers,
            self.aead,
            self.clock,
            self.random_tokens,
            public_url=PUBLIC_URL,
            grace=SECRET_GRACE,
        )
        self.webhook_ingestion = self.another_receiver()
        self.webhook_delivery = WebhookDelivery(self.integrations, self.inbox, self.aead, max_page_bytes=MAX_PAGE_BYTES)
        self.event_stream = EventStream(
            self.log, self.providers, self.aead, retention=EVENTS_KEPT, heartbeat=self.heartbeat
        )
        self.rate_limiters = RateLimiters(NoDistributedLimiter(), time.monotonic, lambda: 0.5)
        self.api_proxy = ApiProxy(
            self.credentials,
            self.integrations,
            self.providers,
            self.rate_limiters,
            self.tasks,
            self.clock,
            self.proxy_limits,
        )
        self.health_checker = HealthChecker(
            self.integrations,
            self.history,
            self.providers,
            self.credentials,
            self.aead,
            self.clock,
            self.schedule,
            deadline=self.health_deadline,
            retention=HISTORY_KEPT,
        )

    def another_process(self) -> TokenRefresher:
        """What refreshes, without the single flight that it has with others."""
        return TokenRefresher(
            self.integrations,
            self.leases,
            self.journal,
            self.revocations,
            self.account_linker,
            self.providers,
            self.cipher,
            self.tasks,
            self.clock,
            self.random_tokens,
            lambda: 0.5,
            self.audit_entries.append,
            lease_timeouts=LeaseTimeouts(LEASE),
            pause=self.pause,
        )

    def another_revoker(self) -> RevocationService:
        """What revokes, as in a process of its own."""
        return RevocationService(
            self.integrations,
            self.revocations,
            self.providers,
            self.cipher,
            self.tasks,
            lambda: 0.5,
            times=RevocationTimes(claim=LEASE, first_response=self.first_response, give_up_after=GIVE_UP_AFTER),
        )

    def another_receiver(self) -> WebhookIngestion:
        """What receives webhooks, without the memory that it has of addresses."""
        return WebhookIngestion(
            EndpointCache(self.endpoints, lambda: self.clock().timestamp()),
            self.inbox,
            self.webhook_secrets,
            self.providers,
            self.aead,
            self.clock,
            self.random_tokens,
            self.audit_entries.append,
            retention=EVENTS_KEPT,
        )

    async def pause(self, seconds: float) -> None:
        """Let the others go on, and time pass where `sleep_advances_clock` says so."""
        await asyncio.sleep(0)
        if self.sleep_advances_clock:
            self.clock.advance(timedelta(seconds=seconds))

    def add_provider(self, integration_type: str, **changes: Any) -> FakeProvider:
        """A further OAuth 2 provider."""
        provider = FakeProvider(self.clock, integration_type=integration_type, **changes)
        self.providers.by_type[integration_type] = provider
        return provider

    # --- short ways to where most tests begin --------------------------------------------------------------------

    async def begin(self, user_id: UserId = ADA, integration_type: str = "fake", **given: Any) -> AuthorizationRequest:
        """A connection that is begun."""
        return await self.oauth_connection.begin_connection(ConnectionRequest(user_id, integration_type, **given))

    async def call_back(self, state: str, *, code: str = "code", **given: Any) -> ConnectionResult:
        """The provider's answer to it."""
        return await self.oauth_connection.handle_callback(Callback(state=state, code=code, **given))

    async def connect(self, user_id: UserId = ADA, integration_type: str = "fake", **given: Any) -> Integration:
        """An integration that is connected, for a signed-in user."""
        begun = await self.begin(user_id, integration_type, **given)
        iss = self.providers.get(integration_type).issuer or ""
        outcome = await self.call_back(begun.state, user_id=user_id, iss=iss)
        return self.row(outcome.integration_id)

    async def connect_account(self, account_id: str | None, user_id: UserId = ADA, **given: Any) -> Integration:
        """An integration of this account of the fake provider."""
        self.provider.account = NewAccount(account_id, account_id and f"{account_id}@example.com")
        return await self.connect(user_id, **given)

    async def connect_key(self, user_id: UserId = ADA, api_key: str = "key-1", **given: Any) -> Integration:
        """An integration that is connected with a key."""
        request = ApiKeyConnectionRequest(user_id, "fake_key", api_key, **given)
        return await self.api_key_connection.connect_with_api_key(request)

    # --- what is stored ------------------------------------------------------------------------------------------

    def stored(self, integration_id: int) -> StoredIntegration:
        """A row, whoever's."""
        return self.rows.integrations[IntegrationId(integration_id)]

    def row(self, integration_id: int) -> Integration:
        """A row without its credentials."""
        return self.stored(integration_id).integration

    def ids(self) -> Sequence[int]:
        """All rows' ids."""
        return list(self.rows.integrations)

    async def tokens(self, integration_id: int) -> OAuthTokens:
        """A row's tokens, opened."""
        tokens = await self.cipher.decrypt(self.stored(integration_id))
        assert isinstance(tokens, OAuthTokens)
        return tokens

    def corrupt(self, integration_id: int) -> None:
        """Change a byte of a row's sealed credentials."""
        stored = self.stored(integration_id)
        encrypted = bytearray(stored.encrypted_credentials or b"")
        encrypted[-1] ^= 1
        self.rows.integrations[IntegrationId(integration_id)] = replace(stored, encrypted_credentials=bytes(encrypted))
