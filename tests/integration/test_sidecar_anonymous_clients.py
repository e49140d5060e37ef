"""What clients that prove nothing can cost the sidecar and the server behind it: calls, CPU time, lines in the log.

The CPU time is that of the loop's own thread. The clients are in other threads, and a busy machine does not change it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
import structlog

from integrations.v1.integration_service_pb2 import ReceiveWebhookRequest, ReceiveWebhookResponse
from tests.fakes.limits import LIMITS
from tests.integration.sidecar_clients import DEADLINE, RawConnection, connect, send_blocking, serving_sidecar
from tests.loop_hold.meter import MAX_HOLD
from tests.unit.sidecar.fakes import FakeServer, rpc_error

LIMITED = replace(LIMITS, failures_per_second=0.2)  # 12 at once
UNLIMITED = replace(LIMITS, failures_per_second=1_000_000)
CALLBACK = "/api/v1/integrations/callback/stripe"
WEBHOOKS = "/api/v1/webhooks/stripe"
BURST = LIMITED.failure_burst
FLOOD = 3 * BURST
POST_WEBHOOK = b"POST /api/v1/webhooks/stripe/app HTTP/1.1\r\nHost: sidecar\r\n"
POST_NOWHERE = b"POST /x HTTP/1.1\r\nHost: sidecar\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


class Provider(FakeServer):
    """A server that verifies webhooks with the header `X-Signed`, at any address but `unknown…`."""

    async def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> ReceiveWebhookResponse:
        await super().receive_webhook(request, timeout=timeout)
        if request.endpoint.startswith("unknown"):
            return ReceiveWebhookResponse(status_code=404)
        is_signed = any(header.name == "x-signed" for header in request.headers)
        return ReceiveWebhookResponse(status_code=200 if is_signed else 401, verified=is_signed)

    @property
    def calls(self) -> int:
        return len(self.webhooks) + len(self.callbacks)


@asynccontextmanager
async def client_of(port: int, source: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(local_address=source)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, transport=transport, trust_env=False, timeout=DEADLINE) as client:
        yield client


async def flood(client: httpx.AsyncClient, path: str, count: int = FLOOD, **options: Any) -> Counter[int]:
    """Send POSTs, or GETs to the callback; the number of each status. A `{}` in the path is replaced by a number."""
    method = "GET" if path.startswith(CALLBACK) else "POST"
    return Counter(
        [(await client.request(method, path.format(number), **options)).status_code for number in range(count)]
    )


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as lines:
        yield lines


# --- failures ------------------------------------------------------------------------------------------------------

FAILURES = {
    "unknown webhook addresses": (WEBHOOKS + "/unknown{}", 404),
    "unsigned webhooks": (WEBHOOKS + "/app", 401),
    "forged states": (CALLBACK + "?code=c&state={}", 400),
    "unknown paths": ("/nothing/{}", 404),
    "wrong methods": ("/readyz?{}", 405),
}


def provider() -> Provider:
    return Provider(callback_response=rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID"))


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_peer_that_fails_often_is_refused_before_any_call(kind: str) -> None:
    path, status = FAILURES[kind]
    server = provider()
    async with (
        serving_sidecar(LIMITED, server) as port,
        client_of(port) as client,
        client_of(port, "127.0.0.2") as other,
    ):
        statuses = await flood(client, path)
        calls = server.calls
        refused = await client.request("GET" if CALLBACK in path else "POST", path)

        # The machine may be so slow that failures are forgiven meanwhile, one in five seconds.
        assert statuses.keys() == {status, 429}
        assert statuses[status] < FLOOD
        assert calls in (0, statuses[status])
        assert (refused.status_code, refused.json()["reason"]) == (429, "QUOTA_EXCEEDED")
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert (await flood(other, path, 1)) == {status: 1}  # another address is not affected


@pytest.mark.parametrize("kind", FAILURES)
async def test_negative_control_without_the_limit_every_failure_is_handled(kind: str) -> None:
    path, status = FAILURES[kind]
    server = provider()
    async with serving_sidecar(UNLIMITED, server) as port, client_of(port) as client:
        assert await flood(client, path) == {status: FLOOD}
        assert server.calls in (0, FLOOD)


async def test_failures_in_one_area_do_not_count_in_another() -> None:
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as client:
        await flood(client, "/nothing/{}")

        assert await flood(client, WEBHOOKS + "/app", 1) == {401: 1}
        assert await flood(client, CALLBACK, 1) == {200: 1}


async def test_unavailability_is_not_the_peers_failure() -> None:
    server = FakeServer(webhook_response=rpc_error(grpc.StatusCode.UNAVAILABLE))
    async with serving_sidecar(LIMITED, server) as port, client_of(port) as client:
        assert await flood(client, WEBHOOKS + "/app") == {503: FLOOD}


# --- what is never limited -------------------------------------------------------------------------------------------

SIGNED = {"X-Signed": "yes"}


@pytest.mark.slow
async def test_verified_webhooks_are_never_limited_by_failures_from_the_same_address() -> None:
    server = Provider()
    async with serving_sidecar(LIMITED, server) as port, client_of(port) as client:
        assert await flood(client, WEBHOOKS + "/app", 1, headers=SIGNED) == {200: 1}
        for _ in range(3):
            assert (await flood(client, WEBHOOKS + "/unknown{}", FLOOD))[429] > 0
            assert await flood(client, WEBHOOKS + "/app", BURST, headers=SIGNED) == {200: BURST}
        assert await flood(client, WEBHOOKS + "/new", 1, headers=SIGNED) == {200: 1}


async def test_a_verified_webhook_clears_the_failures_of_its_sender() -> None:
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as client:
        for _ in range(5):  # together more than the limit
            await flood(client, WEBHOOKS + "/unknown{}", BURST - 1)
            assert await flood(client, WEBHOOKS + "/app", 1, headers=SIGNED) == {200: 1}


async def test_a_verified_webhook_exempts_only_its_sender_and_its_address() -> None:
    """The address of the app's own webhooks is known to everybody."""
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as sender:
        await flood(sender, WEBHOOKS + "/app", 1, headers=SIGNED)
        async with client_of(port, "127.0.0.2") as attacker:
            assert (await flood(attacker, WEBHOOKS + "/app"))[429] > 0
        assert (await flood(sender, WEBHOOKS + "/unknown{}"))[429] > 0


async def test_a_handshake_that_anybody_can_send_exempts_nobody() -> None:
    server = FakeServer(webhook_response=ReceiveWebhookResponse(status_code=200, body=b"echo"))
    async with serving_sidecar(LIMITED, server) as port, client_of(port) as client:
        statuses = await flood(client, WEBHOOKS + "/app?validationToken={}")
        assert statuses[429] > 0


async def test_a_valid_state_does_not_permit_forged_ones() -> None:
    server = FakeServer()
    async with serving_sidecar(LIMITED, server) as port, client_of(port) as client:
        assert await flood(client, CALLBACK, FLOOD) == {200: FLOOD}
        server.callback_response = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID")
        assert (await flood(client, CALLBACK))[429] > 0


@pytest.mark.slow
async def test_probes_are_never_limited() -> None:
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as client:
        for path in ("/nothing/{}", WEBHOOKS + "/unknown{}", "/readyz"):
            await flood(client, path)
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz") for _ in range(FLOOD)] == (
            2 * FLOOD * [200]
        )


# --- peers behind proxies --------------------------------------------------------------------------------------------


async def test_behind_a_trusted_proxy_the_peer_is_the_one_that_it_names() -> None:
    async with serving_sidecar(LIMITED, Provider(), proxies="127.0.0.0/8") as port, client_of(port) as proxy:
        assert (await flood(proxy, "/nothing/{}", headers={"X-Forwarded-For": "1.2.3.4, 203.0.113.9"}))[429] > 0
        # What is to the left of the address that the proxy adds is the client's own text.
        assert await flood(proxy, "/nothing", 1, headers={"X-Forwarded-For": "5.6.7.8, 203.0.113.9"}) == {429: 1}
        assert await flood(proxy, "/nothing", 1, headers={"X-Forwarded-For": "203.0.113.10"}) == {404: 1}


async def test_without_trusted_proxies_nobody_can_name_another_peer() -> None:
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as client:
        statuses = Counter[int]()
        for number in range(FLOOD):
            headers = {"X-Forwarded-For": f"203.0.113.{number % 250}", "Forwarded": f"for=203.0.113.{number % 250}"}
            statuses += await flood(client, "/nothing", 1, headers=headers)
        assert statuses[429] > 0


# --- log -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_flood_is_one_line_in_the_log(log: list[Any]) -> None:
    async with serving_sidecar(LIMITED, provider()) as port, client_of(port) as client:
        for path, _ in FAILURES.values():
            await flood(client, path)
        for request in (b"GARBAGE\r\n\r\n", POST_WEBHOOK + b"Content_Length: 1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"):
            await asyncio.to_thread(send_blocking, port, request)
    # A second one if the test crosses the end of a minute.
    assert len(log) <= 2
    assert sum(len(str(line)) for line in log) < 1000
    assert (log[0]["event"], log[0]["peer"], log[0]["status"]) == ("http_request_unverified", "127.0.0.1", 404)


async def test_every_verified_request_is_logged(log: list[Any]) -> None:
    """The negative control of the limit: verified requests have a line each."""
    async with serving_sidecar(LIMITED, Provider()) as port, client_of(port) as client:
        await flood(client, WEBHOOKS + "/app", 10, headers=SIGNED)
    assert [line["event"] for line in log] == 10 * ["http_request"]


# --- connections -----------------------------------------------------------------------------------------------------


async def test_one_peer_cannot_take_all_connections() -> None:
    """Its connections wait for responses, so that none is idle."""
    server = FakeServer()
    async with serving_sidecar(replace(LIMITS, connections=8), server) as port, AsyncExitStack() as stack:
        received = [await first_line(await stack.enter_async_context(connect(port))) for _ in range(8)]
        # A connection over the share is closed, perhaps before its client has read the response.
        assert [line[9:12] for line in received[:4]] == 4 * [b"100"]
        assert {line[9:12] for line in received[4:]} <= {b"503", b""}

        async with client_of(port, "127.0.0.2") as other:
            assert (await other.get("/healthz")).status_code == 200


async def first_line(connection: RawConnection) -> bytes:
    """Begin a request that waits for its body; the first line of the response."""
    await connection.send(POST_WEBHOOK + b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    with suppress(ConnectionError):
        return await connection.reader.readline()
    return b""


async def test_negative_control_without_a_share_one_peer_takes_all_connections() -> None:
    limits = replace(LIMITS, connections=8, peer_share=1)
    async with serving_sidecar(limits, FakeServer()) as port, AsyncExitStack() as stack:
        for _ in range(8):
            assert (await first_line(await stack.enter_async_context(connect(port))))[9:12] == b"100"

        async with client_of(port, "127.0.0.2") as other:
            assert (await other.get("/healthz")).status_code == 503


async def test_a_trusted_proxy_may_have_all_connections() -> None:
    limits = replace(LIMITS, connections=8)
    async with serving_sidecar(limits, FakeServer(), proxies="127.0.0.1") as port, AsyncExitStack() as stack:
        for _ in range(8):
            assert (await first_line(await stack.enter_async_context(connect(port))))[9:12] == b"100"


# --- kept-alive connections ------------------------------------------------------------------------------------------

PROBE = b"GET /healthz HTTP/1.1\r\nHost: sidecar\r\n\r\n"


async def responses_on_one_connection(
    interval: timedelta, expected: int, *, proxies: str = "", request: bytes = PROBE
) -> int:
    """The number of responses that 50 requests on one connection get: waits for the expected ones, then two seconds."""
    limits = replace(LIMITS, request_interval=interval)
    async with serving_sidecar(limits, Provider(), proxies=proxies) as port, connect(port) as connection:
        await connection.send(50 * request)
        received = b""
        while received.count(b"HTTP/1.1 ") < 50:
            try:
                async with asyncio.timeout(60 if received.count(b"HTTP/1.1 ") < expected else 2):
                    received += await connection.reader.read(65536)
            except TimeoutError:
                break
        return received.count(b"HTTP/1.1 ")


@pytest.mark.slow
async def test_requests_that_prove_nothing_wait_for_the_next_on_their_connection() -> None:
    assert await responses_on_one_connection(timedelta(minutes=1), 1) == 1


async def test_negative_control_without_an_interval_requests_do_not_wait() -> None:
    assert await responses_on_one_connection(timedelta(0), 50) == 50


async def test_verified_requests_and_requests_of_proxies_do_not_wait() -> None:
    signed = POST_WEBHOOK + b"X-Signed: yes\r\nContent-Length: 0\r\n\r\n"
    assert await responses_on_one_connection(timedelta(minutes=1), 50, request=signed) == 50
    assert await responses_on_one_connection(timedelta(minutes=1), 50, proxies="127.0.0.1") == 50


async def test_a_waiting_connection_gives_way_to_a_new_one() -> None:
    limits = replace(LIMITS, connections=4, peer_share=1, request_interval=timedelta(minutes=1))
    async with serving_sidecar(limits, FakeServer()) as port, AsyncExitStack() as stack:
        for _ in range(4):
            connection = await stack.enter_async_context(connect(port))
            await connection.send(2 * PROBE)
            assert (await connection.response()).startswith(b"HTTP/1.1 200 ")
        async with client_of(port) as client:
            assert (await client.get("/healthz")).status_code == 200


# --- CPU time of the loop --------------------------------------------------------------------------------------------


class LoopMeter:
    """The longest time in seconds of CPU between two turns of a task that is due each millisecond."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            self.longest, last = max(self.longest, now - last), now


async def longest_hold(limits: Any, request: bytes, connections: int = 8) -> tuple[float, list[bytes]]:
    """The longest hold of the loop while clients send a request, and the first lines of their responses."""
    meter = LoopMeter()
    async with serving_sidecar(limits, Provider()) as port:
        metering = asyncio.create_task(meter.run())
        sending = [asyncio.to_thread(send_blocking, port, request) for _ in range(connections)]
        received = await asyncio.gather(*sending)
        metering.cancel()
    return meter.longest, [response.partition(b"\r\n")[0] for response in received]


ONE_BYTE_CHUNKS = 50_000 * b"1\r\nx\r\n"
WORST_REQUESTS = {
    "one-byte chunks without a route": (POST_NOWHERE + CHUNKED + ONE_BYTE_CHUNKS, 404),
    "one-byte chunks": (POST_WEBHOOK + CHUNKED + ONE_BYTE_CHUNKS, 413),
    "chunk extensions": (POST_WEBHOOK + CHUNKED + 5_000 * (b"1;" + 200 * b"x" + b"\r\nx\r\n"), 413),
    "a long chunk extension": (POST_WEBHOOK + CHUNKED + b"1;" + 1_000_000 * b"x", 400),
    "trailers": (POST_WEBHOOK + CHUNKED + b"0\r\n" + 100_000 * b"a:\r\n" + b"\r\n", 431),
    "empty headers": (b"GET / HTTP/1.1\r\nHost: sidecar\r\n" + 100_000 * b"a:\r\n" + b"\r\n", 431),
    "folded headers": (b"GET / HTTP/1.1\r\nHost: sidecar\r\nX: a\r\n" + 100_000 * b" a\r\n" + b"\r\n", 431),
    "empty lines": (500_000 * b"\r\n", 400),
    "line feeds": (1_000_000 * b"\n", 400),
    "no line": (1_000_000 * b"x", 431),
    "a length of nines": (POST_WEBHOOK + b"Content-Length: " + 10_000 * b"9" + b"\r\n\r\n", 400),
    "pipelined probes": (500 * PROBE, 200),
    "pipelined requests without a route": (500 * b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "pipelined one-byte chunks": (PROBE + 10 * (POST_WEBHOOK + CHUNKED + 1_000 * b"1\r\nx\r\n" + b"0\r\n\r\n"), 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORST_REQUESTS)
async def test_no_request_holds_the_loop(name: str) -> None:
    request, status = WORST_REQUESTS[name]
    limits = replace(LIMITS, linger_timeout=timedelta(seconds=1))

    longest, lines = await longest_hold(limits, request)
    for _ in range(4):  # beside other work, CPU time is longer
        if longest >= MAX_HOLD:
            longest, lines = await longest_hold(limits, request)
    print("HOLD", name, longest * 1000)

    assert longest < MAX_HOLD
    # A client that still sends when the connection is closed may lose the response.
    assert {line[9:12] for line in lines if line} <= {str(status).encode(), b"429"}


@pytest.mark.slow
async def test_negative_control_without_a_limit_of_chunks_one_byte_chunks_cost_an_event_each() -> None:
    """Each of 50,000 chunks is an event of the parser."""
    limits = replace(LIMITS, chunks=1 << 40, refuse_ambiguous=False)
    before = time.thread_time()
    _, lines = await longest_hold(limits, POST_WEBHOOK + CHUNKED + ONE_BYTE_CHUNKS + b"0\r\n\r\n", 1)
    print("CONTROL", time.thread_time() - before)
    assert lines == [b"HTTP/1.1 401 Unauthorized"]
    assert time.thread_time() - before > 0.2


async def test_a_client_that_sends_a_body_before_it_reads_gets_the_status() -> None:
    """The connection stays open until the client has read the response; the body is discarded without being parsed."""
    body = b"x" * 900_000
    async with serving_sidecar() as port:
        for request in (
            POST_NOWHERE + b"Content-Length: %d\r\n\r\n" % len(body) + body,
            POST_NOWHERE + CHUNKED + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        ):
            response = await asyncio.to_thread(send_blocking, port, request)
            assert response.startswith(b"HTTP/1.1 404 ")
            assert b"connection: close" in response.lower()


async def test_a_client_that_waits_for_100_continue_is_refused_without_it() -> None:
    async with serving_sidecar() as port, connect(port) as connection:
        await connection.send(POST_NOWHERE + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        assert (await connection.received()).startswith(b"HTTP/1.1 404 ")


# --- readiness -------------------------------------------------------------------------------------------------------


async def readiness_calls(max_age: timedelta) -> int:
    """The calls to the server for a hundred requests."""
    server = FakeServer()
    async with serving_sidecar(replace(LIMITS, readiness_max_age=max_age), server) as port, client_of(port) as client:
        responses = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        responses += [await client.get("/readyz") for _ in range(50)]
    assert {response.status_code for response in responses} == {200}
    return len(server.deadlines)


@pytest.mark.slow
async def test_requests_for_readiness_share_one_call() -> None:
    assert await readiness_calls(timedelta(minutes=1)) == 1


async def test_negative_control_without_an_age_each_request_after_another_is_a_call() -> None:
    assert await readiness_calls(timedelta(0)) > 50
