"""How the streams of credentials end."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from integration_server.client.connection import UseGuard
from integration_server.client.credentials import Credentials
from integration_server.client.errors import Cancelled
from integration_server.client.store import CredentialStore, Key, StreamState
from integration_server.client.watcher import AsyncWatcher, Watcher
from integrations.v1 import integration_service_pb2 as pb


class Responses:
    """A stream without responses that takes a while to end after it is cancelled, as one of gRPC does."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[pb.WatchCredentialsResponse]:
        await self.cancelled.wait()
        await asyncio.sleep(0)
        raise Cancelled("the call was cancelled")
        yield  # type: ignore[unreachable]  # makes it a generator

    def cancel(self) -> None:
        """End the stream."""
        self.cancelled.set()


class FakeCaller:
    """Begins such streams."""

    def __init__(self) -> None:
        self.streams: list[Responses] = []

    async def call(self, *_: Any) -> Any:
        """No test calls this."""
        raise NotImplementedError

    async def stream(self, *_: Any) -> Any:
        """Begin a stream."""
        self.streams.append(Responses())
        return self.streams[-1]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["", "negative control"])
async def test_a_stream_that_restarts_ends_with_its_event_loop(is_cancelled: bool) -> None:
    """`asyncio.run` cancels each task once, and waits for it: a task that went on would keep it waiting."""
    caller = FakeCaller()
    store = CredentialStore(asyncio.Lock)
    watcher = AsyncWatcher(caller, store)

    def watch(number: int) -> None:
        entry = store.entry(Key("ada", number), "")
        fetch = store.begin_fetch(entry)
        store.record(entry, fetch, Credentials(integration_id=number))
        stream = store.watch(entry, fetch)
        assert stream is not None
        watcher.start(stream)

    before = asyncio.all_tasks()
    watch(1)
    (task,) = asyncio.all_tasks() - before
    async with asyncio.timeout(30):
        while not caller.streams:  # noqa: ASYNC110  # bounded
            await asyncio.sleep(0)
        watch(2)
        await caller.streams[0].cancelled.wait()  # it restarts, to take the second account
        if is_cancelled:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert len(caller.streams) == 1
        else:
            while len(caller.streams) == 1:  # noqa: ASYNC110  # bounded
                await asyncio.sleep(0)
    await watcher.close()


class Owner:
    """A client that its user forgets to close."""


def stream_of(store: CredentialStore[Any], number: int) -> StreamState:
    """Return the stream of a store that begins to watch an account."""
    entry = store.entry(Key("ada", number), "")
    fetch = store.begin_fetch(entry)
    store.record(entry, fetch, Credentials(integration_id=number))
    stream = store.watch(entry, fetch)
    assert stream is not None
    return stream


@pytest.mark.parametrize("is_forgotten", [True, False], ids=["", "negative control"])
async def test_streams_end_with_a_client_that_nobody_closes(is_forgotten: bool) -> None:
    """The tasks hold what they need of the client, but not the client."""
    caller = FakeCaller()
    store = CredentialStore(asyncio.Lock)
    watcher = AsyncWatcher(caller, store)
    owner = Owner()
    watcher.end_with(owner)
    before = asyncio.all_tasks()
    watcher.start(stream_of(store, 1))
    (task,) = asyncio.all_tasks() - before
    async with asyncio.timeout(30):
        while not caller.streams:  # noqa: ASYNC110  # bounded
            await asyncio.sleep(0)
        if is_forgotten:
            del owner
        gc.collect()
        if is_forgotten:
            await asyncio.wait([task])
        else:
            for _ in range(10):
                await asyncio.sleep(0)
        assert caller.streams[0].cancelled.is_set() == task.done() == is_forgotten
        await watcher.close()


class NoCaller:
    """Calls nothing."""

    def call(self, *_: Any) -> Any:
        """No test calls this."""
        raise NotImplementedError

    def stream(self, *_: Any) -> Any:
        """No test calls this."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


def test_a_client_that_is_collected_in_its_own_thread_ends() -> None:
    """The garbage collector may find a client in the thread of its stream, while that holds the lock."""

    class CollectingStore(CredentialStore[threading.Lock]):
        def request(self, stream: StreamState) -> pb.WatchCredentialsRequest | None:
            watcher.close()
            return super().request(stream)

    store = CollectingStore(threading.Lock)
    watcher = Watcher(NoCaller(), store)
    before = set(threading.enumerate())
    watcher.start(stream_of(store, 1))
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("is_forked", [True, False], ids=["", "negative control"])
def test_a_forked_process_ends_while_a_thread_of_its_parent_held_the_lock(is_forked: bool) -> None:
    """No thread of the parent is there to release it."""
    process = 1
    guard = UseGuard(lambda: process)
    guard.check()
    watcher = Watcher(NoCaller(), CredentialStore(threading.Lock, use_guard=guard))
    if is_forked:
        process = 2
    with watcher._lock:
        closing = threading.Thread(target=watcher.close)
        closing.start()
        closing.join(30 if is_forked else 0.2)
        assert closing.is_alive() is not is_forked
    closing.join(30)
    assert not closing.is_alive()


@pytest.mark.parametrize("is_running", [False, True], ids=["stream", "restart"])
def test_a_thread_that_cannot_start_is_tried_again(is_running: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit of threads closes its client all the same, and can watch later."""
    store = CredentialStore(threading.Lock)
    watcher = Watcher(NoCaller(), store)
    stream = stream_of(store, 1)
    if is_running:
        watcher.start(stream)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", start_no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            watcher.start(stream)
    assert [run.timer for run in watcher._runs.values()] == [None] * is_running
    watcher.start(stream)
    assert [run.timer is not None for run in watcher._runs.values()] == [is_running]
    watcher.close()


def start_no_thread(_: threading.Thread) -> None:
    """As at the system's limit."""
    raise RuntimeError("can't start new thread")
