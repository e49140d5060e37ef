"""Streams: what is repeated, and what a stream does to the integration."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.errors import InvalidField, ProviderRejected, ProviderUnavailable, QuotaExceeded
from integration_server.domain.integration import Integration
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from tests.fakes.system import ADA, FakeSystem

UPLOAD = ApiRequest("PUT", "/things")
DOWNLOAD = ApiRequest("GET", "/things")
UNAUTHORIZED = ApiResponse(401, (), b"")
OK = ApiResponse(200, (), b"ok")
WAIT = ApiResponse(429, (), b"", True, timedelta(seconds=0.1))


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem({"proxy_stream_idle_timeout": timedelta(seconds=0.1)}, options={"monotonic": time.monotonic})
    async with system.tasks:
        yield system


@pytest.fixture
async def mine(system: FakeSystem) -> Integration:
    return await system.connect()


async def parts(*texts: bytes) -> AsyncIterator[bytes]:
    for text in texts:
        yield text


async def stream(
    system: FakeSystem, mine: Integration, request: ApiRequest, *texts: bytes, **options: Any
) -> tuple[int, bytes]:
    streaming = system.api_proxy.stream_provider(mine.integration_id, ADA, request, parts(*texts), **options)
    async with streaming as response:
        return response.response.status, b"".join([part async for part in response.chunks])


@pytest.mark.parametrize("texts", [(b"a",), (b"", b"a", b"", b"b"), (b"a", b"b", b"c")])
async def test_the_parts_of_a_body_are_passed_on(system: FakeSystem, mine: Integration, texts: tuple[bytes]) -> None:
    system.provider.responses = [OK]
    assert await stream(system, mine, UPLOAD, *texts) == (200, b"ok")
    assert system.provider.bodies == [[text for text in texts if text]]


@pytest.mark.parametrize(
    "first",
    [UNAUTHORIZED, replace(OK, rejects_access_token=True), ProviderUnavailable(), WAIT],
)
async def test_a_request_without_a_body_is_repeated(system: FakeSystem, mine: Integration, first: Any) -> None:
    system.provider.responses = [first, OK]
    assert await stream(system, mine, DOWNLOAD) == (200, b"ok")
    assert len(system.provider.calls) == 2


@pytest.mark.parametrize("idempotency_key", ["", "key"])
@pytest.mark.parametrize("first", [ProviderUnavailable(), WAIT])
async def test_nothing_is_repeated_after_a_part_of_the_body(
    system: FakeSystem, mine: Integration, first: Any, idempotency_key: str
) -> None:
    system.provider.responses = [first, OK]
    with pytest.raises(ProviderUnavailable):
        await stream(system, mine, replace(UPLOAD, idempotency_key=idempotency_key), b"a")
    assert len(system.provider.calls) == 1


async def test_after_a_rejected_upload_the_token_is_refreshed_for_the_next(
    system: FakeSystem, mine: Integration
) -> None:
    system.provider.responses = [UNAUTHORIZED, OK]
    assert (await stream(system, mine, UPLOAD, b"a"))[0] == 401
    assert (len(system.provider.calls), len(system.provider.refreshes)) == (1, 1)
    assert (await stream(system, mine, UPLOAD, b"a"))[0] == 200
    credentials: Any = system.provider.calls[-1][0]
    assert credentials.access_token == "renewed-access-1"
    assert system.provider.bodies == [[b"a"], [b"a"]]


async def test_a_body_that_breaks_is_an_error_and_is_recorded(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses, system.provider.stream_error = [OK], ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await stream(system, mine, DOWNLOAD)
    await asyncio.gather(*system.tasks._running)
    last_error = system.row(mine.integration_id).last_error
    assert last_error is not None
    assert last_error.error_class == ProviderUnavailable.reason != ProviderRejected.reason


@pytest.mark.parametrize(("length", "texts"), [(3, (b"a",)), (1, (b"ab",)), (2, (b"a", b"bc"))])
async def test_a_body_has_the_announced_length(
    system: FakeSystem, mine: Integration, length: int, texts: tuple[bytes]
) -> None:
    with pytest.raises(InvalidField) as raised:
        await stream(system, mine, UPLOAD, *texts, content_length=length)
    assert raised.value.field == "content_length"


async def test_a_caller_that_sends_no_part_is_told_so(system: FakeSystem, mine: Integration) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    streaming = system.api_proxy.stream_provider(mine.integration_id, ADA, UPLOAD, never())
    with pytest.raises(QuotaExceeded):
        async with streaming:
            pass
    assert system.provider.calls == []
