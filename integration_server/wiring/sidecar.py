"""Runs the sidecar from its settings, and connects it to the server.

A sidecar that starts together with the server has a `SidecarLink`; one that runs alone has the address of a server, and
files with which the two authenticate. Nothing of the server is imported here, and nothing that holds a key.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from integration_server.lifecycle import AddressTaken, cap_to_fd_limit, periodic_job
from integration_server.observability.metrics import Metrics, record_requests
from integration_server.observability.spans import Tracing
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar_settings import SidecarSettings
from integration_server.wiring.system import random_token
from integration_server.wiring.traces import opened_tracing

_POLL_INTERVAL = timedelta(seconds=0.5)  # of the TLS and token files, which may be replaced at any time
_MAX_PARENT_LENGTH = 60  # characters: the path of a Unix socket has at most 107, on macOS 103


@dataclass(frozen=True, slots=True)
class SidecarLink:
    """The connection between a server and the sidecar that starts with it: Unix sockets, and a secret of this start.

    Each worker of the server listens on a socket of its own. They are in a directory that only this user can enter,
    which authenticates the server. The secret authenticates the sidecar: the server grants its bearer the sidecar's
    permissions, and nothing else over these sockets.
    """

    sockets: Sequence[Path]
    token: str = field(repr=False)

    def of_worker(self, number: int) -> "SidecarLink":
        """The part of one worker: its socket."""
        return SidecarLink([self.sockets[number]], self.token)

    @property
    def socket(self) -> Path:
        """The first socket, of a server with one worker the only one."""
        return self.sockets[0]

    @property
    def target(self) -> str:
        """The address of the first socket, as gRPC names it."""
        return f"unix:{self.socket}"

    def metrics_socket(self, process: str) -> Path:
        """The socket on which a process of this server gives its metrics."""
        return self.socket.with_name(f"{process}.metrics")

    def client(self) -> ServerClient:
        """A client of the server."""
        return ServerClient(*(f"unix:{socket}" for socket in self.sockets), token=self.token)


@contextmanager
def new_sidecar_link(workers: int = 1) -> Iterator[SidecarLink]:
    """A new link to a server with this number of workers; its directory is removed at the end.

    Raises `OSError` if there is no place for it.
    """
    if len(gettempdir()) > _MAX_PARENT_LENGTH:
        raise OSError(f"{gettempdir()} (TMPDIR) is too long for the path of a Unix socket; set a shorter one")
    with TemporaryDirectory(prefix="integration-server-") as directory:  # mode 0700
        yield SidecarLink([Path(directory) / f"{number}.sock" for number in range(workers)], random_token())


@asynccontextmanager
async def running_sidecar(
    settings: SidecarSettings,
    client: ServerClient,
    metrics: Metrics | None = None,
    draining: asyncio.Event | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[str]:
    """The sidecar on its address; yields its local URL. Closes the client at the end. Raises `AddressTaken`.

    From when `draining` is set, it reports that it is not ready. `tracing` takes the place of that of the settings.
    """
    # The libraries of HTTP servers take 6 MB, which a worker does not need.
    from integration_server.sidecar.server import run_sidecar  # noqa: PLC0415

    listen = settings.sidecar_address
    limits = http_limits_of(settings)
    async with AsyncExitStack() as stack:
        try:
            sidecar = run_sidecar(
                server=client,
                host=listen.host,
                port=listen.port,
                limits=limits,
                public_url=settings.public_url,
                trusted_proxies=settings.trusted_proxies,
                record=record_requests(metrics or Metrics(is_on=False)),
                default_return_url=settings.default_return_url,
                draining=draining,
                has_access_log=settings.access_log,
                tracing=await stack.enter_async_context(opened_tracing(settings, "sidecar", tracing)),
            )
            url = await stack.enter_async_context(sidecar)
        except OSError as error:
            raise AddressTaken("SIDECAR_ADDRESS", listen, error) from error
        await stack.enter_async_context(periodic_job(client.poll, _POLL_INTERVAL))
        yield url


def http_limits_of(settings: SidecarSettings) -> HttpLimits:
    """The sidecar's limits. Connections take at most a quarter of the open files."""
    return HttpLimits(
        connections=cap_to_fd_limit(settings.sidecar_max_connections, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS"),
        body_bytes=settings.sidecar_max_body_bytes,
        header_timeout=settings.sidecar_header_timeout,
        body_timeout=settings.sidecar_body_timeout,
        keepalive_timeout=settings.sidecar_keepalive,
        failures_per_second=settings.sidecar_failures_per_second,
    )
