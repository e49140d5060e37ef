"""Providers that a test controls and that record their calls."""

import asyncio
import base64
import copy
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from integration_server.domain.credentials import (
    ApiKey,
    AuthMethod,
    Credentials,
    DecisionPending,
    DeviceAuthorization,
    OAuthTokens,
    RequestAuth,
)
from integration_server.domain.errors import (
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderRejected,
    UnknownIntegrationType,
)
from integration_server.domain.oauth_client import OAuthClient
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream, RateLimit
from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.provider_port import DeclaredField, Provider
from integration_server.service.request_body import RequestBody
from tests import signed_webhook_provider
from tests.fakes.clock import SettableClock

HOUR = timedelta(hours=1)
OWN_CLIENT = OAuthClient("own-client", ("own-secret",))
ACCOUNT = NewAccount("account-1", "ada@example.com")


@dataclass
class FakeProvider:
    """A `Provider`. An error that is set makes its call fail; calls wait for `gate`, if it is set.

    It issues numbered tokens ("access-1", "refresh-1"; of other types "other-access-1"), and checks the PKCE verifier
    of the authorizations.
    """

    clock: SettableClock
    integration_type: str = "fake"
    aliases: Sequence[str] = ()
    display_name: str = "Fake"
    auth_method: AuthMethod = AuthMethod.OAUTH2
    required_scopes: Sequence[str] = ("read",)
    required_fields: Sequence[str] = ()
    key_problems: Mapping[str, str] = field(default_factory=dict)
    missing_settings: Sequence[str] = ()
    issuer: str | None = None
    oauth_client: OAuthClient = OWN_CLIENT
    takes_client_secret: bool = True
    refused_secrets: set[str] = field(default_factory=set)
    used_clients: list[tuple[str, str]] = field(default_factory=list)
    shares_grants_with: Sequence[str] = ()
    revocation_ends: str = "grant"
    names_accounts_like: Sequence[str] = ()
    refresh_token_grace: timedelta = timedelta(0)

    has_verification: bool = True
    config_fields: Mapping[str, DeclaredField] = field(default_factory=dict)
    secret_fields: Mapping[str, DeclaredField] = field(default_factory=dict)

    account: NewAccount = ACCOUNT
    lifetime: timedelta | None = HOUR
    granted_scopes: tuple[str, ...] | None = None
    issues_refresh_token: bool = True
    rotates_refresh_token: bool = True
    can_revoke: bool = True
    repeated_tokens: OAuthTokens | None = None

    rate_limits: Sequence[RateLimit] = ()
    renew_after: timedelta = timedelta.max
    calls_at_once: int | None = None
    allowed_request_headers: Sequence[str] = ()
    responses: list[ApiResponse | Exception] = field(default_factory=list)
    calls: list[tuple[Credentials, ApiRequest]] = field(default_factory=list)
    bodies: list[list[bytes]] = field(default_factory=list)
    stream_error: Exception | None = None

    config_problem: Exception | None = None
    exchange_error: Exception | None = None
    authorize_error: Exception | None = None
    refresh_error: Exception | None = None
    verify_error: Exception | None = None
    verify_errors: list[Exception | None] = field(default_factory=list)  # of the next verifications, before that
    revoke_error: Exception | None = None
    rejected_access_tokens: Sequence[str] = ()
    gate: asyncio.Event | None = None

    supports_webhooks: bool = False
    app_secrets: Sequence[str] = ()

    device_numbers: Iterator[int] = field(default_factory=lambda: count(1))
    kept: Mapping[str, str] = field(default_factory=dict)
    challenges: list[str] = field(default_factory=list)
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    refreshes: list[str] = field(default_factory=list)
    verifications: list[Credentials] = field(default_factory=list)
    revocations: list[Credentials] = field(default_factory=list)
    device: DeviceAuthorization | None = None
    decisions: list[DecisionPending | Exception] = field(default_factory=list)
    polls: list[tuple[datetime, str]] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0

    @property
    def grants_ended_by(self) -> Sequence[str]:
        """The types that it shares grants with."""
        return self.shares_grants_with

    @property
    def oauth(self) -> Self | None:
        """This provider, if it has OAuth 2."""
        return self if self.auth_method is AuthMethod.OAUTH2 else None

    @property
    def has_authorization_page(self) -> bool:
        """Whether accounts are connected in the browser."""
        return self.auth_method is AuthMethod.OAUTH2

    @property
    def has_device_authorization(self) -> bool:
        """Whether `device` is set."""
        return self.device is not None

    async def begin_device_authorization(self, scopes: Sequence[str]) -> DeviceAuthorization:
        """The next device authorization: `device` with a number after its codes."""
        assert self.device is not None
        self._authenticate()
        number = next(self.device_numbers)
        await self._finish_call(self.authorize_error)
        device_code, user_code = f"{self.device.device_code}-{number}", f"{self.device.user_code}-{number}"
        return replace(self.device, device_code=device_code, user_code=user_code)

    async def poll_device_authorization(self, device_code: str) -> OAuthTokens | DecisionPending:
        """The next of `decisions`; tokens when there are no more. The times of the calls are in `polls`."""
        self.polls.append((self.clock(), device_code))
        self._authenticate()
        number = len(self.polls)
        decision = self.decisions.pop(0) if self.decisions else None
        await self._finish_call(decision if isinstance(decision, Exception) else None)
        if isinstance(decision, DecisionPending):
            return decision
        return self._tokens(number, "access", "refresh")

    def require_configured(self) -> None:
        """Raise `ProviderNotConfigured` if settings are missing."""
        if self.missing_settings:
            raise ProviderNotConfigured(self.integration_type, self.missing_settings)

    def for_client(self, client: OAuthClient) -> Self:
        """This provider, or a copy with another client. Both record their calls in the same lists."""
        if client == self.oauth_client:
            return self
        other = copy.copy(self)
        other.oauth_client = client
        return other

    def _authenticate(self) -> None:
        """Record the client and its secret. Raises `ProviderMisconfigured` for one of `refused_secrets`."""
        self.used_clients.append((self.oauth_client.client_id, self.oauth_client.secret))
        if self.oauth_client.secret in self.refused_secrets:
            raise ProviderMisconfigured(oauth_error="invalid_client")

    def for_config(self, config: Mapping[str, Any]) -> Self:
        """This provider. Raises `config_problem`, if it is set."""
        if self.config_problem is not None:
            raise self.config_problem
        return self

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """An authorization URL that contains all arguments."""
        self.challenges.append(code_challenge)
        params = {
            "redirect_uri": redirect_uri,
            "state": state,
            "scope": " ".join(scopes),
            "code_challenge": code_challenge,
        }
        return f"https://{self.integration_type}.example/authorize?{urlencode(params)}"

    def scopes_to_request(self, requested: Sequence[str], granted: Sequence[str]) -> Sequence[str]:
        """All of them, once each."""
        return list(dict.fromkeys((*self.required_scopes, *requested, *granted)))

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted, as OAuth 2 providers determine them."""
        return [scope for scope in requested_scopes if not _is_granted(scope, tokens)]

    def for_callback(self, query: Mapping[str, str]) -> Self:
        """Keeps the parameter `realmId`, which QuickBooks sends."""
        self.kept = {"realmId": query["realmId"]} if "realmId" in query else {}
        return self

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Tokens for any code; rejects a wrong verifier."""
        self._authenticate()
        self.exchanges.append((code, redirect_uri))
        await self._finish_call(self.exchange_error)
        if s256(code_verifier) not in self.challenges:
            raise ProviderRejected("code", oauth_error="invalid_grant")
        return replace(self._tokens(len(self.exchanges), "access", "refresh"), extras=self.kept)

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """The next tokens."""
        self._authenticate()
        self.refreshes.append(tokens.refresh_token or "")
        number = len(self.refreshes)
        await self._finish_call(self.refresh_error)
        refreshed = self._tokens(number, "renewed-access", "renewed-refresh")
        return refreshed if self.rotates_refresh_token else replace(refreshed, refresh_token=None)

    async def credentials_of(self, key: ApiKey) -> Credentials:
        """The key itself."""
        return key

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """The account."""
        self.verifications.append(credentials)
        await self._finish_call(self.verify_errors.pop(0) if self.verify_errors else self.verify_error)
        if isinstance(credentials, OAuthTokens) and credentials.access_token in self.rejected_access_tokens:
            raise ProviderRejected("credentials", needs_new_token=True)
        return self.account

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Record the revocation; returns `can_revoke`."""
        self._authenticate()
        self.revocations.append(credentials)
        await self._finish_call(self.revoke_error)
        return self.can_revoke

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """A header for a token, a query parameter for a key."""
        if isinstance(credentials, ApiKey):
            return RequestAuth(query_params={"key": credentials.api_key})
        return RequestAuth(headers={"Authorization": f"Bearer {credentials.access_token}"})

    def rate_limit_resource(self, request: ApiRequest) -> str:
        """The query parameter "resource"."""
        return dict(request.query).get("resource", "")

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """The next of `responses`, or an empty JSON object."""
        self.calls.append((credentials, request))
        await self._finish_call(None)
        response = self.responses.pop(0) if self.responses else ApiResponse(200, (), b"{}")
        if isinstance(response, Exception):
            raise response
        return response

    @asynccontextmanager
    async def stream_api(
        self, credentials: Credentials, request: ApiRequest, body: RequestBody | None, *, idle_timeout: timedelta
    ) -> AsyncIterator[ApiStream]:
        """The next of `responses`, after the whole body has been received into `bodies`."""
        received = [part async for part in body.chunks()] if body else []
        self.bodies.append(received)
        response = await self.call_api(credentials, request, deadline=idle_timeout, body_limit=0)
        yield ApiStream(replace(response, body=b""), self._parts_of(response.body))

    async def _parts_of(self, body: bytes) -> AsyncIterator[bytes]:
        for at in range(len(body)):
            if self.stream_error is not None:
                raise self.stream_error
            yield body[at : at + 1]

    async def _finish_call(self, error: Exception | None) -> None:
        gate = self.gate
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            if gate is not None:
                await gate.wait()
        finally:
            self.in_flight -= 1
        if error is not None:
            raise error

    def _tokens(self, number: int, access: str, refresh: str) -> OAuthTokens:
        if self.repeated_tokens is not None:
            return self.repeated_tokens
        prefix = "" if self.integration_type == "fake" else f"{self.integration_type}-"
        return OAuthTokens(
            access_token=f"{prefix}{access}-{number}",
            refresh_token=f"{prefix}{refresh}-{number}" if self.issues_refresh_token else None,
            expire_time=None if self.lifetime is None else self.clock() + self.lifetime,
            lifetime=self.lifetime,
            scopes=self.granted_scopes,
        )

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The secrets of the app, or the one of an integration's key."""
        if credentials is None:
            return self.oauth_client.webhook_secrets if self.oauth_client.name else self.app_secrets
        secret = credentials.webhook_secret if isinstance(credentials, ApiKey) else None
        return [secret] if secret else []

    def webhook_secret_problem(self, secret: str) -> str | None:
        """Every secret but "bad" is valid."""
        return "is bad" if secret == "bad" else None

    def key_problem(self, field: str, value: str) -> str | None:
        """The problem in `key_problems`."""
        return self.webhook_secret_problem(value) if field == "webhook_secret" else self.key_problems.get(value)

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """Verify and parse a webhook that `signed_webhook_provider.py` signed."""
        return signed_webhook_provider.receive(request, secrets)


class FakeProviders:
    """A `Providers` that a test fills."""

    def __init__(self, *providers: Provider) -> None:
        self.by_type = {provider.integration_type: provider for provider in providers}

    def __getitem__(self, integration_type: str) -> Provider:
        """The provider of a type or alias."""
        for provider in self.by_type.values():
            if integration_type in (provider.integration_type, *provider.aliases):
                return provider
        raise UnknownIntegrationType

    def all(self) -> Sequence[Provider]:
        """All providers, sorted by type."""
        return [self.by_type[name] for name in sorted(self.by_type)]


def s256(verifier: str) -> str:
    """The PKCE challenge of a verifier (RFC 7636 §4.2)."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def parameter(url: str, name: str) -> str:
    """The value of a query parameter of a URL."""
    (value,) = parse_qs(urlsplit(url).query, strict_parsing=True)[name]
    return value


async def wait_until(condition: Callable[[], object]) -> None:
    """Yield to other tasks until the condition holds; fails after 1000 turns."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


def _is_granted(scope: str, tokens: OAuthTokens) -> bool:
    if scope == "offline_access":
        return tokens.refresh_token is not None
    return tokens.scopes is None or scope in tokens.scopes
