"""Starting, serving, draining and stopping. Lifetimes are `async with`: what was entered last leaves first."""

import asyncio
import gc
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc
import structlog

_MAX_PENDING_CALLS = 10_000  # calls, over all connections; each takes some kilobytes
_MAX_FILES = 65_536  # far more than one process of this server can use


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What clients can take of the gRPC server. docs/limits.md says what they see at each limit."""

    connections: int
    streams_per_connection: int
    message_bytes: int
    metadata_bytes: int
    handshake: timedelta
    connection_idle: timedelta
    connection_age: timedelta

    def options(self) -> Sequence[tuple[str, int]]:
        """They, as gRPC's channel arguments (grpc/impl/channel_arg_names.h)."""
        return (
            # grpc shares ports by default: a second, unrelated server on the same address would silently take half the
            # calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            # Without this gRPC also counts streams that have just ended, and refuses (UNAVAILABLE) most of a burst that
            # its own client meant to queue; it is meant against streams that are opened and cancelled without end,
            # which the next two bound: calls that have come and wait for this process to begin with them.
            ("grpc.http.overload_protection", 0),
            ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            # Between the two, gRPC would refuse some calls and not others.
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.metadata_bytes),
            # From accepting a connection to the client's HTTP/2 settings: what says nothing is let go after it.
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake)),
            ("grpc.max_connection_idle_ms", _milliseconds(self.connection_idle)),
            ("grpc.max_connection_age_ms", _milliseconds(self.connection_age)),
            # Longer than any unary call may take; a stream that goes on after it is begun anew elsewhere.
            ("grpc.max_connection_age_grace_ms", 60_000),
            # A client that is gone without a word is noticed within a minute and a half.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may ask whether we live this often, between calls too; who asks more often is cut off.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
        )


def _milliseconds(time: timedelta) -> int:
    return max(1, round(time.total_seconds() * 1000))


def raise_fd_limit() -> None:
    """Let this process have as many open files as the system allows it: the usual limit is for programs of old."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MAX_FILES:
        new_limit = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


def cap_to_fd_limit(connections: int, share: float, *, setting: str) -> int:
    """So many connections, or fewer where they would be more than a share of all files that may be open.

    The rest is for what the connections are there for: the database, and calls to providers.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or connections <= limit * share:
        return connections
    allowed = int(limit * share)
    structlog.get_logger(__name__).warning(
        "fd_limit_low", open_files=limit, setting=setting, connections=connections, allowed=allowed
    )
    return allowed


def freeze_gc() -> None:
    """Spare the garbage collector what is there once everything is started: it is there until the end.

    To look through it all takes tens of milliseconds, in which nobody is answered.
    """
    gc.collect()
    gc.freeze()


class AddressTaken(Exception):
    """A port is in use, or not ours to use."""


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
async def periodic_job(job: Callable[[], Awaitable[object]], interval: timedelta) -> AsyncIterator[None]:
    """Do the work now and then again and again, until left.

    A round that fails is followed by the next one. It is logged where the one before did not fail in the same way.
    """
    log = structlog.get_logger(__name__)
    name = getattr(job, "__qualname__", repr(job))

    async def run_forever() -> None:
        last = None
        while True:
            kind = None
            try:
                await job()
            except Exception as error:  # one bad round must not end the others
                kind = type(error).__qualname__
                if kind != last:
                    log.warning("job_failed", job=name, kind=kind)
            last = kind
            await asyncio.sleep(interval.total_seconds())

    task = asyncio.get_running_loop().create_task(run_forever())
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
