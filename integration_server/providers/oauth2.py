"""OAuth 2 as the RFCs have it: a provider that follows them declares, and this does.

Requests are made by Authlib's functions without I/O; docs/decisions/0002-oauth-library.md says why.
"""

from abc import abstractmethod
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
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
from integration_server.providers.base import BaseProvider
from integration_server.providers.http import HttpResponse
from integration_server.providers.token_response import error_code, parse_tokens, require_no_error
from integration_server.providers.urls import fill
from integration_server.service.integrations.ports import NewAccount

TokenAuth = Literal["client_secret_basic", "client_secret_post", "none"]

RESERVED_PARAMS = frozenset(
    {
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "state",
        "code_challenge",
        "code_challenge_method",
    }
)
"""Parameters of the authorization URL that a declaration cannot set."""

_REFRESH_TOKEN_SCOPES = frozenset({"offline_access", "offline", "refresh_token"})
"""Scopes that ask for a refresh token (OpenID Connect Core §11 and its like); answers seldom list them."""

_UNVERIFIED_SCOPES = frozenset({"openid"})
"""Asks for an ID token, which is not used here, so that nothing is missing without it."""


class OAuth2Provider(BaseProvider):
    """The authorization code grant (RFC 6749) with PKCE (RFC 7636), refreshing, and revocation (RFC 7009)."""

    auth_method = AuthMethod.OAUTH2
    scope_separator = " "
    token_auth: TokenAuth = "client_secret_basic"
    authorize_params: Mapping[str, str] = MappingProxyType({})

    uses_pkce = True
    """False only for a provider to which a code challenge means something else than RFC 7636 says."""

    code_params: Mapping[str, str] = MappingProxyType({})
    """Further parameters of the request that trades a code."""

    error_field = "error"
    """Where the error code is in the token endpoint's answers, as a dotted path."""

    error_codes: Mapping[str, str] = MappingProxyType({})
    """What the provider's own error codes mean, in the words of RFC 6749 §5.2: `invalid_grant` ends a grant,
    `invalid_client` is our fault, `temporarily_unavailable` passes."""

    tokens_never_expire = False
    """Whether access tokens last, whatever an answer says of their end."""

    assumed_lifetime: timedelta | None = None
    """How long access tokens are taken to last where the answer does not say."""

    implied_scopes: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Scopes that a scope includes, and that answers leave out beside it."""

    scope_aliases: Mapping[str, str] = MappingProxyType({})
    """Scopes that the provider answers under another name."""

    extra_fields: Sequence[str] = ()
    """Further fields of the token answer, as dotted paths, to be kept with the tokens."""

    account_id_extra: str | None = None
    """The extra field that names the account, instead of `account_id_field`."""

    @property
    @abstractmethod
    def oauth_authorize_url(self) -> str:
        """Where a browser is sent to ask for access (RFC 6749 §3.1)."""

    @property
    @abstractmethod
    def oauth_token_url(self) -> str:
        """Where codes and refresh tokens are traded (RFC 6749 §3.2)."""

    @property
    def missing_settings(self) -> Sequence[str]:
        """The client id, and the secret where one is used."""
        needed = {"CLIENT_ID": self.client_id}
        if self.token_auth != "none":
            needed["CLIENT_SECRET"] = self.client_secret
        return [self._setting_name(name) for name, value in needed.items() if not value]

    # --- connecting

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """Where to send the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""
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
        """Trade a code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises `ProviderError`."""
        body = prepare_token_request(
            "authorization_code",
            redirect_uri=redirect_uri,
            code=code,
            code_verifier=code_verifier if self.uses_pkce else None,
            **self.code_params,
        )
        response = await self.request_tokens(body, "code")
        tokens = replace(response, extras={**self.url_params, **response.extras})
        try:
            return await self.complete_tokens(tokens)
        except ProviderError:
            if not self.revokes_whole_account:  # else it would end what other integrations have
                with suppress(ProviderError):
                    await self.revoke_credentials(tokens)
            raise

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Tokens that have just come for a code, with what else must be asked before they can be used."""
        return tokens

    def missing_scopes(self, asked: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """Which of the scopes asked for were not granted. An answer without scopes means as asked."""
        return [scope for scope in asked if not self._is_granted(scope, tokens)]

    def _is_granted(self, scope: str, tokens: OAuthTokens) -> bool:
        if scope in _REFRESH_TOKEN_SCOPES:
            return tokens.refresh_token is not None
        if tokens.scopes is None or scope in _UNVERIFIED_SCOPES:
            return True
        granted = self._with_implied(tokens.scopes)
        if scope in granted or self.scope_aliases.get(scope) in granted:
            return True
        return self._splits_scopes_at_commas and set(tokens.scopes).issuperset(
            scope.split(",")
        )  # as it was when it was read

    def implied_by(self, scope: str) -> Collection[str]:
        """What a scope grants as well, and answers leave out for it."""
        return self.implied_scopes.get(scope, ())

    def _with_implied(self, scopes: Iterable[str]) -> Collection[str]:
        granted, new = set[str](), set(scopes)
        while new:
            granted |= new
            new = {implied for scope in new for implied in self.implied_by(scope)} - granted
        return granted

    # --- keeping

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Renew (RFC 6749 §6). Raises `ProviderError`."""
        return await self.request_tokens(prepare_token_request("refresh_token", refresh_token=refresh_token), "grant")

    async def refresh_if_expired(self, tokens: OAuthTokens) -> OAuthTokens:
        """These tokens, renewed if the access token has ended: for providers that revoke what they are called with."""
        if tokens.refresh_token is None or not tokens.has_expired(self._context.clock()):
            return tokens
        return tokens.updated_with(await self.refresh(tokens))

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the refresh token, and its access tokens with it (RFC 7009 §2.1); or the access token."""
        if self.revoke_url is None or not isinstance(credentials, OAuthTokens):
            return False
        if credentials.refresh_token is not None:
            body, _ = prepare_revoke_token_request(credentials.refresh_token, "refresh_token")
        else:
            body, _ = prepare_revoke_token_request(credentials.access_token, "access_token")
        return self.read_revocation(await self.for_credentials(credentials).post_as_client(self.revoke_url, body))

    def read_revocation(self, response: HttpResponse) -> bool:
        """True if the credentials are dead, False if none of their kind can be revoked; else raises `ProviderError`."""
        if response.is_refusal and error_code(response) == "invalid_token":
            return True  # dead before we came, which RFC 7009 §2.2 does not count as an error
        if response.is_refusal and error_code(response) == "unsupported_token_type":
            return False  # RFC 7009 §2.2.1
        require_no_error(response, "revocation", self.oauth_error)
        return True

    # --- using

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The bearer header (RFC 6750 §2.1)."""
        if not isinstance(credentials, OAuthTokens):
            raise ProviderRejected("credentials")
        return RequestAuth(headers={"Authorization": f"Bearer {credentials.access_token}"})

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """Whose the credentials are, by the verification's answer or by what came with the tokens."""
        account = super().account_of(credentials, fields)
        if self.account_id_extra is None or not isinstance(credentials, OAuthTokens):
            return account
        return NewAccount(credentials.extras.get(self.account_id_extra), account.account_label)

    # --- the token endpoint

    async def request_tokens(self, body: str, subject: str) -> OAuthTokens:
        """What the token endpoint gives for a form. Raises `ProviderError`."""
        return self.read_tokens(await self.post_as_client(self.oauth_token_url, body), subject)

    def read_tokens(self, response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens that the answer to trading `subject` carries. Raises `ProviderError`."""
        fields = require_no_error(response, subject, self.oauth_error)
        tokens = parse_tokens(
            self.token_fields(fields),
            now=self._context.clock(),
            scope_separators=(self.scope_separator, ",") if self._splits_scopes_at_commas else (self.scope_separator,),
            extra_fields=self.extra_fields,
        )
        if self.tokens_never_expire:
            return replace(tokens, expire_time=None, lifetime=None)
        if tokens.lifetime is None and self.assumed_lifetime is not None:
            expire_time = self._context.clock() + self.assumed_lifetime
            return replace(tokens, expire_time=expire_time, lifetime=self.assumed_lifetime)
        return tokens

    @property
    def _splits_scopes_at_commas(self) -> bool:
        """Some answer with commas between scopes, whatever they were asked with.

        RFC 6749 §3.3 lets a scope have a comma: where one is known that has, answers are taken at their word.
        """
        return not any("," in scope for scope in self.required_scopes)

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """A successful answer's fields by the names of RFC 6749 §5.1, where the provider has others."""
        return fields

    def oauth_error(self, response: HttpResponse) -> str | None:
        """The error code that an answer has, if any, in the words of RFC 6749 §5.2 where they fit."""
        code = error_code(response, self.error_field)
        return self.error_codes.get(code, code) if code is not None else None

    async def post_as_client(self, url: str, body: str) -> HttpResponse:
        """POST a form with our client authentication (RFC 6749 §2.3.1)."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        _, headers, body = self._client_auth().prepare("POST", url, headers, body)  # type: ignore[no-untyped-call]
        return await self.send("POST", url, headers=headers, content=body)

    def basic_authorization(self) -> str:
        """Our client id and secret as HTTP Basic (RFC 7617), for endpoints that take no form."""
        return f"Basic {b64encode(f'{self.client_id}:{self.client_secret}'.encode()).decode()}"

    async def revoke_with_access_token(self, credentials: Credentials, method: str) -> bool:
        """Revoke by calling `revoke_url` with the access token itself, renewed first if it has ended."""
        if not isinstance(credentials, OAuthTokens):
            return False
        try:
            tokens = await self.refresh_if_expired(credentials)
        except ProviderRejected:
            return True  # what cannot be renewed is dead already
        response = await self.for_credentials(tokens).send(
            method, self.revoke_url or "", headers=self.request_auth(tokens).headers
        )
        if not response.is_success and not self.rejects_credentials(response):
            raise ProviderUnavailable(retry_after=response.retry_after, is_refusal=response.is_refusal)
        return True

    def _client_auth(self) -> ClientAuth:
        if self.token_auth == "client_secret_basic":
            # RFC 6749 §2.3.1: both are form-encoded first. Authlib leaves that to its caller.
            return ClientAuth(quote_plus(self.client_id), quote_plus(self.client_secret), self.token_auth)
        return ClientAuth(self.client_id, self.client_secret, self.token_auth)
