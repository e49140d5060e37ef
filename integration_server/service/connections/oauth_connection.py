"""The OAuth 2 connection flow: authorization URL, callback, confirmation, code exchange.

The store consumes an attempt atomically, so it is used once. What is fixed at the start (user, type, redirect URI, PKCE
verifier) comes from the encrypted details of the attempt or from the encrypted state, never from the callback. A
callback with a wrong user or issuer is rejected before the attempt changes, so that it does not end a genuine attempt.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta

from pydantic import TypeAdapter

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.errors import (
    ConfirmationInvalid,
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
from integration_server.service.audit.audit_trail import audit_user
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Aead, Clock, RandomToken
from integration_server.service.connections.account_linking import AccountLinker, AccountRequest
from integration_server.service.connections.ports import (
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    StateClaims,
)
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist, with_result_params
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.connections.revocation_ports import RevocationInProgress
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
    EncryptedTokens,
    attempt_aad,
    callback_aad,
)
from integration_server.service.integrations.ports import IntegrationStore, NewAccount, NewIntegration
from integration_server.service.provider_port import Provider, Providers

ATTEMPT_LIFETIME = timedelta(minutes=10)  # the requirements'; RFC 6749 §4.1.2 recommends it for codes
# The row of an attempt stays longer: one that was consumed just before its end may still be calling the provider.
_COMPLETION_GRACE = timedelta(minutes=1)
# Seconds until a revocation that may end the new grant has ended, the first for one that has. In all they last as long
# as the call of one may take by default.
_REVOCATION_PAUSES = (0, 0.5, 1, 2, 4, 8, 16)
_SAFE_ERROR_CODE = re.compile(r"[a-z0-9_.-]{1,64}")

CONFIRMATION_REQUIRED = "confirmation_required"

_UNKNOWN_ACCOUNT = NewAccount(account_id=None, account_label=None)


@dataclass(frozen=True, slots=True)
class ConnectionRequest(AccountRequest):
    """A request to connect or reconnect an account. Empty strings mean "not given"."""

    redirect_uri: str = ""
    scopes: tuple[str, ...] = ()
    return_url: str = ""


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """The URL to send the browser to, valid until `expire_time`."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    expire_time: datetime
    integration_id: IntegrationId


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


@dataclass(frozen=True, slots=True)
class PendingCallback:
    """The part of a callback that is stored, encrypted, until it is confirmed."""

    code: str = field(repr=False)
    query: Mapping[str, str] = field(repr=False)


_PENDING_CALLBACK: TypeAdapter[PendingCallback] = TypeAdapter(PendingCallback)
_DETAILS: TypeAdapter[AttemptDetails] = TypeAdapter(AttemptDetails)


@dataclass(eq=False, repr=False)
class OAuthConnectionService:
    """The OAuth 2 authorization code flow (RFC 6749 §4.1) with PKCE (RFC 7636) and a check of the user.

    A callback that names the signed-in user is compared with the attempt's user. One that names none waits for
    `confirm_connection`, unless `skip_confirmation` is set.
    """

    attempts: AuthorizationAttemptStore
    integrations: IntegrationStore
    account_linker: AccountLinker
    revocation_service: RevocationService
    providers: Providers
    aead: Aead
    redirects: RedirectAllowlist
    tasks: DetachedTasks
    clock: Clock
    random_token: RandomToken
    _: KW_ONLY
    skip_confirmation: bool
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._states = EncryptedTokens(self.aead, "state", StateClaims)
        self._confirmations = EncryptedTokens(self.aead, "confirmation", StateClaims)
        self._cipher = CredentialCipher(self.aead)

    # --- start -------------------------------------------------------------------------------------------------

    async def begin_connection(self, request: ConnectionRequest) -> AuthorizationRequest:
        """Store an attempt and return the authorization URL."""
        provider = self._oauth_provider(request.integration_type)
        request = replace(request, integration_type=provider.integration_type)  # it may be an alias
        current = await self._find_reconnected(request, provider)
        provider = provider.for_config(current.config if current else request.config)
        verifier = self.random_token()
        scopes = tuple(provider.scopes_to_request(request.scopes, current.scopes if current else ()))
        details = AttemptDetails(
            integration_id=request.integration_id or await self.integrations.reserve_id(),
            is_reconnection=bool(request.integration_id),
            redirect_uri=self.redirects.redirect_uri(request.integration_type, request.redirect_uri),
            return_url=self.redirects.return_url(request.return_url),
            scopes=scopes,
            verifier=verifier,
        )
        attempt = await self._new_attempt(request, details)
        if details.is_reconnection:
            await self.attempts.begin_reconnection(attempt, details.integration_id)
        else:
            await self.attempts.begin(attempt, await self._pending(request, provider, details, attempt.create_time))
        state = await self._states.make(
            StateClaims(attempt.attempt_id, request.user_id, request.integration_type, attempt.create_time)
        )
        url = provider.authorization_url(
            redirect_uri=details.redirect_uri, state=state, scopes=scopes, code_challenge=_s256(verifier)
        )
        return AuthorizationRequest(url, state, attempt.expire_time, details.integration_id)

    def _oauth_provider(self, integration_type: str) -> Provider:
        provider = self.providers[integration_type]
        if provider.auth_method is not AuthMethod.OAUTH2:
            raise InvalidField("integration_type", "is connected with ConnectWithApiKey")
        provider.require_configured()
        return provider

    async def _find_reconnected(self, request: ConnectionRequest, provider: Provider) -> Integration | None:
        """The integration to reconnect; None for a new one."""
        if not request.integration_id:
            return None
        current = await self.account_linker.existing(request, provider)
        current.require_connected()
        return current

    async def _pending(
        self, request: ConnectionRequest, provider: Provider, details: AttemptDetails, now: datetime
    ) -> NewIntegration:
        new = replace(request.new_integration(provider, self.random_token()), integration_id=details.integration_id)
        return replace(new, encrypted_credentials=await self._cipher.encrypt(new.as_stored(now), None))

    async def _new_attempt(self, request: ConnectionRequest, details: AttemptDetails) -> AuthorizationAttempt:
        attempt_id = self.random_token()
        associated_data = attempt_aad(attempt_id, request.user_id, request.integration_type)
        now = self.clock()
        return AuthorizationAttempt(
            attempt_id=attempt_id,
            user_id=request.user_id,
            integration_type=request.integration_type,
            encrypted_details=await self.aead.encrypt(_DETAILS.dump_json(details), associated_data),
            create_time=now,
            expire_time=now + ATTEMPT_LIFETIME,
        )

    # --- callback ----------------------------------------------------------------------------------------------

    async def handle_callback(self, callback: Callback) -> ConnectionResult:
        """Complete the connection, hold it for confirmation, or report the provider's error."""
        claims = await self._read_state(callback)
        provider = self.providers[claims.integration_type]
        # RFC 9207 §2.4: before a request to the token endpoint, and also for error responses.
        if provider.issuer is not None and callback.iss != provider.issuer:
            raise IssuerMismatch
        if callback.user_id is not None and callback.user_id != claims.user_id:
            raise UserMismatch
        if callback.error:
            return await self._handle_denial(claims, callback.error)
        if not callback.code:
            raise InvalidField("code", "is required, unless error is given")
        pending_callback = PendingCallback(callback.code, callback.query)
        if callback.user_id is None and not self.skip_confirmation:
            return await self._hold_for_confirmation(claims, pending_callback)
        return await self.tasks.run(self._complete(claims, pending_callback))

    async def _read_state(self, callback: Callback) -> StateClaims:
        claims = await self._states.read(callback.state)
        if claims is None or not self._matches_type(callback.integration_type, claims.integration_type):
            raise StateInvalid
        if not callback.allowed_types.allows(claims.integration_type):
            raise StateInvalid
        audit_user.set(claims.user_id)  # the caller may be the sidecar, which knows no user
        if self.clock() >= claims.begin_time + ATTEMPT_LIFETIME:
            raise StateExpired
        return claims

    def _matches_type(self, named: str, integration_type: str) -> bool:
        """Whether the type that a callback names is this type or an alias of it. It may name none."""
        return named in ("", integration_type) or named in self.providers[integration_type].aliases

    async def _handle_denial(self, claims: StateClaims, error: str) -> ConnectionResult:
        attempt = await self.attempts.consume(claims.attempt_id, self.clock())
        if attempt is None:
            raise StateUsed
        await self.attempts.abandon(attempt)
        details = await self._details(claims, attempt)
        reason = error if _SAFE_ERROR_CODE.fullmatch(error) else "unknown_error"
        return ConnectionResult(
            success=False,
            integration_id=details.integration_id if details.is_reconnection else IntegrationId(0),
            redirect_url=_return_url(claims, details, success="false", reason=reason),
            message="The provider did not grant access",
            reason=reason,
        )

    # --- confirmation ------------------------------------------------------------------------------------------

    async def _hold_for_confirmation(self, claims: StateClaims, callback: PendingCallback) -> ConnectionResult:
        """Store the code, encrypted, until the app's backend confirms the signed-in user."""
        associated_data = callback_aad(claims.attempt_id, claims.user_id, claims.integration_type)
        encrypted = await self.aead.encrypt(_PENDING_CALLBACK.dump_json(callback), associated_data)
        attempt = await self.attempts.store_pending_callback(claims.attempt_id, encrypted, self.clock())
        if attempt is None:
            raise StateUsed
        details = await self._details(claims, attempt)
        token = await self._confirmations.make(claims)
        return ConnectionResult(
            success=False,
            integration_id=details.integration_id,
            redirect_url=_return_url(claims, details, confirmation_token=token),
            message="The connection must be confirmed",
            reason=CONFIRMATION_REQUIRED,
            confirmation_token=token,
        )

    async def confirm_connection(
        self, confirmation_token: str, user_id: UserId, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES
    ) -> ConnectionResult:
        """Complete a held connection for the signed-in user."""
        claims = await self._confirmations.read(confirmation_token)
        if claims is None or not allowed_types.allows(claims.integration_type):
            raise ConfirmationInvalid
        if user_id != claims.user_id:
            raise UserMismatch
        if self.clock() >= claims.begin_time + ATTEMPT_LIFETIME:  # not from the row, whose time may be altered
            raise ConfirmationInvalid
        return await self.tasks.run(self._complete(claims, None))

    # --- completion --------------------------------------------------------------------------------------------

    async def _complete(self, claims: StateClaims, callback: PendingCallback | None) -> ConnectionResult:
        """Consume an attempt and complete it with a callback; None means its pending callback."""
        provider = self.providers[claims.integration_type]
        consume = self.attempts.consume if callback else self.attempts.consume_pending_callback
        attempt = await consume(claims.attempt_id, self.clock())
        if attempt is None:
            raise StateUsed if callback else ConfirmationInvalid
        try:
            details = await self._details(claims, attempt)
            callback = callback or await self._decrypt_callback(claims, attempt)
            integration_id = await self._exchange_code(provider, claims, details, callback)
        except Exception:
            await self.attempts.abandon(attempt)
            raise
        return ConnectionResult(
            success=True,
            integration_id=integration_id,
            redirect_url=_return_url(claims, details, success="true", integration_id=str(integration_id)),
            message=f"{provider.display_name} is connected",
        )

    async def _details(self, claims: StateClaims, attempt: AuthorizationAttempt) -> AttemptDetails:
        """The details of an attempt of these claims. Its URLs must still be allowed: the lists may have changed.

        Raises `CredentialsUnreadable` or `RedirectUriNotAllowed`.
        """
        associated_data = attempt_aad(claims.attempt_id, claims.user_id, claims.integration_type)
        details = _DETAILS.validate_json(await self.aead.decrypt(attempt.encrypted_details, associated_data))
        self.redirects.redirect_uri(claims.integration_type, details.redirect_uri)
        self.redirects.return_url(details.return_url or "")
        return details

    async def _decrypt_callback(self, claims: StateClaims, attempt: AuthorizationAttempt) -> PendingCallback:
        associated_data = callback_aad(claims.attempt_id, claims.user_id, claims.integration_type)
        return _PENDING_CALLBACK.validate_json(
            await self.aead.decrypt(attempt.encrypted_callback or b"", associated_data)
        )

    async def _exchange_code(
        self, provider: Provider, claims: StateClaims, details: AttemptDetails, callback: PendingCallback
    ) -> IntegrationId:
        """Exchange the code, verify the account, and commit the tokens."""
        # Raises `IntegrationNotFound` if it was disconnected while the user was at the provider.
        target = await self._cipher.redacted(await self.integrations.get(details.integration_id, claims.user_id))
        provider = provider.for_config(target.config)
        extras = provider.read_callback(callback.query)
        account, proof_time = _UNKNOWN_ACCOUNT, await self.revocation_service.revocations.now()
        try:
            tokens = await provider.exchange_code_for_tokens(callback.code, details.redirect_uri, details.verifier)
        except ProviderError as error:
            if error.issued_tokens is not None:
                await self.revocation_service.discard(claims, account, error.issued_tokens)
            raise
        tokens = replace(tokens, extras={**extras, **tokens.extras})
        try:
            for pause in _REVOCATION_PAUSES:
                account = await _verify_account(provider, tokens, details.scopes)
                try:
                    integration = await self.account_linker.commit(target, account, tokens, details.scopes, proof_time)
                    return integration.integration_id
                except RevocationInProgress:
                    await self.pause(pause)
                # The revocation may have ended this grant too. Then the provider rejects its tokens.
                proof_time = await self.revocation_service.revocations.now()
                if tokens.refresh_token is not None:
                    tokens = tokens.updated_with(await provider.refresh(tokens), self.clock())
            raise ProviderUnavailable("an earlier connection of this account is being revoked; connect again")
        except StoreUnavailable:
            raise  # it is not known whether the tokens were committed
        except Exception:
            await self.revocation_service.discard(claims, account, tokens)
            raise

    async def remove_abandoned(self) -> int:
        """Delete expired attempts with their pending integrations. Returns their number."""
        return await self.attempts.remove_expired(self.clock() - _COMPLETION_GRACE)


async def _verify_account(provider: Provider, tokens: OAuthTokens, requested_scopes: Sequence[str]) -> NewAccount:
    try:
        return await provider.verify_connection(tokens)
    except ProviderRejected:
        # The account request may need a scope that the user denied; the integration then shows the missing scope.
        if set(provider.missing_scopes(requested_scopes, tokens)).isdisjoint(provider.required_scopes):
            raise
        return _UNKNOWN_ACCOUNT


def _return_url(claims: StateClaims, details: AttemptDetails, **outcome: str) -> str:
    return with_result_params(details.return_url, **outcome, integration_type=claims.integration_type)


def _s256(verifier: str) -> str:
    """RFC 7636 §4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
