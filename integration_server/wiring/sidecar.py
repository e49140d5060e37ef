"""The sidecar, as the settings want it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address

from integration_server.lifecycle import AddressTaken, cap_to_fd_limit, periodic_job
from integration_server.settings import Address, Settings
from integration_server.sidecar.grpc_client import ServerClient, TlsFiles
from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.server import run_sidecar

_POLL_INTERVAL = timedelta(seconds=0.5)  # its papers may be replaced while it runs


@asynccontextmanager
async def running_sidecar(settings: Settings, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, a client of the server's; yields its own URL. Raises `AddressTaken`."""
    listen = settings.sidecar_address
    tls_files = TlsFiles(
        authorities=settings.sidecar_tls_ca_file,
        certificate=settings.sidecar_tls_cert_file,
        key=settings.sidecar_tls_key_file,
        token=settings.sidecar_token_file,
        server_name=settings.sidecar_tls_server_name,
    )
    server_client = ServerClient(str(reachable_address(server)), tls_files)
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(
                run_sidecar(
                    server=server_client,
                    host=listen.host,
                    port=listen.port,
                    limits=http_limits_of(settings),
                    public_url=settings.public_url,
                )
            )
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        await stack.enter_async_context(periodic_job(server_client.poll, _POLL_INTERVAL))
        yield url


def reachable_address(server: Address) -> Address:
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
        connections=cap_to_fd_limit(settings.sidecar_max_connections, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS"),
        body_bytes=settings.sidecar_max_body_bytes,
        header_timeout=timedelta(seconds=settings.sidecar_header_timeout_seconds),
        body_timeout=timedelta(seconds=settings.sidecar_body_timeout_seconds),
        keepalive_timeout=timedelta(seconds=settings.sidecar_keepalive_seconds),
    )
