"""A real provider against a token endpoint with unusual, invalid or missing responses, over loopback.

`odd_responses.TABLE` has the outcome of each response.
"""

import itertools
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import httpx
import pytest
import pytest_asyncio

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    ProviderError,
    ProviderUnavailable,
)
from integration_server.providers.base import ProviderContext
from integration_server.providers.http import ProviderHttp
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox.behaviour import Behaviour, Fault
from integration_server.sandbox.faults import REDIRECT, Hang, OversizedBody, Reset, ResetMidway
from integration_server.sandbox.model import Client
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from tests.integration.providers.odd_responses import DEADLINE, LONG_DEADLINE, TABLE, Failure, RefreshTokenOnly, Tokens
from tests.unit.providers.support import exception_text
from tests.unit.sandbox.oauth_client import CHALLENGE, REDIRECT_URI, VERIFIER, basic

# One sandbox serves all tests of the module, in the module's loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT_ID = "our-id"
CLIENT_SECRET = "s3cret"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

IMMEDIATE_SECONDS = 25.0  # less than LONG_DEADLINE, and far more than a busy machine needs
SIZE_LIMIT = 1 << 20
CHUNK = 1 << 16  # the maximum of one read from a socket
OVERSIZED = 10 << 20


# --- sandbox and provider -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SandboxEnvironment:
    sandbox: Sandbox
    base_url: str
    client: Client
    providers: dict[timedelta, OAuth2Provider]  # by their deadlines

    def new_code(self) -> str:
        return self.sandbox.issue_code(self.client, REDIRECT_URI, "ada", ("read", "write"), CHALLENGE)

    def new_refresh_token(self) -> str:
        issued = self.sandbox.redeem_code(self.client, self.new_code(), REDIRECT_URI, VERIFIER)
        return str(issued.refresh_token)


@asynccontextmanager
async def provider_at(
    base_url: str,
    *,
    deadline: timedelta = LONG_DEADLINE,
    body_limit: int = SIZE_LIMIT,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[OAuth2Provider]:
    class SandboxProvider(OAuth2Provider):
        integration_type = "sandbox"
        oauth_authorize_url = f"{base_url}/oauth/authorize"
        oauth_token_url = f"{base_url}/oauth/token"

    http = ProviderHttp(clock, dev_mode=True, deadline=deadline, body_limit=body_limit, transport=transport)
    environment = {"SANDBOX_CLIENT_ID": CLIENT_ID, "SANDBOX_CLIENT_SECRET": CLIENT_SECRET}
    async with http:
        yield SandboxProvider(ProviderContext(http, clock, environment))


def clock() -> datetime:
    return NOW


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_sandbox_environment() -> AsyncIterator[SandboxEnvironment]:
    numbers = itertools.count()
    sandbox = Sandbox(clock=clock, token=lambda: f"s3cret-{next(numbers)}")
    client = sandbox.register_client(CLIENT_ID, CLIENT_SECRET, [REDIRECT_URI])
    async with (
        run_sandbox(sandbox) as base_url,
        provider_at(base_url, deadline=DEADLINE) as short_deadline_provider,
        provider_at(base_url, deadline=LONG_DEADLINE) as long_deadline_provider,
    ):
        yield SandboxEnvironment(
            sandbox, base_url, client, {DEADLINE: short_deadline_provider, LONG_DEADLINE: long_deadline_provider}
        )


@pytest.fixture
def sandbox_environment(module_sandbox_environment: SandboxEnvironment) -> Iterator[SandboxEnvironment]:
    yield module_sandbox_environment
    module_sandbox_environment.sandbox.behaviour = Behaviour()
    module_sandbox_environment.sandbox.redirected_parameters.clear()


# Exchanges a new code or refresh token of the sandbox.
Exchange = Callable[[SandboxEnvironment, OAuth2Provider], Awaitable[OAuthTokens]]


async def code_exchange(sandbox_environment: SandboxEnvironment, provider: OAuth2Provider) -> OAuthTokens:
    return await provider.exchange_code_for_tokens(sandbox_environment.new_code(), REDIRECT_URI, VERIFIER)


async def refresh(sandbox_environment: SandboxEnvironment, provider: OAuth2Provider) -> OAuthTokens:
    return await provider.refresh_access_token(sandbox_environment.new_refresh_token())


# --- outcomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [code_exchange, refresh])
@pytest.mark.parametrize("name", TABLE)
async def test_a_response_has_its_documented_outcome(
    sandbox_environment: SandboxEnvironment,
    name: str,
    exchange: Exchange,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    behaviour, outcome = TABLE[name]
    provider = sandbox_environment.providers[outcome.max_duration]
    sandbox_environment.sandbox.behaviour = behaviour
    calls = sandbox_environment.sandbox.calls["token"]
    begin = time.perf_counter()
    if isinstance(outcome, Tokens):
        check_tokens(outcome, await exchange(sandbox_environment, provider))
    elif isinstance(outcome, RefreshTokenOnly) and exchange is refresh:
        tokens = await exchange(sandbox_environment, provider)
        assert (tokens.access_token, bool(tokens.refresh_token)) == ("", True)
    else:
        with pytest.raises(ProviderError) as raised:
            await exchange(sandbox_environment, provider)
        check_failure(outcome, raised.value)
    elapsed = time.perf_counter() - begin
    assert sandbox_environment.sandbox.calls["token"] - calls == 1
    assert sandbox_environment.sandbox.redirected_parameters == []
    if outcome.max_duration == DEADLINE:
        assert DEADLINE.total_seconds() <= elapsed < DEADLINE.total_seconds() + IMMEDIATE_SECONDS
    else:
        assert elapsed < IMMEDIATE_SECONDS
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())


def check_tokens(expected: Tokens, tokens: OAuthTokens) -> None:
    assert tokens.access_token.startswith("s3cret-")
    assert (tokens.refresh_token is not None) == expected.has_refresh_token
    assert tokens.scopes == expected.scopes
    assert tokens.lifetime == expected.lifetime
    assert tokens.expire_time == (None if expected.lifetime is None else NOW + expected.lifetime)


def check_failure(expected: Failure, error: ProviderError) -> None:
    assert isinstance(error, expected.error)
    assert (error.oauth_error, error.retry_after) == (expected.oauth_error, expected.retry_after)
    assert "s3cret" not in exception_text(error)


@pytest.mark.parametrize(
    "fault",
    [Hang(), Reset(), ResetMidway(status=200, body=b"{}"), OversizedBody(status=200)],
    ids=lambda f: type(f).__name__,
)
async def test_an_unspent_code_or_token_works_in_the_next_request(
    sandbox_environment: SandboxEnvironment, fault: Fault
) -> None:
    refresh_token = sandbox_environment.new_refresh_token()
    async with provider_at(sandbox_environment.base_url, deadline=timedelta(seconds=0.5)) as provider:
        sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": fault})
        with pytest.raises(ProviderUnavailable):
            await provider.refresh_access_token(refresh_token)
        sandbox_environment.sandbox.behaviour = Behaviour()
        assert (await provider.refresh_access_token(refresh_token)).refresh_token not in {None, refresh_token}


# --- redirects and limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(sandbox_environment: SandboxEnvironment, status: int) -> None:
    sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": replace(REDIRECT, status=status)})
    with pytest.raises(ProviderUnavailable):
        await refresh(sandbox_environment, sandbox_environment.providers[LONG_DEADLINE])
    assert sandbox_environment.sandbox.redirected_parameters == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_negative_control_a_client_that_follows_redirects_sends_the_secret(
    sandbox_environment: SandboxEnvironment, status: int
) -> None:
    sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": replace(REDIRECT, status=status)})
    async with httpx.AsyncClient(follow_redirects=True) as http:
        await http.post(
            f"{sandbox_environment.base_url}/oauth/token",
            data={"grant_type": "refresh_token", "refresh_token": sandbox_environment.new_refresh_token()},
            headers={"Authorization": basic(CLIENT_ID, CLIENT_SECRET)},
        )
    (received,) = sandbox_environment.sandbox.redirected_parameters
    assert "authorization" in received
    assert ("refresh_token" in received) == (status in {307, 308})


class CountingTransport(httpx.AsyncHTTPTransport):
    """A transport that counts the bytes of bodies that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.stream = _CountedStream(cast(httpx.AsyncByteStream, response.stream), self)
        return response


class _CountedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, transport: CountingTransport) -> None:
        self._stream = stream
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._transport.read_bytes += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_no_more_than_the_limit_is_read(sandbox_environment: SandboxEnvironment) -> None:
    sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": OversizedBody(size=OVERSIZED)})
    transport = CountingTransport()
    async with provider_at(sandbox_environment.base_url, transport=transport) as provider:
        with pytest.raises(ProviderUnavailable):
            await refresh(sandbox_environment, provider)
    assert SIZE_LIMIT < transport.read_bytes <= SIZE_LIMIT + CHUNK


async def test_negative_control_with_a_larger_limit_everything_is_read(sandbox_environment: SandboxEnvironment) -> None:
    sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": OversizedBody(size=OVERSIZED)})
    transport = CountingTransport()
    async with provider_at(sandbox_environment.base_url, transport=transport, body_limit=OVERSIZED) as provider:
        check_tokens(Tokens(), await refresh(sandbox_environment, provider))
    assert transport.read_bytes == OVERSIZED


async def test_no_more_than_the_limit_is_decompressed(sandbox_environment: SandboxEnvironment) -> None:
    assert await peak_memory_of_gzip_bomb(sandbox_environment, body_limit=SIZE_LIMIT) < 4 * SIZE_LIMIT


async def test_negative_control_with_a_larger_limit_everything_is_decompressed(
    sandbox_environment: SandboxEnvironment,
) -> None:
    assert await peak_memory_of_gzip_bomb(sandbox_environment, body_limit=OVERSIZED) > OVERSIZED


async def peak_memory_of_gzip_bomb(sandbox_environment: SandboxEnvironment, *, body_limit: int) -> int:
    """The peak of allocated bytes during the response, including those of the sandbox."""
    sandbox_environment.sandbox.behaviour = Behaviour(faults={"token": OversizedBody(size=OVERSIZED, gzip=True)})
    async with provider_at(sandbox_environment.base_url, body_limit=body_limit) as provider:
        tracemalloc.start()
        try:
            with suppress(ProviderUnavailable):
                await refresh(sandbox_environment, provider)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
