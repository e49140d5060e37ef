"""Callbacks of the OAuth 2 connection flow and their confirmation: state check, code exchange, result for the browser.

A callback with a wrong user or issuer is rejected before the attempt changes, so that it does not end a genuine
attempt. Neither does a denial, so that the user can go back and allow.

Browsers repeat requests: they prefetch, reload and go back. A callback that repeats state and code gets the outcome of
the first, also from another replica. While the code is being exchanged, it waits for the outcome.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import count

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import (
    ConfirmationInvalid,
    IntegrationServerError,
    InvalidField,
    IssuerMismatch,
    ProviderError,
    StateExpired,
    StateInvalid,
    StateUsed,
    StoreUnavailable,
    UserMismatch,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.domain.return_urls import with_result_params
from integration_server.service.audit.audit_trail import audit_user
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock
from integration_server.service.connections.account_linking import AttemptLifecycle, TokenStorage, digest_of
from integration_server.service.connections.ports import (
    ATTEMPT_LIFETIME,
    AttemptDetails,
    AuthorizationAttemptStore,
    EndedAttempt,
    PendingCallback,
    StateClaims,
)
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory, require_oauth

# A browser repeats a request within seconds; a person reloads a page within a minute. Not longer than the grace.
REPETITION_WINDOW = timedelta(seconds=60)
_POLL_INTERVAL = 0.1  # seconds between reads of an outcome that another callback is waiting for, growing tenfold
_SAFE_ERROR_CODE = re.compile(r"[a-z0-9_.-]{1,64}")
_UNKNOWN_ERROR = "unknown_error"

CONFIRMATION_REQUIRED = "confirmation_required"
AUTHORIZATION_PENDING = "authorization_pending"  # RFC 8628 §3.5


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


@dataclass(eq=False, repr=False)
class OAuthCallbackService:
    """Completes authorization code flows with their callback, after a check of the user.

    A callback that names the signed-in user is compared with the attempt's user. One that names none waits for
    `confirm_connection`, unless `skip_confirmation` is set. `keeps_outcomes` is False only in negative controls: then
    every repeated callback finds a used state.
    """

    attempts: AuthorizationAttemptStore
    lifecycle: AttemptLifecycle
    integrations: IntegrationStore
    token_storage: TokenStorage
    providers: OAuthClientDirectory
    cipher: CredentialCipher
    redirects: RedirectAllowlist
    tasks: DetachedTasks
    clock: Clock
    _: KW_ONLY
    skip_confirmation: bool
    keeps_outcomes: bool = True
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

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
            # The code waits, encrypted, until the app's backend confirms the signed-in user.
            ended = await self.lifecycle.hold(
                claims, pending_callback, await self.lifecycle.cipher.confirmations.make(claims)
            )
        else:
            exchange = partial(self._exchange_code, claims, pending_callback)
            ended = await self.tasks.run(self.lifecycle.complete(claims, callback.code, exchange))
        if ended is None:
            return await self._repeat(claims, callback.code, otherwise=StateUsed())
        return self._result(claims, ended)

    async def _read_state(self, callback: Callback) -> StateClaims:
        claims = await self.lifecycle.cipher.states.read(callback.state)
        if claims is None or not self._matches_type(callback.integration_type, claims.integration_type):
            raise StateInvalid
        if not callback.allowed_types.allows(claims.integration_type):
            raise StateInvalid
        audit_user.set(claims.user_id)  # the caller may be the sidecar, which knows no user
        return claims

    def _is_expired(self, claims: StateClaims) -> bool:
        return self.clock() >= claims.begin_time + ATTEMPT_LIFETIME  # not from the row, whose time may be altered

    def _matches_type(self, type_of_callback: str, integration_type: str) -> bool:
        """Whether the type that a callback names is this type or an alias of it. It may name none."""
        return (
            type_of_callback in ("", integration_type) or type_of_callback in self.providers[integration_type].aliases
        )

    async def _report_denial(self, claims: StateClaims, error: str) -> ConnectionResult:
        """The result for an error response. The attempt stays as it is: the user can go back and allow."""
        if self._is_expired(claims):
            raise StateExpired
        attempt = await self.attempts.find(claims.attempt_id)
        if attempt is None or attempt.encrypted_outcome is not None or attempt.integration_id is None:
            raise StateUsed
        details = await self.lifecycle.read_details(claims, attempt)
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
        details = await self.lifecycle.read_details(claims, attempt)
        outcome = None if attempt.encrypted_outcome is None else await self.lifecycle.read_outcome(claims, attempt)
        if outcome and outcome.error:
            raise outcome.error.to_error()
        if outcome and outcome.integration_id:
            return self._result(claims, EndedAttempt(details, outcome))
        # While its tokens are stored; a process that dies meanwhile leaves the outcome as it is.
        is_ending = outcome is not None and self.clock() < outcome.receive_time + REPETITION_WINDOW
        if not is_ending:
            if attempt.integration_id is None or details.device is None:
                raise StateUsed
            if self.clock() >= details.device.expire_time:
                raise StateExpired
        return ConnectionResult(
            success=False,
            integration_id=details.integration_id,
            redirect_url="",
            message="The account is not connected yet",
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
            outcome = await self.lifecycle.read_outcome(claims, attempt)
            is_too_late = self.clock() >= outcome.receive_time + REPETITION_WINDOW
            if is_too_late or not hmac.compare_digest(outcome.code_digest, digest_of(code)):
                raise otherwise
            if outcome.error:
                raise outcome.error.to_error()
            if outcome.integration_id or outcome.confirmation_token:
                details = await self.lifecycle.read_details(claims, attempt)
                return self._result(claims, EndedAttempt(details, outcome))
            await self.pause(_POLL_INTERVAL * min(polls, 10))
        raise AssertionError  # not reachable: a window ends

    def _result(self, claims: StateClaims, ended: EndedAttempt) -> ConnectionResult:
        """The result of a callback that has connected an integration, or waits for its confirmation."""
        details, outcome = ended.details, ended.outcome
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

    async def _failure_metadata(self, claims: StateClaims, error: IntegrationServerError) -> Mapping[str, str]:
        details = None
        with suppress(IntegrationServerError):  # then the browser is sent to the default
            attempt = await self.attempts.find(claims.attempt_id)
            details = await self.lifecycle.read_details(claims, attempt) if attempt else None
        url = self._redirect_url(claims, details, success="false", reason=error.reason)
        return {"display_name": self.providers[claims.integration_type].display_name, "redirect_url": url}

    def _redirect_url(self, claims: StateClaims, details: AttemptDetails | None, **outcome: str) -> str:
        """Where the browser continues: the attempt's return URL or the default one, with the outcome; else empty."""
        return_url = (details and details.return_url) or self.redirects.default_return_url
        return with_result_params(return_url, **outcome, integration_type=claims.integration_type)

    async def confirm_connection(
        self, confirmation_token: str, user_id: UserId, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES
    ) -> ConnectionResult:
        """Complete a held connection for the signed-in user."""
        claims = await self.lifecycle.cipher.confirmations.read(confirmation_token)
        if claims is None or not allowed_types.allows(claims.integration_type):
            raise ConfirmationInvalid
        if user_id != claims.user_id:
            raise UserMismatch
        if self._is_expired(claims):
            raise ConfirmationInvalid
        exchange = partial(self._exchange_code, claims)
        ended = await self.tasks.run(self.lifecycle.complete_held(claims, exchange))
        if ended is None:
            raise ConfirmationInvalid
        return self._result(claims, ended)

    async def _exchange_code(
        self, claims: StateClaims, callback: PendingCallback, details: AttemptDetails
    ) -> Integration:
        """Exchange the code, verify the account, and commit the tokens."""
        # Raises `IntegrationNotFound` if it was disconnected while the user was at the provider.
        target = await self.cipher.redacted(await self.integrations.get(details.integration_id, claims.user_id))
        target = replace(target, oauth_client=details.oauth_client)
        provider = await self.providers.for_client(claims.integration_type, details.oauth_client)
        provider = require_oauth(provider).for_config(target.config).for_callback(callback.query)
        proof_time = await self.token_storage.now()
        try:
            tokens = await self.providers.authenticated(
                provider,
                lambda authenticated: authenticated.exchange_code_for_tokens(
                    callback.code, details.redirect_uri, details.verifier
                ),
            )
        except ProviderError as error:
            if error.issued_tokens is not None:
                await self.token_storage.discard(claims, details.oauth_client, error.issued_tokens)
            raise
        return await self.token_storage.store(claims, details, provider, target, tokens, proof_time)


def _error_code(callback: Callback) -> str:
    """The code of an error response; empty for another callback.

    Some providers do not use `error` (RFC 6749 §4.1.2.1), but `error_code` with `error_message`, `errorCode` or other
    names that begin alike. They are believed only where there is no code.
    """
    if callback.error or callback.code:
        return callback.error
    values = [value for name, value in callback.query.items() if name.lower().startswith("err") and value]
    return next(filter(_SAFE_ERROR_CODE.fullmatch, values), _UNKNOWN_ERROR) if values else ""
