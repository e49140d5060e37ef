"""Endpoints that are out of order."""

import asyncio
from dataclasses import replace

import pytest

from integration_server.sandbox import Fault, Sandbox
from tests.unit.sandbox.application import Application, refusal


async def test_answers_the_fault_and_does_no_work(application: Application, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": Fault(status=429, headers={"Retry-After": "7"})})

    answer = await application.refresh(tokens["refresh_token"])

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert [call.grant_type for call in sandbox.token_calls] == ["authorization_code"]
    assert sandbox.calls["token"] == 2
    sandbox.behaviour = replace(sandbox.behaviour, faults={})
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_loses_the_answer_of_work_that_was_done(application: Application, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    garbage = Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>oops", work_first=True)
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": garbage})

    answer = await application.refresh(tokens["refresh_token"])

    assert (answer.text, answer.headers["content-type"]) == ("<html>oops", "text/html")
    assert sandbox.token_calls[-1].outcome == "ok"
    sandbox.behaviour = replace(sandbox.behaviour, faults={})
    assert refusal(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


@pytest.mark.parametrize(("work_first", "exchanges"), [(False, 0), (True, 1)])
async def test_is_slow_before_or_after_its_work(
    application: Application, sandbox: Sandbox, work_first: bool, exchanges: int
) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": Fault(delay=3600, work_first=work_first)})
    callback = await application.authorize()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(application.exchange(callback["code"]), timeout=0.05)

    assert len(sandbox.token_calls) == exchanges


async def test_answers_as_ever_after_a_mere_delay(application: Application, sandbox: Sandbox) -> None:
    for work_first in (False, True):
        fault = Fault(delay=0.001, work_first=work_first)
        sandbox.behaviour = replace(sandbox.behaviour, faults={"token": fault})
        assert (await application.connect())["access_token"]


async def test_concerns_one_endpoint_only(application: Application, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"userinfo": Fault(status=500)})

    tokens = await application.connect()

    assert (await application.userinfo(tokens["access_token"])).status_code == 500
