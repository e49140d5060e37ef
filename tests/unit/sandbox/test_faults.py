"""Faults of endpoints."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sandbox.behaviour import Fault, Handler
from integration_server.sandbox.faults import (
    BAD_GATEWAY,
    BAD_JSON,
    EMPTY,
    HTML,
    JSON_ARRAY,
    REDIRECT,
    Hang,
    OversizedBody,
    SlowBody,
)
from integration_server.sandbox.state import Sandbox
from tests.fakes.provider import wait_until
from tests.unit.sandbox.oauth_client import OAuthClient, error_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Fault):
    """The endpoint responds when the test releases it."""

    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Wait, and handle the request."""
        await self.released.wait()
        return await handler(request)


async def give_up(call: Coroutine[Any, Any, object]) -> None:
    """Cancel a call when all that happens without time has happened."""
    task = asyncio.create_task(call)
    for _ in range(200):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_fault_replaces_the_endpoint(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": Fault(status=429, headers={"Retry-After": "7"})})

    response = await application.refresh(tokens["refresh_token"])

    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert [call.grant_type for call in sandbox.token_calls] == ["authorization_code"]
    assert sandbox.calls["token"] == 2
    sandbox.behaviour = replace(sandbox.behaviour, faults={})
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_handle_first_loses_only_the_response(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    garbage = Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>oops", handle_first=True)
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": garbage})

    response = await application.refresh(tokens["refresh_token"])

    assert (response.text, response.headers["content-type"]) == ("<html>oops", "text/html")
    assert sandbox.token_calls[-1].outcome == "ok"
    sandbox.behaviour = replace(sandbox.behaviour, faults={})
    assert error_of(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


@pytest.mark.parametrize(("handle_first", "exchanges"), [(False, 0), (True, 1)])
async def test_a_delay_is_before_or_after_the_work(
    application: OAuthClient, sandbox: Sandbox, handle_first: bool, exchanges: int
) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": Fault(delay=3600, handle_first=handle_first)})
    callback = await application.authorize()

    await give_up(application.exchange(callback["code"]))

    assert len(sandbox.token_calls) == exchanges


async def test_a_delay_alone_keeps_the_response(application: OAuthClient, sandbox: Sandbox) -> None:
    for handle_first in (False, True):
        fault = Fault(delay=0.001, handle_first=handle_first)
        sandbox.behaviour = replace(sandbox.behaviour, faults={"token": fault})
        assert (await application.connect())["access_token"]


async def test_a_fault_applies_to_one_endpoint(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"userinfo": Fault(status=500)})

    tokens = await application.connect()

    assert (await application.userinfo(tokens["access_token"])).status_code == 500


@pytest.mark.parametrize("fault", [BAD_GATEWAY, BAD_JSON, EMPTY, HTML, JSON_ARRAY, REDIRECT])
@pytest.mark.parametrize("handle_first", [False, True])
async def test_malformed_responses_work_with_and_without_handle_first(
    application: OAuthClient, sandbox: Sandbox, fault: Fault, handle_first: bool
) -> None:
    callback = await application.authorize()
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": replace(fault, handle_first=handle_first)})

    response = await application.exchange(callback["code"])

    assert (response.status_code, response.content) == (fault.status, fault.body)
    assert len(sandbox.token_calls) == handle_first


async def test_records_the_parameters_that_follow_a_redirect(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": REDIRECT})
    assert (await application.refresh("token")).headers["location"] == "/redirect-target"
    assert sandbox.redirected_parameters == []

    application.http.follow_redirects = True
    await application.refresh("token")
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": replace(REDIRECT, status=303)})
    await application.refresh("token")

    assert sandbox.redirected_parameters == [
        frozenset({"authorization", "grant_type", "refresh_token"}),
        frozenset({"authorization"}),
    ]


@pytest.mark.parametrize(
    "fault", [SlowBody(pause=0), OversizedBody(size=100_000), OversizedBody(size=100_000, gzip=True)]
)
async def test_slow_and_oversized_faults_send_the_endpoints_response(
    application: OAuthClient, sandbox: Sandbox, fault: Fault
) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": fault})

    tokens = await application.connect()

    assert (await application.userinfo(tokens["access_token"])).status_code == 200


@pytest.mark.parametrize("gzip", [False, True])
async def test_an_oversized_body_has_the_given_size(application: OAuthClient, sandbox: Sandbox, gzip: bool) -> None:
    fault = OversizedBody(status=200, body=b"[]", size=200_000, gzip=gzip)
    sandbox.behaviour = replace(sandbox.behaviour, faults={"healthz": fault})

    async with application.http.stream("GET", "/healthz") as response:
        sent = b"".join([chunk async for chunk in response.aiter_raw()])
    assert (len(sent) < 1000) == gzip
    assert (await application.http.get("/healthz")).content == b"[]".ljust(200_000)


async def test_a_slow_body_is_sent_byte_by_byte(application: OAuthClient, sandbox: Sandbox) -> None:
    drip = SlowBody(pause=0.01, status=200, body=b"x" * 10)
    sandbox.behaviour = replace(sandbox.behaviour, faults={"healthz": drip})
    begin = asyncio.get_running_loop().time()

    response = await application.http.get("/healthz")

    assert response.content == b"x" * 10
    assert asyncio.get_running_loop().time() - begin >= 0.09


@pytest.mark.parametrize(("handle_first", "exchanges"), [(False, 0), (True, 1)])
async def test_a_hang_is_before_or_after_the_work(
    application: OAuthClient, sandbox: Sandbox, handle_first: bool, exchanges: int
) -> None:
    callback = await application.authorize()
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": Hang(handle_first=handle_first)})

    await give_up(application.exchange(callback["code"]))

    assert len(sandbox.token_calls) == exchanges


async def test_counts_calls_in_progress_and_their_maximum(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    waiting = Waiting()
    sandbox.behaviour = replace(sandbox.behaviour, faults={"userinfo": waiting})

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(application.userinfo(tokens["access_token"]))
        await wait_until(lambda: sandbox.in_flight["userinfo"] == 3)
        waiting.released.set()
    await application.userinfo(tokens["access_token"])

    assert (sandbox.in_flight["userinfo"], sandbox.max_in_flight["userinfo"]) == (0, 3)
    assert sandbox.max_in_flight["token"] == 1


async def test_a_call_of_a_disconnected_client_is_not_in_progress(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"userinfo": Fault(delay=60)})

    await give_up(application.userinfo("any"))

    assert (sandbox.in_flight["userinfo"], sandbox.max_in_flight["userinfo"]) == (0, 1)


async def test_faults_are_switched_over_http(
    application: OAuthClient, http: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    fault = {"status": 503, "headers": {"Retry-After": "7"}, "body": "away"}
    assert (await http.put("/faults", json={"userinfo": fault})).status_code == 204
    response = await http.get("/userinfo")
    assert (response.status_code, response.text, response.headers["retry-after"]) == (503, "away", "7")
    assert (await application.connect())["access_token"]
    assert (await http.put("/faults", json={})).status_code == 204
    assert (await http.get("/userinfo")).status_code == 401


@pytest.mark.parametrize("body", ["", "[]", '{"no-such": {}}', '{"token": {"status": "x"}}', '{"token": 503}'])
async def test_what_is_no_fault_changes_nothing(http: httpx.AsyncClient, sandbox: Sandbox, body: str) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"userinfo": Fault(status=500)})
    assert (await http.put("/faults", content=body)).status_code == 400
    assert (await http.get("/userinfo")).status_code == 500


@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
async def test_a_web_page_cannot_switch_faults(http: httpx.AsyncClient, sandbox: Sandbox, method: str) -> None:
    """A browser sends a PUT to another origin only after OPTIONS has permitted it; it sends a POST at once."""
    response = await http.request(method, "/faults", content='{"userinfo": {"status": 500}}')
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert not sandbox.behaviour.faults
