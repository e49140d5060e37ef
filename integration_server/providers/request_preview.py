"""The requests that the server sends for a type, with placeholders in place of all values: for `types show`.

They are built by the provider itself, with placeholders for credentials and config, and recorded instead of sent. No
setting of the operator is used but those that have a default, such as an API version.
"""

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import IntegrationServerError
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.declaration_tables import SECRET_GRANTS, LoginRequest
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import DeclaredOrigins, ProviderHttp, origin_of
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.url_templates import fill, host_params, template_params
from integration_server.service.common_types import Clock
from integration_server.service.provider_port import OAuthProvider

_MAX_BODY = 1 << 20  # of an API's response; there is none
_DEADLINE = timedelta(seconds=10)  # nothing waits: no request is sent
_UNINTERESTING = frozenset({"host", "accept", "accept-encoding", "user-agent", "content-length", "connection"})
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")


@dataclass(frozen=True, slots=True)
class PreviewedRequest:
    """A request. `purpose` says when it is sent; a value that the server fills in is `{name}`.

    `allowed_hosts` are the patterns that limit a host with such a value.
    """

    purpose: str
    method: str
    url: str
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body: Any
    allowed_hosts: Sequence[str] = ()

    @property
    def destination(self) -> str:
        """The host that receives the request."""
        return re.sub(r"^[a-z]+://([^/?]*).*$", r"\1", self.url)


async def preview_requests(factory: ProviderFactory, integration_type: str, clock: Clock) -> Sequence[PreviewedRequest]:
    """The requests of a type, in the order in which an integration causes them. Raises `ProvidersError`."""
    recorder, placeholders = _Recorder(), _Placeholders()
    async with ProviderHttp(clock, dev_mode=True, transport=recorder) as http:
        environment = _environment(integration_type, placeholders)
        provider = factory.build(ProviderContext(http, clock, environment), only=integration_type)[integration_type]
        preview = _Preview(provider, recorder, placeholders)
        return [request async for request in preview.requests()]


def _environment(integration_type: str, placeholders: "_Placeholders") -> Mapping[str, str]:
    """The settings of our client; its private key is set where it is used."""
    values = {name: placeholders[name] for name in ("client_id", "client_secret", "private_key")}
    return {f"{integration_type.upper()}_{name.upper()}": value for name, value in values.items()}


def _private_key(algorithm: str) -> str:
    """A new key for an algorithm of RFC 7518 §3.1."""
    curves = {"ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    is_rsa = algorithm.startswith(("RS", "PS"))
    key = (
        rsa.generate_private_key(65537, 2048)
        if is_rsa
        else ec.generate_private_key(curves.get(algorithm, ec.SECP256R1()))
    )
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _at_paths(values: Mapping[str, str]) -> dict[str, Any]:
    """A JSON object with values at dotted paths."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = [name.strip('"') for name in path.split(".")]
        part = found
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    return found


class _Placeholders(dict[str, str]):
    """The placeholder of each name: letters and digits, which no part of a request encodes."""

    def __missing__(self, name: str) -> str:
        # An API key has the form of Twilio's account ids, the only keys whose form a provider checks.
        self[name] = f"AC{len(self):032x}" if name == "api_key" else f"placeholder{len(self)}x"
        return self[name]

    def restore(self, text: str) -> str:
        """The text with the names in place of the placeholders, and no token that was made from them."""
        text = _JWT.sub("{signed JWT}", text)
        text = _BASE64.sub(self._restore_base64, text)
        for name, value in sorted(self.items(), key=lambda item: -len(item[1])):
            text = text.replace(value, f"{{{name}}}")
        return text

    def _restore_base64(self, match: re.Match[str]) -> str:
        with suppress(binascii.Error, UnicodeDecodeError):
            decoded = base64.b64decode(match[0], validate=True).decode()
            if any(value in decoded for value in self.values()):
                return f"base64({decoded})"
        return match[0]


@dataclass(eq=False)
class _Recorder(httpx.AsyncBaseTransport):
    """Records requests. The response to each has the `fields` of a token response, and `headers`."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[tuple[str, str]] = ()
    requests: list[httpx.Request] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Record a request."""
        await request.aread()
        self.requests.append(request)
        return httpx.Response(200, json=dict(self.fields), headers=list(self.headers))


class _Preview:
    def __init__(self, provider: BaseProvider, recorder: _Recorder, placeholders: _Placeholders) -> None:
        self._recorder, self._placeholders = recorder, placeholders
        # Not from the environment, where the values would have to be valid ones.
        unset = {
            name: self._value(provider, name) for name in provider.settings.keys() - provider.setting_values.keys()
        }
        provider = provider.with_attributes(setting_values={**provider.setting_values, **unset})
        self._url_names = {name for url in provider.url_templates.values() for name in template_params(url)}
        config = {name: self._value(provider, name) for name in sorted({*provider.config_fields, *self._url_names})}
        self._extras = {name: value for name, value in config.items() if name not in self._own_names(provider)}
        self._extras |= {name: self._value(provider, name) for name in sorted(provider.kept_names)}
        key = self._signing_key(provider)
        self._secrets = {
            name: json.dumps(
                _at_paths(
                    {path: key.get(kept) or self._value(provider, kept) for kept, path in secret_field.keep.items()}
                )
            )
            if secret_field.keep
            else key.get(name, placeholders[name])
            for name, secret_field in provider.secret_fields.items()
        }
        self._provider = provider.with_attributes(url_params={**provider.url_params, **self._extras})
        if "" in key and isinstance(self._provider, OAuth2Provider):
            self._provider = self._provider.with_private_key(key[""])
        recorder.fields = self._token_response()
        recorder.headers = [("Set-Cookie", "session=0")]
        for request in provider.login if isinstance(provider, OAuth2Provider) else ():
            self._respond_to_login(request)

    @staticmethod
    def _signing_key(provider: BaseProvider) -> Mapping[str, str]:
        """A new key, by the name of the secret that has it; the empty name is our own."""
        if not isinstance(provider, OAuth2Provider):
            return {}
        if provider.assertion is None:
            return {"": _private_key("ES256")}
        names = template_params(provider.assertion.key or "") or ("",)
        is_secret = provider.assertion.algorithm.startswith("HS")
        return {} if is_secret else {names[0]: _private_key(provider.assertion.algorithm)}

    def _respond_to_login(self, request: LoginRequest) -> None:
        """Have each response contain what a request of a login keeps, so that the next one is sent."""
        kept = {path: self._placeholders[name] for name, path in request.keep.items()}
        body = {path: value for path, value in kept.items() if ":" not in path}
        self._recorder.fields = {**self._recorder.fields, **_at_paths({**request.good_fields, **body})}
        for path, value in kept.items():
            place, _, name = path.partition(":")
            if place == "header":
                self._recorder.headers = [*self._recorder.headers, (name, value)]
            elif place == "cookie":
                self._recorder.headers = [
                    *self._recorder.headers,
                    ("Set-Cookie", f"{name.replace('*', 'name')}={value}"),
                ]

    @staticmethod
    def _own_names(provider: BaseProvider) -> Collection[str]:
        credentials = {"access_token", "refresh_token", "token", "api_key", "api_secret", "client_id", "client_secret"}
        return {*provider.values, *provider.secret_names, *credentials}

    def _value(self, provider: BaseProvider, name: str) -> str:
        """The placeholder of a name; one in a host leads to a declared host."""
        if any(url == f"{{{name}}}" for url in provider.url_templates.values()):  # a whole URL
            if not self._placeholders[name].startswith("https://"):
                domain = provider.host_patterns[0].removeprefix("*")
                self._placeholders[name] = f"https://{self._placeholders[name]}{domain}/"
            return self._placeholders[name]
        bases = ["/".join(url.split("/")[:3]) for url in provider.url_templates.values() if name in host_params(url)]
        if not bases:
            return self._placeholders[name]
        declared = provider.config_fields.get(name) or provider.settings.get(name)
        allowed = [*declared.choices, *declared.values.values()] if declared else []
        whole = (self._placeholders[name] + pattern.removeprefix("*") for pattern in provider.host_patterns)
        origins = DeclaredOrigins(provider.url_templates.values(), provider.host_patterns)
        for value in (self._placeholders[name], *whole, *allowed):
            values = {param: self._placeholders[param] for base in bases for param in template_params(base)}
            if all(origin_of(fill(base, {**values, name: value})) in origins for base in bases):
                self._placeholders[name] = value
                return value
        return self._placeholders[name]

    def _token_response(self) -> dict[str, Any]:
        standard = {name: self._placeholders[name] for name in ("access_token", "refresh_token")}
        return {**standard, "token_type": "bearer", "expires_in": 3600}

    def _credentials(self) -> Credentials:
        if self._provider.auth_method is AuthMethod.OAUTH2:
            is_secret_grant = isinstance(self._provider, OAuth2Provider) and self._provider.grant in SECRET_GRANTS
            refresh_token = None if is_secret_grant else self._placeholders["refresh_token"]
            tokens = (self._placeholders["access_token"], refresh_token)
            return OAuthTokens(*tokens, extras=self._extras, secret_fields=self._secrets)
        placeholders = {name: self._placeholders[name] for name in self._provider.required_fields}
        key, secret = placeholders.get("api_key", ""), placeholders.get("api_secret")
        return ApiKey(key, secret, secret_fields=self._secrets, extras=self._extras)

    async def requests(self) -> AsyncIterator[PreviewedRequest]:
        """The requests, in order."""
        provider, credentials = self._provider, self._credentials()
        if (oauth := provider.oauth) and provider.has_authorization_page and not provider.has_device_authorization:
            yield self._authorization(oauth)
        for purpose, send in self._steps(provider, credentials):
            self._recorder.requests.clear()
            # What a step makes of the recorded response is of no interest.
            with suppress(IntegrationServerError):
                await send()
            for number, request in enumerate(self._recorder.requests):
                yield self._preview(purpose if number == 0 else f"{purpose}, continued", request)

    def _steps(
        self, provider: BaseProvider, credentials: Credentials
    ) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
        if isinstance(provider, OAuth2Provider) and isinstance(credentials, OAuthTokens):
            # The lookup is a step of its own.
            tokens_only = provider.with_attributes(lookup=None)
            if provider.has_device_authorization:
                scopes, code = provider.scopes_to_request((), ()), self._placeholders["device_code"]
                yield "device authorization", lambda: tokens_only.begin_device_authorization(scopes)
                yield "request for the tokens", lambda: tokens_only.poll_device_authorization(code)
            elif provider.has_authorization_page:
                values = [self._placeholders[name] for name in ("code", "redirect_uri", "code_verifier")]
                yield "code exchange", lambda: tokens_only.exchange_code_for_tokens(*values)
            else:
                key = ApiKey("", secret_fields=self._secrets, extras=self._extras)
                yield "token request", lambda: tokens_only.credentials_of(key)
        if provider.lookup is not None:
            yield "lookup", lambda: provider.look_up(credentials)
        if provider.has_verification:
            yield "verification", lambda: provider.request_verification(credentials)
        if isinstance(provider, OAuth2Provider) and isinstance(credentials, OAuthTokens):
            yield "refresh", lambda: provider.refresh(credentials)
        for api in ("", *sorted(provider.api_base_urls)) if provider.api_base_url else sorted(provider.api_base_urls):
            request = ApiRequest("GET", f"/{self._placeholders['path']}", api=api)
            purpose = f"API request to {api}" if api else "API request"
            yield (
                purpose,
                lambda sent=request: provider.call_api(  # type: ignore[misc]
                    credentials, sent, deadline=_DEADLINE, body_limit=_MAX_BODY
                ),
            )
        yield "revocation", lambda: provider.revoke_credentials(credentials)

    def _authorization(self, provider: OAuthProvider) -> PreviewedRequest:
        url = provider.authorization_url(
            redirect_uri=self._placeholders["redirect_uri"],
            state=self._placeholders["state"],
            scopes=provider.scopes_to_request((), ()),
            code_challenge=self._placeholders["code_challenge"],
        )
        return self._preview("authorization, in the user's browser", httpx.Request("GET", url))

    def _preview(self, purpose: str, request: httpx.Request) -> PreviewedRequest:
        restore = self._placeholders.restore
        url = urlsplit(str(request.url))
        headers = {name: value for name, value in request.headers.items() if name not in _UNINTERESTING}
        base = restore(f"{url.scheme}://{url.netloc}{url.path}")
        return PreviewedRequest(
            purpose,
            request.method,
            base,
            [(name, restore(value)) for name, value in parse_qsl(url.query, keep_blank_values=True)],
            {name.title(): restore(value) for name, value in headers.items()},
            self._body(request),
            self._provider.host_patterns if "{" in (base.partition("://")[2] or base).partition("/")[0] else (),
        )

    def _body(self, request: httpx.Request) -> Any:  # noqa: ANN401  # any JSON value
        if not request.content:
            return None
        text = request.content.decode("utf-8", "replace")
        if request.headers.get("content-type", "").startswith("application/json"):
            return json.loads(self._placeholders.restore(text))
        form = parse_qsl(text, keep_blank_values=True)
        return {name: self._placeholders.restore(value) for name, value in form}
