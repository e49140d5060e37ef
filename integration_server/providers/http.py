"""Outbound HTTP. The only module that knows httpx, so that another client is one file (and `network.py`, under it).

Nothing that httpx or its parser says is passed on, neither as message nor as cause: h11 quotes the bytes that
it could not read, and they may be a token.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self, cast

import httpcore
import httpx
import structlog

from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.ip_policy import is_public, is_public_or_loopback
from integration_server.providers.ssrf_guard import SsrfGuardedBackend
from integration_server.providers.urls import origin_of, url_problem
from integration_server.service.common_types import Clock

_MAX_RETRY_AFTER = timedelta(days=1)  # what a provider may make us wait by Retry-After

_DEADLINE_SLICES = 10  # of a deadline

_GZIP = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f"  # the first byte of a member: the second may come later

_FAILURES = (
    *(httpx.HTTPError, httpx.StreamError, httpx.InvalidURL),
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(OSError, UnicodeError, zlib.error),
)
"""What sending and reading can raise. TimeoutError is an OSError."""


class UrlNotAllowed(ValueError):
    """A request was about to leave for somewhere that its provider did not declare. Nothing was sent."""


class ResponseBodyTooLarge(ProviderUnavailable):
    """An answer came, and its body is larger than the limit."""


class _InvalidBody(OSError):
    """Larger than the limit, or encoded in a way that was not asked for."""


class _BodyTooLarge(_InvalidBody):
    """Larger than the limit."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A provider's answer. Header names are lower case; the body is secret until it has been read.

    `header_list` has the headers in their order, with repeated ones apart.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    retry_after: timedelta | None = None
    header_list: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx. A redirect is none: it is never followed."""
        return 200 <= self.status < 300

    @property
    def is_refusal(self) -> bool:
        """Whether the status is 4xx and speaks of the request: 429 and 408 speak of the moment."""
        return 400 <= self.status < 500 and self.status not in {408, 429}


class ProviderHttp:
    """Sends requests to providers, within a deadline and a size. Open it with `async with`.

    `deadline` covers everything from connecting to the last byte: timeouts of single reads never end on a
    body that drips. Ten seconds is longer than any healthy token endpoint takes, and shorter than callers
    usually wait. `network` makes the connections: by default to public addresses only, and in dev mode to loopback.
    `transport` replaces HTTP as a whole in tests.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        dev_mode: bool = False,
        deadline: timedelta = timedelta(seconds=10),
        body_limit: int = 1 << 20,
        network: httpcore.AsyncNetworkBackend | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.dev_mode = dev_mode
        self._clock = clock
        self._deadline = deadline.total_seconds()
        self._body_limit = body_limit
        network = network or SsrfGuardedBackend(is_public_or_loopback if dev_mode else is_public)
        self._client = _client(transport or _Transport(network))
        self._log = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        for library in ("httpx", "httpcore"):
            # They log URLs with their queries, and headers: an API key may be in either.
            logging.getLogger(library).setLevel(logging.WARNING)
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def request(
        self,
        method: str,
        url: str,
        *,
        allowed_origins: Container[str],
        headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        query: Mapping[str, str] | None = None,
        content: str | bytes = b"",
        deadline: timedelta | None = None,
        body_limit: int | None = None,
    ) -> HttpResponse:
        """Send a request to one of the `allowed_origins` (see `origin_of`), and read the whole answer.

        `deadline` and `body_limit` take the place of the usual ones. Raises `ProviderUnavailable` when there is no
        answer in time and within the size, with what its headers may have said about when to come back; and
        `UrlNotAllowed` before anything is sent.
        """
        problem = url_problem(url, dev_mode=self.dev_mode)
        if problem is not None:
            raise UrlNotAllowed(f"the provider's URL {problem}")
        origin = origin_of(url)
        if origin not in allowed_origins:
            raise UrlNotAllowed(f"{origin} is not among the hosts that the provider declared")
        log = self._log.bind(method=method, origin=origin)
        begin = time.perf_counter()
        kind, retry_after = ProviderUnavailable, None
        try:
            target = httpx.URL(url).copy_merge_params(query) if query else url
            async with (
                _timeout(self._deadline if deadline is None else deadline.total_seconds()),
                self._client.stream(method, target, headers=_header_list(headers), content=content) as response,
            ):
                retry_after = _retry_after(response.headers.get("Retry-After"), self._clock())
                body = await _read(response, self._body_limit if body_limit is None else body_limit)
                parts = dict(response.headers), body, retry_after, tuple(response.headers.multi_items())
                http_response = HttpResponse(response.status_code, *parts)
        except _FAILURES as error:
            failure = type(error).__name__.strip("_")
            kind = ResponseBodyTooLarge if isinstance(error, _BodyTooLarge) else ProviderUnavailable
        else:
            log.info("provider_request_completed", status=http_response.status, seconds=_elapsed_since(begin))
            return http_response
        log.warning("provider_request_failed", failure=failure, seconds=_elapsed_since(begin))
        raise kind(f"the provider gave no usable answer ({failure})", retry_after=retry_after)


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body, decompressed here: httpx inflates a whole chunk before anybody can count it."""
    decode = _decoder(response.headers.get("Content-Encoding", ""))
    body, sent = bytearray(), 0
    async for chunk in cast(AsyncIterable[bytes], response.stream):
        sent += len(chunk)
        body += decode(chunk, limit + 1 - len(body))
        if max(sent, len(body)) > limit:
            raise _BodyTooLarge
    return bytes(body)


def _header_list(headers: Mapping[str, str] | Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers or ())


@asynccontextmanager
async def _timeout(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, in the time that this process is awake.

    A process that is stopped and goes on hours later finds both the answer and the deadline waiting, and a plain
    timeout would throw the answer away: a rotated token, perhaps. So time is counted in slices, of which a pause of
    any length takes one.
    """

    async def count(timeout: asyncio.Timeout) -> None:
        for _ in range(_DEADLINE_SLICES):
            await asyncio.sleep(seconds / _DEADLINE_SLICES)
        timeout.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as timeout:
        counting = asyncio.create_task(count(timeout))
        try:
            yield
        finally:
            counting.cancel()


def _client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        headers={"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "integration-server"},
        # The client is shared by all users, so it keeps no provider's cookie.
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        timeout=httpx.Timeout(None),  # the deadline is in `request`
        # No proxy of the environment: it would look names up itself, and nobody here could judge the addresses.
        trust_env=False,
        follow_redirects=False,
    )


class _Transport(httpx.AsyncBaseTransport):
    """httpx's own transport over a network of ours, which it has no parameter for."""

    def __init__(self, network: httpcore.AsyncNetworkBackend) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            # One limit for all would let a provider that hangs starve the rest.
            max_connections=None,
            max_keepalive_connections=100,
            # Servers close idle connections after 2 s (gunicorn), 5 s (Node, uvicorn, Apache) or more. What is sent
            # into one at that moment is lost, or was done: nobody can tell.
            keepalive_expiry=1,
            network_backend=network,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and answer as soon as the headers are there."""
        url = request.url
        http_response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(http_response.status, headers=http_response.headers, stream=_Body(http_response))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, http_response: httpcore.Response) -> None:
        self._response = http_response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_stream()

    async def aclose(self) -> None:
        await self._response.aclose()


def _decoder(encodings: str) -> Callable[[bytes, int], bytes]:
    """A function of a chunk and the most that it may return, for a Content-Encoding (RFC 9110 §8.4)."""
    names = [name.strip() for name in encodings.lower().split(",")]
    match [name for name in names if name not in {"", "identity"}]:
        case []:
            return lambda chunk, _: chunk
        case ["gzip" | "x-gzip"]:  # §8.4.1.3: the same
            return _Gunzip()
    raise _InvalidBody


class _Gunzip:
    """Inflates gzip, all of its members (RFC 1952 §2.2). What follows them and is none is padding, as for gzip(1)."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=_GZIP)
        self._is_finished = False

    def __call__(self, chunk: bytes, max_length: int) -> bytes:
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


def _retry_after(value: str | None, now: datetime) -> timedelta | None:
    """RFC 9110 §10.2.3: seconds, or a date. What cannot be read counts as not said."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(float(value), _MAX_RETRY_AFTER.total_seconds()))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return max(timedelta(), min(wait, _MAX_RETRY_AFTER))


def _elapsed_since(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)
