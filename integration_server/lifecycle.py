"""The life cycle of a server process: open files, serving, periodic jobs and stop signals."""

import asyncio
import ctypes
import errno
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import structlog

_MAX_FILES = 65_536  # more than one server process can use
_PR_SET_DUMPABLE = 4  # linux/prctl.h


def raise_fd_limit() -> None:
    """Raise the limit of open files to the hard limit: the usual soft limit is too low for a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MAX_FILES:
        new_limit = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


def protect_memory() -> None:
    """Keep the keys in this process's memory: out of core dumps, and from other processes of the same user.

    A process that is not dumpable cannot be traced, and its memory and environment in /proc belong to root. Processes
    that it forks inherit both; a program that it executes has only the limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = structlog.get_logger(__name__)
    if sys.platform != "linux":
        log.debug("memory_not_protected", reason="PR_SET_DUMPABLE exists on Linux only")
    elif ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("memory_not_protected", reason="prctl failed", errno=ctypes.get_errno())


def cap_to_fd_limit(connections: int, share: float, *, setting: str) -> int:
    """Return `connections`, but at most `share` of the limit of open files; logs a warning if that is fewer.

    The other files are for the database and for calls to providers.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or connections <= limit * share:
        return connections
    allowed = int(limit * share)
    structlog.get_logger(__name__).warning(
        "fd_limit_low", open_files=limit, setting=setting, connections=connections, allowed=allowed
    )
    return allowed


# New objects until a collection of them, and collections until one of all objects that survived the last few. A scan
# takes a millisecond for some ten thousand objects, so that the second kind takes some five milliseconds.
_GC_THRESHOLDS = (10_000, 4)


def freeze_gc() -> None:
    """Exclude the objects that exist after the start from garbage collection: they live until the end.

    A scan of them takes tens of milliseconds, during which the server does not respond. Later collections are rarer
    than Python's, so that what caches and streams hold is scanned fewer times.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class AddressTaken(Exception):
    """The server cannot listen on an address. The message is SETTING: cause; remedy.

    `remedy` is a further one, besides that of the cause.
    """

    def __init__(self, setting: str, address: object, error: OSError, remedy: str = "") -> None:
        # Without the address, which asyncio repeats there.
        number = error.errno or 0
        cause = os.strerror(number) if number in errno.errorcode else str(error.strerror).partition(" (")[0]
        remedies = [_LISTEN_REMEDIES.get(number, "correct the address"), *filter(None, [remedy])]
        super().__init__(f"{setting}: cannot listen on {address}: {cause.lower()}; {', or '.join(remedies)}")


_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another port",
    errno.EADDRNOTAVAIL: "use an address of this machine",
    errno.EACCES: "choose a port from 1024 on",
    socket.EAI_NONAME: "correct the host name, or check DNS",
    socket.EAI_AGAIN: "correct the host name, or check DNS",
}


def _try_to_bind(address: str) -> None:
    """Raise `OSError` if gRPC could not listen on the address: it prints the reason itself, and does not return it.

    With SO_REUSEPORT, because a claim of the workers' port may be bound (wiring/workers.py).
    """
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    missing: list[OSError] = []
    for family, kind, number, _, target in found:
        try:
            with socket.socket(family, kind, number) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.bind(target)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing.append(error)  # an IPv6 address of localhost on a machine without IPv6, which gRPC leaves out
    if len(missing) == len(found):
        raise missing[0]


@asynccontextmanager
async def serving(
    server: grpc.aio.Server,
    address: str,
    grace: timedelta,
    credentials: grpc.ServerCredentials | None = None,
    *,
    local_target: str | None = None,
    end_streams: Callable[[], None] = lambda: None,
) -> AsyncIterator[int]:
    """Serve on the address, and yield the port. On exit, calls in progress have `grace` to finish.

    `local_target` is a Unix socket (`unix:PATH`) on which the server listens too, without TLS. `end_streams` ends the
    calls that last until the server stops. It is called when clients have been told to connect elsewhere.
    """
    try:
        _try_to_bind(address)
        if local_target is not None:
            server.add_insecure_port(local_target)
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except OSError as error:
        raise AddressTaken("GRPC_ADDRESS", address, error) from error
    except RuntimeError as error:  # what has been free just now
        raise AddressTaken("GRPC_ADDRESS", address, OSError(errno.EADDRINUSE, "")) from error
    await server.start()
    watch = asyncio.create_task(_end_with(server), name="watch server")
    try:
        yield port
    finally:
        stopping = asyncio.create_task(server.stop(grace.total_seconds()), name="stop server")
        await asyncio.sleep(0)  # its first step closes the listener and sends GOAWAY
        end_streams()
        await stopping
        await watch  # a cancellation would cancel the stop, too


async def _end_with(server: grpc.aio.Server) -> None:
    """End the process if gRPC's loop ends by itself, so that it is started again instead of serving nobody."""
    try:
        await server.wait_for_termination()
    except Exception as error:
        structlog.get_logger(__name__).critical("grpc_server_failed", kind=type(error).__qualname__)
        os.kill(os.getpid(), signal.SIGKILL)  # what was to be finished waits for calls that nobody answers


@asynccontextmanager
async def periodic_job(job: Callable[[], Awaitable[object]], interval: timedelta) -> AsyncIterator[None]:
    """Run the job now and then once per interval, until exit. Errors do not end it.

    An error is logged unless the previous run failed with one of the same type. Jobs run when the loop's clock has a
    multiple of their interval, so that one wake-up serves several. Without an interval, the job itself waits.
    """
    log = structlog.get_logger(__name__)
    name = getattr(job, "__qualname__", repr(job))
    loop, seconds = asyncio.get_running_loop(), interval.total_seconds()

    async def run_forever() -> None:
        last = None
        while True:
            kind = None
            try:
                await job()
            except Exception as error:  # the next run may succeed
                kind = type(error).__qualname__
                if kind != last:
                    log.warning("job_failed", job=name, kind=kind)
            last = kind
            await asyncio.sleep(seconds - loop.time() % seconds if seconds else 0)

    task = loop.create_task(run_forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def stop_signals(
    drain: Callable[[], None] = lambda: None, drain_time: timedelta = timedelta(0)
) -> AsyncIterator[asyncio.Event]:
    """Yield an event that SIGINT sets at once, and SIGTERM after it has called `drain` and `drain_time` has passed.

    A second signal sets it at once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def terminate() -> None:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        drain()
        loop.call_later(drain_time.total_seconds(), stop.set)

    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
