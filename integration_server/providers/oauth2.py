"""OAuth 2 as the RFCs have it: a provider that follows them declares, and this does.

Requests are made by Authlib's functions without I/O; docs/decisions/0002-oauth-library.md says why.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote_plus

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7009.parameters import prepare_revoke_token_request

from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.base import BaseProvider
from integration_server.providers.http import HttpAnswer
from integration_server.providers.token_answer import error_code, read_tokens, require_no_error
from integration_server.service.ports import NewAccount

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

_FOR_REFRESH_TOKENS = frozenset({"offline_access", "offline", "refresh_token"})
"""Scopes that ask for a refresh token (OpenID Connect Core §11 and its like); answers seldom list them."""

_UNJUDGED = frozenset({"openid"})
"""Asks for an ID token, which is not used here, so that nothing is missing without it."""


class OAuth2Provider(BaseProvider):
    """The authorization code grant (RFC 6749) with PKCE (RFC 7636), refreshing, and revocation (RFC 7009)."""

    auth_method = AuthMethod.OAUTH2
    scope_separator = " "
    token_auth: TokenAuth = "client_secret_basic"
    authorize_params: Mapping[str, str] = MappingProxyType({})

    uses_pkce = True
    """False only for a provider to which a code challenge means something else than RFC 7636 says."""

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
                add_params_to_uri(self.oauth_authorize_url, self.authorize_params.items()),
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
        )
        return await self._trade(body, "code")

    def missing_scopes(self, asked: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """Which of the scopes asked for were not granted. An answer without scopes means as asked."""
        return [scope for scope in asked if not self._is_granted(scope, tokens)]

    def _is_granted(self, scope: str, tokens: OAuthTokens) -> bool:
        if scope in _FOR_REFRESH_TOKENS:
            return tokens.refresh_token is not None
        if tokens.scopes is None or scope in _UNJUDGED:
            return True
        return scope in tokens.scopes or self.scope_aliases.get(scope) in tokens.scopes

    # --- keeping

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Renew (RFC 6749 §6). Raises `ProviderError`."""
        return await self._trade(prepare_token_request("refresh_token", refresh_token=refresh_token), "grant")

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the refresh token, and its access tokens with it (RFC 7009 §2.1); or the access token."""
        if self.revoke_url is None or not isinstance(credentials, OAuthTokens):
            return False
        if credentials.refresh_token is not None:
            body, _ = prepare_revoke_token_request(credentials.refresh_token, "refresh_token")
        else:
            body, _ = prepare_revoke_token_request(credentials.access_token, "access_token")
        return self.read_revocation(await self._post_as_client(self.revoke_url, body))

    def read_revocation(self, answer: HttpAnswer) -> bool:
        """True if the credentials are dead, False if none of their kind can be revoked; else raises `ProviderError`."""
        if answer.is_refusal and error_code(answer) == "invalid_token":
            return True  # dead before we came, which RFC 7009 §2.2 does not count as an error
        if answer.is_refusal and error_code(answer) == "unsupported_token_type":
            return False  # RFC 7009 §2.2.1
        require_no_error(answer, "revocation")
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

    async def _trade(self, body: str, what: str) -> OAuthTokens:
        answer = await self._post_as_client(self.oauth_token_url, body)
        return self.read_tokens(answer, what)

    def read_tokens(self, answer: HttpAnswer, what: str) -> OAuthTokens:
        """The tokens that the answer to trading `what` carries. Raises `ProviderError`."""
        return read_tokens(
            answer,
            what=what,
            now=self._context.clock(),
            scope_separator=self.scope_separator,
            extra_fields=self.extra_fields,
        )

    async def _post_as_client(self, url: str, body: str) -> HttpAnswer:
        """POST a form with our client authentication (RFC 6749 §2.3.1)."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        _, headers, body = self._client_auth().prepare("POST", url, headers, body)  # type: ignore[no-untyped-call]
        return await self.send("POST", url, headers=headers, content=body)

    def _client_auth(self) -> ClientAuth:
        if self.token_auth == "client_secret_basic":
            # RFC 6749 §2.3.1: both are form-encoded first. Authlib leaves that to its caller.
            return ClientAuth(quote_plus(self.client_id), quote_plus(self.client_secret), self.token_auth)
        return ClientAuth(self.client_id, self.client_secret, self.token_auth)
