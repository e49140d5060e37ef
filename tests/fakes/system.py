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
from integration_server.service.calling import CallBounds, Calling
from integration_server.service.connecting import Authorization, Callback, Connecting, ConnectionRequest, Outcome
from integration_server.service.connecting_by_key import ConnectingByKey, KeyConnectionRequest
from integration_server.service.connections import Connections
from integration_server.service.consuming import Consuming
from integration_server.service.credentials import GivingCredentials
from integration_server.service.managing import Managing
from integration_server.service.monitoring import Monitoring
from integration_server.service.ports import NewAccount, StoredIntegration
from integration_server.service.receiving import Receiving, RememberedEndpoints
from integration_server.service.redirects import RedirectPolicy
from integration_server.service.refreshing import Patience, Refreshing
from integration_server.service.revoking import RevocationTimes, Revoking
from integration_server.service.schedule import Schedule
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks
from integration_server.service.throttling import NothingShared, Throttling
from integration_server.service.watching import Watching
from integration_server.service.webhook_secrets import WebhookSecrets
from tests.fakes.clock import SettableClock
from tests.fakes.names import CountingNames
from tests.fakes.provider import FakeProvider, FakeProviders
from tests.fakes.sealer import FakeSealer
from tests.fakes.store import (
    MemoryAgenda,
    MemoryAttempts,
    MemoryHealthHistory,
    MemoryIntegrations,
    MemoryLeases,
    MemoryRevocations,
    MemorySpill,
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
GIVE_UP = timedelta(hours=72)
SECRET_GRACE = timedelta(days=1)
EVENTS_KEPT = timedelta(days=7)
LARGEST_PAGE = 3 * 1024 * 1024


@dataclass
class FakeSystem:
    """Everything that a test may want to look at or to change, wired up by `start`."""

    direct_completion: bool = True
    atomic_attempts: bool = True
    places_are_checked: bool = True
    leases_are_exclusive: bool = True
    claims_are_exclusive: bool = True
    health_deadline: timedelta = timedelta(seconds=10)
    first_answer: timedelta = timedelta(seconds=10)

    heartbeat: timedelta = timedelta(seconds=15)

    waiting_passes: bool = False
    call_bounds: CallBounds = field(default_factory=CallBounds)

    redirects: RedirectPolicy = field(default_factory=lambda: RedirectPolicy(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL]))
    clock: SettableClock = field(default_factory=SettableClock)
    names: CountingNames = field(default_factory=CountingNames)
    tasks: ServerTasks = field(default_factory=ServerTasks)
    told: list[AuditEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Rows(self.clock)
        self.provider = FakeProvider(self.clock, takes_webhooks=True)
        self.key_provider = FakeProvider(
            self.clock,
            integration_type="fake_key",
            display_name="Fake by key",
            auth_method=AuthMethod.API_KEY,
            required_scopes=(),
            required_fields=("api_key",),
            takes_webhooks=True,
        )
        self.providers = FakeProviders(self.provider, self.key_provider)
        self.sealer = FakeSealer(checks_places=self.places_are_checked)
        self.vault = Vault(self.sealer)
        self.integrations = MemoryIntegrations(self.rows)
        self.attempts = MemoryAttempts(self.rows, atomic=self.atomic_attempts)
        self.leases = MemoryLeases(self.rows, self.clock, duration=LEASE, exclusive=self.leases_are_exclusive)
        self.revocations = MemoryRevocations(self.rows, exclusive=self.claims_are_exclusive)
        self.spill = MemorySpill()
        self.history = MemoryHealthHistory(self.rows)
        self.agenda = MemoryAgenda(self.rows)
        self.schedule = Schedule(BUFFER, CHECK_INTERVAL, lambda: 0.5)
        self.connections = Connections(self.integrations, self.providers, self.vault, self.clock, self.schedule)
        self.refreshing = self.another_process()
        self.credentials = GivingCredentials(
            self.integrations, self.integrations, self.providers, self.vault, self.refreshing, self.clock, buffer=BUFFER
        )
        self.revoking = self.another_revoker()
        self.connecting = Connecting(
            self.attempts,
            self.integrations,
            self.connections,
            self.revoking,
            self.providers,
            self.sealer,
            self.redirects,
            self.tasks,
            self.clock,
            self.names,
            direct_completion=self.direct_completion,
        )
        self.connecting_by_key = ConnectingByKey(self.connections, self.providers, self.tasks, self.names)
        self.managing = Managing(self.integrations, self.providers, self.sealer, self.clock)
        self.endpoints = MemoryWebhookEndpoints(self.rows)
        self.inbox = MemoryWebhookInbox(self.rows)
        self.log = MemoryEventLog(self.rows)
        self.webhook_secrets = WebhookSecrets(
            self.endpoints,
            self.providers,
            self.sealer,
            self.clock,
            self.names,
            public_url=PUBLIC_URL,
            grace=SECRET_GRACE,
        )
        self.receiving = self.another_receiver()
        self.consuming = Consuming(self.integrations, self.inbox, self.sealer, largest_page=LARGEST_PAGE)
        self.watching = Watching(self.log, self.providers, self.sealer, keep=EVENTS_KEPT, heartbeat=self.heartbeat)
        self.throttling = Throttling(NothingShared(), time.monotonic, lambda: 0.5)
        self.calling = Calling(
            self.credentials,
            self.integrations,
            self.providers,
            self.throttling,
            self.tasks,
            self.clock,
            self.call_bounds,
        )
        self.monitoring = Monitoring(
            self.integrations,
            self.history,
            self.providers,
            self.credentials,
            self.sealer,
            self.clock,
            self.schedule,
            deadline=self.health_deadline,
            keep=HISTORY_KEPT,
        )

    def another_process(self) -> Refreshing:
        """What refreshes, without the single flight that it has with others."""
        return Refreshing(
            self.integrations,
            self.leases,
            self.spill,
            self.revocations,
            self.connections,
            self.providers,
            self.vault,
            self.tasks,
            self.clock,
            self.names,
            lambda: 0.5,
            self.told.append,
            patience=Patience(LEASE),
            pause=self.pause,
        )

    def another_revoker(self) -> Revoking:
        """What revokes, as in a process of its own."""
        return Revoking(
            self.integrations,
            self.revocations,
            self.providers,
            self.vault,
            self.tasks,
            lambda: 0.5,
            times=RevocationTimes(claim=LEASE, first_answer=self.first_answer, give_up=GIVE_UP),
        )

    def another_receiver(self) -> Receiving:
        """What receives webhooks, without the memory that it has of addresses."""
        return Receiving(
            RememberedEndpoints(self.endpoints, lambda: self.clock().timestamp()),
            self.inbox,
            self.webhook_secrets,
            self.providers,
            self.sealer,
            self.clock,
            self.names,
            self.told.append,
            keep=EVENTS_KEPT,
        )

    async def pause(self, seconds: float) -> None:
        """Let the others go on, and time pass where `waiting_passes` says so."""
        await asyncio.sleep(0)
        if self.waiting_passes:
            self.clock.advance(timedelta(seconds=seconds))

    def add_provider(self, integration_type: str, **changes: Any) -> FakeProvider:
        """A further OAuth 2 provider."""
        provider = FakeProvider(self.clock, integration_type=integration_type, **changes)
        self.providers.by_type[integration_type] = provider
        return provider

    # --- short ways to where most tests begin --------------------------------------------------------------------

    async def begin(self, user_id: UserId = ADA, integration_type: str = "fake", **given: Any) -> Authorization:
        """A connection that is begun."""
        return await self.connecting.begin_connection(ConnectionRequest(user_id, integration_type, **given))

    async def call_back(self, state: str, *, code: str = "code", **given: Any) -> Outcome:
        """The provider's answer to it."""
        return await self.connecting.handle_callback(Callback(state=state, code=code, **given))

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
        request = KeyConnectionRequest(user_id, "fake_key", api_key, **given)
        return await self.connecting_by_key.connect_with_api_key(request)

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
        tokens = await self.vault.open(self.stored(integration_id))
        assert isinstance(tokens, OAuthTokens)
        return tokens

    def spoil(self, integration_id: int) -> None:
        """Change a byte of a row's sealed credentials."""
        stored = self.stored(integration_id)
        sealed = bytearray(stored.sealed_credentials or b"")
        sealed[-1] ^= 1
        self.rows.integrations[IntegrationId(integration_id)] = replace(stored, sealed_credentials=bytes(sealed))
