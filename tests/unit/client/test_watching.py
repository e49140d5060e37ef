"""How the streams of credentials end, on asyncio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from integration_server.client.credentials import Credentials
from integration_server.client.store import CredentialStore, Key
from integration_server.client.watching import AsyncWatcher
from integrations.v1 import integration_service_pb2 as pb


class Responses:
    """A stream without responses that takes a while to end after it is cancelled, as one of gRPC does."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[pb.WatchCredentialsResponse]:
        await self.cancelled.wait()
        await asyncio.sleep(0)
        raise asyncio.CancelledError
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
