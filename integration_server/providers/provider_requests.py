"""Requests to a provider, and what its responses mean.

Requests go to its declared hosts only, are authenticated with credentials, and are recorded for the metrics. A response
means something by its status in HTTP and by the codes that `errors` declares.
"""

import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from json import dumps
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ResponseTooLarge,
)
from integration_server.domain.lenient_values import field_at, text_at, texts_at
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream
from integration_server.providers.declaration_tables import Lookup, Verify
from integration_server.providers.declared_values import as_text
from integration_server.providers.http import HttpResponse, ResponseBodyTooLarge
from integration_server.providers.provider_model import ProviderModel
from integration_server.providers.rate_limit_headers import parse_rate_limit_headers
from integration_server.providers.url_templates import InvalidParam, fill, fill_json, fill_texts
from integration_server.service.request_body import RequestBody

MAX_ERROR_SIZE = 1 << 16  # bytes; the longest errors, with a list of problems, have some ten kilobytes

_RESOURCE = re.compile(r"[\w./:-]{1,128}", re.ASCII)  # a provider's name for a part of its API

HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only


class ProviderRequests(ProviderModel):
    """Sends declared requests, and the calls of backends to the account's API. Reads whose fault an error is, and how
    long it lasts."""

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


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def _parts_of(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


def _key_of(auth: RequestAuth, base: str) -> bytes:
    """The key of the credentials in a request, which are in its headers, its query or its base URL."""
    values = [sorted(auth.headers.items()), sorted(auth.query_params.items()), base]
    return sha256(dumps(values).encode()).digest()
