"""The base class of all providers. Its names are those of the base class in the requirements.

docs/adding-a-provider.md explains how to write a provider. The class continues those of `provider_model.py` and
`provider_requests.py` with calls of backends, API keys and webhooks.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from json import dumps
from typing import Any, Protocol
from urllib.parse import urlencode

from integration_server.domain.credentials import (
    ApiKey,
    Credentials,
    OAuthTokens,
    RequestAuth,
)
from integration_server.domain.errors import ApiNotDeclared, InvalidField, ResponseTooLarge
from integration_server.domain.lenient_values import texts_at
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream
from integration_server.domain.text import control_character_problem
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.http import HttpResponse, ResponseBodyTooLarge
from integration_server.providers.provider_model import ProviderConfig, ProviderContext
from integration_server.providers.provider_requests import MAX_ERROR_SIZE, ProviderRequests
from integration_server.providers.rate_limit_headers import parse_rate_limit_headers
from integration_server.providers.url_templates import fill
from integration_server.providers.webhooks.parsing import unread_event
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys
from integration_server.service.provider_port import OAuthProvider
from integration_server.service.request_body import RequestBody

__all__ = ["BaseProvider", "ProviderConfig", "ProviderContext"]

_RESOURCE = re.compile(r"[\w./:-]{1,128}", re.ASCII)  # a provider's name for a part of its API

_WHITESPACE = re.compile("[\\s\u200b\u2060\ufeff]")  # also what has no width, and is copied from web pages


class BaseProvider(ProviderRequests):
    """One integration type. Implements the port `Provider`; subclasses declare facts and override what differs."""

    @classmethod
    def register_in(cls, factory: "ProviderRegistrar") -> None:
        """Add the provider to a factory, by its `integration_type`."""
        factory.register(str(cls.integration_type), cls)

    # --- grants

    has_authorization_page = False
    has_device_authorization = False

    @property
    def oauth(self) -> OAuthProvider | None:
        """The same provider, if it has OAuth 2."""
        return None

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted."""
        return ()

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the credentials at the provider; False if the provider has no way to."""
        return False

    # --- API keys

    def key_problem(self, field: str, value: str) -> str | None:
        """Why a field of a key cannot be right, as the end of a sentence; None if it can."""
        if field == "webhook_secret":
            return self.webhook_secret_problem(value)
        allows_whitespace = field in self.allows_whitespace_in
        if not allows_whitespace and _WHITESPACE.search(value):
            return "has white space inside it, which no key of this integration type has"
        return control_character_problem(value, allowed="\t\n\v\f\r\x1c\x1d\x1e\x1f\x85" if allows_whitespace else "")

    async def credentials_of(self, key: ApiKey) -> Credentials:
        """The credentials to store for a key: the key itself, or tokens that are obtained with it.

        They have the values of the config, and those that are looked up. Raises `ProviderError`.
        """
        key = replace(key, extras={**self.url_params, **await self.look_up(key)})
        self.require_reachable(key.extras, self.kept_names)
        return key

    # --- calls of backends

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """Send an authenticated request to the account's API. Every status is returned as a response."""
        used = await self.credentials_for(credentials, request, deadline / 2)
        if isinstance(used, ApiResponse):
            return used
        try:
            response = await self._request(
                request.method,
                content=request.body,
                deadline=deadline if used is credentials else deadline / 2,
                body_limit=body_limit,
                **self._target_of(used, request),
            )
        except ResponseBodyTooLarge:
            raise ResponseTooLarge(body_limit) from None
        return self._api_response(response, used, credentials)

    @asynccontextmanager
    async def stream_api(
        self, credentials: Credentials, request: ApiRequest, body: RequestBody | None, *, idle_timeout: timedelta
    ) -> AsyncIterator[ApiStream]:
        """As `call_api`, with bodies in parts."""
        used = await self.credentials_for(credentials, request, idle_timeout)
        if isinstance(used, ApiResponse):
            yield ApiStream(replace(used, body=b""), _parts_of(used.body))
            return
        target = self._target_of(used, request)
        open_stream = self._context.http.stream(request.method, body=body, idle_timeout=idle_timeout, **target)
        async with AsyncExitStack() as stack:
            with self._recording_request() as record:
                streamed = await stack.enter_async_context(open_stream)
                record(streamed.status)
            # What a response means may depend on its body. Only an error, or JSON, has a meaning beyond its status.
            is_read = not 200 <= streamed.status < 300 or _is_json(streamed.headers)
            response = await streamed.beginning(MAX_ERROR_SIZE if is_read else 0)
            yield ApiStream(replace(self._api_response(response, used, credentials), body=b""), streamed.chunks())

    async def credentials_for(
        self, credentials: Credentials, request: ApiRequest, deadline: timedelta
    ) -> Credentials | ApiResponse:
        """The credentials that a request uses: others for a `sub_account`, or the response that refuses them."""
        if request.sub_account:
            raise InvalidField("sub_account", "must be empty for this integration type")
        return credentials

    def api_url(self, credentials: Credentials, api: str = "") -> str:
        """The base URL of an API for the account of these credentials. `api` is a name of `api_base_urls`.

        Raises `InvalidField` for an unknown name, and `ApiNotDeclared`.
        """
        if api and api not in self.api_base_urls:
            names = ", ".join(sorted(self.api_base_urls))
            raise InvalidField("api", f"must be empty or one of: {names}" if names else "must be empty for this type")
        url = self.api_base_urls[api] if api else self.api_base_url
        if url is None:
            raise ApiNotDeclared
        return fill(url, self.for_credentials(credentials).values)

    def _target_of(self, credentials: Credentials, request: ApiRequest) -> dict[str, Any]:
        """Where a request goes, and what it carries, as arguments of `ProviderHttp`."""
        base, auth = self.api_url(credentials, request.api), self.request_auth(credentials)
        query = urlencode([*request.query, *auth.query_params.items()])
        headers = [*request.headers, *auth.headers.items()]
        if request.idempotency_key:
            headers.append((self.idempotency_key_header, request.idempotency_key))
        return {
            "url": f"{base.rstrip('/')}{request.path}{'?' if query else ''}{query}",
            "allowed_origins": self._origins,
            "headers": headers,
            "credentials_key": _key_of(auth, base),
        }

    def _api_response(self, response: HttpResponse, used: Credentials, own: Credentials) -> ApiResponse:
        return ApiResponse(
            response.status,
            response.header_list,
            response.body,
            self.is_rate_limited(response),
            response.retry_after,
            parse_rate_limit_headers(response.headers, self._context.clock()),
            self.rejects_access_token(response),
            reason=None if response.is_success else self._reason_of(response),
            is_client_fault=self.rejects_client(response),
            rate_limit_resource=self.reported_resource(response),
            secrets=(used.access_token,) if used is not own and isinstance(used, OAuthTokens) else (),
        )

    # --- parts of the API with limits of their own

    def rate_limit_resource(self, request: ApiRequest) -> str:
        """The part of the API that has rate limits of its own, and that a request belongs to; empty for none."""
        for name, pattern in self.rate_limit_resources.items():
            if match := re.match(f"(?:{pattern})(?=[/?]|$)", request.path):
                return name.format(**match.groupdict())
        return ""

    def reported_resource(self, response: HttpResponse) -> str | None:
        """The part of the API whose limits a response is about: None if it names none, empty for all of them."""
        if self.errors.wait_headers and self.is_rate_limited(response) and not self._has_wait_header(response):
            return ""
        for path in self.rate_limit_resource_paths:
            found: Iterable[str] = ()
            if (header := path.removeprefix("header:")) != path:
                found = [response.headers.get(header, "")]
            elif not response.is_success and len(response.body) <= MAX_ERROR_SIZE:
                found = texts_at(response.json, path)
            for name in found:
                if _RESOURCE.fullmatch(name):
                    return name
        return None

    # --- webhooks

    @property
    def supports_webhooks(self) -> bool:
        """Whether the provider's webhooks can be verified."""
        return self.webhook_scheme is not None

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The secrets that sign webhooks: those of our app (None), or those of an integration."""
        if self.webhook_scheme is None:
            return ()
        source = self.webhook_scheme.secret_source
        found: Sequence[str | None] = ()
        if credentials is None:
            client = self.oauth_client
            found = (*client.webhook_secrets, *(client.secrets if source is SecretSource.CLIENT_SECRET else ()))
        elif isinstance(credentials, ApiKey):
            api_secret = credentials.api_secret if source is SecretSource.API_SECRET else None
            found = [credentials.webhook_secret, api_secret]
        return list(dict.fromkeys(secret for secret in found if secret))

    def webhook_secret_problem(self, secret: str) -> str | None:
        """Why webhooks cannot be verified with a secret, as the end of a sentence; None if they can."""
        problem = control_character_problem(secret)
        return problem if problem or self.webhook_scheme is None else self.webhook_scheme.secret_problem(secret)

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """The events in a webhook request that one of the secrets signs. Raises `InvalidWebhookSignature`.

        The body of a signed request that cannot be read is one event.
        """
        if self.webhook_scheme is None:
            raise InvalidWebhookSignature
        token = self.oauth_client.webhook_verify_token
        keys = WebhookKeys([secret for secret in secrets if secret], [token] if token else [])
        try:
            return self.webhook_scheme.receive(request, keys, self._context.clock())
        except MalformedWebhook:
            return ReceivedWebhook([unread_event(request)])


BuildProvider = Callable[[ProviderContext], BaseProvider]
"""Builds a provider; usually the provider's class."""


class ProviderRegistrar(Protocol):
    """Where a provider is added: the factory."""

    def register(self, integration_type: str, build: BuildProvider, /) -> None:
        """Add a type. Raises `ProvidersError` if a name of it is taken."""


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def _parts_of(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


def _key_of(auth: RequestAuth, base: str) -> bytes:
    """The key of the credentials in a request, which are in its headers, its query or its base URL."""
    values = [sorted(auth.headers.items()), sorted(auth.query_params.items()), base]
    return sha256(dumps(values).encode()).digest()
