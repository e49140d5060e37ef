"""Requests of the server to a provider for an account: the values in them, and what the responses mean.

Requests go to its declared hosts only, are authenticated with credentials, and are recorded for the metrics. A response
means something by its status in HTTP and by the codes that `errors` declares.
"""

import copy
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlencode

from pydantic import ValidationError

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.lenient_values import field_at, text_at, texts_at
from integration_server.domain.oauth_client import OAuthClient
from integration_server.providers.declaration_tables import Lookup, Verify
from integration_server.providers.declared_values import as_text, chosen_account, field_values
from integration_server.providers.http import HttpResponse, is_url, origin_of
from integration_server.providers.provider_model import ProviderModel
from integration_server.providers.url_templates import InvalidParam, fill, fill_json, fill_texts, host_params
from integration_server.service.integrations.ports import NewAccount

MAX_ERROR_SIZE = 1 << 16  # bytes; the longest errors, with a list of problems, have some ten kilobytes

HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only


_ATTRIBUTES_OF_ACCOUNTS = frozenset({"url_params", "oauth_client", "granted_scopes"})
"""What copies for an account or a client change: no declaration depends on it."""


class ProviderRequests(ProviderModel):
    """The provider for an account. Sends declared requests, and finds the account of credentials. Reads whose fault an
    error is, and how long it lasts."""

    @abstractmethod
    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers or query parameters that authenticate an API request.

        Raises `ProviderRejected` if the credentials are of another kind, or cannot be part of a request.
        """

    def templated_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers and query parameters of `request_headers` and `request_query`. Raises `ProviderRejected`."""
        values = self.for_credentials(credentials).values
        headers = fill_texts(self.request_headers, values)
        if not all(map(HEADER_VALUE.fullmatch, headers.values())):
            raise ProviderRejected("credentials")  # a header cannot contain it, so it is not a credential
        return RequestAuth(headers, fill_texts(self.request_query, values))

    # --- the client and the values of an account

    @property
    def client_id(self) -> str:
        """The client id: the account's own, or that of the OAuth client; empty if not set."""
        return self._of_account("client_id") or self.oauth_client.client_id

    @property
    def client_secret(self) -> str:
        """The client secret, in the same way."""
        return self._of_account("client_secret") or self.oauth_client.secret

    def _of_account(self, name: str) -> str:
        """A value of the account's own client, where the type declares it as one of the secrets of an account."""
        return self.url_params.get(name, "") if name in self.secret_names else ""

    def secret_values(self, secrets: Mapping[str, str]) -> Mapping[str, str]:
        """The values of templates in the secrets of an account: they themselves, and those that JSON files have."""
        declared = [(self.secret_fields[field], text) for field, text in secrets.items() if field in self.secret_fields]
        kept = {name: value for field, text in declared for name, value in field.values_of(text).items()}
        return {**kept, **secrets}

    @property
    def values(self) -> Mapping[str, str]:
        """The values of templates. A field of the config that was declared later has its default."""
        fields = self.config_fields.items()
        defaults = {name: field.text_of(field.default) for name, field in fields if field.default is not None}
        client = {"client_id": self.client_id} if self.client_id else {}
        return {**client, **defaults, **self._setting_texts, **self.url_params}

    @property
    def verification(self) -> Verify | None:
        """The request that verifies credentials; None if there is none."""
        return self.verify or (None if self.verify_url is None else Verify.model_construct(url=self.verify_url))

    @property
    def kept_names(self) -> Collection[str]:
        """The names of the values that the provider's responses bring."""
        return () if self.lookup is None else self.lookup.keep

    def unusable_param(self) -> str | None:
        """The name of a value that cannot be in its URL, or that leads to an undeclared host; None if there is none."""
        if not self._params_of_urls:
            return None
        origins, values = self._origins, self.values
        for url, names in self._params_of_urls.items():
            if names <= values.keys():
                try:
                    filled = fill(url, values)
                except InvalidParam as error:
                    return error.name
                if host_params(url) and not (is_url(filled) and origin_of(filled) in origins):
                    return host_params(url)[0]
        return None

    def require_reachable(self, extras: Mapping[str, str], needed: Collection[str] = ()) -> None:
        """Raise `ProviderUnavailable` if values that a response brought lead to an undeclared host.

        The same if one of the `needed` names that a URL has is missing, or if a value is not as declared.
        """
        patterns = self.kept_patterns.items()
        if any(name in extras and not re.fullmatch(pattern, extras[name]) for name, pattern in patterns):
            raise ProviderUnavailable("the provider's response has a value that is not as declared")
        if not self._params_of_urls:
            return
        provider = self.with_attributes(url_params={**self.url_params, **extras})
        used = frozenset[str]().union(*self._params_of_urls.values())
        if not used.intersection(needed) <= provider.values.keys() or provider.unusable_param() is not None:
            raise ProviderUnavailable("the provider's response does not lead to a declared host")

    # --- copies for a client, a config or an account

    def for_client(self, client: OAuthClient) -> Self:
        """The provider with another OAuth client than the operator's own, or with another of its secrets."""
        return self.with_attributes(oauth_client=client)

    def for_config(self, config: Mapping[str, Any]) -> Self:
        """The provider for an integration with this config. Raises `InvalidField`."""
        provider = self._with_config_fields(config) if self.config_fields else self
        if self.config_model is None:
            return provider
        try:
            return provider.configure(self.config_model.model_validate(dict(config)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise InvalidField(".".join(map(str, ("config", *first["loc"]))), problem) from None

    def _with_config_fields(self, config: Mapping[str, Any]) -> Self:
        provider = self.with_attributes(
            url_params={**self.url_params, **field_values("config", self.config_fields, config)}
        )
        if (name := provider.unusable_param()) is not None:
            raise InvalidField(f"config.{name}", "is not part of an address of this integration type")
        return provider

    def configure(self, config: Any) -> Self:  # noqa: ANN401  # an instance of its own config_model
        """The provider for a validated config. Config fields set the URL parameters of the same name."""
        names = set[str]().union(*self._params_of_urls.values()) & set(vars(config))
        return self.with_url_params(**{name: str(vars(config)[name]) for name in names})

    def with_url_params(self, **url_params: str) -> Self:
        """A copy with these URL parameters. Raises `ValueError` if a value is not a host or one path segment."""
        for name in url_params:
            fill(f"https://{{{name}}}", url_params)
        return self.with_attributes(url_params={**self.url_params, **url_params})

    def for_credentials(self, credentials: Credentials) -> Self:
        """The provider for the account of these credentials: with the values in them and stored with them."""
        secrets: Mapping[str, str | None]
        if isinstance(credentials, OAuthTokens):
            secrets = {"access_token": credentials.access_token, "refresh_token": credentials.refresh_token}
        else:
            secrets = {"api_key": credentials.api_key, "api_secret": credentials.api_secret}
            if not all(re.fullmatch(pattern, secrets[name] or "") for name, pattern in self.key_patterns.items()):
                raise ProviderRejected("credentials")
        found = {name: value for name, value in secrets.items() if value}
        return self.with_attributes(
            url_params={
                **self.url_params,
                **credentials.extras,
                **self.secret_values(credentials.secret_fields),
                **found,
            }
        )

    def with_attributes(self, **attributes: object) -> Self:
        """A copy with other values for some declarations."""
        other = copy.copy(self)
        if attributes.keys() <= _ATTRIBUTES_OF_ACCOUNTS:
            vars(other).update(self._derived)
        else:
            for name in self._derived:  # they follow from the declarations of the original
                vars(other).pop(name, None)
            other._derived = {}
        for name, value in attributes.items():
            setattr(other, name, value)
        return other

    # --- requests of the server's own

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        query: Mapping[str, str] | None = None,
        content: str = "",
        json: object = None,
        form: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """Send a request to a declared host; `json` or `form` replaces `content`. Raises `ProviderUnavailable`.

        The URL may be a template. Without a value for a name in it, the provider has not said where to.
        """
        try:
            url = fill(url, self.values) if "{" in url else url
        except InvalidParam as error:
            raise ProviderUnavailable(str(error)) from None
        if json is not None:
            headers, content = {**headers, "Content-Type": "application/json"}, dumps(json)
        elif form is not None:
            headers, content = {**headers, "Content-Type": "application/x-www-form-urlencoded"}, urlencode(form)
        return await self._request(
            method,
            url,
            allowed_origins=self._origins,
            headers=headers,
            query=query,
            content=content,
        )

    async def send_declared(self, request: Verify | Lookup, auth: RequestAuth) -> HttpResponse:
        """Send a declared request. Raises `ProviderUnavailable`."""
        body = None if request.body is None else fill_json(request.body, self.values)
        headers = fill_texts(request.headers, self.values) if request.headers else {}
        return await self.send(
            request.method,
            request.url,
            headers={**auth.headers, **headers},
            query=auth.query_params,
            **({} if body is None else {request.body_type: body}),
        )

    async def _request(self, method: str, url: str, **options: Any) -> HttpResponse:  # noqa: ANN401  # those of http
        """`ProviderHttp.request`, recorded for the metrics."""
        with self._recording_request() as record:
            response = await self._context.http.request(method, url, **options)
            record(response.status)
            return response

    @contextmanager
    def _recording_request(self) -> Iterator[Callable[[int], None]]:
        """Record the duration of a request until its response, and its status, which the block reports."""
        begin, results = time.perf_counter(), ["no_response"]
        try:
            yield lambda status: results.append(f"{status // 100}xx")
        finally:
            self._context.record_request(time.perf_counter() - begin, self.integration_type, results[-1])

    # --- what responses mean

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Whether an API response means that the access token is invalid (RFC 6750 §3.1)."""
        meaning = self._meaning_of(response)
        has_ended = response.status in {401, *self.errors.dead_status}
        return meaning == "invalid_grant" or (has_ended and meaning != "request")

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation means that the credentials are invalid."""
        has_ended = response.status in {401, 403, *self.errors.dead_status}
        is_refused = has_ended or (response.status < 500 and self._has_dead_code(response))
        return is_refused and self._meaning_of(response) != "request"

    def rejects_client(self, response: HttpResponse) -> bool:
        """Whether an error response means that our app or its settings are at fault, and no user's account."""
        return self._meaning_of(response) == "invalid_client"

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Whether a response means that the request may be sent later (RFC 6585 §4, RFC 9110 §15.6.4 and §10.2.3)."""
        return (
            response.status in {429, 503, *self.errors.wait_status}
            or (response.status == 403 and (response.retry_after is not None or self._has_wait_header(response)))
            or self._meaning_of(response) == "temporarily_unavailable"
        )

    def _has_wait_header(self, response: HttpResponse) -> bool:
        headers = self.errors.wait_headers.items()
        return any(response.headers.get(name.lower()) == value for name, value in headers)

    def is_failure(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation with status 2xx means a failure."""
        expected = self.verify.good_fields if self.verify else {}
        return self._has_dead_code(response) or not all(
            text_at(response.json, path) if text == "*" else as_text(field_at(response.json, path)) == text
            for path, text in expected.items()
        )

    def _has_dead_code(self, response: HttpResponse) -> bool:
        """Whether a response of any status has the code of credentials that have ended."""
        return bool(self.errors.dead) and text_at(response.json, self.errors.field) in self.errors.dead

    def proves_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification means that the credentials are valid."""
        good = self.verification and self.verification.good_status
        has_status = response.status in good if good else response.is_success
        return has_status and not self.is_failure(response)

    def _require_good(self, response: HttpResponse, is_good: bool) -> None:  # what the caller found
        # First of all: a request to wait comes with any status, also 403, and says nothing about the credentials.
        if self.is_rate_limited(response):
            raise ProviderUnavailable(retry_after=response.retry_after)
        if self.rejects_client(response):
            raise ProviderMisconfigured
        if not is_good and self.rejects_credentials(response):
            raise ProviderRejected("credentials", needs_new_token=self.rejects_access_token(response))
        if not is_good:
            raise ProviderUnavailable(retry_after=response.retry_after)

    def _meaning_of(self, response: HttpResponse) -> str | None:
        """What `errors` declares about the code of an error response, in the words of RFC 6749 §5.2, or "request"."""
        if not response.is_refusal or len(response.body) > MAX_ERROR_SIZE or not self.errors.codes:
            return None
        whole = response.body.strip().decode("ascii", "replace")
        code = whole if whole in self.errors.codes else self.errors.code_in(response.json)
        return "request" if code in self.errors.request else self.errors.meaning_of(code)

    # --- reasons

    def _reason_of(self, response: HttpResponse) -> str | None:
        """The reason in an error response; a long body is content, and is not parsed."""
        return self.reason_in(response.json) if len(response.body) <= MAX_ERROR_SIZE else None

    def reason_in(self, fields: object) -> str | None:
        """The machine-readable reason in the fields of an error response: a code that is declared, never free text."""
        known = self.known_reasons
        found = (code for path in self.errors.paths for code in texts_at(fields, path))
        return next((code for code in found if code in known), None)

    @property
    def known_reasons(self) -> Collection[str]:
        """The codes that are passed on as reasons."""
        return {*self.errors.reasons, *self.errors.codes}

    @contextmanager
    def adding_reason(self, fields: object) -> Iterator[None]:
        """Add the reason in the fields of a response to the errors that are raised because of it."""
        try:
            yield
        except ProviderError as error:
            error.provider_reason = self.reason_in(fields)
            raise

    # --- accounts

    async def look_up(self, credentials: Credentials) -> Mapping[str, str]:
        """The values that `lookup` declares. Raises `ProviderError`."""
        if self.lookup is None:
            return {}
        provider = self.for_credentials(credentials)
        response = await provider.send_declared(self.lookup, self.request_auth(credentials))
        with self.adding_reason(response.json):
            self._require_good(response, response.is_success and not self._has_dead_code(response))
        choose, found = self.lookup.choose, response.json
        if choose is not None:
            found = chosen_account(choose, found, provider.values.get(choose.by))
        kept = {name: text_at(found, path) for name, path in self.lookup.keep.items()}
        return {name: text for name, text in kept.items() if text is not None}

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check the credentials at the provider, and return their account. Without a `verify_url` nothing is sent.

        Raises `ProviderRejected` or `ProviderUnavailable`.
        """
        if self.verification is None:
            self.request_auth(credentials)  # raises for credentials that no request can carry
            return self.account_of(credentials, {})
        response = await self.request_verification(credentials)
        paths = {self.account_id_field, self.account_label_field} - {None, *credentials.extras}
        fields = response.json if paths else {}
        if not isinstance(fields, dict):
            raise ProviderUnavailable
        return self.account_of(credentials, fields)

    async def request_verification(self, credentials: Credentials) -> HttpResponse:
        """The response to the verification request. Raises `ProviderRejected` or `ProviderUnavailable`."""
        if self.verification is None:
            raise ProviderUnavailable
        auth = self.verification_auth(credentials)
        response = await self.for_credentials(credentials).send_declared(self.verification, auth)
        with self.adding_reason(response.json):
            self._require_good(response, self.proves_credentials(response))
        return response

    @property
    def has_verification(self) -> bool:
        """Whether there is a request that verifies credentials."""
        return self.verification is not None

    def verification_auth(self, credentials: Credentials) -> RequestAuth:
        """The authentication of the verification request."""
        return self.request_auth(credentials)

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The account of the credentials, by values stored with them and the JSON of the verification response."""
        paths = self.account_id_field, self.account_label_field
        account_id, label = (path and (credentials.extras.get(path) or text_at(fields, path)) for path in paths)
        return NewAccount(account_id, label)
