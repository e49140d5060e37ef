"""The ports of the integration store: what it finds, changes and lists."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.credentials import AuthMethod
from integration_server.domain.integration import Failure, Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.oauth_client import client_key
from integration_server.service.background.ports import Claim
from integration_server.service.connections.revocation_ports import Revocation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredPage(Generic[T]):
    """A page of stored rows. `is_last`: no row follows."""

    items: Sequence[T]
    is_last: bool


@dataclass(frozen=True, slots=True)
class NewIntegration:
    """An integration that is not stored yet. `integration_id` is reserved with `reserve_id`; 0: the store assigns one.

    `encrypted_credentials` are those of a pending row: they bind its values before it has credentials.
    """

    uid: str
    user_id: UserId
    integration_type: str
    auth_method: AuthMethod
    name: str
    config: Mapping[str, Any]
    integration_id: IntegrationId = IntegrationId(0)
    encrypted_credentials: bytes | None = field(default=None, repr=False)
    oauth_client: str = ""

    @property
    def client_key(self) -> str:
        """The key of its client (`domain/oauth_client.py`)."""
        return client_key(self.integration_type, self.oauth_client)

    def as_stored(self, now: datetime) -> Integration:
        """The pending integration that this is stored as."""
        return Integration(
            integration_id=self.integration_id,
            uid=self.uid,
            user_id=self.user_id,
            integration_type=self.integration_type,
            auth_method=self.auth_method,
            create_time=now,
            update_time=now,
            name=self.name,
            config=self.config,
            oauth_client=self.oauth_client,
        )


@dataclass(frozen=True, slots=True)
class IntegrationUpdate:
    """The fields to set; None leaves a field unchanged."""

    name: str | None = None
    config: Mapping[str, Any] | None = None
    is_active: bool | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields to set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def applied_to(self, integration: Integration) -> Integration:
        """The integration after the update."""
        return replace(integration, settings_version=integration.settings_version + 1, **self.fields)


@dataclass(frozen=True, slots=True)
class NewCredentials:
    """Encrypted credentials, and the plaintext columns that describe them.

    `token_fingerprint` is that of `OAuthTokens`; API keys have none.
    """

    encrypted_credentials: bytes = field(repr=False)
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    lacks_required_scope: bool = False
    is_renewable: bool = False
    access_token_expire_time: datetime | None = None
    refresh_token_expire_time: datetime | None = None
    refresh_due_time: datetime | None = None
    token_fingerprint: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """The account of credentials; None where the provider does not name it.

    `webhook_routes` are other keys by which webhooks name the account, as in `WebhookEvent.route`.
    """

    account_id: str | None
    account_label: str | None
    webhook_routes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """A removed integration. `revocation` is claimed by the caller; None if the integration was pending.

    `is_refreshing`: a refresh has called the provider, and its outcome is not known yet.
    """

    integration: Integration
    revocation: Claim[Revocation] | None
    is_refreshing: bool


IntegrationTarget = tuple[IntegrationId, UserId | None]
"""An integration and the user that it must belong to; None for any."""


@dataclass(frozen=True, slots=True)
class FoundIntegrations:
    """Of several targets, the integrations that exist, by id; and the ids of those that did not fit into the read."""

    by_id: Mapping[IntegrationId, StoredIntegration]
    omitted: Collection[IntegrationId] = frozenset()

    def of(self, target: IntegrationTarget) -> StoredIntegration | None:
        """The integration of a target; None if it does not exist, or was omitted."""
        integration_id, user_id = target
        found = self.by_id.get(integration_id)
        return found if found is None or user_id in {None, found.integration.user_id} else None


class IntegrationLookup(Protocol):
    """Finds integrations, possibly in a cache that is at most a second old."""

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound`."""

    async def find_many(
        self,
        targets: Collection[IntegrationTarget],
        max_bytes: int,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> FoundIntegrations:
        """The integrations of the targets, read with at most one statement.

        At most `max_bytes` of them, as the store estimates their size, but at least one: the others are omitted. One of
        a type that is not allowed is read like one that does not exist, and is not found. Other calls proceed while the
        rows are converted.
        """


class IntegrationStore(IntegrationLookup, Protocol):
    """Integrations and their encrypted credentials."""

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version` and clear its errors. This voids a lease on that version.

        None, and no change, if the version or the settings version is another. The owner of an expired lease may commit
        too; the first commit wins.
        """

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure | None,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        failures: int = 0,
        refresh_due_time: datetime | None = None,
        may_be_due_earlier: bool = True,
    ) -> None:
        """Record a failed refresh, unless the credentials were replaced since `integration` was read.

        `failure` becomes the last error and is counted; None leaves the last error unchanged. `failures` counts
        consecutive ones. The provider is not called before `retry_time`. `refresh_due_time` is the next proactive
        refresh, where the integration has one; without `may_be_due_earlier` only if it is later than the present one.
        """

    async def resume_refreshes(self, client_key: str, due_times: Sequence[datetime]) -> int:
        """End the pauses of integrations of a client whose last refresh failed, where they last beyond the due times.

        Each gets one of the due times for its proactive refresh. Returns how many there were.
        """

    async def revert_failure(self, integration: Integration, retry_time: datetime | None) -> None:
        """Undo `reauthorization_required`, unless the credentials were replaced since `integration` was read.

        The next refresh is due at `retry_time`.
        """

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Record or clear the last error after an API call, unless the credentials were replaced meanwhile."""

    async def update(
        self, integration: Integration, change: IntegrationUpdate, encrypted_credentials: bytes, now: datetime
    ) -> Integration | None:
        """Set the fields of an update, with the credentials that are bound to them and to the next settings version.

        None, and no change, if the integration is gone or has another version or settings version.
        """

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_duration: timedelta = timedelta(0)
    ) -> RemovalResult:
        """Delete the integration with everything that belongs to it, and put its credentials into the outbox.

        One commit does both. The caller holds the claim on the revocation for `claim_duration`. Raises
        `IntegrationNotFound`.
        """

    async def ping(self) -> None:
        """Return if the database responds and has the schema. Raises `StoreUnavailable`."""


class IntegrationLists(Protocol):
    """Lists of integrations, in pages."""

    async def list(
        self,
        user_id: UserId,
        integration_types: Collection[str] | None,
        after: IntegrationId,
        limit: int,
        max_bytes: int,
    ) -> StoredPage[StoredIntegration]:
        """The user's integrations of these types (None: of all) with an id above `after`, ordered by id.

        At most `limit`, and at most `max_bytes` of them, as the store estimates their size in a response, with their
        encrypted credentials; but at least one. No more is read.
        """

    async def list_connected(
        self,
        user_id: UserId,
        integration_types: Collection[str] | None,
        after: IntegrationId,
        limit: int,
        max_bytes: int,
    ) -> StoredPage[StoredIntegration]:
        """Of `list`, the connected integrations."""

    async def list_expiring(self, before: datetime, limit: int) -> Sequence[Integration]:
        """The usable integrations of all users whose `grant_expire_time` is before that time, soonest first."""
