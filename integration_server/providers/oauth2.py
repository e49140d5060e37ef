"""OAuth 2 as the RFCs define it. A provider that follows them only declares.

docs/decisions/0002-oauth-library.md says what of a library is used, and why.
"""

import re
from abc import abstractmethod
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import quote_plus

from authlib.common.urls import add_params_to_uri

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
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.lenient_values import field_at, text_at
from integration_server.domain.oauth_client import OAuthClient
from integration_server.domain.token_response import error_code, parse_fields, parse_tokens, raise_for_error
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.client_assertion import client_assertion
from integration_server.providers.declaration_tables import (
    SECRET_GRANTS,
    Assertion,
    BodyType,
    DeviceResponse,
    Grant,
    LoginRequest,
    RevokeToken,
    TokenAuth,
    TokenResponse,
)
from integration_server.providers.declaration_templates import texts_in
from integration_server.providers.device_authorization import (
    GRANT_TYPE,
    decision_pending,
    parse_device_authorization,
)
from integration_server.providers.grants import client_credentials, jwt_bearer, login
from integration_server.providers.http import HttpResponse
from integration_server.providers.provider_model import derived
from integration_server.providers.response_values import cookie_lifetime, is_outside_json, values_outside_json
from integration_server.providers.url_templates import InvalidParam, fill, fill_texts, template_params

OUR_CLIENT = frozenset({"client_secret", "basic"})
"""Names in templates by which our client authenticates: then a 401 is about it, and not about the grant."""

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


_SECRET_GRANTS: Mapping[str, Callable[["OAuth2Provider"], Awaitable[OAuthTokens]]] = {
    "client_credentials": client_credentials.request_tokens,
    "jwt_bearer": jwt_bearer.request_tokens,
    "login": login.request_tokens,
}


class OAuth2Provider(BaseProvider):
    """The authorization code grant (RFC 6749) with PKCE (RFC 7636), refresh, and revocation (RFC 7009)."""

    auth_method = AuthMethod.OAUTH2
    scope_separator = " "
    token_auth: TokenAuth = "client_secret_basic"
    authorize_params: Mapping[str, str] = MappingProxyType({})

    grant: Grant = "authorization_code"
    assertion: Assertion | None = None
    login: Sequence[LoginRequest] = ()
    scope_param = "scope"
    pkce = True
    resource: str | None = None
    token_body: BodyType = "form"
    token_headers: Mapping[str, str] = MappingProxyType({})
    token_params: Mapping[str, str] = MappingProxyType({})
    refresh_params: Mapping[str, str] = MappingProxyType({})
    token_response = TokenResponse()
    device_auth: TokenAuth | None = None
    device_params: Mapping[str, str] = MappingProxyType({})
    device_response = DeviceResponse()
    keep_callback: Sequence[str] = ()
    never_expires = False
    lifetime: timedelta | None = None
    retired_scopes: Collection[str] = ()
    scope_equivalents: Mapping[str, Sequence[str]] = MappingProxyType({})

    granted_scopes: Sequence[str] | None = None
    """The scopes of the grant, if they are known."""

    revoke_method = "POST"
    revoke_token: RevokeToken = "refresh_token"
    revoke_headers: Mapping[str, str] = MappingProxyType({})
    revoke_params: Mapping[str, str] = MappingProxyType({})
    revoke_body_type: BodyType = "form"
    revoke_gone_status: Collection[int] = ()

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
    def takes_client_secret(self) -> bool:
        """Whether an OAuth client of this type has a secret, or a private key."""
        return bool({"CLIENT_SECRET", "PRIVATE_KEY"} & {*self._own_settings})

    def _own_oauth_client(self) -> OAuthClient:
        """With `private_key_jwt`, the client's secret is its private key."""
        client, names = super()._own_oauth_client(), ("PRIVATE_KEY", "PRIVATE_KEY_PREVIOUS")
        return replace(client, secrets=self._settings(*names)) if self.token_auth == "private_key_jwt" else client

    @property
    def missing_settings(self) -> Sequence[str]:
        """Besides other required settings, the client id, and the client secret or private key if one is used."""
        values = {"CLIENT_ID": self.client_id, "CLIENT_SECRET": self._template_secret, "PRIVATE_KEY": self.private_key}
        missing = [
            self._setting_name(name) for name, value in values.items() if name in self._own_settings and not value
        ]
        return [*missing, *super().missing_settings]

    @derived
    def _own_settings(self) -> Collection[str]:
        """Which of the settings of our client the requests for tokens use."""
        templates = {*texts_in(self.token_headers), *texts_in(self.token_params)}
        if self.assertion is not None:
            templates |= {*texts_in(self.assertion.claims)}
        for request in self.login:
            templates |= {*texts_in(request.model_dump())}
        names = {name for template in templates for name in template_params(template)}
        used = {"CLIENT_ID"} if "client_id" in names else set[str]()
        used |= {"CLIENT_ID", "CLIENT_SECRET"} if names & OUR_CLIENT else set[str]()
        if self.assertion is not None and self.assertion.key is None:
            used.add("PRIVATE_KEY")
        if self.grant != "login" and (self.grant != "jwt_bearer" or self.token_auth != "none"):
            secret = {"private_key_jwt": {"PRIVATE_KEY"}, "none": set[str]()}
            used |= {"CLIENT_ID", *secret.get(self.token_auth, {"CLIENT_SECRET"})}
        return used - ({"CLIENT_ID", "CLIENT_SECRET"} if "client_id" in self.secret_names else set())

    @cached_property
    def private_key(self) -> str:
        """Our private key, the setting `<TYPE>_PRIVATE_KEY`; empty if not set."""
        return self._setting("PRIVATE_KEY")

    def with_private_key(self, key: str) -> Self:
        """A copy with another private key of ours."""
        client = (
            replace(self.oauth_client, secrets=(key,)) if self.token_auth == "private_key_jwt" else self.oauth_client
        )
        return self.with_attributes(private_key=key, oauth_client=client)

    @property
    def private_key_id(self) -> str:
        """The id of our private key, the setting `<TYPE>_PRIVATE_KEY_ID`; empty if not set."""
        return self._setting("PRIVATE_KEY_ID")

    @derived
    def url_templates(self) -> Mapping[str, str]:
        """The URL templates, with those of logins."""
        urls = {f"login.{index}.url": request.url for index, request in enumerate(self.login)}
        filled = {name: fill(url, self.setting_values, partial=True) for name, url in urls.items()}
        return {**super().url_templates, **filled}

    # --- connecting

    @property
    def oauth(self) -> Self:
        """The provider itself."""
        return self

    @property
    def has_authorization_page(self) -> bool:  # type: ignore[override]  # it depends on the grant
        """Whether a user connects an account in the browser."""
        return self.grant in {"authorization_code", "device_code"}

    @property
    def has_device_authorization(self) -> bool:  # type: ignore[override]  # it depends on the grant
        """Whether the user does so by entering a code (RFC 8628)."""
        return self.grant == "device_code"

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL for the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""
        values = self.client_values
        params = {
            **fill_texts(self.authorize_params, values),
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            self.scope_param: self.scope_separator.join(scopes),
            "state": state,
            "resource": self.resource and fill(self.resource, values),
        }
        if self.pkce:
            params |= {"code_challenge": code_challenge, "code_challenge_method": "S256"}
        pairs = [(name, value) for name, value in params.items() if name and value]
        return str(add_params_to_uri(fill(self.oauth_authorize_url, values), pairs))

    @property
    def client_values(self) -> Mapping[str, str]:
        """The values of templates in requests of our client. The authorization URL has no name of a secret."""
        own = {"client_secret": self._template_secret, "basic": self.basic_credentials()}
        return {**self.values, **{name: value for name, value in own.items() if value}}

    @property
    def _template_secret(self) -> str:
        """The client secret that templates and HTTP Basic may contain: never a private key, which nobody else gets."""
        if self.token_auth != "private_key_jwt":
            return self.client_secret
        return "" if self.oauth_client.name else self._setting("CLIENT_SECRET")

    def for_callback(self, query: Mapping[str, str]) -> Self:
        """The provider with the values of the callback that are stored with the tokens. Raises `InvalidField`."""
        provider = self.with_attributes(url_params={**self.url_params, **self.read_callback(query)})
        if provider.unusable_param() is not None:
            raise InvalidField("query", "leads to an address that is not of this integration type")
        return provider

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """The values that `keep_callback` names, with "_" for "-" in their names. Raises `InvalidField`."""
        kept = {name: text_at(query, name) for name in self.keep_callback}
        for name, value in kept.items():
            if value is None:
                raise InvalidField("query", f"has no {name}, which this integration type requires")
            if (pattern := self.kept_patterns.get(name.replace("-", "_"))) and not re.fullmatch(pattern, value):
                raise InvalidField("query", f"has a {name} that does not match {pattern}")
        return {name.replace("-", "_"): value for name, value in kept.items() if value is not None}

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Exchange an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises `ProviderError`."""
        standard = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        if self.pkce:
            standard["code_verifier"] = code_verifier
        values = {**standard, "code_verifier": code_verifier, "scope": self.scope_separator.join(self.required_scopes)}
        return await self._usable(await self.request_tokens(self._params(standard, self.token_params, values), "code"))

    async def _usable(self, tokens: OAuthTokens) -> OAuthTokens:
        """The tokens of a code, with all that their use needs. An error has them as `issued_tokens`."""
        tokens = replace(tokens, extras={**self.url_params, **tokens.extras})
        try:
            tokens = await self.complete_tokens(tokens)
            self.require_reachable(tokens.extras, self.kept_names)
            return tokens
        except ProviderError as error:
            error.issued_tokens = tokens
            raise

    def _params(
        self, standard: Mapping[str, str], declared: Mapping[str, str], values: Mapping[str, str]
    ) -> Mapping[str, str]:
        """The parameters of a token request: an empty template leaves a standard one out."""
        resource = {} if self.resource is None else {"resource": fill(self.resource, self.client_values)}
        filled = fill_texts(declared, {**self.client_values, **values}) if declared else {}
        return {name: value for name, value in {**standard, **resource, **filled}.items() if declared.get(name) != ""}

    def scope_params(self) -> Mapping[str, str]:
        """The parameter with the required scopes; empty if there are none, or no parameter for them."""
        scope = self.scope_separator.join(self.required_scopes)
        return {self.scope_param: scope} if scope and self.scope_param else {}

    def token_request(self, standard: Mapping[str, str]) -> Mapping[str, str]:
        """The parameters of a token request: the standard ones of a grant, changed as `token_params` declares."""
        scope = self.scope_separator.join(self.required_scopes)
        return self._params(standard, self.token_params, {"scope": scope})

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """The tokens of a code, after any further requests that are necessary before they can be used."""
        return replace(tokens, extras={**tokens.extras, **await self.look_up(tokens)})

    async def begin_device_authorization(self, scopes: Sequence[str]) -> DeviceAuthorization:
        """Begin a device authorization (RFC 8628 §3.1). Raises `ProviderError`."""
        scope = self.scope_separator.join(scopes)
        # Also where the client authenticates otherwise: most servers require it, and none refuses it.
        standard = {"client_id": self.client_id, **({"scope": scope} if scope else {})}
        params = self._params(standard, self.device_params, {"scope": scope})
        sender = self.with_attributes(token_auth=self.device_auth or self.token_auth)
        response = await sender.post_as_client(self.device_authorization_url or "", params)
        fields = parse_fields(response)
        found = parse_device_authorization(
            fields, self.device_response, self._context.clock(), dev_mode=self._context.http.dev_mode
        )
        # A code in the response is no error code, whatever the name of its member is.
        code = None if response.is_success and found else self.oauth_error(fields)
        self._require_success(response, fields, "device authorization", code)
        if found is None:
            raise ProviderUnavailable
        return found

    async def poll_device_authorization(self, device_code: str) -> OAuthTokens | DecisionPending:
        """Ask for the tokens of a device authorization (RFC 8628 §3.4). Raises `ProviderError`.

        Every error code but those of a pending decision ends the authorization (§3.5).
        """
        standard = {"grant_type": GRANT_TYPE, "device_code": device_code}
        values = {**standard, "scope": self.scope_separator.join(self.required_scopes)}
        response = await self.post_as_client(self.oauth_token_url, self._params(standard, self.token_params, values))
        fields = parse_fields(response)
        pending = decision_pending(
            response, fields, self.oauth_error(fields), self.errors.wait_status, self._context.clock()
        )
        return pending or await self._usable(self.read_tokens(response, "device code"))

    def scopes_to_request(self, requested: Sequence[str], granted: Sequence[str]) -> Sequence[str]:
        """Besides the required and requested scopes, the granted ones that these do not include.

        Of several names of a scope, the one that was requested: it follows those of the token response.
        """
        scopes = list(dict.fromkeys((*self.required_scopes, *requested)))
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
        return self.scope_equivalents.get(scope, ())

    def _with_implied(self, scopes: Iterable[str]) -> Collection[str]:
        granted, new = set[str](), set(scopes)
        while new:
            granted |= new
            new = {implied for scope in new for implied in self.implied_by(scope)} - granted
        return granted

    # --- grants that secrets obtain

    async def credentials_of(self, key: ApiKey) -> OAuthTokens:
        """Tokens for the account's secrets. Raises `ProviderError`, and `InvalidField` for what cannot be a secret."""
        provider = self.with_attributes(url_params={**self.url_params, **self.secret_values(key.secret_fields)})
        if (name := provider.unusable_param() or "") in self.secret_names:
            raise InvalidField(
                f"secret_fields.{self.secret_names[name]}", "leads to an address that is not of this integration type"
            )
        if self.grant == "jwt_bearer":
            await jwt_bearer.require_usable_key(provider)
        tokens = await provider.request_secret_grant()
        extras = {**self.url_params, **tokens.extras}
        tokens = await self.complete_tokens(replace(tokens, extras=extras, secret_fields=key.secret_fields))
        self.require_reachable({**self.secret_values(key.secret_fields), **tokens.extras}, self.kept_names)
        return tokens

    async def request_secret_grant(self) -> OAuthTokens:
        """Tokens for the values of this provider. Raises `ProviderError`; a refused client may be the account's own."""
        try:
            tokens = await _SECRET_GRANTS[self.grant](self)
        except ProviderMisconfigured as error:
            if not self._has_own_client:
                raise
            raise ProviderRejected("credentials", oauth_error="invalid_grant") from error
        # A refresh token has no use, and its end would not be that of the account.
        return replace(tokens, refresh_token=None, refresh_token_expire_time=None, is_reobtainable=True)

    @property
    def _has_own_client(self) -> bool:
        """Whether a refused client is the account's own, and not ours."""
        is_service_account = self.grant == "jwt_bearer" and self.token_auth == "none"
        return "client_id" in self.secret_names or (is_service_account and jwt_bearer.key_field(self) is not None)

    # --- refresh and revocation

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens: with the refresh token, or with the secrets that the tokens were obtained with."""
        provider = self.for_credentials(tokens)
        if self.grant in SECRET_GRANTS:
            return await provider.request_secret_grant()
        return await provider.refresh_access_token(tokens.refresh_token or "")

    def for_credentials(self, credentials: Credentials) -> Self:
        """The provider for the account of these credentials; `{scope}` of a refresh has the granted scopes."""
        provider = super().for_credentials(credentials)
        if not isinstance(credentials, OAuthTokens):
            return provider
        return provider.with_attributes(granted_scopes=credentials.scopes)

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """New tokens for a refresh token (RFC 6749 §6). Raises `ProviderError`."""
        standard = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        scopes = self.granted_scopes or self.required_scopes
        unlisted = (scope for scope in self.required_scopes if scope in _REFRESH_TOKEN_SCOPES)
        values = {**standard, "scope": self.scope_separator.join(dict.fromkeys((*scopes, *unlisted)))}
        params = self._params(standard, self.refresh_params, values)
        return await self.request_tokens(params, "grant", self.refresh_url)

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the grant; False if the provider has no way to. Raises `ProviderError`."""
        if self.revoke_url is None or not isinstance(credentials, OAuthTokens):
            return False
        if not set(template_params(self.revoke_url)) <= {"token", *self.for_credentials(credentials).client_values}:
            return False  # the response that issued the tokens did not say where
        tokens = credentials
        if tokens.is_reobtainable and tokens.has_expired(self._context.clock()):
            return True  # nothing is left to end; new tokens would be
        needs_access_token = self.revoke_token != "refresh_token"
        if needs_access_token and tokens.refresh_token and tokens.has_expired(self._context.clock()):
            try:
                tokens = tokens.updated_with(await self.refresh(tokens), self._context.clock())
            except ProviderRejected:
                return True  # a grant that cannot be refreshed has ended already
        return await self.for_credentials(tokens).revoke_tokens(self.revoke_url, tokens)

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Send the revocation: authenticated as our client (RFC 7009 §2.1), by the access token, or as declared."""
        kind = "refresh_token" if self.revoke_token == "refresh_token" and tokens.refresh_token else "access_token"
        values = {**self.client_values, "token": getattr(tokens, kind)}
        headers, params = fill_texts(self.revoke_headers, values), fill_texts(self.revoke_params, values)
        query: Mapping[str, str] = {}
        if not headers and (self.revoke_token == "bearer" or self.grant == "login"):
            auth = self.request_auth(tokens)
            headers, query = dict(auth.headers), auth.query_params
        if not headers:
            params = params or {"token": getattr(tokens, kind), "token_type_hint": kind}
            response = await self.send_as_client(self.revoke_method, revoke_url, params, self.revoke_body_type)
            return response.status in self.revoke_gone_status or self.read_revocation(response)
        content: dict[str, Any] = {self.revoke_body_type: params} if params else {}
        response = await self.send(
            self.revoke_method, fill(revoke_url, values), headers=headers, query=query, **content
        )
        if response.status in self.revoke_gone_status:
            return True
        if not OUR_CLIENT.isdisjoint(
            name for revoke_header in self.revoke_headers.values() for name in template_params(revoke_header)
        ):
            return self.read_revocation(response)
        if not self.rejects_credentials(response) and (not response.is_success or self.is_failure(response)):
            raise ProviderUnavailable(retry_after=response.retry_after)
        return True

    def read_revocation(self, http_response: HttpResponse) -> bool:
        """True if the token is revoked, False if tokens of its kind cannot be. Raises `ProviderError`."""
        fields = parse_fields(http_response)
        code = error_code(fields)
        if http_response.is_refusal and code == "invalid_token":
            return True  # not valid before the request either, which RFC 7009 §2.2 does not count as an error
        if http_response.is_refusal and code == "unsupported_token_type":
            return False  # RFC 7009 §2.2.1
        self._require_success(http_response, fields, "revocation", self.oauth_error(fields))
        return True

    # --- use of tokens

    @property
    def known_reasons(self) -> Collection[str]:
        """Besides others, the codes of the standards."""
        return {*super().known_reasons, *_STANDARD_ERRORS}

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The authentication of an API request: the headers of `auth_headers`."""
        if not isinstance(credentials, OAuthTokens):
            raise ProviderRejected("credentials")
        standard = {} if "access_token" in self.names_in_requests else self.auth_headers(credentials)
        if not (self.request_headers or self.request_query):
            return RequestAuth(standard)
        auth = self.templated_auth(credentials)
        return RequestAuth({**standard, **auth.headers}, auth.query_params)

    def auth_headers(self, tokens: OAuthTokens) -> Mapping[str, str]:
        """The headers of an authenticated request: the bearer header (RFC 6750 §2.1)."""
        return {"Authorization": f"Bearer {tokens.access_token}"}

    # --- token endpoint

    async def request_tokens(self, params: Mapping[str, str], subject: str, url: str | None = None) -> OAuthTokens:
        """Send parameters to the token endpoint to exchange `subject` ("code", "grant"). Raises `ProviderError`."""
        return self.read_tokens(await self.post_as_client(url or self.oauth_token_url, params), subject)

    def read_tokens(self, http_response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens in a token response. Raises `ProviderError`."""
        fields = parse_fields(http_response)
        self._require_success(http_response, fields, subject, self.oauth_error(fields))
        return self.tokens_in(http_response, fields, is_refresh=subject == "grant")

    def _require_success(
        self, http_response: HttpResponse, fields: Mapping[str, Any], subject: str, code: str | None
    ) -> None:
        """Raise the error that a response means, with its reason: see `raise_for_error`."""
        if http_response.is_success and code is None and not fields.get("error"):
            return
        with self.adding_reason(fields):
            raise_for_error(http_response, fields, subject, code)

    def tokens_in(
        self, http_response: HttpResponse, fields: Mapping[str, Any], *, is_refresh: bool = False
    ) -> OAuthTokens:
        """The tokens in a successful response with these fields. Raises `ProviderUnavailable`."""
        now = self.now
        if self._paths_outside_json:
            outside = values_outside_json(http_response, self._paths_outside_json)
            lifetime = cookie_lifetime(http_response, self.token_response.access_token, now)
            fields = {**({} if lifetime is None else {"expires_in": lifetime}), **fields, **outside}
        tokens = parse_tokens(
            self.token_fields(fields),
            now,
            scope_separators=(self.scope_separator, ",") if self._splits_scopes_at_commas else (self.scope_separator,),
            keep=self.token_response.keep,
            is_refresh=is_refresh,
        )
        self.require_reachable(tokens.extras)
        if self.never_expires:
            return replace(tokens, expire_time=None, lifetime=None)
        if tokens.lifetime is None and self.lifetime is not None:
            return replace(tokens, expire_time=now + self.lifetime, lifetime=self.lifetime)
        return tokens

    @derived
    def _paths_outside_json(self) -> Sequence[str]:
        return [path for path in self.token_response.paths if is_outside_json(path)]

    @property
    def now(self) -> datetime:
        """The current time."""
        return self._context.clock()

    @property
    def kept_names(self) -> Collection[str]:
        """The kept names, with those of token responses and logins."""
        of_login = {name for request in self.login for name in request.keep}
        return {*super().kept_names, *self.token_response.keep, *of_login}

    @property
    def _splits_scopes_at_commas(self) -> bool:
        """Whether commas separate scopes in responses, besides the separator.

        Some providers use them in responses only. RFC 6749 §3.3 allows commas within scopes: if a required scope has
        one, they do not separate.
        """
        return not any("," in scope for scope in self.required_scopes)

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of a successful response, by the names of RFC 6749 §5.1.

        A declared access token is used whatever its type is.
        """
        names = self.token_response.model_fields_set - {"keep"}
        declared = {name: getattr(self.token_response, name) for name in names}
        own_type = {"token_type": "bearer"} if "access_token" in declared else {}
        return {**fields, **own_type, **{name: field_at(fields, path) for name, path in declared.items()}}

    def oauth_error(self, fields: object) -> str | None:
        """The error code in a response's fields, translated by `errors`."""
        code = error_code(fields, self.errors.field)
        if code is None and text_at(fields, self.token_response.access_token) is not None:
            return None  # a success, whose other members are no codes
        return self.errors.meaning_of(self.errors.code_in(fields) or code)

    async def post_as_client(self, url: str, params: Mapping[str, str]) -> HttpResponse:
        """POST parameters to the token endpoint, with our client authentication."""
        return await self.send_as_client("POST", url, params, self.token_body)

    async def send_as_client(
        self, method: str, url: str, params: Mapping[str, str], body_type: BodyType = "form"
    ) -> HttpResponse:
        """Send parameters with our client authentication (RFC 6749 §2.3.1, RFC 7523 §2.2)."""
        headers = fill_texts(self.token_headers, self.client_values) if self.token_headers else {}
        if self.token_auth == "client_secret_basic":
            # RFC 6749 §2.3.1: both are form-encoded first.
            pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        elif self.token_auth == "client_secret_post":
            params = {**params, "client_id": self.client_id, "client_secret": self.client_secret}
        elif self.token_auth == "none":
            if self.grant != "jwt_bearer":  # RFC 7523 §3.1: the assertion identifies the client
                params = {**params, "client_id": self.client_id}
        elif self.token_auth != "header":
            # With `private_key_jwt`, the secret is a private key. The setting of its id is about the operator's own.
            key, key_id = self.client_secret, "" if self.oauth_client.name else self.private_key_id
            audience, now = self.token_audience(), self.now
            params = {**params, **await client_assertion(self.client_id, audience, key, now, key_id)}
        content: dict[str, Any] = {body_type: params}
        return await self.send(method, url, headers=headers, **content)

    def token_audience(self) -> str:
        """The token endpoint, as the audience of a JWT (RFC 7523 §3). Raises `ProviderUnavailable`."""
        try:
            return fill(self.oauth_token_url, self.values)
        except InvalidParam as error:  # the response that should have said where has not
            raise ProviderUnavailable(str(error)) from None

    def basic_credentials(self) -> str:
        """Our client id and secret in base64 (RFC 7617 §2), not form-encoded, for endpoints that take no form."""
        return b64encode(f"{self.client_id}:{self._template_secret}".encode()).decode()


def _is_same_scope(first: str, second: str) -> bool:
    """Whether two scopes are the same, apart from case and from a resource's URL that only one of them has."""
    first, second = first.casefold(), second.casefold()
    if ("://" in first) != ("://" in second):
        first, second = first.rpartition("/")[2], second.rpartition("/")[2]
    return first == second
