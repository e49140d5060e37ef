"""The client against a servicer on loopback: credentials in memory, streams, tokens, errors. Both clients run each."""

import asyncio
import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from traceback import TracebackException
from typing import Any

import grpc
import pytest

from integration_server.client import AsyncIntegrations, Credentials, Integrations, MemoryCursorStore
from integration_server.client.configuration import Configuration, ConfigurationError
from integration_server.client.connection import AsyncUseGuard, TlsContents, UseGuard
from integration_server.client.errors import (
    AccountNotConnected,
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    IntegrationNotFound,
    IntegrationsError,
    Internal,
    InvalidField,
    ProviderRejected,
    SeveralAccounts,
    Unauthenticated,
    Unavailable,
)
from integration_server.client.rpcs import CONNECT_WITH_API_KEY, REFRESH_TOKEN, WATCH_CREDENTIALS
from integration_server.client.transport import AsyncTransport, Transport
from integrations.v1 import integration_service_pb2
from integrations.v1.integration_service_pb2 import RefreshTokenRequest, WatchCredentialsRequest
from tests.fakes.integration_servicer import FakeServicer, serve


class Loop:
    """Runs both clients in the same way: `Integrations` in this thread, `AsyncIntegrations` in a loop."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self.runner = runner
        self.clients: list[Any] = []

    def client(self, address: str, **options: Any) -> Any:
        """A client of the kind under test."""
        kind: type[Any] = Integrations if self.runner is None else AsyncIntegrations
        client = kind(address, **options)
        self.clients.append(client)
        return client

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method, and await it."""
        if self.runner is None:
            return function(*arguments)

        async def run() -> Any:
            result = function(*arguments)
            return await result if inspect.isawaitable(result) else result

        return self.runner.run(run())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, at most half a minute; the streams of asyncio run meanwhile."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            if self.runner is None:
                time.sleep(0.01)
            else:
                self.runner.run(asyncio.sleep(0.01))

    def close(self) -> None:
        """Close the clients."""
        for client in self.clients:
            self(client.close if self.runner is None else client.aclose)


@pytest.fixture(params=["threads", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    if request.param == "threads":
        clients = Loop(None)
        yield clients
        clients.close()
        return
    with asyncio.Runner() as runner:
        clients = Loop(runner)
        yield clients
        clients.close()


@pytest.fixture
def servicer() -> FakeServicer:
    return FakeServicer()  # type: ignore[abstract]  # the other methods are UNIMPLEMENTED


@pytest.fixture
def address(servicer: FakeServicer) -> Iterator[str]:
    with serve(servicer) as address:
        yield address


class Held:
    """A call that the servicer does not complete until `end`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, _: int) -> None:
        self.begun.set()
        self.ended.wait(30)


def watched(servicer: FakeServicer, *numbers: int) -> Callable[[], bool]:
    """Whether a running stream has these integrations."""
    return lambda: (
        bool(servicer.streams)
        and bool(servicer.watch_requests)
        and set(numbers) <= set(servicer.watch_requests[-1].integration_ids)
    )


def test_uses_of_a_watched_account_call_nothing(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address)
    loop(client.account(user="ada", type="calendar").credentials)
    loop.until(watched(servicer, 1))
    before = dict(servicer.calls)
    tokens = {loop(client.account(user="ada", type="calendar").credentials).access_token for _ in range(100)}
    assert tokens == {"secret-token-1-1"}
    assert dict(servicer.calls) == before == {"ListIntegrations": 1, "GetCredentials": 1, "WatchCredentials": 1}


def test_a_refreshed_token_and_a_revocation_arrive_by_the_stream(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    account = loop.client(address).account(user="ada", integration_id=7)
    loop(account.credentials)
    loop.until(watched(servicer, 7))
    servicer.tokens[7] = "secret-token-7-2"
    servicer.report(7, "c1")
    loop.until(lambda: loop(account.credentials).access_token == "secret-token-7-2")
    assert servicer.calls["GetCredentials"] == 1

    del servicer.tokens[7]
    servicer.report(7, "c2")

    def is_gone() -> bool:
        try:
            loop(account.credentials)
        except IntegrationNotFound:
            return True
        return False

    loop.until(is_gone)


def test_negative_control_without_a_stream_a_revoked_token_stays_in_use(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    account = loop.client(address, watch=False).account(user="ada", integration_id=7)
    loop(account.credentials)
    del servicer.tokens[7]
    servicer.report(7, "c2")
    assert loop(account.credentials).access_token == "secret-token-7-1"
    assert servicer.calls["WatchCredentials"] == 0


def test_a_server_without_streams_is_asked_for_credentials(loop: Loop, servicer: FakeServicer, address: str) -> None:
    servicer.has_watch = False
    servicer.lifetime = timedelta(seconds=0.5)
    account = loop.client(address).account(user="ada", integration_id=3)
    loop(account.credentials)
    servicer.tokens[3] = "secret-token-3-2"
    loop.until(lambda: loop(account.credentials).access_token == "secret-token-3-2")
    assert servicer.calls["WatchCredentials"] == 1


def test_further_accounts_restart_the_stream_from_before_they_were_read(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    client = loop.client(address)
    first = client.account(user="ada", integration_id=1)
    loop(first.credentials)
    loop.until(watched(servicer, 1))
    servicer.tokens[1] = "secret-token-1-2"
    servicer.report(1, "c1")
    loop.until(lambda: loop(first.credentials).access_token == "secret-token-1-2")
    for number in (2, 3, 4):
        loop(client.account(user="ada", integration_id=number).credentials)
    loop.until(watched(servicer, 1, 2, 3, 4))
    assert servicer.watch_requests[-1].cursor == "c1"
    assert len(servicer.watch_requests) <= 4


def test_resumes_with_the_last_cursor_after_the_server_has_ended_the_stream(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    account = loop.client(address).account(user="ada", integration_id=1)
    loop(account.credentials)
    loop.until(watched(servicer, 1))
    servicer.tokens[1] = "secret-token-1-2"
    servicer.report(1, "c9")
    loop.until(lambda: loop(account.credentials).access_token == "secret-token-1-2")
    servicer.end_streams()
    loop.until(lambda: len(servicer.watch_requests) == 2)
    assert servicer.watch_requests[-1].cursor == "c9"


def test_no_user_gets_the_credentials_of_another_from_memory(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address)
    loop(client.account(user="ada", integration_id=7).credentials)
    for number in (7, 8):
        with pytest.raises(IntegrationNotFound):
            loop(client.account(user="stranger", integration_id=number).credentials)
    assert loop(client.account(user="ada", integration_id=7).credentials).access_token == "secret-token-7-1"


@pytest.mark.slow
def test_a_server_that_is_away_is_bridged_from_memory(loop: Loop, servicer: FakeServicer) -> None:
    with serve(servicer) as address:
        client = loop.client(address)
        account = client.account(user="ada", integration_id=1)
        first = loop(account.credentials)
    assert loop(account.credentials) == first
    with pytest.raises(Unavailable):
        loop(client.account(user="ada", integration_id=2).credentials)
    with serve(servicer, address):
        other = client.account(user="ada", integration_id=2)
        loop.until(lambda: loop(other.credentials).access_token == "secret-token-2-1")


def test_renews_once_for_a_rejected_token(loop: Loop, servicer: FakeServicer, address: str) -> None:
    def refresh(number: int) -> None:
        servicer.tokens[number] = f"secret-token-{number}-2"

    servicer.refreshed = refresh
    account = loop.client(address).account(user="ada", integration_id=5)
    rejected = loop(account.credentials)
    assert loop(account.renew, rejected).access_token == "secret-token-5-2"
    assert loop(account.renew, rejected).access_token == "secret-token-5-2"
    assert servicer.calls["RefreshToken"] == 1


def test_a_rejected_token_without_a_newer_one_is_returned_and_not_asked_about_again(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    account = loop.client(address).account(user="ada", integration_id=5)
    rejected = loop(account.credentials)
    for _ in range(5):
        assert loop(account.renew, rejected) is rejected
    assert servicer.calls["RefreshToken"] == 1


def test_a_token_file_that_was_replaced_is_read_again(
    loop: Loop, servicer: FakeServicer, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    servicer.accepted_token = "first"
    client = loop.client(address, token_file=file)
    loop(client.account(user="ada", integration_id=1).credentials)
    servicer.accepted_token = "second"
    with pytest.raises(Unauthenticated):
        loop(client.account(user="ada", integration_id=2).credentials)
    file.with_suffix(".new").write_text("second-and-longer\n")
    file.with_suffix(".new").replace(file)
    servicer.accepted_token = "second-and-longer"
    assert loop(client.account(user="ada", integration_id=2).credentials).integration_id == 2


def test_several_accounts_are_listed_and_none_is_not_found(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address)
    with pytest.raises(SeveralAccounts, match=r"2 accounts.*1 .*2 ") as caught:
        loop(client.account(user="two", type="calendar").credentials)
    assert [row.integration_id for row in caught.value.integrations] == [1, 2]
    with pytest.raises(AccountNotConnected):
        loop(client.account(user="none", type="calendar").credentials)


def test_at_most_the_set_number_of_accounts_is_kept(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address, max_accounts=5)
    for number in range(1, 21):
        loop(client.account(user="ada", integration_id=number).credentials)
    assert len(client._store) == 5
    assert sum(len(stream.ids) for stream in client._store.streams) <= 5


def test_accounts_and_credentials_are_values(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address)
    first, second = (client.account(user="ada", integration_id=1) for _ in range(2))
    others = [
        client.account(user="eve", integration_id=1),
        client.account(user="ada", integration_id=2),
        loop.client(address).account(user="ada", integration_id=1),
    ]
    assert {first, second} == {first}
    assert first not in others
    assert len({loop(first.credentials), loop(second.credentials)}) == 1


def test_a_call_has_one_body(loop: Loop, address: str) -> None:
    account = loop.client(address).account(user="ada", integration_id=1)
    with pytest.raises(InvalidField, match="body") as caught:
        loop(lambda: account.call("POST", "/", json={"a": 1}, body=b"{}"))
    assert [violation.field for violation in caught.value.fields] == ["body"]


def test_nothing_prints_a_secret(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address, token="secret-token-of-the-caller")
    account = client.account(user="ada", integration_id=1)
    credentials: Credentials = loop(account.credentials)
    for value in (
        client,
        account,
        credentials,
        *vars(client).values(),
        loop(lambda: client._store.entry(("ada", 1), "")),
    ):
        for text in (repr(value), str(value), f"{value}"):
            assert "secret-token" not in text
    for refuses in (credentials, client, account, account.httpx()):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(refuses)
    for copy_of in (copy.copy, copy.deepcopy):
        assert copy_of(credentials) is credentials
        with pytest.raises(TypeError, match="a client cannot be copied"):
            copy_of(client)
    assert "secret-token" in credentials.access_token  # negative control: it is there


def test_a_forked_process_is_told_to_create_its_own_client(servicer: FakeServicer, address: str) -> None:
    process = os.getpid()
    guard = UseGuard(lambda: process)
    guard.check()
    guard.check()
    process += 1
    with pytest.raises(RuntimeError, match="forked"):
        guard.check()


FORKS = """
import os, sys, threading
from integration_server.client import Integrations

client = Integrations(sys.argv[1])
account = client.account(user="ada", integration_id=1)
account.credentials()
process = os.fork()
if process:
    ended = threading.Event()
    killer = threading.Timer(30, os.kill, (process, 9))
    killer.start()
    status = os.waitpid(process, 0)[1]
    killer.cancel()
    assert account.get()
    sys.exit(os.waitstatus_to_exitcode(status))
for use in (account.credentials, account.get):
    try:
        use()
    except RuntimeError as error:
        assert "forked" in str(error)
    else:
        raise AssertionError
client.close()
"""


def test_a_forked_process_closes_its_copy_and_ends(address: str) -> None:
    """As a worker of gunicorn does, which ends with `sys.exit`."""
    command = [sys.executable, "-c", FORKS, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr


EXITS = """
import atexit, sys, threading

@atexit.register  # runs after what is registered later
def count() -> None:
    print([thread.name for thread in threading.enumerate() if "integration_server" in thread.name])

from integration_server.client import Integrations

client = Integrations(sys.argv[1])
client.account(user="ada", integration_id=1).credentials()
assert [thread.name for thread in threading.enumerate() if "integration_server" in thread.name]
raise ValueError("the traceback keeps the client")
"""


def test_no_thread_is_in_grpc_when_the_interpreter_ends(address: str) -> None:
    """Such a thread can crash the process, after an error that would be the last thing in its log."""
    command = [sys.executable, "-c", EXITS, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert "ValueError: the traceback keeps the client" in done.stderr


def test_a_closed_client_has_no_threads(servicer: FakeServicer, address: str) -> None:
    before = set(threading.enumerate())
    client = Integrations(address)
    client.account(user="ada", integration_id=1).credentials()
    assert [thread for thread in set(threading.enumerate()) - before if "integration_server" in thread.name]
    client.close()
    assert not [thread for thread in set(threading.enumerate()) - before if "integration_server" in thread.name]


def test_first_reads_of_many_accounts_are_one_rpc(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address)
    accounts = [client.account(user="ada", integration_id=number) for number in (1, 2, 3, 2, 99)]
    found = loop(lambda: client.credentials_of([*accounts, client.account(user="none", type="calendar")]))
    tokens = [one.access_token if isinstance(one, Credentials) else one.reason for one in found]
    assert tokens[:4] == [f"secret-token-{number}-1" for number in (1, 2, 3, 2)]
    assert isinstance(found[4], IntegrationNotFound)
    assert isinstance(found[5], AccountNotConnected)
    assert servicer.calls["BatchGetCredentials"] == 1
    assert servicer.calls["GetCredentials"] == 0
    loop.until(watched(servicer, 1, 2, 3))
    before = dict(servicer.calls)
    assert loop(lambda: client.credentials_of(accounts[:4])) == found[:4]
    assert dict(servicer.calls) == before
    servicer.tokens[3] = "second"
    servicer.report(3, "c")
    loop.until(lambda: loop(accounts[2].credentials).access_token == "second")


@pytest.mark.parametrize(("has_batch", "max_batch", "singles"), [(False, 1000, 3), (True, 1, 2)])
def test_accounts_without_a_result_in_a_batch_are_read_by_themselves(
    loop: Loop, servicer: FakeServicer, address: str, has_batch: bool, max_batch: int, singles: int
) -> None:
    servicer.has_batch, servicer.max_batch = has_batch, max_batch
    client = loop.client(address)
    found = loop(lambda: client.credentials_of([client.account(user="ada", integration_id=one) for one in (1, 2, 3)]))
    assert all(isinstance(one, Credentials) for one in found)
    assert (servicer.calls["BatchGetCredentials"], servicer.calls["GetCredentials"]) == (1, singles)


def test_the_error_of_a_batch_is_that_of_each_account(loop: Loop, servicer: FakeServicer, address: str) -> None:
    client = loop.client(address, watch=False)
    accounts = [client.account(user="ada", integration_id=number) for number in (1, 2)]
    loop(lambda: client.credentials_of(accounts))
    servicer.accepted_token = "another"  # UNAUTHENTICATED: nothing in memory is served for it
    found = loop(lambda: client.credentials_of(accounts, timedelta(hours=2)))
    assert all(isinstance(one, Unauthenticated) for one in found)


BUSY, DENIED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("decisions", [["authorization_pending", ""], [BUSY, ""]], ids=["pending", "busy"])
def test_a_device_authorization_is_awaited(
    loop: Loop, servicer: FakeServicer, address: str, decisions: list[str | grpc.StatusCode]
) -> None:
    servicer.decisions = list(decisions)
    connection = loop(lambda: loop.client(address).connect(user="ada", type="tv"))
    assert connection.user_code == "CODE"
    account = loop(connection.wait)
    assert loop(account.integration_id) == 7
    assert servicer.calls["HandleCallback"] == len(decisions)


def test_a_rejected_device_authorization_ends_the_wait(loop: Loop, servicer: FakeServicer, address: str) -> None:
    servicer.decisions = ["access_denied"]
    connection = loop(lambda: loop.client(address).connect(user="ada", type="tv"))
    with pytest.raises(ProviderRejected, match="access_denied"):
        loop(connection.wait)


def test_without_the_permission_for_callbacks_the_integration_is_looked_at(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    servicer.decisions = [DENIED]
    connection = loop(lambda: loop.client(address).connect(user="ada", type="tv"))
    servicer.connect_time = 5
    assert loop(loop(connection.wait).integration_id) == 7


def test_a_reconnection_ends_when_the_account_was_connected_again(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    servicer.connect_time, servicer.decisions = 5, [DENIED, DENIED]
    connection = loop(lambda: loop.client(address).connect(user="ada", type="tv", integration_id=7))
    with pytest.raises(TimeoutError):
        loop(lambda: connection.wait(timeout=0))
    servicer.connect_time = 6
    assert loop(loop(connection.wait).integration_id) == 7


@pytest.mark.parametrize("is_closed", [True, False], ids=["", "negative control"])
def test_a_closed_client_has_no_credentials(loop: Loop, address: str, is_closed: bool) -> None:
    """Nothing would keep those in its memory fresh."""
    client = loop.client(address)
    account = client.account(user="ada", integration_id=1)
    loop(account.credentials)
    if not is_closed:
        assert loop(account.credentials)
        assert loop(account.refresh)
        return
    for _ in range(2):
        loop(client.close if isinstance(client, Integrations) else client.aclose)
    for use in (account.credentials, account.refresh, client.account(user="ada", type="calendar").integration_id):
        with pytest.raises(ClientClosed, match="closed"):
            loop(use)


def test_a_call_in_progress_ends_with_the_client(servicer: FakeServicer, address: str) -> None:
    servicer.refreshed = held = Held()
    client, errors = Integrations(address), []

    def call() -> None:
        with pytest.raises(ClientClosed) as caught:
            client.account(user="ada", integration_id=1).refresh()
        errors.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    assert held.begun.wait(30)
    client.close()
    thread.join(30)
    held.ended.set()
    assert str(errors[0]) == "RefreshToken: the client was closed"


class InterruptedTransport(Transport):
    """Runs a function while it opens its channel, as the handler of a signal runs at any time."""

    interrupt: Callable[[], None] = staticmethod(lambda: None)

    def _new_channel(self, contents: TlsContents | None) -> grpc.Channel:
        self.interrupt()
        return super()._new_channel(contents)


@pytest.mark.parametrize("is_closed", [True, False], ids=["", "negative control"])
def test_a_client_that_is_closed_as_a_call_begins_leaves_no_channel_open(address: str, is_closed: bool) -> None:
    """Nothing would close it, and the call would wait for its own thread."""
    transport = InterruptedTransport(Configuration(address=address, tls=False))
    if is_closed:
        transport.interrupt = transport.close
    errors: list[IntegrationsError] = []

    def call() -> None:
        try:
            transport.call(REFRESH_TOKEN, RefreshTokenRequest(integration_id=1))
        except IntegrationsError as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [ClientClosed] * is_closed
    assert (transport._channel is None) is is_closed
    transport.close()


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["", "negative control"])
async def test_no_task_is_cancelled_by_a_client_that_is_closed(
    servicer: FakeServicer, address: str, is_cancelled: bool
) -> None:
    """gRPC raises `CancelledError` in them, which `asyncio.TaskGroup` takes for an end that somebody wanted."""
    servicer.refreshed = held = Held()
    client = AsyncIntegrations(address)
    account = client.account(user="ada", integration_id=1)
    await account.credentials()

    async def watch() -> None:
        async for _ in await client._caller.stream(WATCH_CREDENTIALS, WatchCredentialsRequest(integration_ids=[1])):
            watches.set()

    watches = asyncio.Event()
    tasks = [asyncio.create_task(account.refresh()), asyncio.create_task(watch())]
    async with asyncio.timeout(30):
        await asyncio.gather(watches.wait(), asyncio.to_thread(held.begun.wait, 30))
        if is_cancelled:
            for task in tasks:
                task.cancel()
        await client.aclose()
        held.ended.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError if is_cancelled else ClientClosed}


async def test_a_stream_that_is_ended_cancels_no_task(address: str) -> None:
    async with AsyncIntegrations(address) as client:
        stream = await client._caller.stream(WATCH_CREDENTIALS, WatchCredentialsRequest(integration_ids=[1]))
        responses = aiter(stream)
        await anext(responses)
        stream.cancel()
        with pytest.raises(Cancelled, match="WatchCredentials: the call was cancelled"):
            await anext(responses)


def test_a_client_for_asyncio_belongs_to_one_event_loop(address: str) -> None:
    clients = [AsyncIntegrations(address)]

    async def use() -> object:
        return await clients[0].account(user="ada", integration_id=1).credentials()

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="create an AsyncIntegrations in each event loop"):
        asyncio.run(use())
    clients.clear()


@pytest.mark.parametrize("guard", [AsyncUseGuard(), UseGuard()], ids=["", "negative control"])
def test_another_event_loop_is_noticed(guard: UseGuard) -> None:
    async def use() -> None:
        guard.check()

    asyncio.run(use())
    if type(guard) is UseGuard:
        asyncio.run(use())
        return
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(use())


@pytest.mark.parametrize("timeout", [0, -1, timedelta(seconds=-1), timedelta(milliseconds=1)], ids=str)
def test_a_deadline_that_is_over_names_the_call(
    loop: Loop, servicer: FakeServicer, address: str, timeout: float | timedelta
) -> None:
    servicer.refreshed = held = Held()
    account = loop.client(address).account(user="ada", integration_id=1)
    with pytest.raises(DeadlineExceeded, match=r"^RefreshToken: was not completed within 0(\.001)? s$"):
        loop(lambda: account.refresh(timeout=timeout))
    held.ended.set()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, timedelta.max, timedelta(days=365)], ids=str)
def test_a_deadline_that_gRPC_cannot_express_is_a_late_one(
    loop: Loop, address: str, timeout: float | timedelta
) -> None:
    account = loop.client(address).account(user="ada", integration_id=1)
    assert loop(lambda: account.refresh(timeout=timeout)).refreshed


def test_a_deadline_that_is_no_number_is_refused(loop: Loop, address: str) -> None:
    account = loop.client(address).account(user="ada", integration_id=1)
    with pytest.raises(InvalidField) as caught:
        loop(lambda: account.refresh(timeout=float("nan")))
    assert [violation.field for violation in caught.value.fields] == ["timeout"]


def step(events: Any) -> Any:
    """The next event of an iterator of either client."""
    return next(events) if hasattr(events, "__next__") else anext(events)


def end(events: Any) -> Any:
    """Abandon an iterator of either client."""
    return events.close() if hasattr(events, "__next__") else events.aclose()


def test_a_slow_consumer_acknowledges_each_event(loop: Loop, servicer: FakeServicer, address: str) -> None:
    servicer.webhook_events = 3
    events = loop.client(address).account(user="ada", integration_id=1).webhook_events("tests")
    assert loop(step, events).number == 1
    assert servicer.acknowledged == []
    time.sleep(1.0)  # processes the event
    assert loop(step, events).number == 2
    assert servicer.acknowledged == [1]  # after a crash in the second one, the first does not come again
    loop(end, events)
    assert servicer.acknowledged == [1]


def test_an_abandoned_iterator_acknowledges_what_was_processed(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    servicer.webhook_events = 3
    account = loop.client(address).account(user="ada", integration_id=1)
    events = account.webhook_events("tests")
    for _ in range(3):
        loop(step, events)
    loop(end, events)
    assert servicer.acknowledged[-1] == 2
    events = account.webhook_events("tests")
    assert loop(step, events).number == 3
    with pytest.raises((StopIteration, StopAsyncIteration)):
        loop(step, events)
    assert servicer.acknowledged[-1] == 3


def test_an_iterator_that_is_abandoned_after_its_client_is_silent(
    loop: Loop, servicer: FakeServicer, address: str
) -> None:
    servicer.webhook_events = 3
    client = loop.client(address)
    events = client.account(user="ada", integration_id=1).webhook_events("tests")
    for _ in range(2):
        loop(step, events)
    loop(client.close if isinstance(client, Integrations) else client.aclose)
    loop(end, events)
    assert servicer.acknowledged in ([], [1])  # [1] on a machine that took a second


@pytest.mark.parametrize("is_renewed", [True, False], ids=["", "negative control"])
def test_events_go_on_when_the_token_expires_that_their_stream_began_with(
    loop: Loop, servicer: FakeServicer, address: str, is_renewed: bool
) -> None:
    """The server ends a stream whose token has expired, however new the token is that the client has meanwhile."""
    servicer.accepted_token = "old"
    tokens = ["old"]
    events = loop.client(address, token=lambda: tokens[-1]).events()
    assert loop(step, events).integration_id == 1
    servicer.accepted_token = "new"
    if is_renewed:
        tokens.append("new")
    servicer.event_end = grpc.StatusCode.UNAUTHENTICATED
    servicer.event_streams[0].set()
    if not is_renewed:
        with pytest.raises(Unauthenticated):
            loop(step, events)
        return
    assert loop(step, events).integration_id == 1
    assert [request.cursor for request in servicer.event_requests] == ["", "next"]
    loop(end, events)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN])
def test_events_go_on_after_a_proxy_has_ended_their_stream(
    loop: Loop, servicer: FakeServicer, address: str, code: grpc.StatusCode
) -> None:
    events = loop.client(address).events()
    assert loop(step, events).integration_id == 1
    servicer.event_end = code
    servicer.event_streams[0].set()
    assert loop(step, events).integration_id == 1
    assert [request.cursor for request in servicer.event_requests] == ["", "next"]
    loop(end, events)


async def test_events_go_on_when_new_certificates_have_replaced_their_channel(
    servicer: FakeServicer, address: str
) -> None:
    caller = AsyncTransport(Configuration(address=address))
    async with AsyncIntegrations(address, caller=caller) as client:
        events = client.events()
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        replaced, caller._channel = caller._channel, None
        assert replaced is not None
        await replaced.close(0)  # after a minute, in which calls end
        assert (await asyncio.wait_for(following, 30)).integration_id == 1
        await events.aclose()
    assert len(servicer.event_requests) == 2


@pytest.mark.parametrize("is_accepted_once", [True, False])
def test_events_end_with_the_defect_of_a_server_that_accepts_no_stream(
    loop: Loop, servicer: FakeServicer, address: str, is_accepted_once: bool
) -> None:
    events = loop.client(address).events()
    if is_accepted_once:
        loop(step, events)
        servicer.event_end = grpc.StatusCode.INTERNAL
        servicer.event_streams[0].set()
    servicer.event_rejection = grpc.StatusCode.INTERNAL
    with pytest.raises(Internal):
        loop(step, events)
    assert len(servicer.event_requests) == (2 if is_accepted_once else 1)


@pytest.mark.parametrize("is_rejected", [True, False], ids=["", "negative control"])
def test_events_end_with_an_error_that_on_gap_meets_for_good(
    loop: Loop, servicer: FakeServicer, address: str, is_rejected: bool
) -> None:
    """Otherwise the streams, which are accepted, would begin again without end and without a pause."""
    servicer.lost_cursors.add("lost")
    gaps = []

    def fill_gap() -> None:
        gaps.append(len(servicer.event_requests))
        if is_rejected and len(gaps) < 5:
            raise Unauthenticated("the caller is not known")

    async def fill_gap_async() -> None:
        fill_gap()

    store = MemoryCursorStore()
    store.save("lost")
    events = loop.client(address).events(cursor_store=store, on_gap=fill_gap if loop.runner is None else fill_gap_async)
    if is_rejected:
        with pytest.raises(Unauthenticated):
            loop(step, events)
    else:
        assert loop(step, events).integration_id == 1
    assert gaps == [2]
    loop(end, events)


class AsyncStore:
    """A cursor store over the network."""

    def __init__(self) -> None:
        self.cursors = ["first"]

    async def load(self) -> str:
        """The last cursor."""
        await asyncio.sleep(0)
        return self.cursors[-1]

    async def save(self, cursor: str) -> None:
        """Keep the cursor."""
        await asyncio.sleep(0)
        self.cursors.append(cursor)


async def test_a_cursor_store_may_be_async(servicer: FakeServicer, address: str) -> None:
    store = AsyncStore()
    async with AsyncIntegrations(address) as client:
        events = client.events(cursor_store=store)
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(30):
            while store.cursors[-1] != "next":  # noqa: ASYNC110  # bounded
                await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.wait([following])
    assert store.cursors == ["first", "next"]
    assert servicer.event_requests[0].cursor == "first"


class FullDisk(MemoryCursorStore):
    """A cursor store that cannot save."""

    def save(self, cursor: str) -> None:
        """Fail."""
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("is_full", [True, False], ids=["full disk", "abandoned"])
def test_no_stream_of_events_outlives_its_iterator(
    loop: Loop, servicer: FakeServicer, address: str, is_full: bool
) -> None:
    events = loop.client(address).events(cursor_store=FullDisk() if is_full else None)
    assert loop(step, events).integration_id == 1
    (ended,) = servicer.event_streams
    assert not ended.is_set()
    if is_full:
        with pytest.raises(OSError, match="No space left"):
            loop(step, events)
    else:
        loop(end, events)
    loop.until(ended.is_set)


def with_locals(error: BaseException) -> str:
    """What a reporter prints that shows the local variables of all frames, as Sentry and `pytest -l` do."""
    return "".join(TracebackException.from_exception(error, capture_locals=True).format())


def with_locals_of_the_client(error: BaseException) -> str:
    """The same without the frames of the test and its helpers, which have the secrets."""
    traceback = error.__traceback__
    while traceback is not None and Path(traceback.tb_frame.f_code.co_filename).parts[-2] != "client":
        traceback = traceback.tb_next
    assert traceback is not None
    return with_locals(error.with_traceback(traceback))


@pytest.mark.parametrize("is_trimmed", [True, False], ids=["", "negative control"])
def test_no_local_variable_of_a_failed_call_has_a_secret(
    loop: Loop, servicer: FakeServicer, address: str, is_trimmed: bool
) -> None:
    client = loop.client(address, token="secret-token-of-the-caller")
    account = client.account(user="ada", integration_id=1)
    state, key = "secret-state", "secret-key"
    servicer.decisions = [grpc.StatusCode.INVALID_ARGUMENT]
    uses: list[Callable[[], Any]] = [
        lambda: client.connect_with_api_key(user="ada", type="x", api_key=key, secret_fields={"a": key}),
        lambda: client.handle_callback(state=state, code="secret-code", query="secret-query"),
        lambda: client.confirm(user="ada", confirmation_token="secret-confirmation"),
        lambda: account.set_webhook_secret(key),
        lambda: account.get(timeout=0),
        lambda: client.account(user="stranger", integration_id=1).credentials(),
        # These fail before they are sent.
        lambda: client.connect_with_api_key(user=5, type="x", api_key=key, secret_fields={"a": key}),
        lambda: client.connect_with_api_key(user="ada", type="x", api_key=key, config={"a": timedelta()}),
        lambda: client.handle_callback(state=state, code="secret-code", query="secret-query", iss=5),
        lambda: client.confirm(user=5, confirmation_token="secret-confirmation"),
        lambda: client.account(user=5, integration_id=1).set_webhook_secret(key),
        lambda: client.account(user="none", type="x").set_webhook_secret(key),
    ]
    if not is_trimmed:  # below what cuts the frames off: the request has the secret, and the token is hidden anyway
        request = integration_service_pb2.ConnectWithApiKeyRequest(api_key=key)
        uses = [lambda: client._caller.call(CONNECT_WITH_API_KEY, request)]
    for use in uses:
        with pytest.raises(IntegrationsError) as caught:
            loop(use)
        text = with_locals_of_the_client(caught.value)
        assert "client/" in text
        assert "secret-token" not in text
        assert ("secret-" in text) is not is_trimmed


TOKEN = "secret-token-of-the-caller"


@pytest.mark.parametrize("kind", [Integrations, AsyncIntegrations, Configuration])
def test_no_local_variable_of_a_client_that_cannot_be_made_has_the_token(kind: type[Any]) -> None:
    """`Configuration` is the negative control: it takes the token as it is."""
    uses: list[Callable[[], Any]] = [
        lambda: kind(address="http://x:1", token=TOKEN),
        lambda: kind(address="x:1", token=TOKEN, cert_file="missing.pem"),
    ]
    if kind is not Configuration:
        uses += [
            lambda: kind("x:1", token=TOKEN, ca_file="missing.pem"),
            lambda: kind.from_env({"INTEGRATIONS_ADDRESS": "http://x:1", "INTEGRATIONS_TOKEN": TOKEN}),
            lambda: kind.from_env(
                {"INTEGRATIONS_ADDRESS": "x:1", "INTEGRATIONS_TOKEN": TOKEN, "INTEGRATIONS_CA_FILE": "missing.pem"}
            ),
        ]
    for number, use in enumerate(uses):
        with pytest.raises(ConfigurationError) as caught:
            use()
        assert (TOKEN in with_locals(caught.value)) is (kind is Configuration), number


def test_a_value_that_no_message_can_have_is_named(loop: Loop, address: str) -> None:
    client = loop.client(address)
    account = client.account(user="ada", integration_id=1)
    uses: list[tuple[Callable[[], Any], str]] = [
        (lambda: account.call("GET", "/x", query={"limit": 10}), "query['limit']"),
        (lambda: account.call("GET", "/x", headers=[("X-A", "\ud800")]), "headers['X-A']"),
        (lambda: account.call("POST", "/x", body="text"), "body"),
        (lambda: account.call("POST", "/x", json={"at": timedelta()}), "json"),
        (lambda: account.call("POST", "/x", json=[float("nan")]), "json"),
        (lambda: account.update(config={"at": timedelta()}), "config"),
        (lambda: account.update(name=5), "name"),
        (lambda: client.account(user=5, integration_id=1).get(), "user_id"),
        (lambda: client.account(user="\ud800", integration_id=1).credentials(), "user_id"),
        (lambda: client.account(user="ada", integration_id=2**64).credentials(), "integration_id"),
        (lambda: client.account(user="ada", integration_id="1").health(), "integration_id"),
        (lambda: client.connect(user="ada", type="x", scopes=[1]), "scopes"),
        (lambda: client.connect_with_api_key(user="ada", type="x", api_key=b"\xff"), "api_key"),
        (lambda: client.count_integrations(status="STATUS_WRONG"), "status"),
        (lambda: step(client.find_integrations(account_id=5)), "account_id"),
        (lambda: step(client.due_work(job="JOB_WRONG")), "job"),
        (lambda: step(client.audit_entries(start_time="today")), "start_time"),
        (lambda: step(client.audit_entries(integration_id=2**64)), "integration_id"),
    ]
    for use, field in uses:
        with pytest.raises(InvalidField) as caught:
            loop(use)
        assert [violation.field for violation in caught.value.fields] == [field]
        assert str(caught.value).startswith(f"{field} ")


def test_the_documented_programs_run(servicer: FakeServicer, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/client.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    monkeypatch.setenv("INTEGRATIONS_ADDRESS", address)
    names: dict[str, Any] = {}
    for program in programs:
        exec(program, names)  # noqa: S102 — of our documentation
    names["integrations"].close()
    assert names["credentials"].access_token == "secret-token-1-1"
    assert servicer.calls["GetCredentials"] == 1  # the second program uses memory
