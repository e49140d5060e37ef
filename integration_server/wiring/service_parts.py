"""What the use cases have in common, and the constants of the server that tests replace."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from integration_server.domain.due_times import Schedule
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.observability.metrics import Metrics
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Aead, Clock, Jitter, RandomToken
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.refresh_failures import MASS_FAILURE_COUNT
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.settings import Settings
from integration_server.wiring.storage import Stores
from integration_server.wiring.system import jitter, monotonic, random_token

_MAX_PAGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The constants of the server: its time and randomness, intervals, and defences that negative controls turn off.

    `redirects` replaces the allow-list of the settings. `revocation_wait` is how long `DisconnectIntegration` waits for
    the provider, `heartbeat` the interval between cursors of a quiet event stream, `mass_failure_count` the smallest
    mass failure of refreshes.

    Without `keeps_outcomes`, callbacks are not repeatable. `keeps_shared_grants` switches off that a revocation ends no
    live integration, and without `fences_polls` a device authorization is polled whoever has claimed it.
    `checks_client_callers` and `uses_previous_secrets` switch off that only some callers may name an OAuth client, and
    that a previous client secret is used.
    """

    random_token: RandomToken = random_token
    jitter: Jitter = jitter
    monotonic: Callable[[], float] = monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    redirects: RedirectAllowlist | None = None
    revocation_wait: timedelta = timedelta(seconds=3)
    heartbeat: timedelta = timedelta(seconds=15)
    mass_failure_count: int = MASS_FAILURE_COUNT
    keeps_outcomes: bool = True
    keeps_shared_grants: bool = True
    fences_polls: bool = True
    checks_client_callers: bool = True
    uses_previous_secrets: bool = True


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What most use cases are built from."""

    settings: Settings
    stores: Stores
    providers: OAuthClientDirectory
    aead: Aead
    cipher: CredentialCipher
    schedule: Schedule
    tasks: DetachedTasks
    trail: AuditTrail
    clock: Clock
    metrics: Metrics
    constants: Constants

    @property
    def max_page_bytes(self) -> int:
        """The size of a page of a list. The rest of a message is for the other fields.

        A page of a megabyte holds the event loop for some milliseconds.
        """
        return min(self.max_payload_bytes, _MAX_PAGE_BYTES)

    @property
    def max_payload_bytes(self) -> int:
        """The size of the payloads of a page, which leaves room for the other fields of the message."""
        return self.settings.grpc_max_message_bytes * 3 // 4
