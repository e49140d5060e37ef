"""The sidecar's app over a fake server, without sockets."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.unit.sidecar.fakes import FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client without an `Accept` header; a test adds that of a browser."""
    app = server.app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://sidecar.example") as client:
        yield client
