"""Connecting an account over OAuth 2: begin, take the provider's answer, have it confirmed, finish.

An attempt is single-use by one atomic change in the store, and everything that is fixed when it begins (user, type,
redirect address, PKCE verifier) comes from there or from the sealed state, never from the callback. What a callback
says wrongly, such as another user or issuer, is refused before the attempt is touched, so that a stray or hostile
callback does not end an honest attempt.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.errors import (
    ConfirmationInvalid,
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    IssuerMismatch,
    ProviderRejected,
    StateExpired,
    StateInvalid,
    StateUsed,
    StoreUnavailable,
    UserMismatch,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.service.auditing import tell_user
from integration_server.service.connections import Connections, configured
from integration_server.service.ports import (
    Attempt,
    AttemptStore,
    Clock,
    IntegrationStore,
    NewAccount,
    NewAttempt,
    NewIntegration,
    Provider,
    Providers,
    RandomName,
    Sealer,
)
from integration_server.service.redirects import RedirectPolicy, with_outcome
from integration_server.service.revoking import Revoking
from integration_server.service.sealing import SealedTokens, callback_place, verifier_place
from integration_server.service.tasks import ServerTasks

ATTEMPT_LIFETIME = timedelta(minutes=10)  # the document's, and RFC 6749 §4.1.2's longest for the code itself
# An attempt that was taken in its last moment may still be talking to the provider; its row stays that long.
_FINISHING_TIME = timedelta(minutes=1)
_SAFE_ERROR_CODE = re.compile(r"[a-z0-9_.-]{1,64}")

CONFIRMATION_REQUIRED = "confirmation_required"

_UNKNOWN_ACCOUNT = NewAccount(account_id=None, account_label=None)


@dataclass(frozen=True, slots=True)
class ConnectionRequest:
    """What a user wants to connect. Empty texts and 0 mean: not given."""

    user_id: UserId
    integration_type: str
    redirect_uri: str = ""
    scopes: tuple[str, ...] = ()
    return_url: str = ""
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    integration_id: IntegrationId = IntegrationId(0)


@dataclass(frozen=True, slots=True)
class Authorization:
    """Where to send the browser, and until when."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    expire_time: datetime
    integration_id: IntegrationId


@dataclass(frozen=True, slots=True)
class Callback:
    """What the provider's redirect brought. `user_id` is the signed-in user, where the caller knows.

    A state of a type that is not within `reach` is not one that the caller could have.
    """

    state: str = field(repr=False)
    code: str = field(default="", repr=False)
    integration_type: str = ""
    iss: str = ""
    error: str = ""
    user_id: UserId | None = None
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    reach: Reach = EVERYTHING


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a callback or confirmation ended; `reason` is empty on success."""

    success: bool
    integration_id: IntegrationId
    redirect_url: str = field(repr=False)
    message: str
    reason: str = ""
    confirmation_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AttemptName:
    """The content of a state or confirmation token: which attempt, whose, and since when."""

    attempt_id: str
    user_id: UserId
    integration_type: str
    begin_time: datetime


@dataclass(frozen=True, slots=True)
class HeldCallback:
    """What of a callback is kept, sealed, until it is confirmed."""

    code: str = field(repr=False)
    query: Mapping[str, str] = field(repr=False)


_HELD: TypeAdapter[HeldCallback] = TypeAdapter(HeldCallback)


class Connecting:
    """The OAuth 2 authorization code flow (RFC 6749 §4.1, RFC 7636), with a check of who finishes it.

    With `direct_completion` a callback that does not name the signed-in user is finished at once; otherwise it waits
    for `confirm_connection`. A user that is named is always compared.
    """

    def __init__(
        self,
        attempts: AttemptStore,
        integrations: IntegrationStore,
        connections: Connections,
        revoking: Revoking,
        providers: Providers,
        sealer: Sealer,
        redirects: RedirectPolicy,
        tasks: ServerTasks,
        clock: Clock,
        random_name: RandomName,
        *,
        direct_completion: bool,
    ) -> None:
        self._attempts = attempts
        self._integrations = integrations
        self._connections = connections
        self._revoking = revoking
        self._providers = providers
        self._sealer = sealer
        self._redirects = redirects
        self._tasks = tasks
        self._clock = clock
        self._random_name = random_name
        self._direct_completion = direct_completion
        self._states = SealedTokens(sealer, "state", AttemptName)
        self._confirmations = SealedTokens(sealer, "confirmation", AttemptName)

    # --- beginning ---------------------------------------------------------------------------------------------

    async def begin_connection(self, request: ConnectionRequest) -> Authorization:
        """Store an attempt and answer with the address to send the browser to."""
        provider = self._oauth_provider(request.integration_type)
        request = replace(request, integration_type=provider.integration_type)  # where it went by an alias
        current = await self._to_reconnect(request)
        provider = provider.at(current.config if current else request.config)
        verifier = self._random_name()
        scopes = tuple(dict.fromkeys((*provider.required_scopes, *request.scopes)))
        attempt = await self._new_attempt(request, scopes, verifier)
        integration_id = await self._store(request, attempt)
        state = await self._states.make(
            AttemptName(attempt.attempt_id, request.user_id, request.integration_type, attempt.create_time)
        )
        url = provider.authorization_url(
            redirect_uri=attempt.redirect_uri,
            state=state,
            scopes=scopes,
            code_challenge=_s256(verifier),
        )
        return Authorization(url, state, attempt.expire_time, integration_id)

    def _oauth_provider(self, integration_type: str) -> Provider:
        provider = self._providers.get(integration_type)
        if provider.auth_method is not AuthMethod.OAUTH2:
            raise InvalidField("integration_type", "is connected with ConnectWithApiKey")
        return configured(provider)

    async def _to_reconnect(self, request: ConnectionRequest) -> Integration | None:
        """The integration that is to be connected again; None for a new one."""
        if not request.integration_id:
            return None
        current = await self._connections.existing(request.integration_id, request.user_id, request.integration_type)
        if not current.is_connected:
            raise IntegrationPending
        return current

    async def _new_attempt(self, request: ConnectionRequest, scopes: tuple[str, ...], verifier: str) -> NewAttempt:
        attempt_id = self._random_name()
        redirect_uri = self._redirects.redirect_uri(request.integration_type, request.redirect_uri)
        return_url = self._redirects.return_url(request.return_url)
        place = verifier_place(attempt_id, request.user_id, request.integration_type)
        now = self._clock()
        return NewAttempt(
            attempt_id=attempt_id,
            user_id=request.user_id,
            integration_type=request.integration_type,
            redirect_uri=redirect_uri,
            return_url=return_url,
            scopes=scopes,
            sealed_verifier=await self._sealer.seal(verifier.encode(), place),
            is_reconnection=bool(request.integration_id),
            create_time=now,
            expire_time=now + ATTEMPT_LIFETIME,
        )

    async def _store(self, request: ConnectionRequest, attempt: NewAttempt) -> IntegrationId:
        if request.integration_id:
            await self._attempts.begin_again(attempt, request.integration_id)
            return request.integration_id
        return await self._attempts.begin(
            attempt,
            NewIntegration(
                uid=self._random_name(),
                user_id=request.user_id,
                integration_type=request.integration_type,
                auth_method=AuthMethod.OAUTH2,
                name=request.name,
                config=request.config,
            ),
        )

    # --- the provider's answer ---------------------------------------------------------------------------------

    async def handle_callback(self, callback: Callback) -> Outcome:
        """Take the provider's answer: finish, hold for confirmation, or tell of the refusal."""
        began = await self._read_state(callback)
        provider = self._providers.get(began.integration_type)
        # RFC 9207 §2.4: before anything is sent to the token endpoint, and for refusals too.
        if provider.issuer is not None and callback.iss != provider.issuer:
            raise IssuerMismatch
        if callback.user_id is not None and callback.user_id != began.user_id:
            raise UserMismatch
        if callback.error:
            return await self._tell_refusal(began, callback.error)
        if not callback.code:
            raise InvalidField("code", "is required, unless error is given")
        if callback.user_id is None and not self._direct_completion:
            return await self._hold(began, callback)
        return await self._tasks.run(self._finish_begun(provider, began, callback))

    async def _read_state(self, callback: Callback) -> AttemptName:
        began = await self._states.read(callback.state)
        if began is None or not self._is_for(callback.integration_type, began.integration_type):
            raise StateInvalid
        if not callback.reach.covers(began.integration_type):
            raise StateInvalid
        tell_user(began.user_id)  # who finishes may be a sidecar, which knows nobody
        if self._clock() >= began.begin_time + ATTEMPT_LIFETIME:
            raise StateExpired
        return began

    def _is_for(self, named: str, integration_type: str) -> bool:
        """Whether a callback for the named type, none meaning any, is for this one."""
        return named in ("", integration_type) or named in self._providers.get(integration_type).aliases

    async def _tell_refusal(self, began: AttemptName, error: str) -> Outcome:
        attempt = await self._attempts.take(began.attempt_id, self._clock())
        if attempt is None:
            raise StateUsed
        await self._attempts.give_up(attempt)
        reason = error if _SAFE_ERROR_CODE.fullmatch(error) else "unknown_error"
        return Outcome(
            success=False,
            integration_id=attempt.integration_id if attempt.is_reconnection else IntegrationId(0),
            redirect_url=with_outcome(
                attempt.return_url, success="false", reason=reason, integration_type=attempt.integration_type
            ),
            message="The provider did not grant access",
            reason=reason,
        )

    # --- confirmation ------------------------------------------------------------------------------------------

    async def _hold(self, began: AttemptName, callback: Callback) -> Outcome:
        """Keep the code, sealed, until the app's backend says who is signed in."""
        held = _HELD.dump_json(HeldCallback(callback.code, callback.query))
        place = callback_place(began.attempt_id, began.user_id, began.integration_type)
        sealed = await self._sealer.seal(held, place)
        attempt = await self._attempts.hold(began.attempt_id, sealed, self._clock())
        if attempt is None:
            raise StateUsed
        token = await self._confirmations.make(began)
        return Outcome(
            success=False,
            integration_id=attempt.integration_id,
            redirect_url=with_outcome(
                attempt.return_url, confirmation_token=token, integration_type=attempt.integration_type
            ),
            message="The connection waits to be confirmed",
            reason=CONFIRMATION_REQUIRED,
            confirmation_token=token,
        )

    async def confirm_connection(self, confirmation_token: str, user_id: UserId, reach: Reach = EVERYTHING) -> Outcome:
        """Finish a held connection for the user who is signed in."""
        began = await self._confirmations.read(confirmation_token)
        if began is None or not reach.covers(began.integration_type):
            raise ConfirmationInvalid
        if user_id != began.user_id:
            raise UserMismatch
        provider = self._providers.get(began.integration_type)
        return await self._tasks.run(self._finish_held(provider, began))

    # --- finishing ---------------------------------------------------------------------------------------------

    async def _finish_begun(self, provider: Provider, began: AttemptName, callback: Callback) -> Outcome:
        attempt = await self._attempts.take(began.attempt_id, self._clock())
        if attempt is None:
            raise StateUsed
        return await self._finish(provider, attempt, HeldCallback(callback.code, callback.query))

    async def _finish_held(self, provider: Provider, began: AttemptName) -> Outcome:
        attempt = await self._attempts.take_held(began.attempt_id, self._clock())
        if attempt is None:
            raise ConfirmationInvalid
        return await self._finish(provider, attempt, None)

    async def _finish(self, provider: Provider, attempt: Attempt, callback: HeldCallback | None) -> Outcome:
        """Finish a taken attempt with its callback; None means the one that it holds."""
        try:
            integration_id = await self._trade(provider, attempt, callback or await self._open_held(attempt))
        except Exception:
            await self._attempts.give_up(attempt)
            raise
        return Outcome(
            success=True,
            integration_id=integration_id,
            redirect_url=with_outcome(
                attempt.return_url,
                success="true",
                integration_id=str(integration_id),
                integration_type=attempt.integration_type,
            ),
            message=f"{provider.display_name} is connected",
        )

    async def _open_held(self, attempt: Attempt) -> HeldCallback:
        place = callback_place(attempt.attempt_id, attempt.user_id, attempt.integration_type)
        return _HELD.validate_json(await self._sealer.open(attempt.sealed_callback or b"", place))

    async def _trade(self, provider: Provider, attempt: Attempt, callback: HeldCallback) -> IntegrationId:
        """Code to tokens to account to stored integration."""
        target = await self._integrations.find(attempt.integration_id, attempt.user_id)
        if target is None:
            raise IntegrationNotFound  # disconnected while the user was at the provider
        provider = provider.at(target.integration.config)
        place = verifier_place(attempt.attempt_id, attempt.user_id, attempt.integration_type)
        verifier = (await self._sealer.open(attempt.sealed_verifier, place)).decode()
        extras = provider.read_callback(callback.query)
        answer = await provider.exchange_code_for_tokens(callback.code, attempt.redirect_uri, verifier)
        tokens = replace(answer, extras={**extras, **answer.extras})
        account = _UNKNOWN_ACCOUNT
        try:
            account = await _account_of(provider, tokens, attempt.scopes)
            integration = await self._connections.commit(target.integration, account, tokens, attempt.scopes)
        except StoreUnavailable:
            raise  # and with it the knowledge whether they were kept
        except Exception:
            await self._revoking.discard(attempt, account, tokens)
            raise
        return integration.integration_id

    async def remove_abandoned(self) -> int:
        """Remove attempts that nobody finished, with their pending integrations; how many there were."""
        return await self._attempts.remove_expired(self._clock() - _FINISHING_TIME)


async def _account_of(provider: Provider, tokens: OAuthTokens, asked: Sequence[str]) -> NewAccount:
    try:
        return await provider.verify_connection(tokens)
    except ProviderRejected:
        # A user may leave out the very scope that the look-up needs: that is shown, not refused.
        if set(provider.missing_scopes(asked, tokens)).isdisjoint(provider.required_scopes):
            raise
        return _UNKNOWN_ACCOUNT


def _s256(verifier: str) -> str:
    """RFC 7636 §4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
