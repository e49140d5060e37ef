"""Rows that tests of the stores write and read."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, StoredIntegration, UserId
from integration_server.service.connections.ports import (
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    ConnectionStore,
)
from integration_server.service.connections.revocation_ports import (
    ClientScope,
    OrphanedGrant,
)
from integration_server.service.integrations.ports import (
    IntegrationLists,
    IntegrationStore,
    IntegrationUpdate,
    NewAccount,
    NewCredentials,
    NewIntegration,
)
from integration_server.storage.connections import SqlConnections
from integration_server.storage.engine import Database
from integration_server.storage.integration_lists import SqlIntegrationLists
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.user_usage import DEFAULT_USER_QUOTAS, UserQuotas

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
EXPIRY = NOW + timedelta(minutes=10)
OUTCOME = b"outcome"
ANN, BOB = UserId("ann"), UserId("bob")
LONG_CLAIM, EXPIRED_CLAIM = timedelta(minutes=10), timedelta(seconds=-1)  # longer than any test; expires at once
LARGEST_ID = IntegrationId(2**63 - 1)
LARGE_PAGE = 1024 * 1024 * 1024  # bytes
FAILURE = Failure("PROVIDER_UNAVAILABLE", NOW, "the provider does not respond as expected")


class IntegrationRows(IntegrationStore, IntegrationLists, ConnectionStore, Protocol):
    """All that is read and written of integrations."""


class SqlRows(SqlIntegrations, SqlIntegrationLists, SqlConnections):
    """`IntegrationRows` over a SQL database."""

    def __init__(
        self,
        database: Database,
        on_change: Callable[[IntegrationId], None] = lambda _: None,
        quotas: UserQuotas = DEFAULT_USER_QUOTAS,
    ) -> None:
        SqlConnections.__init__(self, database, on_change, quotas)


_numbers: Iterator[int] = itertools.count()


def new_integration(user_id: UserId = ANN, **changes: Any) -> NewIntegration:
    """An integration that is not stored yet."""
    defaults = NewIntegration(
        uid=f"uid-{next(_numbers)}",
        user_id=user_id,
        integration_type="acme",
        auth_method=AuthMethod.OAUTH2,
        name="",
        config={},
    )
    return replace(defaults, **changes)


def new_attempt(user_id: UserId = ANN, **changes: Any) -> AuthorizationAttempt:
    """An attempt that is not stored yet and expires at `EXPIRY`."""
    defaults = AuthorizationAttempt(
        attempt_id=f"attempt-{next(_numbers)}",
        user_id=user_id,
        integration_type="acme",
        encrypted_details=b"encrypted details",
        create_time=NOW,
        expire_time=EXPIRY,
    )
    return replace(defaults, **changes)


def new_credentials(encrypted: bytes = b"encrypted", **changes: Any) -> NewCredentials:
    """Credentials whose access token expires in an hour."""
    defaults = NewCredentials(
        encrypted_credentials=encrypted,
        scopes=("read",),
        missing_scopes=("write",),
        lacks_required_scope=False,
        is_renewable=True,
        access_token_expire_time=NOW + timedelta(hours=1),
        refresh_token_expire_time=None,
    )
    return replace(defaults, **changes)


def new_grant(**changes: Any) -> OrphanedGrant:
    """The grant of a removed integration of Ann, with the credentials of `create_connected`."""
    defaults = OrphanedGrant(
        uid="uid", user_id=ANN, integration_type="acme", account_id=None, encrypted_credentials=b"encrypted"
    )
    return replace(defaults, **changes)


def of_types(*integration_types: str) -> Sequence[ClientScope]:
    """The scopes of all clients of these types."""
    return [ClientScope(integration_type, None) for integration_type in integration_types]


def account(account_id: str | None) -> NewAccount:
    """An account with this id."""
    return NewAccount(account_id, None if account_id is None else f"{account_id}@example.com")


def successful_check(integration: Integration, **changes: Any) -> HealthCheck:
    """A check that succeeded."""
    healthy = HealthCheck(
        integration=integration,
        status=Status.ACTIVE,
        healthy=True,
        check_time=LATER,
        latency=timedelta(milliseconds=42),
        error_class=None,
        message="ok",
    )
    return replace(healthy, **changes)


def failed_check(integration: Integration) -> HealthCheck:
    """A check that failed because the provider is unavailable."""
    return successful_check(
        integration,
        status=Status.ERROR,
        healthy=False,
        error_class="PROVIDER_UNAVAILABLE",
        message="the provider does not respond as expected",
    )


async def create_connected(
    integrations: ConnectionStore,
    user_id: UserId = ANN,
    account_id: str | None = None,
    *,
    fingerprint: str | None = None,
    lacks_required_scope: bool = False,
    **changes: Any,
) -> Integration:
    """Store a connected integration."""
    credentials = new_credentials(token_fingerprint=fingerprint, lacks_required_scope=lacks_required_scope)
    integration = await integrations.add_connected(
        new_integration(user_id, **changes), account(account_id), credentials, NOW
    )
    assert integration is not None
    return integration


async def create_pending(
    integrations: IntegrationStore, attempts: AuthorizationAttemptStore, user_id: UserId = ANN
) -> Integration:
    """Store a pending integration."""
    integration_id = await attempts.begin(new_attempt(user_id), new_integration(user_id))
    return (await find_stored(integrations, integration_id, user_id)).integration


async def find_stored(
    integrations: IntegrationStore, integration_id: IntegrationId, user_id: UserId = ANN
) -> StoredIntegration:
    """The stored integration; fails if there is none."""
    stored = await integrations.find(integration_id, user_id)
    assert stored is not None
    return stored


async def update_settings(
    integrations: IntegrationStore, integration: Integration, change: IntegrationUpdate, now: datetime = LATER
) -> Integration:
    """Set fields of an integration; the credentials stay as they are. Raises `IntegrationNotFound`."""
    stored = await integrations.get(integration.integration_id, integration.user_id)
    updated = await integrations.update(stored.integration, change, stored.encrypted_credentials or b"", now)
    assert updated is not None
    return updated


async def reload(integrations: IntegrationStore, integration: Integration) -> Integration:
    """The integration as it is stored now."""
    return (await find_stored(integrations, integration.integration_id, integration.user_id)).integration


async def list_all(
    integrations: IntegrationLists,
    user_id: UserId = ANN,
    types: Sequence[str] | None = None,
    after: IntegrationId = IntegrationId(0),
    limit: int = 10,
) -> Sequence[Integration]:
    """The integrations of a large page."""
    page = await integrations.list(user_id, types, after, limit, LARGE_PAGE)
    return [stored.integration for stored in page.items]


async def list_connected(integrations: IntegrationLists, user_id: UserId = ANN) -> Sequence[Integration]:
    """The connected integrations of a large page."""
    page = await integrations.list_connected(user_id, None, IntegrationId(0), 1000, LARGE_PAGE)
    return [stored.integration for stored in page.items]
