"""Requests of the server to a provider, what its responses mean, and the account that they name.

Requests go to its declared hosts only, are authenticated with credentials, and are recorded for the metrics. A response
means something by its status in HTTP and by the codes that `errors` declares.
"""

import re
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from integration_server.domain.credentials import Credentials, RequestAuth
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.lenient_values import field_at, text_at, texts_at
from integration_server.providers.declaration_tables import Lookup, Verify
from integration_server.providers.declared_values import as_text, chosen_account
from integration_server.providers.http import HttpResponse
from integration_server.providers.provider_model import ProviderModel
from integration_server.providers.url_templates import InvalidParam, fill, fill_json, fill_texts
from integration_server.service.integrations.ports import NewAccount

MAX_ERROR_SIZE = 1 << 16  # bytes; the longest errors, with a list of problems, have some ten kilobytes

HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only


class ProviderRequests(ProviderModel):
    """Sends declared requests, and finds the account of credentials. Reads whose fault an error is, and how long it
    lasts."""

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
