"""Outbound HTTP. The only module that uses httpx and httpcore, apart from `outbound_*.py`.

No text of httpx or its parser is passed on, neither as a message nor as a cause: h11 quotes the bytes that it could not
parse, and they may be a token.
"""

import asyncio
import logging
import re
import time
import zlib
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpcore
import httpx
import structlog

from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.lenient_values import bounded, read_json, seconds_until
from integration_server.observability.spans import OpenSpan
from integration_server.providers.outbound_connections import (
    CREDENTIALS_KEY,
    SEND_STATE,
    STREAMS_BODY,
    PooledTransport,
    SendState,
    SsrfGuardedNetwork,
    is_public,
    is_public_or_loopback,
)
from integration_server.providers.outbound_sockets import Network
from integration_server.providers.request_spans import TracedTransport
from integration_server.service.common_types import Clock
from integration_server.service.request_body import RequestBody

T = TypeVar("T")

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    # RFC 3986 §3.3, §3.4. No user name and no fragment: RFC 6749 §3.1 and §3.2 forbid the fragment.
    r"(?:[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")

_MAX_RETRY_AFTER = timedelta(hours=1)  # a longer Retry-After is capped, and the provider asked again

_DEADLINE_SLICES = 10  # see `_SlicedTimeout`

_FIRST_ERROR_STATUS = 300  # redirects are not followed, and have the body of an error
_CHECKED_BYTES = 256 * 1024  # of decompressed data in one turn of the loop: about a millisecond

_GZIP = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f"  # the first byte of a member: the second may arrive in a later chunk

_DEFAULT_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "integration-server"}

_FAILURES = (
    *(httpx.HTTPError, httpx.StreamError, httpx.InvalidURL),
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(OSError, UnicodeError, zlib.error),
)
"""The errors of sending a request and reading a response. TimeoutError is an OSError."""

_NOT_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL),
    *(httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout, httpcore.UnsupportedProtocol),
    UnicodeError,  # a header that has no encoding
)
"""The failures before a request is sent."""


class UrlNotAllowed(ValueError):
    """The URL of a request is not https, or not at an origin that the provider declares. Nothing was sent."""


class ResponseBodyTooLarge(ProviderUnavailable):
    """The response body exceeds the limit."""


class _InvalidBody(OSError):
    """The body exceeds the limit, or its compressed data ends early."""


class _BodyTooLarge(_InvalidBody):
    """The body exceeds the limit."""


def url_problem(url: str, *, dev_mode: bool) -> str | None:
    """Why a URL is not allowed, or None. Only https is allowed; in dev mode also plain http to loopback."""
    match = _URL.fullmatch(url)
    if match is None or (match["port"] and not 0 < int(match["port"]) <= 65535):
        return "is not an absolute http(s) URL without user name and fragment"
    if match["scheme"] == "http" and not (dev_mode and match["host"].lower() in LOOPBACK_HOSTS):
        return "must be https; plain http is for loopback in dev mode only"
    return None


def is_url(url: str) -> bool:
    """Whether a text is an absolute http or https URL."""
    return _URL.fullmatch(url) is not None


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL: "https://acme.example:443". Raises `ValueError` if it is not a URL."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("not a URL")
    return f"{match['scheme']}://{match['host'].lower()}:{int(match['port'] or _DEFAULT_PORTS[match['scheme']])}"


class DeclaredOrigins:
    """The set of origins that a provider's requests may go to: `origin_of(url) in origins`.

    It consists of the origins of the URL templates whose host contains no parameter, and of https on port 443 at each
    host that matches a pattern. The star of a pattern stands for one label.
    """

    def __init__(self, urls: Iterable[str], host_patterns: Iterable[str] = ()) -> None:
        bases = [re.match("[^:]*://[^/?]*", url) for url in urls]
        self._exact = frozenset(origin_of(base[0]) for base in bases if base and "{" not in base[0])
        self._domains = [re.escape(pattern.removeprefix("*")) for pattern in host_patterns]

    def __contains__(self, origin: object) -> bool:
        """Whether an origin is in the set."""
        return origin in self._exact or any(
            re.fullmatch(rf"https://{DNS_LABEL}{domain}:443", str(origin)) for domain in self._domains
        )


@dataclass(frozen=True)
class HttpResponse:
    """A provider's response. Header names are lower case; headers and body are treated as secrets.

    `header_list` has the headers in their order, with repeated ones separate. `Content-Encoding` is among them only if
    the body still has that coding.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    retry_after: timedelta | None = None
    header_list: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @cached_property
    def json(self) -> object:
        """The JSON value in the body, parsed leniently and once; None if the body is not JSON."""
        return read_json(self.body)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx. A redirect is not a success: it is never followed."""
        return 200 <= self.status < 300

    @property
    def is_refusal(self) -> bool:
        """Whether the status is 4xx, except 429 and 408, which do not concern the content of the request."""
        return 400 <= self.status < 500 and self.status not in {408, 429}


class ProviderHttp:
    """An HTTP client with a deadline, a body size limit and SSRF protection. Use it as an async context manager.

    It uses httpx without its client: it follows no redirect, keeps no cookies (all users share it), and uses no proxy
    from the environment, which would resolve names itself, past the checks of `outbound_connections.py`.
    `deadline` covers everything from connecting to the last byte; a timeout per read never ends on a body that arrives
    slowly. Ten seconds is longer than any healthy token endpoint takes, and shorter than callers usually wait.
    `network` opens the connections; the default connects to public addresses only, and in dev mode also to loopback.
    `transport` replaces HTTP altogether in tests. `open_span` opens a span for each request; None without traces.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        dev_mode: bool = False,
        deadline: timedelta = timedelta(seconds=10),
        body_limit: int = 1 << 20,
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        open_span: OpenSpan | None = None,
    ) -> None:
        self.dev_mode = dev_mode
        self._clock = clock
        self._deadline = deadline.total_seconds()
        self._body_limit = body_limit
        network = network or SsrfGuardedNetwork(is_public_or_loopback if dev_mode else is_public)
        own = transport or PooledTransport(network)
        self._transport = own if open_span is None else TracedTransport(own, open_span)
        self._log = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        for library in ("httpx", "httpcore"):
            # They log URLs with queries, and headers; both can contain an API key.
            logging.getLogger(library).setLevel(logging.WARNING)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        allowed_origins: Container[str],
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        query: Mapping[str, str] | None = None,
        content: str | bytes = b"",
        deadline: timedelta | None = None,
        body_limit: int | None = None,
        credentials_key: bytes | None = None,
    ) -> HttpResponse:
        """Send a request to one of the `allowed_origins` (see `origin_of`), and read the whole response.

        `deadline` and `body_limit` override the client's. Only requests with the same `credentials_key` reuse a
        connection. Raises `UrlNotAllowed` before anything is sent, and `ProviderUnavailable`, with the Retry-After of
        the headers if they had one, if there is no complete response within the deadline and the size limit. Then the
        outcome is unknown unless no byte of the request was sent.
        """
        attempt = self._attempt(method, url, allowed_origins)

        async def exchange() -> HttpResponse:
            target = httpx.URL(url).copy_merge_params(query) if query else url
            request = _build_request(method, target, headers, content, attempt.send_state, credentials_key)
            async with _SlicedTimeout(self._deadline if deadline is None else deadline.total_seconds()):
                response = await self._transport.handle_async_request(request)
                received = response.headers
                async with aclosing(cast(httpx.AsyncByteStream, response.stream)) as stream:
                    attempt.retry_after = _retry_after(received, self._clock())
                    decoder = _decoder(method, received.get("Content-Encoding", ""))
                    body = await _read(stream, decoder, self._body_limit if body_limit is None else body_limit)
            if decoder is not None:  # they describe the compressed body
                for name in ("Content-Encoding", "Content-Length"):
                    received.pop(name, None)
            attempt.log_success(response.status_code)
            header_list = received.multi_items()
            return HttpResponse(response.status_code, _joined(header_list), body, attempt.retry_after, header_list)

        return await attempt.run(exchange())

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        body: RequestBody | None,
        *,
        allowed_origins: Container[str],
        headers: Sequence[tuple[str, str]] = (),
        idle_timeout: timedelta,
        credentials_key: bytes | None = None,
    ) -> AsyncIterator["StreamedResponse"]:
        """Send a request whose body is a stream, or None, and yield the response while its body arrives.

        The body is sent as fast as the provider takes it, also while the response arrives; leaving the block ends both.
        Raises what `body` raises, and what `request` raises, but has no deadline and no size limit: an exchange ends if
        no byte moves in either direction for `idle_timeout` while the provider is waited for.
        """
        attempt = self._attempt(method, url, allowed_origins)
        # Not compressed: what is passed on is what the provider counts in Content-Length.
        all_headers = [*headers, ("Accept-Encoding", "identity")]
        content: bytes | AsyncIterator[bytes] = b""
        if body is not None:
            content = body.chunks()
            if body.length is not None:
                all_headers.append(("Content-Length", str(body.length)))
        idle = partial(_idle_limit, idle_timeout.total_seconds(), body)

        async def open_response() -> httpx.Response:
            request = _build_request(method, url, all_headers, content, attempt.send_state, credentials_key)
            async with idle():
                return await self._transport.handle_async_request(request)

        response = await attempt.run(open_response())
        attempt.retry_after = _retry_after(response.headers, self._clock())
        attempt.log_success(response.status_code)
        decoder = _decoder(method, response.headers.get("Content-Encoding", ""))
        header_list = response.headers.multi_items()
        async with (
            aclosing(cast(httpx.AsyncByteStream, response.stream)) as raw,
            aclosing(_checked_chunks(raw, decoder, idle)) as received,
        ):
            yield StreamedResponse(
                response.status_code,
                _joined(header_list),
                header_list,
                attempt.retry_after,
                attempt,
                received,
            )

    def _attempt(self, method: str, url: str, allowed_origins: Container[str]) -> "_Attempt":
        """An attempt to send a request. Raises `UrlNotAllowed`."""
        problem = url_problem(url, dev_mode=self.dev_mode)
        if problem is not None:
            raise UrlNotAllowed(f"the provider's URL {problem}")
        origin = origin_of(url)
        if origin not in allowed_origins:
            raise UrlNotAllowed(f"{origin} is not an origin that the provider declares")
        return _Attempt(self._log, method, origin)


@dataclass(eq=False, repr=False)
class _Attempt:
    """One request: logs its end, and converts the errors of the libraries."""

    log: Any  # structlog's loggers have no common type
    method: str
    origin: str
    retry_after: timedelta | None = None
    send_state: SendState = field(default_factory=SendState)
    begin: float = field(default_factory=time.perf_counter)

    async def run(self, exchange: Awaitable[T]) -> T:
        """The result of a part of the exchange. Raises `ProviderUnavailable` for every failure of it.

        Raised outside of the handler, the error has no context, which would quote what could not be parsed.
        """
        try:
            return await exchange
        except _FAILURES as error:
            failure = type(error).__name__.strip("_")
            kind = ResponseBodyTooLarge if isinstance(error, _BodyTooLarge) else ProviderUnavailable
            is_sent = not (self.send_state.is_unsent or isinstance(error, _NOT_SENT))
        self.log.warning("provider_request_failed", **self._log_fields, failure=failure)
        message = f"no usable response from the provider ({failure})"
        raise kind(message, retry_after=self.retry_after, outcome_unknown=is_sent)

    def log_success(self, status: int) -> None:
        """Log a response."""
        self.log.info("provider_request_completed", **self._log_fields, status=status)

    @property
    def _log_fields(self) -> Mapping[str, Any]:
        seconds = round(time.perf_counter() - self.begin, 3)
        return {"method": self.method, "origin": self.origin, "seconds": seconds}


@dataclass(eq=False, repr=False)
class StreamedResponse:
    """A response whose body has not arrived yet. Header names are lower case; the body is as it was sent.

    A body that ends early raises `ProviderUnavailable`: fewer bytes than announced, a missing last chunk, or compressed
    data without its end.
    """

    status: int
    headers: Mapping[str, str]
    header_list: Sequence[tuple[str, str]]
    retry_after: timedelta | None
    _attempt: _Attempt
    _received: AsyncGenerator[bytes]
    _read: deque[bytes] = field(default_factory=deque)

    async def beginning(self, limit: int) -> HttpResponse:
        """The response with the beginning of its body, decompressed: up to `limit` bytes of an error, and of any other
        response what arrives first. `chunks` has it too."""
        size = 0
        while size < limit and (chunk := await self._next()):
            self._read.append(chunk)
            size += len(chunk)
            if self.status < _FIRST_ERROR_STATUS:
                break
        body = b"".join(self._read)[:limit]
        if (decoder := _decoder("GET", self.headers.get("content-encoding", ""))) is not None:
            with suppress(zlib.error):
                body = decoder.decode(body, limit)
        return HttpResponse(self.status, self.headers, body, self.retry_after, self.header_list)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body in parts, none of which is empty."""
        while chunk := (self._read.popleft() if self._read else await self._next()):
            yield chunk

    async def _next(self) -> bytes:
        return await self._attempt.run(anext(self._received, b""))


@asynccontextmanager
async def _idle_limit(seconds: float, body: RequestBody | None) -> AsyncIterator[None]:
    """End a wait for the provider if no byte moves for this time, in either direction.

    A part of the request's body that the provider has taken counts too. If the caller owes the next part, it raises the
    error of the body for that.
    """
    loop, timeout = asyncio.get_running_loop(), asyncio.timeout(seconds)

    def extend() -> None:
        if not timeout.expired():
            timeout.reschedule(loop.time() + seconds)

    try:
        async with timeout:
            with nullcontext() if body is None else body.reporting_progress(extend):
                yield
    except TimeoutError:
        if body is not None and body.is_awaited and timeout.expired():
            raise body.stalled_error() from None
        raise


async def _checked_chunks(
    stream: httpx.AsyncByteStream, decoder: "_Gunzip | None", idle: Callable[[], AbstractAsyncContextManager[None]]
) -> AsyncGenerator[bytes]:
    """The chunks of a body as they arrive. Raises `_InvalidBody` if compressed data in it ends early."""
    has_any = False
    async with aclosing(cast("AsyncGenerator[bytes]", aiter(stream))) as received:
        while True:
            async with idle():
                chunk = await anext(received, None)
            if chunk is None:
                break
            if chunk:
                has_any = True
                if decoder is not None:
                    for _ in decoder.check(chunk):
                        await asyncio.sleep(0)  # a small chunk may contain much
                yield chunk
    if has_any and decoder is not None and not decoder.is_complete:
        raise _InvalidBody


def _build_request(
    method: str,
    url: httpx.URL | str,
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
    content: str | bytes | AsyncIterator[bytes],
    send_state: SendState,
    credentials_key: bytes | None,
) -> httpx.Request:
    own = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in own}
    if "range" in names:  # the range is of the encoded bytes (RFC 9110 §14)
        own = [pair for pair in own if pair[0].lower() != "accept-encoding"] + [("Accept-Encoding", "identity")]
        names.add("accept-encoding")
    all_headers = [pair for pair in _DEFAULT_HEADERS.items() if pair[0].lower() not in names] + own
    extensions: dict[str, Any] = {SEND_STATE: send_state}
    if credentials_key is not None:
        extensions[CREDENTIALS_KEY] = credentials_key
    if not isinstance(content, str | bytes):
        extensions[STREAMS_BODY] = True
    return httpx.Request(method, url, headers=all_headers, content=content, extensions=extensions)


async def _read(stream: httpx.AsyncByteStream, decoder: "_Gunzip | None", limit: int) -> bytes:
    """The body, decompressed here: httpx decompresses a whole chunk before its size can be checked."""
    body, sent = bytearray(), 0
    async for chunk in stream:
        sent += len(chunk)
        body += chunk if decoder is None else decoder.decode(chunk, limit + 1 - len(body))
        if max(sent, len(body)) > limit:
            raise _BodyTooLarge
    if sent and decoder is not None and not decoder.is_complete:
        raise _InvalidBody
    return bytes(body)


class _SlicedTimeout:
    """`asyncio.timeout` that does not count the time in which the process is suspended.

    A process that resumes hours later finds both the response and an expired deadline, and a plain timeout would
    discard the response, with a rotated token in it perhaps. The time is therefore counted in slices; a suspension of
    any length costs one of them.
    """

    def __init__(self, seconds: float) -> None:
        self._slice = seconds / _DEADLINE_SLICES
        self._slices_left = _DEADLINE_SLICES
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._counting = self._loop.call_later(self._slice, self._count)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._counting.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _count(self) -> None:
        self._slices_left -= 1
        if self._slices_left:
            self._counting = self._loop.call_later(self._slice, self._count)
        else:
            self._timeout.reschedule(self._loop.time())


def _joined(headers: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """The headers by their names, repeated ones joined (RFC 9110 §5.3)."""
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _decoder(method: str, encodings: str) -> "_Gunzip | None":
    """The decoder for a Content-Encoding (RFC 9110 §8.4); None if the body is used as it is.

    A coding that was not requested, or that does not exist, is left to the reader of the body.
    """
    names = [name.strip() for name in encodings.lower().split(",")]
    is_gzip = [name for name in names if name not in {"", "identity"}] in (["gzip"], ["x-gzip"])  # RFC 9110 §8.4.1.3
    return _Gunzip() if is_gzip and method != "HEAD" else None


class _Gunzip:
    """Decompresses all members of gzip data (RFC 1952 §2.2). Other bytes after them are padding, as in gzip(1)."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=_GZIP)
        self._is_finished = False

    @property
    def is_complete(self) -> bool:
        """Whether the last member has ended."""
        return self._member.eof

    def check(self, chunk: bytes) -> Iterator[None]:
        """Decompress a chunk, and forget the result, in steps of bounded time."""
        while chunk:
            self.decode(chunk, _CHECKED_BYTES)
            chunk = self._member.unconsumed_tail
            yield

    def decode(self, chunk: bytes, max_length: int) -> bytes:
        """Decompress a chunk to at most this length."""
        inflated = bytearray()
        while chunk and len(inflated) < max_length:
            if self._member.eof:
                self._is_finished = self._is_finished or not chunk.startswith(_GZIP_MAGIC)
                if self._is_finished:
                    break
                self._member = zlib.decompressobj(wbits=_GZIP)
            inflated += self._member.decompress(chunk, max_length - len(inflated))
            chunk = self._member.unused_data
        return bytes(inflated)


def _retry_after(headers: httpx.Headers, now: datetime) -> timedelta | None:
    """The delay in Retry-After (RFC 9110 §10.2.3), read leniently; the longest of several; None if it is none."""
    fields = [field.strip("\"' ;") for field in headers.get_list("Retry-After")]
    fields += [part for field in fields for part in field.split(",")]  # a proxy joins repeated headers
    read = [seconds for field in fields if (seconds := seconds_until(field, now)) is not None]
    return bounded(max(read), _MAX_RETRY_AFTER) if read else None
