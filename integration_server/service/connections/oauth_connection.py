"""The start of an OAuth 2 connection: an authorization attempt, and the URL to send the browser to.

What is fixed here (user, type, redirect URI, PKCE verifier) is encrypted in the attempt's details or in the state, and
is never read from the callback.
"""

import base64
import hashlib
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta

from integration_server.domain.credentials import DeviceAuthorization
from integration_server.domain.errors import InvalidField
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.service.common_types import Clock, RandomToken
from integration_server.service.connections.account_linking import AccountLinker, AccountRequest, AttemptLifecycle
from integration_server.service.connections.ports import (
    ATTEMPT_LIFETIME,
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    ConnectionStore,
    DeviceGrant,
    StateClaims,
)
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import NewIntegration
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory, require_oauth
from integration_server.service.provider_port import OAuthProvider, Provider

# The row of an attempt stays longer: one that was consumed just before its end may still be calling the provider.
_COMPLETION_GRACE = timedelta(minutes=1)


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


@dataclass(eq=False, repr=False)
class OAuthConnectionService:
    """Begins connections with the authorization code flow (RFC 6749 §4.1) and PKCE (RFC 7636), or with a device
    authorization (RFC 8628)."""

    attempts: AuthorizationAttemptStore
    lifecycle: AttemptLifecycle
    connections: ConnectionStore
    account_linker: AccountLinker
    providers: OAuthClientDirectory
    cipher: CredentialCipher
    redirects: RedirectAllowlist
    clock: Clock
    random_token: RandomToken
    _: KW_ONLY
    skip_confirmation: bool

    async def begin_connection(self, request: ConnectionRequest) -> AuthorizationRequest:
        """Store an attempt and return the authorization URL."""
        provider = self.providers[request.integration_type]
        if not require_oauth(provider).has_authorization_page:
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
            device = await self.providers.authenticated(
                provider, lambda authenticated: authenticated.begin_device_authorization(scopes)
            )
        else:
            self._require_confirmable(redirect_uri, return_url)
        verifier, now = self.random_token(), self.clock()
        expire_time = now + (ATTEMPT_LIFETIME if device is None else device.lifetime)
        details = AttemptDetails(
            integration_id=request.integration_id or await self.connections.reserve_id(),
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
        state = await self.lifecycle.cipher.states.make(
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

    async def _with_client(self, request: ConnectionRequest, current: Integration | None) -> OAuthProvider:
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
        return require_oauth(provider)

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
        return replace(new, encrypted_credentials=await self.cipher.encrypt(new.as_stored(now), None))

    async def _new_attempt(
        self,
        request: ConnectionRequest,
        details: AttemptDetails,
        now: datetime,
        expire_time: datetime,
        device: DeviceAuthorization | None,
    ) -> AuthorizationAttempt:
        claims = StateClaims(self.random_token(), request.user_id, request.integration_type, now)
        return AuthorizationAttempt(
            attempt_id=claims.attempt_id,
            user_id=claims.user_id,
            integration_type=claims.integration_type,
            encrypted_details=await self.lifecycle.cipher.encrypt_details(claims, details),
            create_time=now,
            expire_time=expire_time,
            poll_interval_seconds=None if device is None else device.interval.total_seconds(),
        )

    async def remove_abandoned(self) -> int:
        """Delete expired attempts with their pending integrations. Returns their number."""
        return await self.attempts.remove_expired(self.clock() - _COMPLETION_GRACE)


def _s256(verifier: str) -> str:
    """RFC 7636 §4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
