"""What every adapter does, with the real library against a provider on loopback."""

import asyncio
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest
import requests

from integration_server.client.configuration import SecretText
from tests.integration.client_adapters.accounts import FakeAccount
from tests.integration.client_adapters.libraries import (
    ASYNC,
    SYNC,
    async_source_for,
    secret_holders,
    source_for,
)
from tests.integration.client_adapters.provider import FakeSource, Provider, running_provider

# Several of the libraries leave their connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("connections_are_collected"),
]

every_library = pytest.mark.parametrize("library", SYNC)
every_async_library = pytest.mark.parametrize("library", ASYNC)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


@every_library
def test_a_request_has_the_current_credentials(provider: Provider, library: str) -> None:
    source = source_for(library)
    call = SYNC[library](source, provider.url)
    assert call() == 200
    source.rotate()
    provider.valid = {2}
    assert call() == 200
    assert provider.secrets == [[1], [2]]
    assert source.renewals == 0


@pytest.mark.slow
@every_library
def test_a_rejected_request_is_sent_once_more_with_renewed_credentials(provider: Provider, library: str) -> None:
    source = source_for(library)
    call = SYNC[library](source, provider.url)
    for generation in (2, 3, 4):  # also if it is renewed again and again
        provider.valid = {generation}
        assert call() == 200
    assert provider.secrets == [[1], [2], [2], [3], [3], [4]]
    assert source.renewals == 3


@every_library
def test_a_second_rejection_is_returned(provider: Provider, library: str) -> None:
    source = source_for(library)
    call = SYNC[library](source, provider.url)
    provider.valid = set()
    assert call() == 401
    assert source.renewals == 1
    # google-auth itself repeats a request up to twice, whatever its credentials do.
    assert provider.secrets[:2] == [[1], [2]]
    assert len(provider.received) == (3 if library.startswith("google") else 2)
    assert call() == 401
    assert source.renewals == 2


@every_library
def test_a_rejection_is_returned_if_there_is_nothing_newer(provider: Provider, library: str) -> None:
    source = source_for(library)
    source.has_newer = False
    provider.valid = set()
    assert SYNC[library](source, provider.url)() == 401
    assert len(provider.received) == (3 if library.startswith("google") else 1)


@every_library
def test_threads_whose_requests_are_rejected_renew_once(provider: Provider, library: str) -> None:
    source = source_for(library)
    call = SYNC[library](source, provider.url)
    provider.valid = {2}
    together = Barrier(6)

    def call_together() -> int:
        together.wait(30)
        return call()

    with ThreadPoolExecutor(6) as threads:
        statuses = [task.result(60) for task in [threads.submit(call_together) for _ in range(6)]]
    assert statuses == [200] * 6
    assert source.renewals == 1


@every_async_library
async def test_an_async_request_is_sent_once_more_with_renewed_credentials(provider: Provider, library: str) -> None:
    source = async_source_for(library)
    call = ASYNC[library](source, provider.url)
    assert await call() == 200
    source.rotate()
    provider.valid = {3}
    assert await call() == 200
    assert provider.secrets == [[1], [2], [3]]
    provider.valid = set()
    assert await call() == 401
    assert source.renewals == 2


@every_async_library
async def test_tasks_whose_requests_are_rejected_renew_once(provider: Provider, library: str) -> None:
    source = async_source_for(library)
    call = ASYNC[library](source, provider.url)
    provider.valid = {2}
    assert await asyncio.gather(*[call() for _ in range(6)]) == [200] * 6
    assert source.renewals == 1


NOBODY = "http://127.0.0.1:1"


def _fail_with_stripe() -> None:
    client = FakeAccount(FakeSource()).stripe(base_addresses={"api": NOBODY}, max_network_retries=0)
    client.v1.balance.retrieve()


FAILING: Mapping[str, Callable[[], object]] = {
    "httpx": lambda: httpx.get(NOBODY, auth=FakeAccount(FakeSource("header")).httpx(), trust_env=False),
    "requests": lambda: requests.get(NOBODY, auth=FakeAccount(FakeSource("header")).requests(), timeout=10),
    "slack": lambda: FakeAccount(FakeSource()).slack(base_url=f"{NOBODY}/").auth_test(),
    "stripe": _fail_with_stripe,
    "twilio": lambda: FakeAccount(FakeSource("basic")).twilio().request("GET", NOBODY),
}


@pytest.mark.parametrize("is_hidden", [True, False], ids=["", "negative control"])
def test_no_local_variable_of_a_failed_request_has_a_secret(is_hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the adapters' frames, which reporters of errors print; those of the libraries are not ours."""
    if not is_hidden:
        monkeypatch.setattr(SecretText, "__repr__", str.__repr__)
    found = set()
    for library, fail in FAILING.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            fail()
        if any(secret in text for text in _locals_of_adapters(caught.value) for secret in ("s3cret", "Basic QUM")):
            found.add(library)
    assert found == (set() if is_hidden else {"stripe", "twilio"})


def _locals_of_adapters(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if Path(frame.f_code.co_filename).parent.name == "adapters":
                yield from map(repr, frame.f_locals.values())
        error = error.__cause__ or error.__context__


def test_no_adapter_prints_a_secret() -> None:
    source = FakeSource()
    for holder in secret_holders(source):
        printed = f"{holder!r} {holder} {getattr(holder, '__dict__', '')}"
        assert not any(secret in printed for secret in ("s3cret", "aws-secret")), holder
