"""Raw HTTP requests for the sidecar: valid, nearly valid and arbitrary bytes."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fuzz.messages import KnownValues, choice_of, texts
from tests.loop_hold.worst_http import worst_http

DEADLINE = 60.0  # seconds; the slowest response waits for a provider on this machine
_PIPELINE_WAIT = 1.0  # seconds
_PREFIX = "/api/v1/integrations/callback"
_WEBHOOKS = "/api/v1/webhooks"


@dataclass(frozen=True, slots=True)
class HttpCase:
    """The bytes of a request, and whether the server needs the end of the connection to know that it is complete."""

    request: bytes
    needs_end: bool
    is_pipelined: bool = False

    def __repr__(self) -> str:
        return f"{self.request[:600]!r}"


@dataclass(frozen=True, slots=True)
class RawResponse:
    """The complete response; status 0 without one."""

    status: int
    raw: bytes


_METHODS = st.sampled_from(
    ["GET"] * 6 + ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PRI", "X-Y"]
)
_NAMES = ("code", "state", "iss", "error", "error_description", "integration_type", "user_id", "realmId", "state")
_HEADERS = st.sampled_from(
    [
        "Accept: text/html",
        "Accept: text/html;q=0.5, application/json;q=x, */*;q=9",
        "Accept: " + "text/html," * 500,
        "Accept: \xff\xfe",
        "Host: evil.example",
        "Host:",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-For: 127.0.0.1",
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Expect: 100-continue",
        "Upgrade: websocket",
        "Connection: upgrade",
        "Range: bytes=0-1",
        "Cookie: " + "a=b; " * 50,
        "X-Large: " + "y" * 20_000,
        "no colon",
        ": no name",
        "X-Nul: a\0b",
        " folded",
    ]
)


def http_cases(known: KnownValues) -> st.SearchStrategy[HttpCase]:
    """A strategy for requests, most of them to the paths of callbacks and webhooks."""
    types = st.sampled_from([*known.values_of("integration_type"), "no_such_type", "", "a/b", "..", "%2e%2e", "%00"])
    paths = st.one_of(
        st.just(_PREFIX),
        types.map(lambda name: f"{_PREFIX}/{name}"),
        types.map(lambda name: f"{_PREFIX}/{name}"),
        types.map(lambda name: f"{_WEBHOOKS}/{name}/app"),
        st.builds(lambda name, endpoint: f"{_WEBHOOKS}/{name}/{quote(endpoint)}", types, texts),
        st.sampled_from(
            ["/", "/healthz", "/readyz", "*", "//evil.example/", "/../../etc/passwd", "http://evil.example/", ""]
        ),
        texts.map(lambda text: f"{_PREFIX}/{quote(text)}"),
        texts.map(lambda text: "/" + text),
    )
    values = {
        name: st.sampled_from(known.values_of(name)) | texts if known.values_of(name) else texts for name in _NAMES
    }
    parameter = st.sampled_from(_NAMES).flatmap(lambda name: values[name].map(lambda value: f"{name}={quote(value)}"))
    raw = texts.map(lambda text: text[:2000])
    queries = st.one_of(
        st.lists(parameter, max_size=6, unique_by=lambda pair: pair.partition("=")[0]).map("&".join),
        st.lists(parameter | raw, max_size=6).map("&".join),
    )
    whole = st.builds(_request, _METHODS, paths, queries, st.lists(_HEADERS, max_size=3), st.binary(max_size=20))
    malformed = st.builds(
        lambda case, at, noise: HttpCase(case.request[:at] + noise, needs_end=True),
        whole,
        st.integers(0, 80),
        st.binary(max_size=30),
    )
    return choice_of([*[whole] * 8, malformed, st.sampled_from(_worst_cases())])


def _worst_cases() -> Sequence[HttpCase]:
    paths = (_PREFIX, f"{_PREFIX}/sandbox", f"{_WEBHOOKS}/sandbox/app", "/healthz", "/x")
    requests = (request for path in paths for method in ("GET", "POST") for request in worst_http(path, method))
    return [HttpCase(request.raw, needs_end=True, is_pipelined=True) for request in requests]


def _request(method: str, path: str, query: str, headers: list[str], body: bytes) -> HttpCase:
    target = f"{path}?{query}" if query else path
    lines = [f"{method} {target} HTTP/1.1", "Host: sidecar", *headers, "Connection: close", "", ""]
    return HttpCase("\r\n".join(lines).encode("utf-8", "replace") + body, needs_end="\r" in target or "\n" in target)


async def _read_for(seconds: float, reader: asyncio.StreamReader) -> bytes:
    raw = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(1 << 16):
                raw += chunk
    return raw


async def send(host: str, port: int, case: HttpCase) -> RawResponse:
    """Send the request, close the sending side, and read until the server closes.

    The server pauses between pipelined requests. Of these only the first responses are read.
    """
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(host, port)
        raw = b""
        with suppress(OSError):  # the server may respond and close before it has read everything
            writer.write(case.request)
            await writer.drain()
            if case.needs_end:  # uvicorn sends no response to a client that has closed
                writer.write_eof()
        with suppress(ConnectionError):
            raw = await (reader.read() if not case.is_pipelined else _read_for(_PIPELINE_WAIT, reader))
        writer.close()
    words = raw[:16].split()
    return RawResponse(int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0, raw)
