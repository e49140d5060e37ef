"""The sandbox over real loopback HTTP, from consent to revocation."""

import asyncio
import logging
import signal
import time
from contextlib import closing
from dataclasses import replace

import httpx
import pytest

from integration_server.sandbox.behaviour import Behaviour, Fault
from integration_server.sandbox.faults import Hang, Reset, ResetMidway, SlowBody
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.oauth_client import OAuthClient, error_of


async def test_connect_refresh_and_revoke() -> None:
    sandbox = Sandbox()
    async with run_sandbox(sandbox) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        application = OAuthClient(http, sandbox)

        callback = await application.authorize(account="grace", scope="read offline_access")
        assert callback["iss"] == base_url
        first = (await application.exchange(callback["code"])).json()
        assert (first["expires_in"], first["scope"]) == (3600, "read offline_access")
        second = (await application.refresh(first["refresh_token"])).json()
        assert (await application.userinfo(second["access_token"])).json()["sub"] == "grace"

        assert error_of(await application.refresh(first["refresh_token"])) == (400, "invalid_grant")
        assert error_of(await application.refresh(second["refresh_token"])) == (400, "invalid_grant")

        third = await application.connect()
        assert (await application.revoke(third["refresh_token"])).status_code == 200
        assert (await application.userinfo(third["access_token"])).status_code == 401

    outcomes = [(call.grant_type, call.outcome) for call in sandbox.token_calls]
    assert outcomes == [
        ("authorization_code", "ok"),
        ("refresh_token", "ok"),
        ("refresh_token", "invalid_grant"),
        ("refresh_token", "invalid_grant"),
        ("authorization_code", "ok"),
    ]


async def test_of_fifty_exchanges_of_one_code_one_succeeds() -> None:
    sandbox = Sandbox()
    async with run_sandbox(sandbox) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        application = OAuthClient(http, sandbox)
        code = (await application.authorize())["code"]

        responses = await asyncio.gather(*(application.exchange(code) for _ in range(50)))

    assert sorted(response.status_code for response in responses) == [200] + [400] * 49


@pytest.mark.slow
@pytest.mark.parametrize("handle_first", [False, True])
@pytest.mark.parametrize("fault", [Hang(), Reset()], ids=["hang", "reset"])
async def test_a_response_is_lost_before_or_after_the_work(fault: Fault, handle_first: bool) -> None:
    sandbox = Sandbox()
    async with run_sandbox(sandbox) as base_url, httpx.AsyncClient(base_url=base_url, timeout=30) as http:
        application = OAuthClient(http, sandbox)
        tokens = await application.connect()

        sandbox.behaviour = Behaviour(faults={"token": replace(fault, handle_first=handle_first)})
        http.timeout = 1
        with pytest.raises((httpx.ReadError, httpx.ReadTimeout)):
            await application.refresh(tokens["refresh_token"])
        http.timeout = 30

        sandbox.behaviour = Behaviour()
        response = await application.refresh(tokens["refresh_token"])
        if handle_first:
            assert error_of(response) == (400, "invalid_grant")
        else:
            assert response.status_code == 200


async def test_resets_instead_of_a_response() -> None:
    assert await received_of(Reset()) == b""


async def test_resets_in_the_middle_of_a_response() -> None:
    received = await received_of(ResetMidway(status=200, body=b"x" * 10))
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 10\r\n" in received
    assert received.endswith(b"\r\n\r\nxxxxx")


async def received_of(fault: Fault) -> bytes:
    """The bytes that arrive before the reset."""
    async with run_sandbox(Sandbox(behaviour=Behaviour(faults={"healthz": fault}))) as base_url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base_url.rpartition(":")[2]))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: sandbox\r\n\r\n")
        received = asyncio.StreamReader()
        with closing(writer), pytest.raises(ConnectionResetError):
            await forward_bytes(reader, received)
        received.feed_eof()
        return await received.read()


async def forward_bytes(source: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
    while chunk := await source.read(1000):
        target.feed_data(chunk)


@pytest.mark.parametrize("fault", [Hang(), Fault(delay=3600), SlowBody(pause=3600)], ids=["hang", "delay", "drip"])
async def test_stops_at_once_and_silently_while_a_request_hangs(
    fault: Fault, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    sandbox = Sandbox(behaviour=Behaviour(faults={"healthz": fault}))
    async with httpx.AsyncClient() as http:
        async with run_sandbox(sandbox) as base_url:
            request = asyncio.create_task(http.get(base_url + "/healthz"))
            while not sandbox.calls["healthz"]:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
            begin = time.perf_counter()
        assert time.perf_counter() - begin < 60  # the request would hang for an hour
        with pytest.raises(httpx.RemoteProtocolError):
            await request
        with pytest.raises(httpx.ConnectError):
            await http.get(base_url + "/healthz")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


async def test_serves_again_on_the_same_port() -> None:
    sandbox = Sandbox()
    async with httpx.AsyncClient() as http:
        async with run_sandbox(sandbox) as first_url:
            await http.get(first_url + "/healthz")
        async with run_sandbox(sandbox, port=int(first_url.rpartition(":")[2])) as second_url:
            assert second_url == first_url
            assert (await http.get(second_url + "/healthz")).status_code == 200
