"""A sandbox with a stopped clock, without sockets."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from integration_server.sandbox.app import create_app
from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.oauth_client import OAuthClient


class StoppedClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def sandbox(clock: StoppedClock) -> Sandbox:
    return Sandbox(clock=clock)


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(sandbox))
    async with httpx.AsyncClient(transport=transport, base_url="https://sandbox.example") as client:
        yield client


@pytest.fixture
def application(http: httpx.AsyncClient, sandbox: Sandbox) -> OAuthClient:
    return OAuthClient(http, sandbox)
