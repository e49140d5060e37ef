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
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote_plus, urlencode

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from integration_server.domain.credentials import RequestAuth
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import Account, Client, TokenPair
from integration_server.sandbox.state import Sandbox
from tests.conformance.profile import (
    Device,
    ErrorResponse,
    Exchange,
    GrantAssertion,
    Key,
    LoginRequest,
    Profile,
    Resource,
    Revocation,
    Token,
    fill_template,
    match_template,
)

CLIENT_ID, CLIENT_SECRET, OTHER_SECRET = "our-id", "our-secret-with-128-bits", "another-secret-with-128-bits"
KEY_ID = "k-1"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
BEARER = {"Authorization": "Bearer $access_token"}
_CLIENT_PARAMS: Mapping[str, frozenset[str]] = {  # of each client authentication
    "post": frozenset({"client_id", "client_secret"}),
    "none": frozenset({"client_id"}),
    "client_secret_jwt": frozenset({"client_assertion", "client_assertion_type"}),
    "private_key_jwt": frozenset({"client_assertion", "client_assertion_type"}),
}
PROFILE_HEADER, SCHEME_HEADER = "x-conformance-profile", "x-conformance-scheme"
NAMES = {0: ("Ada Lovelace", "ada@example.com"), 1: ("Grace Hopper", "grace@example.com")}
TEN_YEARS = 3650 * 24 * 3600


class UndocumentedRequest(Exception):
    """A request that the provider does not document. The test reports the reason."""


_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@cache
def _private_key(seed: str, algorithm: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """The private key of a seed: another seed, another key."""
    if algorithm in _CURVES:
        return ec.derive_private_key(int.from_bytes(hashlib.sha256(seed.encode()).digest()[1:]), _CURVES[algorithm])
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_text(seed: str, algorithm: str, passphrase: str = "") -> str:
    """The private key of a seed in PEM, encrypted if there is a passphrase; or its shared secret for HMAC."""
    if algorithm.startswith("HS"):
        return hashlib.sha256(seed.encode()).hexdigest()
    best = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else None
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = _private_key(seed, "RS" if algorithm[:2] in {"RS", "PS"} else algorithm)
    return key.private_bytes(pem, form, best or serialization.NoEncryption()).decode()


def _verification_key(seed: str, algorithm: str) -> RSAKey | ECKey | OctKey:
    if algorithm.startswith("HS"):
        return OctKey.import_key(key_text(seed, algorithm))
    private = _private_key(seed, "RS" if algorithm[:2] in {"RS", "PS"} else algorithm)
    if isinstance(private, rsa.RSAPrivateKey):
        return RSAKey.import_key(private.public_key())
    return ECKey.import_key(private.public_key())


def client_settings(profile: Profile, client_secret: str = CLIENT_SECRET) -> Mapping[str, str]:
    """The settings of our client at a provider: another client secret, another private key."""
    own = {"CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": client_secret}
    if (algorithm := _own_algorithm(profile)) is not None:
        own |= {"PRIVATE_KEY": key_text(client_secret, algorithm), "PRIVATE_KEY_ID": KEY_ID}
    return {f"{profile.integration_type.upper()}_{name}": value for name, value in own.items()} | dict(profile.settings)


def _own_algorithm(profile: Profile) -> str | None:
    """What our own private key is for; None if it is not used."""
    token = profile.token
    if token is not None and token.assertion is not None and not token.assertion.signer:
        return token.assertion.algorithm
    return "ES256" if token is not None and token.client == "private_key_jwt" else None


class ExchangingSandbox(Sandbox):
    """A sandbox that exchanges access tokens, and secrets for access tokens."""

    def issue_directly(self, client: Client, sub: str, scopes: tuple[str, ...]) -> TokenPair:
        """Tokens without a browser: for a client's own secrets (RFC 6749 §4.4), or after a decision elsewhere."""
        return self.redeem_code(client, self.issue_code(client, "", sub, scopes, None), "", None)

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
    `reuses_code_response` the response to a refresh is that to a code. `violations` lists undocumented requests;
    `token_requests` counts those to the token endpoint, or logins. With `are_secrets_changed`, the secrets with which
    tokens are obtained are wrong: the account's own if it has some, and our client's otherwise.
    """

    profile: Profile
    clock: Callable[[], datetime]
    account_index: int | None = 0
    fault: Response | None = None
    reuses_code_response: bool = False
    token_overrides: Mapping[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    token_requests: int = 0
    are_secrets_changed: bool = False

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
                revocation_ends=_ENDS[profile.revoke.ends] if profile.revoke else "authorization",
            ),
        )
        self._issue_times: dict[str, datetime] = {}
        self._assertion_ids = set[str]()
        self._pending_devices = set[str]()
        self._decided_devices = set[str]()
        self._logins_begun = Counter[int]()  # that wait for the request with this index
        self._client_secret = self._own_secrets.get("client_secret", CLIENT_SECRET)
        self.client_id = self._own_secrets.get("client_id", CLIENT_ID)
        self.client = Client(self.client_id, self._client_secret, (), "ours")

    @property
    def client_secret(self) -> str:
        """The client secret that is right at present."""
        is_changed = self.are_secrets_changed and ("client_secret" in self._own_secrets or not self._own_secrets)
        return OTHER_SECRET if is_changed else self._client_secret

    @property
    def _own_secrets(self) -> Mapping[str, str]:
        """The account's own secrets."""
        return self.profile.key.secret_values if self.profile.key else {}

    @property
    def _secrets(self) -> Mapping[str, str]:
        """The values in logins that are right at present."""
        basic = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        change = "another " if self.are_secrets_changed else ""
        own = {name: change + text for name, text in self._own_secrets.items()}
        return {**own, "client_secret": self.client_secret, "basic": basic}

    def _format_token(self, number: int) -> str:
        claims = self.profile.token.claims if self.profile.token else {}
        if not claims:
            form = self.profile.token.form if self.profile.token else "s3cret-$number"
            return form.replace("$number", str(number))
        payload = base64.urlsafe_b64encode(json.dumps({**claims, "jti": number}).encode()).rstrip(b"=").decode()
        return f"eyJhbGciOiJub25lIn0.{payload}.c2ln"

    def register_redirect_uri(self, redirect_uri: str) -> None:
        """Register the redirect URI of the client."""
        self.client = self.sandbox.register_client(self.client_id, self._client_secret, [redirect_uri])

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
            return self._report(f"{request.method} {url}: {violation}")
        except Exception as error:  # the test reports it, and not the log of the HTTP server
            return self._report(f"{request.method} {url}: {error!r}")

    def _report(self, violation: str) -> Response:
        self.violations.append(violation)
        return PlainTextResponse(violation, 400)

    async def _respond(self, request: Request, url: str) -> Response:
        profile = self.profile
        if profile.authorize and url == profile.authorize.url and request.method == "GET":
            return self._authorize(dict(request.query_params))
        if self.fault is not None:
            return self.fault
        for exchange in profile.exchange:
            if url == exchange.url and await self._matches_exchange(request, exchange):
                return await self._exchange(request, exchange)
        if profile.device and request.method == "POST" and url == profile.device.url:
            return await self._begin_device(request, profile.device)
        if profile.token and request.method == "POST" and self._is_token_url(url, profile.token):
            return await self._token(request, url, profile.token)
        revoke = profile.revoke
        if revoke and request.method == revoke.method and match_template(revoke.url, url, self._known) is not None:
            return await self._revoke(request, url, revoke)
        return await self._login_or_resource(request, url)

    async def _login_or_resource(self, request: Request, url: str) -> Response:
        profile, differences = self.profile, []
        for index, step in enumerate(profile.login):
            try:
                if request.method == step.method and match_template(step.url, url, self._known) is not None:
                    return await self._log_in(request, url, index, step)
            except UndocumentedRequest as difference:
                differences.append(str(difference))
        for resource in (profile.verify, profile.lookup):
            try:
                if resource and request.method == resource.method:
                    response = await self._resource(request, url, resource)
                    if response is not None:
                        return response
            except UndocumentedRequest as difference:
                differences.append(str(difference))
        raise UndocumentedRequest(", or ".join(differences) or "no such endpoint")

    @property
    def _known(self) -> Mapping[str, object]:
        return {"client_id": self.client_id}

    def _fill(self, template: Any, **values: object) -> Any:
        basic = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        known = {"client_id": self.client_id, "client_secret": self.client_secret, "basic": basic}
        return fill_template(template, {**known, **values})

    async def _content(self, request: Request, body_type: str) -> Any:
        """The content of a request: a form's parameters, or a JSON value; an empty object if it has another type."""
        media_type = request.headers.get("content-type", "").partition(";")[0]
        if body_type == "json" and media_type == "application/json":
            return json.loads(await request.body())
        if body_type == "form" and media_type == "application/x-www-form-urlencoded":
            return dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        return {}

    def _match(self, what: str, template: Any, actual: Any) -> dict[str, str]:
        """The values that stand for the names of a template."""
        found = match_template(template, actual, self._known)
        if found is None:
            raise UndocumentedRequest(f"{what} must be {template!r}, not {actual!r}")
        return found

    def _match_all(self, what: str, templates: Mapping[str, str], actual: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, template in templates.items():
            if name not in actual:
                raise UndocumentedRequest(f"{what} {name} is missing")
            found |= self._match(f"{what} {name}", template, actual[name])
        return found

    def _require_no_others(self, what: str, actual: Iterable[str], documented: Collection[str]) -> None:
        if self.profile.is_exact and (others := sorted(set(actual) - set(documented))):
            raise UndocumentedRequest(f"{what} {', '.join(others)} is not documented")

    # --- authorization

    def _authorize(self, query: dict[str, str]) -> Response:
        page = self.profile.authorize
        assert page is not None
        required = {"response_type": "code", "client_id": self.client_id, **page.requires}
        self._match_all("parameter", required, query)
        of_pkce = {"code_challenge", "code_challenge_method"}
        scope = {page.scope_in} if page.has_scopes else set()
        self._require_no_others("parameter", query, {*required, "redirect_uri", "state", *scope, *of_pkce})
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

    def _is_token_url(self, url: str, endpoint: Token) -> bool:
        return any(
            match_template(token_url, url, self._known) is not None for token_url in _token_urls(endpoint).values()
        )

    async def _token(self, request: Request, url: str, endpoint: Token) -> Response:
        self.token_requests += 1
        given = await self._content(request, endpoint.body)
        if not given and any(self._token_requests(endpoint).values()):
            raise UndocumentedRequest(f"the content must be of type {endpoint.body}")
        grant_type = given.get("grant_type")
        invalid_grant = endpoint.invalid_grant
        try:
            in_headers = self._authenticate(request, given, endpoint.client, endpoint.headers)
            requests = self._token_requests(endpoint)
            # Without a grant type, the other parameters say what is asked for.
            complete = {
                kind for kind, params in requests.items() if grant_type is None and params.keys() <= given.keys()
            }
            for kind, params in requests.items():
                is_url = match_template(_token_urls(endpoint)[kind], url, self._known) is not None
                if not is_url or grant_type != params.get("grant_type") or (complete and kind not in complete):
                    continue
                found = in_headers | self._match_all("parameter", params, given)
                client = _CLIENT_PARAMS.get(endpoint.client, frozenset())
                self._require_no_others("parameter", given, {*params, *client})
                if kind == "code":
                    invalid_grant = endpoint.invalid_code or invalid_grant
                    return self._issue(self._redeem({**given, **found}), endpoint.response)
                if kind == "device":
                    return self._poll_device(found["device_code"], endpoint)
                if kind == "secrets":
                    if endpoint.assertion is not None:
                        self._check_grant(found["assertion"], endpoint.assertion)
                    elif self.are_secrets_changed:
                        raise OAuthError("invalid_grant", "wrong")
                    issued = self.sandbox.issue_directly(self.client, self.accounts[0].sub, tuple(self.profile.scopes))
                    return self._issue(issued, endpoint.response)
                for name in endpoint.refresh_requires:
                    if not given.get(name):
                        raise UndocumentedRequest(f"a refresh needs {name}")
                issued = self.sandbox.refresh(self.client, found["refresh_token"], None)
                template = None if self.reuses_code_response else endpoint.refresh_response
                return self._issue(issued, template or endpoint.response)
        except OAuthError as error:
            return self._error(endpoint.invalid_client if error.code == "invalid_client" else invalid_grant)
        raise UndocumentedRequest(f"grant_type {grant_type!r} is not known")

    def _token_requests(self, endpoint: Token) -> Mapping[str, Mapping[str, str]]:
        """The parameters of each kind of token request."""
        if self.profile.renewal.kind == "secrets":
            return {"secrets": endpoint.secrets}
        refresh: dict[str, Mapping[str, str]] = (
            {"refresh": endpoint.refresh} if self.profile.renewal.kind == "refresh" else {}
        )
        if endpoint.device:
            return {"device": endpoint.device, **refresh}
        return {"code": {**endpoint.code, **endpoint.code_requires}, **refresh}

    async def _begin_device(self, request: Request, device: Device) -> Response:
        endpoint = self.profile.token
        assert endpoint is not None
        given = await self._content(request, endpoint.body)
        try:
            self._authenticate(request, given, device.client, endpoint.headers)
        except OAuthError:
            return self._error(endpoint.invalid_client)
        self._match_all("parameter", device.params, given)
        client = _CLIENT_PARAMS.get(device.client, frozenset())
        self._require_no_others("parameter", given, {*device.params, *client})
        code = f"device-{len(self._pending_devices) + len(self._decided_devices)}"
        self._pending_devices.add(code)
        return JSONResponse(self._fill(device.response, device_code=code))

    def _poll_device(self, code: str, endpoint: Token) -> Response:
        """The tokens of a device code, from the second request on."""
        device = self.profile.device
        assert device is not None
        if code in self._pending_devices:
            self._pending_devices.remove(code)
            self._decided_devices.add(code)
            return self._error(device.pending)
        if code not in self._decided_devices:
            return self._error(endpoint.invalid_grant)
        sub = self.accounts[self.account_index or 0].sub
        issued = self.sandbox.issue_directly(self.client, sub, tuple(self.profile.scopes))
        return self._issue(issued, endpoint.response)

    def _redeem(self, given: Mapping[str, str]) -> TokenPair:
        page = self.profile.authorize
        assert page is not None
        verifier = given.get("code_verifier") if page.pkce == "required" else None
        redirect_uri = given.get("redirect_uri") or self.client.redirect_uris[0]
        return self.sandbox.redeem_code(self.client, given.get("code", ""), redirect_uri, verifier)

    async def _matches_exchange(self, request: Request, exchange: Exchange) -> bool:
        params = dict(request.query_params) if exchange.method == "GET" else await self._content(request, "form")
        return request.method == exchange.method and params.get("grant_type") == exchange.grant_type

    async def _exchange(self, request: Request, exchange: Exchange) -> Response:
        endpoint = self.profile.token
        assert endpoint is not None
        params = dict(request.query_params) if exchange.method == "GET" else await self._content(request, "form")
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

    async def _log_in(self, request: Request, url: str, index: int, step: LoginRequest) -> Response:
        """The response to a request of a login. Values that are only wrong are rejected; other requests are unknown."""
        content = None if step.body is None else await self._content(request, step.body_type)
        if step.body is None and await request.body():
            raise UndocumentedRequest("has content")
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if "authorization" not in map(str.lower, step.headers) and scheme != ("" if step.basic is None else "Basic"):
            raise UndocumentedRequest("HTTP Basic is missing, or not documented")
        self._require_no_others("parameter", request.query_params, step.requires)
        parts = [("the URL", step.url, url), ("the content", step.body, content)]
        if step.basic is not None:
            parts.append(("HTTP Basic", step.basic, base64.b64decode(encoded).decode()))
        for what, templates, actual in (
            ("header", step.headers, request.headers),
            ("parameter", step.requires, request.query_params),
        ):
            parts += [(f"{what} {name}", template, actual.get(name)) for name, template in templates.items()]
        for what, template, value in parts:
            self._match(what, template, value)
        if index and not self._logins_begun[index]:
            raise UndocumentedRequest("is not the first request of a login")
        self._logins_begun[index] -= 1
        known = {**self._known, **self._account_fields(0), **self._secrets}
        if any(match_template(template, value, known) is None for _, template, value in parts):
            return self._error(step.rejections[0])
        if index + 1 < len(self.profile.login):
            self._logins_begun[index + 1] += 1
            return self._login_response(step, self._account_fields(0))
        self.token_requests += 1
        issued = self.sandbox.issue_directly(self.client, self.accounts[0].sub, tuple(self.profile.scopes))
        return self._login_response(step, self._token_values(issued))

    def _login_response(self, step: LoginRequest, values: Mapping[str, object]) -> Response:
        content = self._fill(step.response, **values)
        if isinstance(content, str):
            response: Response = PlainTextResponse(content, step.status)
        else:
            response = JSONResponse(self._with_overrides(content), step.status)
        response.headers.update({name: str(text) for name, text in self._fill(step.response_headers, **values).items()})
        cookies = dict[str, str]()
        for name, value in self._fill(step.cookies, **values).items():
            pairs = value.split(";") if name == "*" else [f"{name}={value}"]
            cookies |= {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs}
        for name, value in cookies.items():
            response.headers.append("Set-Cookie", f"{name}={value}; Path=/; HttpOnly")
        return response

    def _with_overrides(self, response: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**response, **{name: value for name, value in self.token_overrides.items() if name in response}}

    def _issue(self, issued: TokenPair, template: Mapping[str, Any]) -> Response:
        return JSONResponse(self._with_overrides(self._fill(template, **self._token_values(issued))))

    def _token_values(self, issued: TokenPair) -> Mapping[str, object]:
        """The values in a response with tokens."""
        endpoint = self.profile.token
        assert endpoint is not None
        self._issue_times[issued.access_token] = self.clock()
        account = self.sandbox.find_account(issued.access_token)
        return {
            **self._account_fields(self.accounts.index(account) if account in self.accounts else 0),
            "access_token": issued.access_token,
            "refresh_token": issued.refresh_token,
            "scope": endpoint.response_scope_separator.join(issued.scopes),
            "expires_in": round((issued.expire_time - self.clock()).total_seconds()),
            "expires_at": issued.expire_time.isoformat().replace("+00:00", "Z"),
        }

    def _authenticate(
        self, request: Request, given: Mapping[str, str], how: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """The values that stand for the names in the headers. Raises `OAuthError` if the client is another one."""
        found = self._match_all("header", headers, request.headers)
        scheme = request.headers.get("authorization", "").partition(" ")[0]
        if how == "header":
            if "client_secret" in given:
                raise UndocumentedRequest("the client must authenticate with its headers only")
            expected = self._fill({"client_secret": "$client_secret", "basic": "$basic"})
            if any(found[name] != expected[name] for name in found.keys() & expected.keys()):
                raise OAuthError("invalid_client", "wrong")
            return found
        if how == "assertion":
            if scheme and "authorization" not in map(str.lower, headers):
                raise UndocumentedRequest("only the assertion authenticates")
            return found
        if how in {"client_secret_jwt", "private_key_jwt"}:
            if scheme or "client_secret" in given:
                raise UndocumentedRequest("the client must authenticate with an assertion")
            self._check_assertion(given, how)
        elif self._presented_client(request, given, how) != (self.client_id, self.client_secret):
            raise OAuthError("invalid_client", "wrong")
        return found

    def _presented_client(self, request: Request, given: Mapping[str, str], how: str) -> tuple[str, str]:
        """Client id and secret of a request."""
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if how == "basic":
            if scheme != "Basic" or "client_secret" in given:
                raise UndocumentedRequest("the client must authenticate with Basic")
            user, _, password = base64.b64decode(encoded).decode().partition(":")
            return unquote_plus(user), unquote_plus(password)
        if how == "none":
            if scheme or "client_secret" in given:
                raise UndocumentedRequest("a public client has no secret (RFC 6749 §2.1)")
            return given.get("client_id", ""), self.client_secret
        if scheme:
            raise UndocumentedRequest("the client must authenticate in the content")
        return given.get("client_id", ""), given.get("client_secret", "")

    def _check_assertion(self, given: Mapping[str, str], how: str) -> None:
        """RFC 7523 §3: who it is about, what it is for, until when it is valid, and that it is used once."""
        token = self.profile.token
        assert token is not None
        if given.get("client_assertion_type") != ASSERTION_TYPE or "client_assertion" not in given:
            raise UndocumentedRequest("client_assertion of type jwt-bearer is missing")
        own = _own_algorithm(self.profile) or "ES256"
        by_secret = OctKey.import_key(self.client_secret)
        key = by_secret if how == "client_secret_jwt" else _verification_key(self.client_secret, own)
        try:
            claims = jwt.decode(given["client_assertion"], key, algorithms=["HS256", "RS256", own]).claims
        except (JoseError, ValueError) as error:
            raise OAuthError("invalid_client", "wrong") from error
        now = self.clock().timestamp()
        if (claims["iss"], claims["sub"]) != (self.client_id, self.client_id) or not now < claims["exp"] < now + 3600:
            raise UndocumentedRequest("the assertion is not about the client, or not valid now")
        if claims["aud"] != token.url or claims["jti"] in self._assertion_ids:
            raise UndocumentedRequest("the assertion is not for the token endpoint, or was used before")
        self._assertion_ids.add(claims["jti"])

    def _check_grant(self, token: str, assertion: GrantAssertion) -> None:
        """RFC 7523 §3. Raises `OAuthError` for another key, and `UndocumentedRequest` for another assertion."""
        seed = OTHER_SECRET if self.are_secrets_changed else assertion.signer or self.client_secret
        algorithm = assertion.algorithm
        try:
            read = jwt.decode(token, _verification_key(seed, algorithm), algorithms=[algorithm])
        except (JoseError, ValueError) as error:
            if jws_algorithm(token) != algorithm:
                raise UndocumentedRequest(f"the assertion must be signed with {algorithm}") from error
            raise OAuthError("invalid_grant", "wrong") from error
        if read.header.get("kid", "") != assertion.key_id:
            raise UndocumentedRequest(f"kid must be {assertion.key_id!r}, not {read.header.get('kid')!r}")
        claims = dict(read.claims)
        begin, end, now = claims.pop("iat"), claims.pop("exp"), self.clock().timestamp()
        if not begin <= now < end or abs(end - begin - assertion.lifetime) > 1:  # both are whole seconds
            raise UndocumentedRequest(f"the assertion must be valid from now for {assertion.lifetime} s")
        found = self._match("the claims", assertion.claims, claims)
        if found.get("jti") in self._assertion_ids:
            raise UndocumentedRequest("the assertion was used before")
        self._assertion_ids |= {found["jti"]} if "jti" in found else set()

    # --- API and revocation

    async def _resource(self, request: Request, url: str, resource: Resource) -> Response | None:
        """The response of a resource; None if the URL is not its own."""
        found = match_template(resource.url, url, self._known)
        if found is None:
            return None
        if request.method == "POST" and "content-type" in request.headers and not request.headers.get("content-length"):
            raise UndocumentedRequest("a content type without content")
        left_out = {
            name for name in resource.optional if name not in request.query_params and name not in request.headers
        }
        requires = {name: template for name, template in resource.requires.items() if name not in left_out}
        found |= self._match_all("parameter", requires, request.query_params)
        self._require_no_others("parameter", request.query_params, resource.requires)
        if resource.body is not None:
            found |= self._match("the content", resource.body, await self._content(request, resource.body_type))
        elif self.profile.is_exact and await request.body():
            raise UndocumentedRequest("has content")
        try:
            standard = {} if self.profile.token is None else BEARER
            auth = standard if resource.auth is None else resource.auth
            auth = {name: template for name, template in auth.items() if name not in left_out}
            found |= self._match_all("header", auth, request.headers)
        except UndocumentedRequest:
            if self.profile.is_exact:
                raise
            return self._error(resource.rejection)
        account = self._authenticated(request, found)
        if account is None:
            return self._error(resource.rejection)
        fields = self._account_fields(self.accounts.index(account))
        if any(str(fields[name]) != found[name] for name in fields.keys() & found.keys()):
            raise UndocumentedRequest("is about another account")
        claims = self.profile.token.claims if self.profile.token else {}
        return JSONResponse(self._fill(resource.response, **fields, **claims), resource.status)

    def _authenticated(self, request: Request, found: Mapping[str, str]) -> Account | None:
        """The account of the credentials in a request; None if they are wrong."""
        key = self.profile.key
        if key is None or self.profile.token is not None:
            return self.sandbox.find_account(found.get("access_token", ""))
        fields = {"api_key": key.api_key, "api_secret": key.api_secret, **key.secret_fields}
        is_right = all(found[name] == text for name, text in fields.items() if name in found)
        return self.accounts[0] if is_right and self._has_key(request) else None

    def _has_key(self, request: Request) -> bool:
        key = self.profile.key
        assert key is not None
        auth = key_auth(key)
        return all(
            actual.get(name) == value
            for actual, required in ((request.headers, auth.headers), (request.query_params, auth.query_params))
            for name, value in required.items()
        )

    async def _revoke(self, request: Request, url: str, revocation: Revocation) -> Response:
        kind, _, name = revocation.token.partition(":")
        given = await self._content(request, "json" if kind == "json" else revocation.body_type)
        try:
            headers = self.profile.token.headers if self.profile.token and self.profile.is_exact else {}
            headers = {name: text for name, text in headers.items() if "${assertion}" not in text}
            if revocation.client not in {"secret", "none"}:
                self._authenticate(request, given, revocation.client, headers)
        except OAuthError:
            return self._error(revocation.rejection)
        for header, template in revocation.auth.items():
            if revocation.client == "secret" and request.headers.get(header) != self._fill(template):
                return self._error(revocation.rejection)
        if kind == "account":
            for account_index, account in enumerate(self.accounts):
                if self._fill(self.profile.account_id, **self._account_fields(account_index)) == given.get(name):
                    self.sandbox.revoke_grants(account.sub)
            return JSONResponse(self._fill(revocation.response), revocation.status)
        token = given.get(name, "") if name else self._named_token(request, url, given, revocation)
        if kind == "bearer" and not self.is_valid(token):
            return self._error(revocation.rejection)
        self.sandbox.revoke(self.client, token)
        content = self._fill(revocation.response)
        return Response(status_code=204) if revocation.status == 204 else JSONResponse(content, revocation.status)

    def _named_token(self, request: Request, url: str, given: Mapping[str, str], revocation: Revocation) -> str:
        """The token in a revocation, at any of the places where the profile has its name."""
        found = self._match("the URL", revocation.url, url)
        found |= self._match_all("parameter", revocation.requires, request.query_params)
        found |= self._match_all("header", revocation.auth, request.headers)
        found |= self._match_all("parameter", revocation.params, given)
        if not revocation.token:
            client = _CLIENT_PARAMS.get(revocation.client, frozenset())
            self._require_no_others("parameter", given, {*revocation.params, *client})
        for name in ("client_secret", "basic"):
            if name in found and found[name] != self._fill(f"${name}"):
                raise UndocumentedRequest(f"{name} is wrong")
        tokens = (found[name] for name in ("token", "refresh_token", "access_token") if name in found)
        return next(tokens, "")

    def _account_fields(self, account_index: int) -> dict[str, object]:
        account = self.accounts[account_index]
        number = int(account.sub) if account.sub.isdigit() else account.sub
        return {"sub": account.sub, "number": number, "email": account.email, "name": account.name}

    def _error(self, error: ErrorResponse) -> Response:
        return JSONResponse(dict(error.body), error.status)


def jws_algorithm(token: str) -> object:
    """The algorithm that a signed JWT names (RFC 7515 §4.1.1)."""
    header = token.partition(".")[0]
    return json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["alg"]


def key_auth(key: Key) -> RequestAuth:
    """The headers and query parameters with a key."""
    pair = base64.b64encode(f"{key.api_key}:{key.api_secret}".encode()).decode()
    values = {"basic": pair, "api_key": key.api_key, "api_secret": key.api_secret, **key.secret_fields}
    return RequestAuth(fill_template(key.auth, values), fill_template(key.query, values))


_ENDS: Mapping[str, Literal["authorization", "grant", "account"]] = {
    "token": "authorization",
    "grant": "grant",
    "account": "account",
}


def _token_urls(endpoint: Token) -> Mapping[str, str]:
    url = endpoint.url
    return {"code": url, "secrets": url, "device": url, "refresh": endpoint.refresh_url or url}


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
    """Sends every request to the server, whatever its host, without a socket."""

    def __init__(self, server: FakeProviderServer, integration_type: str) -> None:
        self._integration_type = integration_type
        self._transport = httpx.ASGITransport(app=server)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the server."""
        is_loopback = request.url.host in {"127.0.0.1", "::1", "localhost"}
        assert request.url.scheme == "https" or is_loopback, "a secret would have been sent without TLS"
        headers = httpx.Headers(request.headers)
        headers["host"] = request.url.netloc.decode()
        headers[PROFILE_HEADER], headers[SCHEME_HEADER] = self._integration_type, request.url.scheme
        assert isinstance(request.stream, httpx.AsyncByteStream)
        sent = httpx.Request(request.method, request.url, headers=headers, stream=request.stream)
        return await self._transport.handle_async_request(sent)
