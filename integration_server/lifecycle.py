"""Starting, serving, draining and stopping. Lifetimes are `async with`: what was entered last leaves first."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import structlog

GRPC_OPTIONS: Sequence[tuple[str, int]] = (
    # grpc shares ports by default: a second, unrelated server on the same address would silently take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
)


class AddressTaken(Exception):
    """A port is in use, or not ours to use."""


SECURE_OPTIONS: Sequence[tuple[str, int]] = (
    # Certificates are looked at when a connection begins. Ten minutes are how long one goes on that would not be let in
    # any more; calls under way are not cut off.
    ("grpc.max_connection_age_ms", 10 * 60 * 1000),
)


@asynccontextmanager
async def serving(
    server: grpc.aio.Server, address: str, grace: timedelta, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """Serve on the address, and yield the port. On leaving, calls in flight get `grace` to finish."""
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise AddressTaken(f"cannot listen on {address} (GRPC_ADDRESS): is another server running there?") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace.total_seconds())


@asynccontextmanager
async def repeating(work: Callable[[], Awaitable[object]], every: timedelta) -> AsyncIterator[None]:
    """Do the work now and then again and again, until left. A round that fails is logged; the next one is tried."""
    log = structlog.get_logger(__name__)
    name = getattr(work, "__qualname__", repr(work))

    async def rounds() -> None:
        while True:
            try:
                await work()
            except Exception as error:  # one bad round must not end the others
                log.warning("round_failed", work=name, kind=type(error).__qualname__)
            await asyncio.sleep(every.total_seconds())

    task = asyncio.get_running_loop().create_task(rounds())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
