"""Size limits: a body that is too large does not reach the server, and one that nobody uses is not read."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import h11
import httpx
import pytest
from starlette.types import ASGIApp

from integration_server.sidecar.app import CALLBACK_PATH
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.http_protocol import StrictConnection
from integration_server.sidecar.pages import ResultPages
from integrations.v1.integration_service_pb2 import ReceiveWebhookRequest, ReceiveWebhookResponse
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer

SMALL = replace(LIMITS, body_bytes=100, max_buffered_bodies=3)
NONE = replace(LIMITS, body_bytes=1 << 40)
PATH = "/api/v1/webhooks/stripe/app"


class WaitingServer(FakeServer):
    """Responds to webhooks when `may_respond` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> ReceiveWebhookResponse:
        response = await super().receive_webhook(request, timeout=timeout)
        await self.may_respond.wait()
        return response

    @property
    def bodies(self) -> list[bytes]:
        return [request.body for request in self.webhooks]


def client_of(server: FakeServer, limits: HttpLimits) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server.app(limits)), base_url="https://sidecar.example")


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


# --- bodies --------------------------------------------------------------------------------------------------------


async def test_a_body_up_to_the_limit_is_forwarded_unchanged() -> None:
    server = WaitingServer()
    async with client_of(server, SMALL) as client:
        assert (await client.post(PATH, content=b"a" * 100)).status_code == 200
        assert (await client.post(PATH, content=chunks(10, 10))).status_code == 200
        assert (await client.get(PATH)).status_code == 200
    assert server.bodies == [b"a" * 100, b"x" * 100, b""]


@pytest.mark.parametrize("has_length", [True, False], ids=["with-its-length", "in-chunks"])
async def test_a_larger_body_is_rejected_and_not_forwarded(has_length: bool) -> None:
    server = WaitingServer()
    async with client_of(server, SMALL) as client:
        response = await client.post(PATH, content=b"a" * 101 if has_length else chunks(10, 11))
    assert response.status_code == 413
    assert response.json() == {
        "success": False,
        "reason": "BODY_TOO_LARGE",
        "message": "The body is longer than 100 bytes",
    }
    assert server.bodies == []


class Exchange:
    """A raw request with an endless body; counts the messages that the app reads."""

    def __init__(self, method: str, path: str, *, messages: list[Any] | None = None) -> None:
        headers = [(b"transfer-encoding", b"chunked")]
        self.scope: Any = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        self.scope["raw_path"] = path.encode()
        self.messages = messages
        self.taken = 0
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        self.taken += 1
        if self.messages is not None:
            return self.messages.pop()
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)


async def test_an_endless_body_is_read_only_up_to_the_limit() -> None:
    exchange = Exchange("POST", PATH)
    await exchange.run(FakeServer().app(SMALL))
    assert exchange.sent[0]["status"] == 413
    assert exchange.taken == 11


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 404),
        ("POST", "/x", 404),
        ("POST", CALLBACK_PATH, 415),
        ("PUT", PATH, 405),
        ("HEAD", PATH, 405),
        ("BREW", PATH, 405),
        ("POST", f"{PATH}/more", 404),
        ("POST", "/healthz", 405),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", CALLBACK_PATH, 200),
    ],
)
async def test_a_body_that_is_not_used_is_not_read(method: str, path: str, status: int) -> None:
    exchange = Exchange(method, path)
    await exchange.run(FakeServer().app(SMALL))
    assert exchange.sent[0]["status"] == status
    assert exchange.taken == 0
    assert (b"connection", b"close") in exchange.sent[0]["headers"]


async def test_negative_control_an_endpoint_that_reads_first_reads_an_endless_body() -> None:
    """A webhook with a route is the control: its body is read before the server knows its address."""
    exchange = Exchange("POST", PATH.replace("app", "unknown"))
    server = FakeServer(webhook_response=ReceiveWebhookResponse(status_code=404))
    await exchange.run(server.app(replace(SMALL, body_bytes=100_000)))
    assert exchange.taken == 10_001


@pytest.mark.parametrize("has_length", [True, False], ids=["with-its-length", "in-chunks"])
async def test_negative_control_without_the_limit_the_whole_body_is_buffered(has_length: bool) -> None:
    server = WaitingServer()
    async with client_of(server, NONE) as client:
        await client.post(PATH, content=b"a" * 5_000_000 if has_length else chunks(50_000, 100))
    assert len(server.bodies[0]) == 5_000_000


async def test_the_total_size_of_buffered_bodies_is_limited() -> None:
    server = WaitingServer()
    server.may_respond.clear()
    async with client_of(server, SMALL) as client:
        held = [asyncio.create_task(client.post(PATH, content=b"a" * 100)) for _ in range(3)]
        while len(server.bodies) < 3:  # noqa: ASYNC110  # they come in the loop's next rounds
            await asyncio.sleep(0)
        rejected = await client.post(PATH, content=b"a")
        without_one = asyncio.create_task(client.get(PATH))
        server.may_respond.set()

        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "1")
        assert [response.status_code for response in await asyncio.gather(*held, without_one)] == [200] * 4
        assert (await client.post(PATH, content=b"a" * 100)).status_code == 200


async def test_a_disconnected_client_frees_its_buffer() -> None:
    server = FakeServer()
    app = server.app(SMALL)
    for _ in range(10):  # ten half bodies exceed the limit of three bodies
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"a" * 50, "more_body": True}]
        exchange = Exchange("POST", PATH, messages=messages)
        await exchange.run(app)
        assert exchange.sent == []
    assert server.webhooks == []


async def test_the_limits_apply_to_browsers(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, content=b"x" * (LIMITS.body_bytes + 1), headers={"Accept": "text/html"})
    assert response.status_code == 413
    assert response.headers["content-security-policy"] == ResultPages().policy
    assert response.headers["content-type"].startswith("text/html")


# --- chunks --------------------------------------------------------------------------------------------------------

CHUNKED = b"POST / HTTP/1.1\r\nHost: sidecar\r\nTransfer-Encoding: chunked\r\n\r\n"


def parsed_events(limits: HttpLimits, body: bytes) -> int:
    """The number of events until the parser refuses a body, or has read it."""
    connection = StrictConnection(limits)
    connection.receive_data(CHUNKED)
    connection.next_event()
    count = 0
    for begin in range(0, len(body), 4096):
        connection.receive_data(body[begin : begin + 4096])
        try:
            while connection.next_event() is not h11.NEED_DATA:
                count += 1
        except h11.RemoteProtocolError:
            assert connection.refusal == 413
            return count
    return count


def test_the_number_of_chunks_is_limited() -> None:
    assert parsed_events(LIMITS, 40_000 * b"1\r\nx\r\n") <= LIMITS.chunks + 1
    assert parsed_events(LIMITS, 40_000 * b"1;extension\r\nx\r\n") <= LIMITS.chunks + 1


def test_negative_control_without_the_limit_every_byte_is_an_event() -> None:
    assert parsed_events(replace(LIMITS, chunks=1 << 40), 40_000 * b"1\r\nx\r\n") == 40_000


@pytest.mark.slow
def test_a_large_body_in_segments_of_the_network_is_below_the_limit() -> None:
    segment = b"5b4\r\n" + b"x" * 1460 + b"\r\n"
    assert parsed_events(LIMITS, 40_000 * segment) >= 40_000


# --- heads ---------------------------------------------------------------------------------------------------------


def refusal_of(limits: HttpLimits, path: bytes, headers: bytes) -> int | None:
    """The status with which the parser refuses a head, None if it accepts it."""
    connection = StrictConnection(limits)
    connection.receive_data(b"GET %b HTTP/1.1\r\nHost: sidecar\r\n%b\r\n" % (path, headers))
    try:
        connection.next_event()
    except h11.RemoteProtocolError:
        return connection.refusal
    return None


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (b"/" + b"x" * 10_240, b"", 414),
        (b"/?" + b"x" * 10_240, b"", 414),
        (b"/", b"".join(b"X-%d:\r\n" % number for number in range(100)), 431),
        (b"/", 3_000 * b"X:\r\n", 431),
        (b"/", b"X-Long: " + b"x" * 16_384 + b"\r\n", 431),
    ],
    ids=["path", "query", "headers", "empty-headers", "header"],
)
def test_a_head_that_is_too_large_is_refused(path: bytes, headers: bytes, status: int) -> None:
    assert refusal_of(LIMITS, path, headers) == status
    unlimited = replace(LIMITS, url_bytes=1 << 40, headers=1 << 40, head_bytes=1 << 40)
    assert refusal_of(unlimited, path, headers) is None  # the negative control


def test_a_typical_browser_is_below_the_limits() -> None:
    headers = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 100) for number in range(60))
    path = f"{CALLBACK_PATH}?state={'x' * 4000}".encode()
    assert refusal_of(LIMITS, path, headers + b"Cookie: " + b"x" * 4096 + b"\r\n") is None
