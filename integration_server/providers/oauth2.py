"""OAuth 2 as the RFCs define it. A provider that follows them only declares.

Requests are built by Authlib's functions without I/O; docs/decisions/0002-oauth-library.md has the reasons.
"""

from abc import abstractmethod
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote_plus

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7009.parameters import prepare_revoke_token_request

from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderError, ProviderRejected, ProviderUnavailable
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.http import HttpResponse
from integration_server.providers.token_response import error_code, parse_fields, parse_tokens, raise_for_error
from integration_server.providers.url_templates import fill
from integration_server.service.integrations.ports import NewAccount

TokenAuth = Literal["client_secret_basic", "client_secret_post", "none"]
RevokeToken = Literal["refresh_token", "access_token", "bearer"]

RESERVED_PARAMS = frozenset(
    {"response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method"}
)
"""Parameters of the authorization URL that a declaration cannot set."""

_STANDARD_ERRORS = frozenset(
    {
        *("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client"),  # RFC 6749 §5.2
        *("unsupported_grant_type", "invalid_scope", "access_denied", "server_error", "temporarily_unavailable"),
        *("invalid_token", "insufficient_scope", "unsupported_token_type"),  # RFC 6750 §3.1, RFC 7009 §2.2.1
        *("interaction_required", "login_required", "consent_required"),  # OpenID Connect Core §3.1.2.6
    }
)

_REFRESH_TOKEN_SCOPES = frozenset({"offline_access", "offline", "refresh_token"})
"""Scopes that request a refresh token (OpenID Connect Core §11 and similar); responses seldom list them."""

_UNVERIFIED_SCOPES = frozenset({"openid"})
"""Requests an ID token, which is not used here, so that nothing is missing without it."""


class OAuth2Provider(BaseProvider):
    """The authorization code grant (RFC 6749) with PKCE (RFC 7636), refresh, and revocation (RFC 7009)."""

    auth_method = AuthMethod.OAUTH2
    scope_separator = " "
    token_auth: TokenAuth = "client_secret_basic"
    authorize_params: Mapping[str, str] = MappingProxyType({})

    uses_pkce = True
    """False only for a provider to which a code challenge means something else than RFC 7636 defines."""

    code_params: Mapping[str, str] = MappingProxyType({})
    """Further parameters of the request that exchanges a code."""

    error_field = "error"
    """The dotted path of the error code in the token endpoint's responses."""

    error_codes: Mapping[str, Collection[str]] = MappingProxyType({})
    """The provider's own error codes, by the code of RFC 6749 §5.2 that has the same meaning: `invalid_grant` ends a
    grant, `invalid_client` is a mistake in our settings, `temporarily_unavailable` is transient."""

    tokens_never_expire = False
    """Whether access tokens never expire, whatever a response says."""

    assumed_lifetime: timedelta | None = None
    """The lifetime of access tokens if the response has none."""

    implied_scopes: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Scopes that a scope includes or is another name of, and that responses leave out beside it."""

    retired_scopes: Collection[str] = ()
    """Scopes that grants may have and that cannot be requested, such as older names; unless a request names them."""

    extra_fields: Sequence[str] = ()
    """Dotted paths of further values of the token response, to be stored with the tokens."""

    account_id_extra: str | None = None
    """The stored value that identifies the account, instead of `account_id_field`."""

    revoke_method = "POST"

    revoke_token: RevokeToken = "refresh_token"
    """How a revocation names the grant: in a form with our client authentication (RFC 7009), by the refresh token or,
    if there is none or "access_token" says so, by the access token; or "bearer", by a request with the access token."""

    def __init__(self, context: ProviderContext) -> None:
        super().__init__(context)
        if scopes := self._setting("SCOPES"):
            self.required_scopes = tuple(scopes.replace(",", " ").split())  # type: ignore[misc]  # an attribute mostly

    @property
    @abstractmethod
    def oauth_authorize_url(self) -> str:
        """The authorization endpoint (RFC 6749 §3.1)."""

    @property
    @abstractmethod
    def oauth_token_url(self) -> str:
        """The token endpoint (RFC 6749 §3.2)."""

    @property
    def missing_settings(self) -> Sequence[str]:
        """Besides other required settings, the client id, and the client secret if one is used."""
        needed = {"CLIENT_ID": self.client_id}
        if self.token_auth != "none":
            needed["CLIENT_SECRET"] = self.client_secret
        return [self._setting_name(name) for name, value in needed.items() if not value] + [*super().missing_settings]

    # --- connecting

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL for the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""
        challenge = {"code_challenge": code_challenge, "code_challenge_method": "S256"} if self.uses_pkce else {}
        return str(
            prepare_grant_uri(
                add_params_to_uri(fill(self.oauth_authorize_url, self.url_params), self.authorize_params.items()),
                self.client_id,
                "code",
                redirect_uri=redirect_uri,
                scope=self.scope_separator.join(scopes),
                state=state,
                **challenge,
            )
        )

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Exchange an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises `ProviderError`."""
        body = prepare_token_request(
            "authorization_code",
            redirect_uri=redirect_uri,
            code=code,
            code_verifier=code_verifier if self.uses_pkce else None,
            **self.code_params,
        )
        tokens = await self.request_tokens(body, "code")
        tokens = replace(tokens, extras={**self.url_params, **tokens.extras})
        try:
            return await self.complete_tokens(tokens)
        except ProviderError as error:
            error.issued_tokens = tokens
            raise

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """The tokens of a code, after any further requests that are necessary before they can be used."""
        return tokens

    def scopes_to_request(self, requested: Sequence[str], granted: Sequence[str]) -> Sequence[str]:
        """Besides the required and requested scopes, the granted ones that these do not include.

        Of several names of a scope, the one that was requested: it follows those of the token response.
        """
        scopes = list(super().scopes_to_request(requested, ()))
        for scope in reversed(granted):
            if self.can_request(scope) and not self._includes(scopes, scope):
                scopes.append(scope)
        return tuple(scopes)

    def can_request(self, scope: str) -> bool:
        """Whether an authorization can request a scope that was granted."""
        return scope not in self.retired_scopes

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted. A response without scopes means that all were granted."""
        return [scope for scope in requested_scopes if not self._is_granted(scope, tokens)]

    def _is_granted(self, scope: str, tokens: OAuthTokens) -> bool:
        if scope in _REFRESH_TOKEN_SCOPES:
            return tokens.refresh_token is not None
        if tokens.scopes is None or scope in _UNVERIFIED_SCOPES:
            return True
        if self._includes(tokens.scopes, scope):
            return True
        # The response was split at commas, and so is a requested scope that contains one.
        return self._splits_scopes_at_commas and set(tokens.scopes).issuperset(scope.split(","))

    def _includes(self, scopes: Iterable[str], scope: str) -> bool:
        """Whether a scope is among these, under this or another name, or is included in one of them."""
        return any(_is_same_scope(scope, other) for other in self._with_implied(scopes))

    def implied_by(self, scope: str) -> Collection[str]:
        """The scopes that a scope includes, and that responses leave out beside it."""
        return self.implied_scopes.get(scope, ())

    def _with_implied(self, scopes: Iterable[str]) -> Collection[str]:
        granted, new = set[str](), set(scopes)
        while new:
            granted |= new
            new = {implied for scope in new for implied in self.implied_by(scope)} - granted
        return granted

    # --- refresh and revocation

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """New tokens for a refresh token (RFC 6749 §6). Raises `ProviderError`."""
        return await self.request_tokens(prepare_token_request("refresh_token", refresh_token=refresh_token), "grant")

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the grant; False if the provider has no way to. Raises `ProviderError`."""
        if self.revoke_url is None or not isinstance(credentials, OAuthTokens):
            return False
        tokens = credentials
        needs_access_token = self.revoke_token != "refresh_token"
        if needs_access_token and tokens.refresh_token and tokens.has_expired(self._context.clock()):
            try:
                tokens = tokens.updated_with(await self.refresh(tokens), self._context.clock())
            except ProviderRejected:
                return True  # a grant that cannot be refreshed has ended already
        return await self.for_credentials(tokens).revoke_tokens(self.revoke_url, tokens)

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Send the revocation: with the access token, or one of the tokens in a form (RFC 7009 §2.1)."""
        if self.revoke_token == "bearer":
            response = await self.send(self.revoke_method, revoke_url, headers=self.auth_headers(tokens))
            if not self.rejects_credentials(response) and (not response.is_success or self.is_failure(response)):
                raise ProviderUnavailable(retry_after=response.retry_after)
            return True
        kind = "access_token" if tokens.refresh_token is None else self.revoke_token
        body, _ = prepare_revoke_token_request(getattr(tokens, kind), kind)
        return self.read_revocation(await self.send_as_client(self.revoke_method, revoke_url, body))

    def read_revocation(self, http_response: HttpResponse) -> bool:
        """True if the token is revoked, False if tokens of its kind cannot be. Raises `ProviderError`."""
        fields = parse_fields(http_response)
        code = error_code(fields)
        if http_response.is_refusal and code == "invalid_token":
            return True  # not valid before the request either, which RFC 7009 §2.2 does not count as an error
        if http_response.is_refusal and code == "unsupported_token_type":
            return False  # RFC 7009 §2.2.1
        with self.adding_reason(fields):
            raise_for_error(http_response, fields, "revocation", self.oauth_error(fields))
        return True

    # --- use of tokens

    @property
    def known_reasons(self) -> Collection[str]:
        """Besides others, the codes of the standards, and those that `error_codes` declares."""
        return {
            *super().known_reasons,
            *_STANDARD_ERRORS,
            *(code for codes in self.error_codes.values() for code in codes),
        }

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The authentication of an API request: the headers of `auth_headers`."""
        if not isinstance(credentials, OAuthTokens):
            raise ProviderRejected("credentials")
        return RequestAuth(headers=self.auth_headers(credentials))

    def auth_headers(self, tokens: OAuthTokens) -> Mapping[str, str]:
        """The headers of an authenticated request: the bearer header (RFC 6750 §2.1)."""
        return {"Authorization": f"Bearer {tokens.access_token}"}

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The account of the tokens, by the verification response or by a value stored with the tokens."""
        account = super().account_of(credentials, fields)
        if self.account_id_extra is None or not isinstance(credentials, OAuthTokens):
            return account
        return NewAccount(credentials.extras.get(self.account_id_extra), account.account_label)

    # --- token endpoint

    async def request_tokens(self, body: str, subject: str) -> OAuthTokens:
        """Send a form to the token endpoint to exchange `subject` ("code", "grant"). Raises `ProviderError`."""
        return self.read_tokens(await self.post_as_client(self.oauth_token_url, body), subject)

    def read_tokens(self, http_response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens in a token response. Raises `ProviderError`."""
        fields = parse_fields(http_response)
        with self.adding_reason(fields):
            raise_for_error(http_response, fields, subject, self.oauth_error(fields))
        now = self._context.clock()
        tokens = parse_tokens(
            self.token_fields(fields),
            now,
            scope_separators=(self.scope_separator, ",") if self._splits_scopes_at_commas else (self.scope_separator,),
            extra_fields=self.extra_fields,
            is_refresh=subject == "grant",
        )
        if self.tokens_never_expire:
            return replace(tokens, expire_time=None, lifetime=None)
        if tokens.lifetime is None and self.assumed_lifetime is not None:
            return replace(tokens, expire_time=now + self.assumed_lifetime, lifetime=self.assumed_lifetime)
        return tokens

    @property
    def _splits_scopes_at_commas(self) -> bool:
        """Whether commas separate scopes in responses, besides the separator.

        Some providers use them in responses only. RFC 6749 §3.3 allows commas within scopes: if a required scope has
        one, they do not separate.
        """
        return not any("," in scope for scope in self.required_scopes)

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of a successful response, by the names of RFC 6749 §5.1."""
        return fields

    def oauth_error(self, fields: object) -> str | None:
        """The error code in a response's fields, translated by `error_codes`."""
        code = error_code(fields, self.error_field)
        return next((standard for standard, codes in self.error_codes.items() if code in codes), code)

    async def post_as_client(self, url: str, body: str) -> HttpResponse:
        """POST a form with our client authentication (RFC 6749 §2.3.1)."""
        return await self.send_as_client("POST", url, body)

    async def send_as_client(self, method: str, url: str, body: str) -> HttpResponse:
        """Send a form with our client authentication (RFC 6749 §2.3.1)."""
        client_id, client_secret = self.client_id, self.client_secret
        if self.token_auth == "client_secret_basic":
            # RFC 6749 §2.3.1: both are form-encoded first. Authlib leaves that to its caller.
            client_id, client_secret = quote_plus(client_id), quote_plus(client_secret)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        auth = ClientAuth(client_id, client_secret, self.token_auth)
        _, headers, body = auth.prepare(method, url, headers, body)  # type: ignore[no-untyped-call]
        return await self.send(method, url, headers=headers, content=body)

    def basic_authorization(self) -> str:
        """Our client id and secret as HTTP Basic credentials (RFC 7617), for endpoints that take no form."""
        return f"Basic {b64encode(f'{self.client_id}:{self.client_secret}'.encode()).decode()}"


def _is_same_scope(first: str, second: str) -> bool:
    """Whether two scopes are the same, apart from case and from a resource's URL that only one of them has."""
    first, second = first.casefold(), second.casefold()
    if ("://" in first) != ("://" in second):
        first, second = first.rpartition("/")[2], second.rpartition("/")[2]
    return first == second
