"""The sidecar, as the settings want it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address

from integration_server.lifecycle import AddressTaken, repeating, share_of_files
from integration_server.settings import Address, Settings
from integration_server.sidecar.connection import Connection, Papers
from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.server import run_sidecar

_LOOK_EVERY = timedelta(seconds=0.5)  # its papers may be replaced while it runs


@asynccontextmanager
async def running_sidecar(settings: Settings, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, a client of the server's; yields its own URL. Raises `AddressTaken`."""
    listen = settings.sidecar_address
    papers = Papers(
        authorities=settings.sidecar_tls_ca_file,
        certificate=settings.sidecar_tls_cert_file,
        key=settings.sidecar_tls_key_file,
        token=settings.sidecar_token_file,
        server_name=settings.sidecar_tls_server_name,
    )
    connection = Connection(str(reachable(server)), papers)
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(
                run_sidecar(
                    server=connection,
                    host=listen.host,
                    port=listen.port,
                    limits=http_limits_of(settings),
                    public_url=settings.public_url,
                )
            )
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        await stack.enter_async_context(repeating(connection.look, _LOOK_EVERY))
        yield url


def reachable(server: Address) -> Address:
    """Where a server that listens there can be reached from this machine."""
    try:
        address = ip_address(server.host)
    except ValueError:
        return server
    if not address.is_unspecified:
        return server
    return server._replace(host="127.0.0.1" if address.version == 4 else "::1")


def http_limits_of(settings: Settings) -> HttpLimits:
    """What clients can take of the sidecar: a quarter of the open files at most."""
    return HttpLimits(
        connections=share_of_files(settings.sidecar_max_connections, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS"),
        body_bytes=settings.sidecar_max_body_bytes,
        head_time=timedelta(seconds=settings.sidecar_head_seconds),
        body_time=timedelta(seconds=settings.sidecar_body_seconds),
        idle_time=timedelta(seconds=settings.sidecar_idle_seconds),
    )
