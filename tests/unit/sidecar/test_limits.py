"""Size limits: a request that is too large is rejected before it reaches the app."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from integration_server.sidecar.app import CALLBACK_PATH
from integration_server.sidecar.middleware import HttpLimits, RequestLimits
from integration_server.sidecar.pages import ResultPages
from integration_server.sidecar.responses import Responses
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer

SMALL = replace(LIMITS, body_bytes=100, max_buffered_bodies=3)
NONE = replace(LIMITS, body_bytes=1 << 40, url_bytes=1 << 40, headers=1 << 40, head_bytes=1 << 40)


class Reader:
    """An app that records the bodies it receives, and responds when `may_respond` is set."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append(await Request(scope, receive).body())
        await self.may_respond.wait()
        await PlainTextResponse("ok")(scope, receive, send)


def client_of(app: Any, limits: HttpLimits) -> httpx.AsyncClient:
    limited = RequestLimits(app, Responses(ResultPages()), limits)
    return httpx.AsyncClient(transport=httpx.ASGITransport(limited), base_url="https://sidecar.example")


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


# --- bodies --------------------------------------------------------------------------------------------------------


async def test_a_body_up_to_the_limit_is_forwarded_unchanged() -> None:
    app = Reader()
    async with client_of(app, SMALL) as client:
        assert (await client.post("/", content=b"a" * 100)).status_code == 200
        assert (await client.post("/", content=chunks(10, 10))).status_code == 200
        assert (await client.get("/")).status_code == 200
    assert app.bodies == [b"a" * 100, b"x" * 100, b""]


@pytest.mark.parametrize("has_length", [True, False], ids=["with-its-length", "in-chunks"])
async def test_a_larger_body_is_rejected_and_not_forwarded(has_length: bool) -> None:
    app = Reader()
    async with client_of(app, SMALL) as client:
        response = await client.post("/", content=b"a" * 101 if has_length else chunks(10, 11))
    assert response.status_code == 413
    assert response.json() == {
        "success": False,
        "reason": "BODY_TOO_LARGE",
        "message": "The body is longer than 100 bytes",
    }
    assert app.bodies == []


async def test_an_endless_body_is_read_only_up_to_the_limit() -> None:
    taken = 0

    async def endless() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    await RequestLimits(Reader(), Responses(ResultPages()), SMALL)(scope, endless, send)
    assert sent[0]["status"] == 413
    assert taken == 11


@pytest.mark.parametrize("has_length", [True, False], ids=["with-its-length", "in-chunks"])
async def test_negative_control_without_the_limit_the_whole_body_is_buffered(has_length: bool) -> None:
    app = Reader()
    async with client_of(app, NONE) as client:
        await client.post("/", content=b"a" * 5_000_000 if has_length else chunks(50_000, 100))
    assert len(app.bodies[0]) == 5_000_000


async def test_the_total_size_of_buffered_bodies_is_limited() -> None:
    app = Reader()
    app.may_respond.clear()
    async with client_of(app, SMALL) as client:
        held = [asyncio.create_task(client.post("/", content=b"a" * 100)) for _ in range(3)]
        while len(app.bodies) < 3:  # noqa: ASYNC110  # they come in the loop's next rounds
            await asyncio.sleep(0)
        rejected = await client.post("/", content=b"a")
        without_one = asyncio.create_task(client.get("/"))
        app.may_respond.set()

        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "1")
        assert [response.status_code for response in await asyncio.gather(*held, without_one)] == [200] * 4
        assert (await client.post("/", content=b"a" * 100)).status_code == 200


async def test_a_disconnected_client_frees_its_buffer() -> None:
    app = Reader()
    limited = RequestLimits(app, Responses(ResultPages()), SMALL)
    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}

    async def send(_message: Any) -> None:
        raise AssertionError("the client has disconnected")

    for _ in range(10):  # ten half bodies exceed the limit of three bodies
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"a" * 50, "more_body": True}]

        async def receive(messages: Any = messages) -> Any:
            return messages.pop()

        await limited(scope, receive, send)
    assert app.bodies == []


# --- heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/" + "x" * 10_240, {}, 414, "QUERY_TOO_LONG"),
        ("/?" + "x" * 10_240, {}, 414, "QUERY_TOO_LONG"),
        ("/", {f"X-{number}": "" for number in range(101)}, 431, "HEADERS_TOO_LARGE"),
        ("/", {"X-Long": "x" * 16_384}, 431, "HEADERS_TOO_LARGE"),
    ],
)
async def test_a_head_that_is_too_large_is_rejected(
    path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    app = Reader()
    async with client_of(app, LIMITS) as client:
        response = await client.get(path, headers=headers)
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    assert app.bodies == []
    async with client_of(app, NONE) as client:
        assert (await client.get(path, headers=headers)).status_code == 200


async def test_a_typical_browser_is_below_the_limits(client: httpx.AsyncClient) -> None:
    headers = {f"X-{number}": "x" * 100 for number in range(60)} | {"Cookie": "x" * 4096}
    response = await client.get(f"{CALLBACK_PATH}?state={'x' * 4000}", headers=headers)
    assert response.status_code == 200


async def test_the_limits_apply_to_the_app(client: httpx.AsyncClient, server: FakeServer) -> None:
    response = await client.post(CALLBACK_PATH, content=b"x" * (LIMITS.body_bytes + 1), headers={"Accept": "text/html"})
    assert response.status_code == 413
    assert response.headers["content-security-policy"] == ResultPages().policy
    assert response.headers["content-type"].startswith("text/html")
