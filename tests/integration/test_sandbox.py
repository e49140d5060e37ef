"""The sandbox over real loopback HTTP, from consent to revocation."""

import asyncio
import signal
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sandbox import Behaviour, Fault, Sandbox, Work, run_sandbox
from tests.unit.sandbox.application import Application, refusal


async def test_whole_life_of_a_connection() -> None:
    sandbox = Sandbox()
    async with run_sandbox(sandbox) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        application = Application(http, sandbox)

        callback = await application.authorize(account="grace", scope="read offline_access")
        assert callback["iss"] == base_url
        first = (await application.exchange(callback["code"])).json()
        assert (first["expires_in"], first["scope"]) == (3600, "read offline_access")
        second = (await application.refresh(first["refresh_token"])).json()
        assert (await application.userinfo(second["access_token"])).json()["sub"] == "grace"

        assert refusal(await application.refresh(first["refresh_token"])) == (400, "invalid_grant")
        assert refusal(await application.refresh(second["refresh_token"])) == (400, "invalid_grant")

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


async def test_fifty_exchanges_of_one_code_have_one_winner() -> None:
    sandbox = Sandbox()
    async with run_sandbox(sandbox) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        application = Application(http, sandbox)
        code = (await application.authorize())["code"]

        answers = await asyncio.gather(*(application.exchange(code) for _ in range(50)))

    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 49


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    delay: float = 3600
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: Request, work: Work) -> Response:
        self.reached.set()
        return await Fault.answer(self, request, work)


async def test_leaves_signals_alone_and_stops_although_a_request_hangs() -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    hang = Hang()
    sandbox = Sandbox(behaviour=Behaviour(faults={"healthz": hang}))
    async with httpx.AsyncClient() as http, asyncio.timeout(10):
        async with run_sandbox(sandbox) as base_url:
            request = asyncio.create_task(http.get(base_url + "/healthz"))
            await hang.reached.wait()
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        assert (await request).is_error
        with pytest.raises(httpx.ConnectError):
            await http.get(base_url + "/healthz")


async def test_serves_again_on_the_port_that_it_had() -> None:
    sandbox = Sandbox()
    async with httpx.AsyncClient() as http:
        async with run_sandbox(sandbox) as first_url:
            await http.get(first_url + "/healthz")
        async with run_sandbox(sandbox, port=int(first_url.rpartition(":")[2])) as second_url:
            assert second_url == first_url
            assert (await http.get(second_url + "/healthz")).status_code == 200
