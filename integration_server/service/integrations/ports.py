"""Where integrations are kept, with their sealed credentials."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.background.ports import Claim
from integration_server.service.connections.revocation_ports import OrphanedGrant, Revocation


@dataclass(frozen=True, slots=True)
class StoredIntegration:
    """An integration with its sealed credentials; None while it is pending."""

    integration: Integration
    encrypted_credentials: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewIntegration:
    """What is known of an integration when its connection begins."""

    uid: str
    user_id: UserId
    integration_type: str
    auth_method: AuthMethod
    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewCredentials:
    """Sealed credentials and what is told of them in the open."""

    encrypted_credentials: bytes = field(repr=False)
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    lacks_required_scope: bool = False
    is_renewable: bool = False
    access_token_expire_time: datetime | None = None
    refresh_token_expire_time: datetime | None = None
    refresh_due_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewAccount:
    """The account that credentials turned out to open; None where the provider does not tell."""

    account_id: str | None
    account_label: str | None


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """An integration that is gone, and what is left to do about it.

    `revocation` is claimed by the remover; None if the integration was pending. `is_refreshing`: its refresh token
    was used, and what came of that is not known yet.
    """

    integration: Integration
    revocation: Claim[Revocation] | None
    is_refreshing: bool


class IntegrationLookup(Protocol):
    """Where to find an integration as it is, or was within the last second."""

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""


class IntegrationStore(Protocol):
    """Integrations and their sealed credentials."""

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound`."""

    async def find_account(self, user_id: UserId, integration_type: str, account_id: str) -> Integration | None:
        """The user's connected integration of that account."""

    async def list(
        self, user_id: UserId, integration_types: Collection[str] | None, after: IntegrationId, limit: int
    ) -> Sequence[Integration]:
        """The user's integrations of these types (None: all) with an id above `after`, in the order of their ids."""

    async def list_connected(self, user_id: UserId) -> Sequence[StoredIntegration]:
        """The user's integrations that are not pending, in the order of their ids."""

    async def shares_grant(self, grant: OrphanedGrant, integration_types: Iterable[str]) -> bool:
        """Whether a connected integration would die if the grant were revoked for the whole account.

        That is one of `integration_types` with the same account, whoever's; or the same user's, where it may be the
        same account: it is of another of these types, which may name it differently, or either account is unknown.
        """

    async def list_expiring(self, before: datetime, limit: int) -> Sequence[Integration]:
        """Everybody's integrations that end before then (see `Integration.grant_expire_time`), the soonest first.

        Those that are switched off or dead are not among them.
        """

    async def add_connected(
        self,
        integration: NewIntegration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
    ) -> Integration | None:
        """Store an integration that is connected from the start. None if the user's account has a row by now."""

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
        """Give a pending or reconnected integration its credentials, switch it on and clear its errors.

        In the same commit `superseded_id`, a pending integration that turned out to be the same account, goes. None,
        and nothing changed, if the integration is gone, its version is another by now, or its account has another
        row: look again.
        """

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version`, and clear its errors. Leases on that version are void.

        None, and nothing changed, if the version is another: whoever holds a lease, or held one that has lapsed, may
        commit, and the first one does.
        """

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
        """Set what came of a failed refresh, unless the credentials were replaced since `integration` was read.

        The failure becomes the last error and is counted; None leaves that as it is. Until `retry_time` the provider
        should not be asked again; `failures` is how many refreshes have failed in a row, `refusals` how many of the
        last were refused. At `refresh_due_time` the server tries again by itself, if it refreshes this one by itself at
        all.
        """

    async def revert_failure(self, integration: Integration, retry_time: datetime | None) -> None:
        """Undo that `record_failure` has noted the end of the grant, unless the credentials were replaced since it was.

        The provider is not asked before `retry_time`, and then by the server itself, as after a failure.
        """

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Count and set the last error after a call, or clear it, unless the credentials were replaced since."""

    async def update(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        now: datetime,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_active: bool | None = None,
    ) -> Integration:
        """Set what is not None. Raises `IntegrationNotFound`."""

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_duration: timedelta = timedelta(0)
    ) -> RemovalResult:
        """Delete the integration with everything that belongs to it, and put its credentials into the outbox.

        One commit does both. The caller holds the claim on the revocation for `claim_duration`. Raises
        `IntegrationNotFound`.
        """

    async def ping(self) -> None:
        """Return if the database answers and its schema is there."""
