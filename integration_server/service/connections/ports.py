"""The ports of authorization attempts, and of the integrations that they connect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from integration_server.domain.errors import ErrorRecord
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.service.background.ports import Claim
from integration_server.service.connections.revocation_ports import GrantProof
from integration_server.service.integrations.ports import (
    NewAccount,
    NewCredentials,
    NewIntegration,
)

ATTEMPT_LIFETIME = timedelta(minutes=10)  # the requirements'; RFC 6749 §4.1.2 recommends it for codes


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """A device authorization that has begun, and until when the user can decide."""

    device_code: str = field(repr=False)
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class AttemptDetails:
    """What an attempt was begun with, and what decides where the code and the browser are sent.

    `is_reconnection`: the integration existed before. `verifier` is the PKCE verifier. `device` is that of a device
    authorization. `oauth_client` names the client that the code is issued to.
    """

    integration_id: IntegrationId
    is_reconnection: bool
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    verifier: str = field(repr=False)
    device: DeviceGrant | None = None
    oauth_client: str = ""


@dataclass(frozen=True, slots=True)
class AuthorizationAttempt:
    """One run of the authorization code flow, from the authorization URL to the exchange of the code; or of a device
    authorization, from the user code to the tokens.

    `encrypted_details` are the encrypted `AttemptDetails`. `encrypted_callback` is a callback that waits for its
    confirmation. `encrypted_outcome` is what the first callback with a code has led to; None before it.
    `integration_id` is 0 until the attempt is stored, and None when its integration has been deleted.
    `poll_interval_seconds` is the time between two requests for the tokens of a device authorization, None for other
    attempts; `poll_failures` counts the last ones that had no response.
    """

    attempt_id: str
    user_id: UserId
    integration_type: str
    encrypted_details: bytes = field(repr=False)
    create_time: datetime
    expire_time: datetime
    encrypted_callback: bytes | None = field(default=None, repr=False)
    encrypted_outcome: bytes | None = field(default=None, repr=False)
    integration_id: IntegrationId | None = IntegrationId(0)
    poll_interval_seconds: float | None = None
    poll_failures: int = 0


@dataclass(frozen=True, slots=True)
class StateClaims:
    """The content of a state or confirmation token."""

    attempt_id: str
    user_id: UserId
    integration_type: str
    begin_time: datetime


@dataclass(frozen=True, slots=True)
class CallbackOutcome:
    """What the first callback with a code has led to, stored for its repetitions.

    It has an id of a connected integration, an error, or a confirmation token, or none of them while the code is being
    exchanged. `receive_time` is when the first callback arrived.
    """

    code_digest: str
    receive_time: datetime
    confirmation_token: str = field(default="", repr=False)
    integration_id: IntegrationId = IntegrationId(0)
    account_label: str = ""
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class PendingCallback:
    """The part of a callback that is stored, encrypted, until it is confirmed."""

    code: str = field(repr=False)
    query: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """What an attempt was begun with, and what it has led to."""

    details: AttemptDetails
    outcome: CallbackOutcome


class AuthorizationAttemptStore(Protocol):
    """Attempts. Each is started, may get a pending callback, is consumed once, and then finished."""

    async def begin(self, attempt: AuthorizationAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration and its attempt."""

    async def begin_reconnection(self, attempt: AuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt for an existing integration, which does not change. Raises `IntegrationNotFound`.

        It ends the device authorizations of the integration.
        """

    async def find(self, attempt_id: str) -> AuthorizationAttempt | None:
        """An attempt in any state, also an expired one."""

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, encrypted_outcome: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """Keep a callback until it is confirmed. None unless the attempt is started and valid."""

    async def consume(self, attempt_id: str, encrypted_outcome: bytes, now: datetime) -> AuthorizationAttempt | None:
        """Take a started attempt, for this caller only. None unless the attempt is started and valid."""

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take an attempt with a pending callback, for this caller only. None unless it has one and is valid."""

    async def begin_poll(
        self, claim: Claim[AuthorizationAttempt], claim_duration: timedelta
    ) -> Claim[AuthorizationAttempt] | None:
        """Claim a due poll of a device authorization anew, for the time of its request; None as `postpone_poll`."""

    async def postpone_poll(
        self, claim: Claim[AuthorizationAttempt], delay: timedelta, *, interval: timedelta, failures: int
    ) -> Claim[AuthorizationAttempt] | None:
        """Make the next poll of a device authorization due after `delay`, with these values, and return the new claim.

        None, and nothing changes, if the attempt has ended, its integration is gone, or another process claimed it.
        """

    async def finish(self, attempt: AuthorizationAttempt, encrypted_outcome: bytes | None) -> None:
        """End a consumed attempt. Its integration is deleted if it is still pending.

        The new outcome replaces that of the attempt, unless it is None. The pending callback is deleted.
        """

    async def remove_expired(self, before: datetime) -> int:
        """Delete attempts that expired before that time, and their pending integrations. Returns their number."""


class ConnectionStore(Protocol):
    """Connects integrations: stores credentials in the row of their account."""

    async def reserve_id(self) -> IntegrationId:
        """A new id, which no other integration gets."""

    async def find_account(
        self, user_id: UserId, integration_type: str, account_id: str, oauth_client: str = ""
    ) -> StoredIntegration | None:
        """The user's connected integration with that account, of the client."""

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
        """Store a connected integration. None if another row of the user has its account.

        Raises `RevocationInProgress` if a revocation that is in progress, or was completed since the `proof` that the
        grant is valid, may have ended the grant too: one of the same token, or one of `proof.ended_by` and maybe of the
        same account (see `RevocationOutbox.begin_call`). Without a proof nothing is checked.
        """

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
        """Store the credentials of a pending or reconnected integration, activate it and clear its errors.

        The same commit stores its name and config, and deletes `superseded_id`, a pending integration that has the same
        account. None, and no change, if the integration is gone or has another version or settings version, or if
        another row has its account: read again. Raises `RevocationInProgress` as `add_connected` does.
        """

    async def now(self) -> datetime:
        """The time of the store's clock, for `GrantProof.time`."""
