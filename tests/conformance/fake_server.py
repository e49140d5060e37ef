"""A server that simulates the provider of a profile strictly: it rejects every request that is not documented.

The sandbox implements the protocol: codes, tokens, rotation, revocation. This module adds each provider's URLs, client
authentication, and formats of responses and errors. It serves the hosts of all profiles; a header that only the tests'
transport sets names the profile of a request.
"""

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from integration_server.domain.credentials import RequestAuth
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import Account, Client, TokenPair
from integration_server.sandbox.state import Sandbox
from tests.conformance.profile import ErrorResponse, Exchange, Key, Profile, Resource, Revocation, Token, fill_template

CLIENT_ID, CLIENT_SECRET = "our-id", "our-secret"
PROFILE_HEADER, SCHEME_HEADER = "x-conformance-profile", "x-conformance-scheme"
NAMES = {0: ("Ada Lovelace", "ada@example.com"), 1: ("Grace Hopper", "grace@example.com")}
TEN_YEARS = 3650 * 24 * 3600


class UndocumentedRequest(Exception):
    """A request that the provider does not document. The test reports the reason."""


class ExchangingSandbox(Sandbox):
    """A sandbox that exchanges access tokens."""

    def exchange(self, access_token: str) -> TokenPair:
        """Another access token for a valid one, which stays valid: some providers do this instead of refresh tokens.

        Raises `OAuthError` (invalid_grant).
        """
        record = self._access_tokens.get(access_token)
        if record is None or self.find_account(access_token) is None:
            raise OAuthError("invalid_grant", "the token is not valid")
        grant = self._grants[record.grant_id]
        return self._issue(grant, grant.scopes, None)


@dataclass
class SimulatedProvider:
    """One simulated provider.

    `account_index` selects the account that signs in in the browser; None denies access. `fault` replaces all responses
    but that of the authorization page. `token_overrides` replaces members of token responses. With
    `reuses_code_response` the response to a refresh is that to a code. `violations` lists undocumented requests.
    """

    profile: Profile
    clock: Callable[[], datetime]
    account_index: int | None = 0
    fault: Response | None = None
    reuses_code_response: bool = False
    token_overrides: Mapping[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        profile, numbers = self.profile, itertools.count(1)
        self.accounts = [Account(sub, NAMES[i][1], NAMES[i][0]) for i, sub in enumerate(profile.accounts)]
        self.sandbox = ExchangingSandbox(
            clock=self.clock,
            token=lambda: self._format_token(next(numbers)),
            accounts=self.accounts,
            scopes=profile.scopes,
            behaviour=Behaviour(
                access_token_lifetime=(profile.token and profile.token.lifetime) or TEN_YEARS,
                issue_refresh_token=profile.renewal.kind == "refresh",
                rotate_refresh_tokens=profile.renewal.rotates,
                refresh_response_has_refresh_token=profile.renewal.rotates or profile.renewal.repeats_refresh_token,
                refresh_grace=profile.renewal.grace,
                require_pkce=False,
                revocation_ends="grant" if profile.revoke and profile.revoke.ends == "grant" else "authorization",
            ),
        )
        self._issue_times: dict[str, datetime] = {}
        self.client = Client(CLIENT_ID, CLIENT_SECRET, (), "ours")

    def _format_token(self, number: int) -> str:
        claims = self.profile.token.claims if self.profile.token else {}
        if not claims:
            return f"s3cret-{number}"
        payload = base64.urlsafe_b64encode(json.dumps({**claims, "jti": number}).encode()).rstrip(b"=").decode()
        return f"eyJhbGciOiJub25lIn0.{payload}.c2ln"

    def register_redirect_uri(self, redirect_uri: str) -> None:
        """Register the redirect URI of the client."""
        self.client = self.sandbox.register_client(CLIENT_ID, CLIENT_SECRET, [redirect_uri])

    def is_valid(self, access_token: str) -> bool:
        """Whether an access token is valid."""
        return self.sandbox.find_account(access_token) is not None

    def revoke_all_grants(self) -> None:
        """Revoke all grants, as users can at the provider."""
        for account in self.accounts:
            self.sandbox.revoke_grants(account.sub)

    # --- HTTP -------------------------------------------------------------------------------------------

    async def respond(self, request: Request) -> Response:
        """The provider's response to a request."""
        url = f"{request.headers[SCHEME_HEADER]}://{request.headers['host']}{request.url.path}"
        try:
            return await self._respond(request, url)
        except UndocumentedRequest as violation:
            self.violations.append(f"{request.method} {url}: {violation}")
            return PlainTextResponse(str(violation), 400)

    async def _respond(self, request: Request, url: str) -> Response:
        profile = self.profile
        if profile.authorize and url == profile.authorize.url and request.method == "GET":
            return self._authorize(dict(request.query_params))
        if self.fault is not None:
            return self.fault
        for exchange in profile.exchange:
            if url == exchange.url and await self._matches_exchange(request, exchange):
                return await self._exchange(request, exchange)
        if profile.token and url == profile.token.url and request.method == "POST":
            return await self._token(request, profile.token)
        if profile.revoke and url == self._fill(profile.revoke.url) and request.method == profile.revoke.method:
            return await self._revoke(request, profile.revoke)
        if profile.verify and request.method == profile.verify.method:
            resource = self._resource(request, url, profile.verify)
            if resource is not None:
                return resource
        raise UndocumentedRequest("no such endpoint")

    def _fill(self, template: Any, **values: object) -> Any:
        return fill_template(template, {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **values})

    # --- authorization

    def _authorize(self, query: dict[str, str]) -> Response:
        page = self.profile.authorize
        assert page is not None
        required = {"response_type": "code", "client_id": CLIENT_ID, **page.requires}
        for name, value in required.items():
            if query.get(name) != value:
                raise UndocumentedRequest(f"{name} must be {value!r}, not {query.get(name)!r}")
        if query.get("redirect_uri") not in self.client.redirect_uris:
            raise UndocumentedRequest("redirect_uri is not registered")
        challenge = query.get("code_challenge")
        if page.pkce == "rejected" and challenge is not None:
            raise UndocumentedRequest("a code_challenge means another flow here")
        if page.pkce == "required" and (challenge is None or query.get("code_challenge_method") != "S256"):
            raise UndocumentedRequest("code_challenge with S256 is missing")
        scopes = self._scopes(query.get(page.scope_in, ""))
        callback = {
            "state": query["state"],
            **self._fill(page.callback, **self._account_fields(self.account_index or 0)),
        }
        if self.account_index is None:
            callback["error"] = "access_denied"
        else:
            stored_challenge = challenge if page.pkce == "required" else None
            sub = self.accounts[self.account_index].sub
            code = self.sandbox.issue_code(self.client, query["redirect_uri"], sub, scopes, stored_challenge)
            callback["code"] = code + page.code_suffix
        if page.signs_callback:
            message = "&".join(sorted(f"{name}={value}" for name, value in callback.items()))
            callback["hmac"] = hmac.new(CLIENT_SECRET.encode(), message.encode(), hashlib.sha256).hexdigest()
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(callback)}", 302)

    def _scopes(self, text: str) -> tuple[str, ...]:
        page = self.profile.authorize
        assert page is not None
        if not page.has_scopes:
            return ()
        scopes = tuple(text.split(page.scope_separator))
        unknown = set(scopes) - set(self.profile.scopes)
        if unknown:
            raise UndocumentedRequest(f"scopes that are not known: {sorted(unknown)}")
        return scopes

    # --- tokens

    async def _token(self, request: Request, endpoint: Token) -> Response:
        form = await self._form(request)
        grant_type = form.get("grant_type", "")
        invalid_grant = endpoint.invalid_grant
        try:
            self._authenticate(request, form, endpoint.client)
            if grant_type == "authorization_code":
                invalid_grant = endpoint.invalid_code or invalid_grant
                return self._issue(self._redeem(form, endpoint), endpoint.response)
            if grant_type == "refresh_token" and self.profile.renewal.kind == "refresh":
                for name in endpoint.refresh_requires:
                    if not form.get(name):
                        raise UndocumentedRequest(f"a refresh needs {name}")
                issued = self.sandbox.refresh(self.client, form.get("refresh_token", ""), None)
                template = None if self.reuses_code_response else endpoint.refresh_response
                return self._issue(issued, template or endpoint.response)
        except OAuthError as error:
            return self._error(endpoint.invalid_client if error.code == "invalid_client" else invalid_grant)
        raise UndocumentedRequest(f"grant_type {grant_type!r} is not known")

    def _redeem(self, form: Mapping[str, str], endpoint: Token) -> TokenPair:
        for name, value in endpoint.code_requires.items():
            if form.get(name) != value:
                raise UndocumentedRequest(f"{name} must be {value!r}")
        verifier = form.get("code_verifier")
        page = self.profile.authorize
        assert page is not None
        if page.pkce != "required":
            verifier = None
        return self.sandbox.redeem_code(self.client, form.get("code", ""), form.get("redirect_uri", ""), verifier)

    async def _matches_exchange(self, request: Request, exchange: Exchange) -> bool:
        params = dict(request.query_params) if exchange.method == "GET" else await self._form(request)
        return request.method == exchange.method and params.get("grant_type") == exchange.grant_type

    async def _exchange(self, request: Request, exchange: Exchange) -> Response:
        endpoint = self.profile.token
        assert endpoint is not None
        params = dict(request.query_params) if exchange.method == "GET" else await self._form(request)
        if exchange.needs_client and params.get("client_secret") != CLIENT_SECRET:
            return self._error(endpoint.invalid_client)
        token = params.get(exchange.token_in, "")
        if self.clock() - self._issue_times.get(token, self.clock()) < timedelta(seconds=exchange.min_age):
            raise UndocumentedRequest(f"the token is not {exchange.min_age} seconds old yet")
        before = self.sandbox.behaviour
        self.sandbox.behaviour = Behaviour(access_token_lifetime=exchange.lifetime)
        try:
            return self._issue(self.sandbox.exchange(token), exchange.response)
        except OAuthError:
            return self._error(endpoint.invalid_grant)
        finally:
            self.sandbox.behaviour = before

    def _issue(self, issued: TokenPair, template: Mapping[str, Any]) -> Response:
        endpoint = self.profile.token
        assert endpoint is not None
        self._issue_times[issued.access_token] = self.clock()
        account = self.sandbox.find_account(issued.access_token)
        values = {
            **self._account_fields(self.accounts.index(account) if account in self.accounts else 0),
            "access_token": issued.access_token,
            "refresh_token": issued.refresh_token,
            "scope": endpoint.response_scope_separator.join(issued.scopes),
            "expires_in": round((issued.expire_time - self.clock()).total_seconds()),
            "expires_at": issued.expire_time.isoformat().replace("+00:00", "Z"),
        }
        response = self._fill(template, **values)
        token_overrides = {name: value for name, value in self.token_overrides.items() if name in response}
        return JSONResponse({**response, **token_overrides})

    async def _form(self, request: Request) -> dict[str, str]:
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            return {}
        return dict(parse_qsl((await request.body()).decode()))

    def _authenticate(self, request: Request, form: Mapping[str, str], how: str) -> None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if how == "basic":
            if scheme != "Basic" or "client_secret" in form:
                raise UndocumentedRequest("the client must authenticate with Basic")
            user, _, password = base64.b64decode(encoded).decode().partition(":")
            given = unquote_plus(user), unquote_plus(password)
        elif how == "none":
            if scheme or "client_secret" in form:
                raise UndocumentedRequest("a public client has no secret (RFC 6749 §2.1)")
            given = form.get("client_id", ""), CLIENT_SECRET
        else:
            if scheme:
                raise UndocumentedRequest("the client must authenticate in the form")
            given = form.get("client_id", ""), form.get("client_secret", "")
        if given != (CLIENT_ID, CLIENT_SECRET):
            raise OAuthError("invalid_client", "wrong")

    # --- API and revocation

    def _resource(self, request: Request, url: str, resource: Resource) -> Response | None:
        token = self._extract_token(request, resource.auth)
        account = self.sandbox.find_account(token) if token else None
        key = self.profile.key
        account_fields = self._account_fields(self.accounts.index(account) if account else 0)
        if url != self._fill(resource.url, **account_fields, api_key=key.api_key if key else ""):
            return None
        if request.method == "POST" and "content-type" in request.headers and not request.headers.get("content-length"):
            raise UndocumentedRequest("a content type without content")
        for name, value in resource.requires.items():
            if request.query_params.get(name) != value:
                raise UndocumentedRequest(f"{name} must be {value!r}")
        if key is not None and not self._has_key(request):
            return self._error(resource.rejection)
        if key is None and account is None:
            return self._error(resource.rejection)
        return JSONResponse(
            self._fill(resource.response, **account_fields, **(self.profile.token.claims if self.profile.token else {}))
        )

    def _has_key(self, request: Request) -> bool:
        key = self.profile.key
        assert key is not None
        auth = key_auth(key)
        return all(
            actual.get(name) == value
            for actual, required in ((request.headers, auth.headers), (request.query_params, auth.query_params))
            for name, value in required.items()
        )

    def _extract_token(self, request: Request, auth: Mapping[str, str]) -> str | None:
        for name, template in auth.items():
            before = template.removesuffix("$access_token")
            value = request.headers.get(name, "")
            if template != before and value.startswith(before):
                return value.removeprefix(before)
        return None

    async def _revoke(self, request: Request, revocation: Revocation) -> Response:
        form = await self._form(request)
        if revocation.client in {"post", "basic"}:
            try:
                self._authenticate(request, form, revocation.client)
            except OAuthError:
                return self._error(revocation.rejection)
        for name, template in revocation.auth.items():
            if revocation.client == "secret" and request.headers.get(name) != self._fill(template):
                return self._error(revocation.rejection)
        kind, _, name = revocation.token.partition(":")
        if kind == "bearer":
            token = self._extract_token(request, revocation.auth) or ""
        elif kind == "json":
            token = str(json.loads(await request.body()).get(name, ""))
        else:
            token = form.get(name, "")
        if kind == "account":
            for account_index, account in enumerate(self.accounts):
                if self._fill(self.profile.account_id, **self._account_fields(account_index)) == form.get(name):
                    self.sandbox.revoke_grants(account.sub)
            return JSONResponse(self._fill(revocation.response), revocation.status)
        if kind == "bearer" and not self.is_valid(token):
            return self._error(revocation.rejection)
        self.sandbox.revoke(self.client, token)
        return (
            JSONResponse(self._fill(revocation.response), revocation.status)
            if revocation.status != 204
            else Response(status_code=204)
        )

    def _account_fields(self, account_index: int) -> dict[str, object]:
        account = self.accounts[account_index]
        number = int(account.sub) if account.sub.isdigit() else account.sub
        return {"sub": account.sub, "number": number, "email": account.email, "name": account.name}

    def _error(self, error: ErrorResponse) -> Response:
        return JSONResponse(dict(error.body), error.status)


def key_auth(key: Key) -> RequestAuth:
    """The headers and query parameters with a key."""
    pair = base64.b64encode(f"{key.api_key}:{key.api_secret}".encode()).decode()
    values = {"basic": pair, "api_key": key.api_key}
    return RequestAuth(fill_template(key.auth, values), fill_template(key.query, values))


class FakeProviderServer:
    """The ASGI app. It dispatches requests to the simulated providers by integration type."""

    def __init__(self) -> None:
        self.simulated_providers: dict[str, SimulatedProvider] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request = Request(scope, receive)
        simulated_provider = self.simulated_providers[request.headers[PROFILE_HEADER]]
        await (await simulated_provider.respond(request))(scope, receive, send)


class FakeServerTransport(httpx.AsyncBaseTransport):
    """Sends every request to the server, whatever its host."""

    def __init__(self, server_url: str, integration_type: str) -> None:
        self._server_url = httpx.URL(server_url)
        self._integration_type = integration_type
        self._transport = httpx.AsyncHTTPTransport(
            verify=False
        )  # the server has no TLS: loading certificates takes time

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the server."""
        is_loopback = request.url.host in {"127.0.0.1", "::1", "localhost"}
        assert request.url.scheme == "https" or is_loopback, "a secret would have been sent without TLS"
        headers = httpx.Headers(request.headers)
        headers["host"] = request.url.netloc.decode()
        headers[PROFILE_HEADER], headers[SCHEME_HEADER] = self._integration_type, request.url.scheme
        target = request.url.copy_with(scheme="http", host=self._server_url.host, port=self._server_url.port)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        sent = httpx.Request(request.method, target, headers=headers, stream=request.stream)
        return await self._transport.handle_async_request(sent)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()
