"""What is stored of an authorization attempt, and its end.

The details, a callback that waits for its confirmation, and the outcome are encrypted. The store consumes an attempt
atomically, so it is used once. The outcome of a code is stored with the attempt, for the callbacks that repeat it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pydantic import TypeAdapter

from integration_server.domain.associated_data import AssociatedData, attempt_aad, callback_aad, outcome_aad
from integration_server.domain.errors import ErrorRecord, IntegrationServerError, StateUsed, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.service.common_types import (
    Aead,
    Clock,
)
from integration_server.service.connections.ports import (
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    StateClaims,
)
from integration_server.service.credentials.credential_cipher import (
    EncryptedTokens,
)

ATTEMPT_LIFETIME = timedelta(minutes=10)  # the requirements'; RFC 6749 §4.1.2 recommends it for codes


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


_PENDING_CALLBACK: TypeAdapter[PendingCallback] = TypeAdapter(PendingCallback)
_DETAILS: TypeAdapter[AttemptDetails] = TypeAdapter(AttemptDetails)
_OUTCOME: TypeAdapter[CallbackOutcome] = TypeAdapter(CallbackOutcome)


@dataclass(eq=False, repr=False)
class AttemptLifecycle:
    """Reads and ends attempts. `states` and `confirmations` make and read the tokens that name an attempt.

    Stored values that were altered, or belong to another attempt, raise `CredentialsUnreadable`.
    """

    attempts: AuthorizationAttemptStore
    aead: Aead
    redirects: RedirectAllowlist
    clock: Clock

    def __post_init__(self) -> None:
        self.states = EncryptedTokens(self.aead, "state", StateClaims)
        self.confirmations = EncryptedTokens(self.aead, "confirmation", StateClaims)

    async def encrypt_details(self, claims: StateClaims, details: AttemptDetails) -> bytes:
        """The encrypted details of a new attempt."""
        return await self.aead.encrypt(_DETAILS.dump_json(details), _associated_data(attempt_aad, claims))

    async def read_details(self, claims: StateClaims, attempt: AuthorizationAttempt) -> AttemptDetails:
        """The details of an attempt of these claims. Its URLs must still be allowed: the lists may have changed.

        Raises `CredentialsUnreadable` or `RedirectUriNotAllowed`.
        """
        details = _DETAILS.validate_json(
            await self.aead.decrypt(attempt.encrypted_details, _associated_data(attempt_aad, claims))
        )
        self.redirects.redirect_uri(claims.integration_type, details.redirect_uri)
        self.redirects.return_url(details.return_url or "")
        return details

    async def read_outcome(self, claims: StateClaims, attempt: AuthorizationAttempt) -> CallbackOutcome:
        """The outcome of an attempt that has one, perhaps only so far."""
        encrypted = attempt.encrypted_outcome or b""
        return _OUTCOME.validate_json(await self.aead.decrypt(encrypted, _associated_data(outcome_aad, claims)))

    async def hold(
        self, claims: StateClaims, callback: PendingCallback, confirmation_token: str
    ) -> EndedAttempt | None:
        """Store the callback of a started attempt until it is confirmed. None if the attempt was used before."""
        associated_data = _associated_data(callback_aad, claims)
        encrypted = await self.aead.encrypt(_PENDING_CALLBACK.dump_json(callback), associated_data)
        now = self.clock()
        outcome = CallbackOutcome(digest_of(callback.code), now, confirmation_token=confirmation_token)
        encrypted_outcome = await self._encrypt_outcome(claims, outcome)
        attempt = await self.attempts.store_pending_callback(claims.attempt_id, encrypted, encrypted_outcome, now)
        return None if attempt is None else EndedAttempt(await self.read_details(claims, attempt), outcome)

    async def complete(
        self, claims: StateClaims, code: str, connect: Callable[[AttemptDetails], Awaitable[Integration]]
    ) -> EndedAttempt | None:
        """Consume a started attempt and connect its integration; its end is stored, also if `connect` raises an error.

        `code` is empty in a device authorization. None, and nothing is connected, if the attempt was used before.
        """
        now = self.clock()
        outcome = CallbackOutcome(digest_of(code), now)
        attempt = await self.attempts.consume(claims.attempt_id, await self._encrypt_outcome(claims, outcome), now)
        return None if attempt is None else await self._connect(claims, attempt, outcome, connect, keeps_outcome=True)

    async def complete_held(
        self, claims: StateClaims, connect: Callable[[PendingCallback, AttemptDetails], Awaitable[Integration]]
    ) -> EndedAttempt | None:
        """Like `complete`, with the callback that waits for its confirmation.

        The stored outcome stays that of the callback, which is that it needs a confirmation.
        """
        now = self.clock()
        attempt = await self.attempts.consume_pending_callback(claims.attempt_id, now)
        if attempt is None:
            return None

        async def connect_held(details: AttemptDetails) -> Integration:
            encrypted = attempt.encrypted_callback or b""
            callback = await self.aead.decrypt(encrypted, _associated_data(callback_aad, claims))
            return await connect(_PENDING_CALLBACK.validate_json(callback), details)

        return await self._connect(claims, attempt, CallbackOutcome("", now), connect_held, keeps_outcome=False)

    async def _connect(
        self,
        claims: StateClaims,
        attempt: AuthorizationAttempt,
        outcome: CallbackOutcome,
        connect: Callable[[AttemptDetails], Awaitable[Integration]],
        *,
        keeps_outcome: bool,
    ) -> EndedAttempt:
        """Connect the integration of a consumed attempt, and store the outcome if `keeps_outcome`."""
        try:
            details = await self.read_details(claims, attempt)
            integration = await connect(details)
        except Exception as error:
            # Any other error is a fault of this program. Its repetitions find a used state.
            record = ErrorRecord.of(error if isinstance(error, IntegrationServerError) else StateUsed())
            await self._finish(claims, attempt, replace(outcome, error=record) if keeps_outcome else None)
            raise
        label = integration.account_label or integration.account_id or ""
        outcome = replace(outcome, integration_id=integration.integration_id, account_label=label)
        with suppress(StoreUnavailable):  # it is connected; only a repeated callback does not learn it
            await self._finish(claims, attempt, outcome if keeps_outcome else None)
        return EndedAttempt(details, outcome)

    async def _finish(
        self, claims: StateClaims, attempt: AuthorizationAttempt, outcome: CallbackOutcome | None
    ) -> None:
        encrypted = await self._encrypt_outcome(claims, outcome) if outcome else None
        await self.attempts.finish(attempt, encrypted)

    async def _encrypt_outcome(self, claims: StateClaims, outcome: CallbackOutcome) -> bytes:
        return await self.aead.encrypt(_OUTCOME.dump_json(outcome), _associated_data(outcome_aad, claims))


def digest_of(code: str) -> str:
    """The form in which an outcome keeps its code."""
    return hashlib.sha256(code.encode()).hexdigest()


def _associated_data(make: Callable[..., AssociatedData], claims: StateClaims) -> AssociatedData:
    return make(claims.attempt_id, claims.user_id, claims.integration_type)
