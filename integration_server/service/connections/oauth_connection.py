"""The OAuth 2 connection flow: authorization URL, callback, confirmation, code exchange.

The store consumes an attempt atomically, so it is used once. What is fixed at the start (user, type, redirect URI, PKCE
verifier) comes from the encrypted details of the attempt or from the encrypted state, never from the callback. A
callback with a wrong user or issuer is rejected before the attempt changes, so that it does not end a genuine attempt.
Neither does a denial, so that the user can go back and allow.

Browsers repeat requests: they prefetch, reload and go back. The outcome of a code is therefore stored, encrypted, with
the attempt, and a callback that repeats state and code gets it, also from another replica. While the code is being
exchanged, it waits for the outcome.
"""

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import count

from pydantic import TypeAdapter

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.credentials import DeviceAuthorization, OAuthTokens
from integration_server.domain.errors import (
    ConfirmationInvalid,
    ErrorRecord,
    IntegrationServerError,
    InvalidField,
    IssuerMismatch,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    StateExpired,
    StateInvalid,
    StateUsed,
    StoreUnavailable,
    UserMismatch,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.return_urls import with_result_params
from integration_server.service.audit.audit_trail import audit_user
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Aead, AssociatedData, Clock, RandomToken
from integration_server.service.connections.account_linking import AccountLinker, AccountRequest
from integration_server.service.connections.ports import (
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    DeviceGrant,
    StateClaims,
)
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.connections.revocation_ports import RevocationInProgress
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
    EncryptedTokens,
    attempt_aad,
    callback_aad,
    outcome_aad,
)
from integration_server.service.integrations.ports import IntegrationStore, NewAccount, NewIntegration
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.service.provider_port import Provider

ATTEMPT_LIFETIME = timedelta(minutes=10)  # the requirements'; RFC 6749 §4.1.2 recommends it for codes
# The row of an attempt stays longer: one that was consumed just before its end may still be calling the provider.
_COMPLETION_GRACE = timedelta(minutes=1)
# Seconds between attempts to commit while a revocation may end the new grant, the first for one that has ended. In all
# they last longer than a provider may take to respond to one (10 s), and leave time for the other calls within the
# sidecar's deadline (25 s): otherwise the browser would see a failure of a connection that then succeeds.
_REVOCATION_PAUSES = (0, 0.5, 1, 2, 4, 8)
# A browser repeats a request within seconds; a person reloads a page within a minute. Not longer than the grace.
REPETITION_WINDOW = timedelta(seconds=60)
_POLL_INTERVAL = 0.1  # seconds between looks at an outcome that another callback is waiting for, growing tenfold
_SAFE_ERROR_CODE = re.compile(r"[a-z0-9_.-]{1,64}")
_UNKNOWN_ERROR = "unknown_error"

CONFIRMATION_REQUIRED = "confirmation_required"
AUTHORIZATION_PENDING = "authorization_pending"  # RFC 8628 §3.5

_UNKNOWN_ACCOUNT = NewAccount(account_id=None, account_label=None)


@dataclass(frozen=True, slots=True)
class ConnectionRequest(AccountRequest):
    """A request to connect or reconnect an account. Empty strings mean "not given".

    `oauth_client` is by default the operator's own; a reconnection keeps the client of its integration. `caller` names
    it; None where callers are not authenticated.
    """

    redirect_uri: str = ""
    scopes: tuple[str, ...] = ()
    return_url: str = ""
    oauth_client: str = ""
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """The URL to send the browser to, valid until `expire_time`.

    In a device authorization the user enters `user_code` at `verification_uri`; `url` is the verification URI with the
    code in it, if the provider has one, and otherwise the same.
    """

    url: str = field(repr=False)
    state: str = field(repr=False)
    expire_time: datetime
    integration_id: IntegrationId
    user_code: str = field(default="", repr=False)
    verification_uri: str = ""
    verification_uri_complete: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Callback:
    """The parameters of the provider's redirect. `user_id` is the signed-in user, where the caller knows it.

    A state of a type outside `allowed_types` is rejected as invalid.
    """

    state: str = field(repr=False)
    code: str = field(default="", repr=False)
    integration_type: str = ""
    iss: str = ""
    error: str = ""
    user_id: UserId | None = None
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES


@dataclass(frozen=True, slots=True)
class ConnectionResult:
    """The outcome of a callback or confirmation. `reason` is empty on success."""

    success: bool
    integration_id: IntegrationId
    redirect_url: str = field(repr=False)
    message: str
    reason: str = ""
    confirmation_token: str = field(default="", repr=False)
    display_name: str = ""
    account_label: str = ""


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


_PENDING_CALLBACK: TypeAdapter[PendingCallback] = TypeAdapter(PendingCallback)
_DETAILS: TypeAdapter[AttemptDetails] = TypeAdapter(AttemptDetails)
_OUTCOME: TypeAdapter[CallbackOutcome] = TypeAdapter(CallbackOutcome)


@dataclass(eq=False, repr=False)
class OAuthConnectionService:
    """The OAuth 2 authorization code flow (RFC 6749 §4.1) with PKCE (RFC 7636) and a check of the user.

    A callback that names the signed-in user is compared with the attempt's user. One that names none waits for
    `confirm_connection`, unless `skip_confirmation` is set. `keeps_outcomes` is False only in negative controls: then
    every repeated callback finds a used state.
    """

    attempts: AuthorizationAttemptStore
    integrations: IntegrationStore
    account_linker: AccountLinker
    revocation_service: RevocationService
    providers: OAuthClientDirectory
    aead: Aead
    redirects: RedirectAllowlist
    tasks: DetachedTasks
    clock: Clock
    random_token: RandomToken
    _: KW_ONLY
    skip_confirmation: bool
    keeps_outcomes: bool = True
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._states = EncryptedTokens(self.aead, "state", StateClaims)
        self._confirmations = EncryptedTokens(self.aead, "confirmation", StateClaims)
        self._cipher = CredentialCipher(self.aead)

    # --- start -------------------------------------------------------------------------------------------------

    async def begin_connection(self, request: ConnectionRequest) -> AuthorizationRequest:
        """Store an attempt and return the authorization URL."""
        provider = self.providers[request.integration_type]
        if not provider.has_authorization_page:
            raise InvalidField("integration_type", "is connected with ConnectWithApiKey")
        request = replace(request, integration_type=provider.integration_type)  # it may be an alias
        current, is_authentic = await self._find_reconnected(request, provider)
        provider = await self._with_client(request, current if is_authentic else None)
        provider = provider.for_config(current.config if current else request.config)
        redirect_uri = self.redirects.redirect_uri(request.integration_type, request.redirect_uri)
        return_url = self.redirects.return_url(request.return_url)
        scopes = tuple(provider.scopes_to_request(request.scopes, current.scopes if current else ()))
        device: DeviceAuthorization | None = None
        if provider.has_device_authorization:
            device = await self.providers.authenticated(provider, lambda one: one.begin_device_authorization(scopes))
        else:
            self._require_confirmable(redirect_uri, return_url)
        verifier, now = self.random_token(), self.clock()
        expire_time = now + (ATTEMPT_LIFETIME if device is None else device.lifetime)
        details = AttemptDetails(
            integration_id=request.integration_id or await self.integrations.reserve_id(),
            is_reconnection=bool(request.integration_id),
            redirect_uri=redirect_uri,
            return_url=return_url,
            scopes=scopes,
            verifier=verifier,
            device=None if device is None else DeviceGrant(device.device_code, expire_time),
            oauth_client=provider.oauth_client.name,
        )
        attempt = await self._new_attempt(request, details, now, expire_time, device)
        if details.is_reconnection:
            await self.attempts.begin_reconnection(attempt, details.integration_id)
        else:
            await self.attempts.begin(attempt, await self._pending(request, provider, details, attempt.create_time))
        state = await self._states.make(
            StateClaims(attempt.attempt_id, request.user_id, request.integration_type, attempt.create_time)
        )
        if device is not None:
            uri, complete = device.verification_uri, device.verification_uri_complete
            return AuthorizationRequest(
                complete or uri, state, expire_time, details.integration_id, device.user_code, uri, complete
            )
        url = provider.authorization_url(
            redirect_uri=details.redirect_uri, state=state, scopes=scopes, code_challenge=_s256(verifier)
        )
        return AuthorizationRequest(url, state, attempt.expire_time, details.integration_id)

    async def _with_client(self, request: ConnectionRequest, current: Integration | None) -> Provider:
        """The provider with the client of the request. A grant belongs to its client, so that a reconnection keeps it.

        `current` is None for a new integration, and for an altered row, which does not say what client it had. Raises
        `CallerNotAllowed`, or `ProviderNotConfigured`.
        """
        name = request.oauth_client
        if current is not None:
            if name not in ("", current.oauth_client):
                raise InvalidField("oauth_client", "is not the client of the integration; connect the account anew")
            name = current.oauth_client
        provider = await self.providers.for_caller(request.integration_type, name, request.caller)
        provider.require_configured()
        return provider

    def _require_confirmable(self, redirect_uri: str, return_url: str | None) -> None:
        """Raise `InvalidField` if the confirmation token would reach nobody who could confirm."""
        is_delivered = return_url or self.redirects.default_return_url or not self.redirects.is_of_sidecar(redirect_uri)
        if not (self.skip_confirmation or is_delivered):
            raise InvalidField(
                "return_url",
                "is required: the connection must be confirmed, and the browser brings the confirmation token to this "
                "URL; DEFAULT_RETURN_URL is not set",
            )

    async def _find_reconnected(
        self, request: ConnectionRequest, provider: Provider
    ) -> tuple[Integration | None, bool]:
        """The integration to reconnect, and whether its row is authentic; None for a new one."""
        if not request.integration_id:
            return None, False
        current, is_authentic = await self.account_linker.existing(request, provider)
        current.require_connected()
        return current, is_authentic

    async def _pending(
        self, request: ConnectionRequest, provider: Provider, details: AttemptDetails, now: datetime
    ) -> NewIntegration:
        new = replace(request.new_integration(provider, self.random_token()), integration_id=details.integration_id)
        return replace(new, encrypted_credentials=await self._cipher.encrypt(new.as_stored(now), None))

    async def _new_attempt(
        self,
        request: ConnectionRequest,
        details: AttemptDetails,
        now: datetime,
        expire_time: datetime,
        device: DeviceAuthorization | None,
    ) -> AuthorizationAttempt:
        attempt_id = self.random_token()
        associated_data = attempt_aad(attempt_id, request.user_id, request.integration_type)
        return AuthorizationAttempt(
            attempt_id=attempt_id,
            user_id=request.user_id,
            integration_type=request.integration_type,
            encrypted_details=await self.aead.encrypt(_DETAILS.dump_json(details), associated_data),
            create_time=now,
            expire_time=expire_time,
            poll_interval_seconds=None if device is None else device.interval.total_seconds(),
        )

    # --- callback ----------------------------------------------------------------------------------------------

    async def handle_callback(self, callback: Callback) -> ConnectionResult:
        """Complete the connection, hold it for confirmation, or report the provider's error.

        A repeated callback has the outcome of the first. The metadata of an error have `redirect_url`, where the
        browser can continue, and `display_name`, the provider's name, if the state is genuine.
        """
        claims = await self._read_state(callback)
        try:
            return await self._handle(claims, callback)
        except (StoreUnavailable, UserMismatch):
            raise  # the same request may succeed later; it is not the browser of the attempt's user
        except IntegrationServerError as error:
            error.metadata = await self._failure_metadata(claims, error)
            raise

    async def _handle(self, claims: StateClaims, callback: Callback) -> ConnectionResult:
        provider = self.providers[claims.integration_type]
        # RFC 9207 §2.4: before a request to the token endpoint, and also for error responses.
        if provider.issuer is not None and callback.iss != provider.issuer:
            raise IssuerMismatch
        if callback.user_id is not None and callback.user_id != claims.user_id:
            raise UserMismatch
        if error := _error_code(callback):
            return await self._report_denial(claims, error)
        if provider.has_device_authorization and (callback.code or callback.user_id is not None):
            return await self._report_device_authorization(claims, callback)
        if not callback.code:
            raise InvalidField("code", "is required, unless error is given")
        if self._is_expired(claims):  # the first callback may still have been in time
            return await self._repeat(claims, callback.code, otherwise=StateExpired())
        pending_callback = PendingCallback(callback.code, callback.query)
        if callback.user_id is None and not self.skip_confirmation:
            result = await self._hold_for_confirmation(claims, pending_callback)
        else:
            result = await self.tasks.run(self._complete(claims, pending_callback))
        return result or await self._repeat(claims, callback.code, otherwise=StateUsed())

    async def _read_state(self, callback: Callback) -> StateClaims:
        claims = await self._states.read(callback.state)
        if claims is None or not self._matches_type(callback.integration_type, claims.integration_type):
            raise StateInvalid
        if not callback.allowed_types.allows(claims.integration_type):
            raise StateInvalid
        audit_user.set(claims.user_id)  # the caller may be the sidecar, which knows no user
        return claims

    def _is_expired(self, claims: StateClaims) -> bool:
        return self.clock() >= claims.begin_time + ATTEMPT_LIFETIME  # not from the row, whose time may be altered

    def _matches_type(self, named: str, integration_type: str) -> bool:
        """Whether the type that a callback names is this type or an alias of it. It may name none."""
        return named in ("", integration_type) or named in self.providers[integration_type].aliases

    async def _report_denial(self, claims: StateClaims, error: str) -> ConnectionResult:
        """The result for an error response. The attempt stays as it is: the user can go back and allow."""
        if self._is_expired(claims):
            raise StateExpired
        attempt = await self.attempts.find(claims.attempt_id)
        if attempt is None or attempt.encrypted_outcome is not None or attempt.integration_id is None:
            raise StateUsed
        details = await self.read_details(claims, attempt)
        reason = error if _SAFE_ERROR_CODE.fullmatch(error) else _UNKNOWN_ERROR
        return ConnectionResult(
            success=False,
            integration_id=details.integration_id if details.is_reconnection else IntegrationId(0),
            redirect_url=self._redirect_url(claims, details, success="false", reason=reason),
            message="The provider did not grant access",
            reason=reason,
            display_name=self.providers[claims.integration_type].display_name,
        )

    async def _report_device_authorization(self, claims: StateClaims, callback: Callback) -> ConnectionResult:
        """The result of a device authorization, so far. Raises the error with which it has ended."""
        if callback.code:
            raise InvalidField("code", "must be empty: this integration type has no authorization codes")
        attempt = await self.attempts.find(claims.attempt_id)
        if attempt is None:
            raise StateExpired if self._is_expired(claims) else StateUsed
        details = await self.read_details(claims, attempt)
        outcome = None if attempt.encrypted_outcome is None else await self._read_outcome(claims, attempt)
        if outcome and outcome.error:
            raise outcome.error.to_error()
        if outcome and outcome.integration_id:
            return self._result(claims, details, outcome)
        if attempt.integration_id is None or details.device is None:
            raise StateUsed
        if self.clock() >= details.device.expire_time:
            raise StateExpired
        return ConnectionResult(
            success=False,
            integration_id=details.integration_id,
            redirect_url="",
            message="The user has not decided yet",
            reason=AUTHORIZATION_PENDING,
            display_name=self.providers[claims.integration_type].display_name,
        )

    # --- outcomes ----------------------------------------------------------------------------------------------

    async def _repeat(self, claims: StateClaims, code: str, otherwise: IntegrationServerError) -> ConnectionResult:
        """The outcome of an earlier callback with this state and code, as soon as there is one.

        Raises its error, or `otherwise` if there was no such callback within the last minute.
        """
        for polls in count(1):
            attempt = await self.attempts.find(claims.attempt_id) if self.keeps_outcomes else None
            if attempt is None or attempt.encrypted_outcome is None:
                raise otherwise
            outcome = await self._read_outcome(claims, attempt)
            is_too_late = self.clock() >= outcome.receive_time + REPETITION_WINDOW
            if is_too_late or not hmac.compare_digest(outcome.code_digest, _digest(code)):
                raise otherwise
            if outcome.error:
                raise outcome.error.to_error()
            if outcome.integration_id or outcome.confirmation_token:
                return self._result(claims, await self.read_details(claims, attempt), outcome)
            await self.pause(_POLL_INTERVAL * min(polls, 10))
        raise AssertionError  # not reachable: a window ends

    def _result(self, claims: StateClaims, details: AttemptDetails, outcome: CallbackOutcome) -> ConnectionResult:
        """The result of a callback that has connected an integration, or waits for its confirmation."""
        name = self.providers[claims.integration_type].display_name
        if token := outcome.confirmation_token:
            return ConnectionResult(
                success=False,
                integration_id=details.integration_id,
                redirect_url=self._redirect_url(claims, details, confirmation_token=token),
                message="The connection must be confirmed",
                reason=CONFIRMATION_REQUIRED,
                confirmation_token=token,
                display_name=name,
            )
        connected_id = str(outcome.integration_id)
        return ConnectionResult(
            success=True,
            integration_id=outcome.integration_id,
            redirect_url=self._redirect_url(claims, details, success="true", integration_id=connected_id),
            message=f"{name} is connected",
            display_name=name,
            account_label=outcome.account_label,
        )

    async def _read_outcome(self, claims: StateClaims, attempt: AuthorizationAttempt) -> CallbackOutcome:
        encrypted = attempt.encrypted_outcome or b""
        return _OUTCOME.validate_json(await self.aead.decrypt(encrypted, _associated_data(outcome_aad, claims)))

    async def _encrypt_outcome(self, claims: StateClaims, outcome: CallbackOutcome) -> bytes:
        return await self.aead.encrypt(_OUTCOME.dump_json(outcome), _associated_data(outcome_aad, claims))

    async def _failure_metadata(self, claims: StateClaims, error: IntegrationServerError) -> Mapping[str, str]:
        details = None
        with suppress(IntegrationServerError):  # then the browser is sent to the default
            attempt = await self.attempts.find(claims.attempt_id)
            details = await self.read_details(claims, attempt) if attempt else None
        url = self._redirect_url(claims, details, success="false", reason=error.reason)
        return {"display_name": self.providers[claims.integration_type].display_name, "redirect_url": url}

    def _redirect_url(self, claims: StateClaims, details: AttemptDetails | None, **outcome: str) -> str:
        """Where the browser continues: the attempt's return URL or the default one, with the outcome; else empty."""
        return_url = (details and details.return_url) or self.redirects.default_return_url
        return with_result_params(return_url, **outcome, integration_type=claims.integration_type)

    # --- confirmation ------------------------------------------------------------------------------------------

    async def _hold_for_confirmation(self, claims: StateClaims, callback: PendingCallback) -> ConnectionResult | None:
        """Store the code, encrypted, until the app's backend confirms the signed-in user. None for a used state."""
        encrypted = await self.aead.encrypt(
            _PENDING_CALLBACK.dump_json(callback), _associated_data(callback_aad, claims)
        )
        now, token = self.clock(), await self._confirmations.make(claims)
        outcome = CallbackOutcome(_digest(callback.code), now, confirmation_token=token)
        encrypted_outcome = await self._encrypt_outcome(claims, outcome)
        attempt = await self.attempts.store_pending_callback(claims.attempt_id, encrypted, encrypted_outcome, now)
        return None if attempt is None else self._result(claims, await self.read_details(claims, attempt), outcome)

    async def confirm_connection(
        self, confirmation_token: str, user_id: UserId, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES
    ) -> ConnectionResult:
        """Complete a held connection for the signed-in user."""
        claims = await self._confirmations.read(confirmation_token)
        if claims is None or not allowed_types.allows(claims.integration_type):
            raise ConfirmationInvalid
        if user_id != claims.user_id:
            raise UserMismatch
        if self._is_expired(claims):
            raise ConfirmationInvalid
        result = await self.tasks.run(self._complete(claims, None))
        if result is None:
            raise ConfirmationInvalid
        return result

    # --- completion --------------------------------------------------------------------------------------------

    async def _complete(self, claims: StateClaims, callback: PendingCallback | None) -> ConnectionResult | None:
        """Consume an attempt and complete it with a callback; None means its pending callback.

        Returns None if the attempt was consumed before. The outcome is stored for a callback. A confirmation keeps that
        of its callback, which is that it needs a confirmation.
        """
        now = self.clock()
        outcome = CallbackOutcome(_digest(callback.code) if callback else "", now)
        if callback:
            attempt = await self.attempts.consume(claims.attempt_id, await self._encrypt_outcome(claims, outcome), now)
        else:
            attempt = await self.attempts.consume_pending_callback(claims.attempt_id, now)
        if attempt is None:
            return None

        async def exchange(details: AttemptDetails) -> Integration:
            received = callback or await self._decrypt_callback(claims, attempt)
            return await self._exchange_code(claims, details, received)

        return await self._connect(claims, attempt, outcome, exchange, keeps_outcome=callback is not None)

    async def _connect(
        self,
        claims: StateClaims,
        attempt: AuthorizationAttempt,
        outcome: CallbackOutcome,
        connect: Callable[[AttemptDetails], Awaitable[Integration]],
        *,
        keeps_outcome: bool,
    ) -> ConnectionResult:
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
        return self._result(claims, details, outcome)

    async def end_device_authorization(
        self, claims: StateClaims, connect: Callable[[AttemptDetails], Awaitable[Integration]]
    ) -> ConnectionResult | None:
        """Connect the integration of a device authorization, or end it with the error that `connect` raises.

        None, and nothing is connected, if the attempt has ended before.
        """
        outcome = CallbackOutcome("", self.clock())
        encrypted = await self._encrypt_outcome(claims, outcome)
        attempt = await self.attempts.consume(claims.attempt_id, encrypted, self.clock())
        return None if attempt is None else await self._connect(claims, attempt, outcome, connect, keeps_outcome=True)

    async def _finish(
        self, claims: StateClaims, attempt: AuthorizationAttempt, outcome: CallbackOutcome | None
    ) -> None:
        encrypted = await self._encrypt_outcome(claims, outcome) if outcome else None
        await self.attempts.finish(attempt, encrypted)

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

    async def _decrypt_callback(self, claims: StateClaims, attempt: AuthorizationAttempt) -> PendingCallback:
        associated_data = _associated_data(callback_aad, claims)
        return _PENDING_CALLBACK.validate_json(
            await self.aead.decrypt(attempt.encrypted_callback or b"", associated_data)
        )

    async def _exchange_code(
        self, claims: StateClaims, details: AttemptDetails, callback: PendingCallback
    ) -> Integration:
        """Exchange the code, verify the account, and commit the tokens."""
        # Raises `IntegrationNotFound` if it was disconnected while the user was at the provider.
        target = await self._cipher.redacted(await self.integrations.get(details.integration_id, claims.user_id))
        target = replace(target, oauth_client=details.oauth_client)
        provider = await self.providers.for_client(claims.integration_type, details.oauth_client)
        provider = provider.for_config(target.config).for_callback(callback.query)
        proof_time = await self.revocation_service.revocations.now()
        try:
            tokens = await self.providers.authenticated(
                provider,
                lambda one: one.exchange_code_for_tokens(callback.code, details.redirect_uri, details.verifier),
            )
        except ProviderError as error:
            if error.issued_tokens is not None:
                await self.discard(claims, details.oauth_client, error.issued_tokens)
            raise
        return await self.store_tokens(claims, details, provider, target, tokens, proof_time)

    async def discard(self, claims: StateClaims, oauth_client: str, tokens: OAuthTokens) -> None:
        """Have tokens revoked that an attempt received for a client and no integration can keep."""
        await self.revocation_service.discard(claims, oauth_client, _UNKNOWN_ACCOUNT, tokens)

    async def store_tokens(
        self,
        claims: StateClaims,
        details: AttemptDetails,
        provider: Provider,
        target: Integration,
        tokens: OAuthTokens,
        proof_time: datetime,
    ) -> Integration:
        """Verify the account of the tokens of an attempt, and commit them. Tokens that are not stored are revoked.

        `proof_time`: on the database's clock, before the provider issued them.
        """
        account = _UNKNOWN_ACCOUNT
        try:
            for pause in (*_REVOCATION_PAUSES, None):
                account = await _verify_account(provider, tokens, details.scopes)
                try:
                    return await self.account_linker.commit(target, account, tokens, details.scopes, proof_time)
                except RevocationInProgress:
                    if pause is None:
                        break
                await self.pause(pause)
                # The revocation may have ended this grant too. Then the provider rejects its tokens.
                proof_time = await self.revocation_service.revocations.now()
                if tokens.refresh_token is not None:
                    refreshed = await self.providers.authenticated(provider, partial(_refresh, tokens))
                    tokens = tokens.updated_with(refreshed, self.clock())
            # It says no more: the revocation may be another user's.
            raise ProviderUnavailable("the account cannot be connected at the moment; connect again")
        except StoreUnavailable:
            raise  # it is not known whether the tokens were committed
        except Exception:
            await self.revocation_service.discard(claims, details.oauth_client, account, tokens)
            raise

    async def remove_abandoned(self) -> int:
        """Delete expired attempts with their pending integrations. Returns their number."""
        return await self.attempts.remove_expired(self.clock() - _COMPLETION_GRACE)


async def _refresh(tokens: OAuthTokens, provider: Provider) -> OAuthTokens:
    return await provider.refresh(tokens)


async def _verify_account(provider: Provider, tokens: OAuthTokens, requested_scopes: Sequence[str]) -> NewAccount:
    try:
        return await provider.verify_connection(tokens)
    except ProviderRejected:
        # The account request may need a scope that the user denied; the integration then shows the missing scope.
        if set(provider.missing_scopes(requested_scopes, tokens)).isdisjoint(provider.required_scopes):
            raise
        return _UNKNOWN_ACCOUNT


def _error_code(callback: Callback) -> str:
    """The code of an error response; empty for another callback.

    Some providers do not use `error` (RFC 6749 §4.1.2.1), but `error_code` with `error_message`, `errorCode` or other
    names that begin alike. They are believed only where there is no code.
    """
    if callback.error or callback.code:
        return callback.error
    values = [value for name, value in callback.query.items() if name.lower().startswith("err") and value]
    return next(filter(_SAFE_ERROR_CODE.fullmatch, values), _UNKNOWN_ERROR) if values else ""


def _associated_data(make: Callable[..., AssociatedData], claims: StateClaims) -> AssociatedData:
    return make(claims.attempt_id, claims.user_id, claims.integration_type)


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _s256(verifier: str) -> str:
    """RFC 7636 §4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
