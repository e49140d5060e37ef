"""The client's adapters with a real server and the sandbox: how many RPCs the calls of a provider need."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from azure.core import PipelineClient
from azure.core.rest import HttpRequest
from google.auth.transport.requests import AuthorizedSession

from integration_server.client import Account, Integrations, errors
from integration_server.client.adapters.azure import RenewingTokenPolicy
from integration_server.client.errors import IntegrationsError
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.state import Sandbox
from tests.end_to_end.system import System, run_system

# requests leaves connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("connections_are_collected"),
]

LIFETIME = 12  # seconds; a token is renewed after half of it, so a machine may stall for five seconds
DEADLINE = 120.0  # seconds


class Counting:
    """Counts the calls of the client."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def begin(self, method: str, metadata: list[tuple[str, str]]) -> Callable[[IntegrationsError | None], None]:
        """Count a call."""
        self.calls[method] += 1
        return lambda error: None


def _providers_calls(account: Account, url: str, stack: ExitStack) -> list[Callable[[], int]]:
    """A call of the provider with each library."""
    client = stack.enter_context(httpx.Client(auth=account.httpx(), trust_env=False))
    session = stack.enter_context(AuthorizedSession(account.google()))
    policy = RenewingTokenPolicy(account.azure(), "scope")
    pipeline: PipelineClient[Any, Any] = stack.enter_context(PipelineClient(url, policies=[policy]))
    request = HttpRequest("GET", f"{url}/userinfo")
    return [
        lambda: client.get(f"{url}/userinfo").status_code,
        lambda: int(session.get(f"{url}/userinfo").status_code),
        lambda: int(pipeline.send_request(request, enforce_https=False).status_code),
    ]


def _refreshes(system: System) -> int:
    return sum(call.grant_type == "refresh_token" for call in system.sandbox.token_calls)


@pytest.mark.slow
async def test_calls_of_the_provider_over_three_token_lifetimes_need_no_rpc(sqlite_url: str) -> None:
    sandbox = Sandbox(behaviour=Behaviour(access_token_lifetime=LIFETIME))
    async with run_system(sqlite_url, sandbox=sandbox) as system:
        integration_id = await system.connect()
        counting = Counting()

        def use() -> tuple[int, int]:
            with ExitStack() as stack:
                integrations = stack.enter_context(Integrations(system.grpc_address, hooks=[counting]))
                account = integrations.account(user="ada", type="sandbox", integration_id=integration_id)
                calls = _providers_calls(account, system.sandbox_url, stack)
                end = time.monotonic() + DEADLINE
                assert [call() for call in calls] == [200] * 3
                while not counting.calls["WatchCredentials"]:
                    assert time.monotonic() < end
                    time.sleep(0.05)
                warm, refreshes, number = counting.calls.total(), _refreshes(system), 0
                while _refreshes(system) < refreshes + 6:  # two in each lifetime
                    assert time.monotonic() < end
                    assert [call() for call in calls] == [200] * 3
                    number += 3
                    time.sleep(0.05)
                return number, counting.calls.total() - warm

        number, rpcs = await asyncio.to_thread(use)
        assert number > 20
        assert rpcs == 0, counting.calls


async def test_a_token_that_the_provider_ends_early_is_renewed_once_for_all(sqlite_url: str) -> None:
    async with run_system(sqlite_url) as system:
        integration_id = await system.connect()

        def use() -> tuple[list[int], int]:
            with ExitStack() as stack:
                integrations = stack.enter_context(Integrations(system.grpc_address))
                account = integrations.account(user="ada", type="sandbox", integration_id=integration_id)
                calls = _providers_calls(account, system.sandbox_url, stack)
                statuses = [call() for call in calls]
                before = _refreshes(system)
                system.sandbox.expire_access_tokens()
                return statuses + [call() for call in calls], _refreshes(system) - before

        assert await asyncio.to_thread(use) == ([200] * 6, 1)


@pytest.mark.slow
async def test_a_grant_that_has_ended_is_the_clients_error(sqlite_url: str) -> None:
    async with run_system(sqlite_url) as system:
        integration_id = await system.connect()

        def use() -> None:
            with Integrations(system.grpc_address) as integrations:
                account = integrations.account(user="ada", type="sandbox", integration_id=integration_id)
                with httpx.Client(auth=account.httpx(), trust_env=False) as client:
                    assert client.get(f"{system.sandbox_url}/userinfo").status_code == 200
                    system.sandbox.revoke_grants("ada")
                    with pytest.raises(errors.ReauthorizationRequired):
                        client.get(f"{system.sandbox_url}/userinfo")

        await asyncio.to_thread(use)
