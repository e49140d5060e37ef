"""Builds and runs the sidecar from the settings."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address

from integration_server.lifecycle import AddressTaken, cap_to_fd_limit, periodic_job
from integration_server.settings import Address, Settings
from integration_server.sidecar.grpc_client import ServerClient, TlsFiles
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.server import run_sidecar

_POLL_INTERVAL = timedelta(seconds=0.5)  # of the TLS and token files, which may be replaced at any time


@asynccontextmanager
async def running_sidecar(settings: Settings, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, as a client of `server`; yields its local URL. Raises `AddressTaken`."""
    listen = settings.sidecar_address
    tls_files = TlsFiles(
        authorities=settings.sidecar_tls_ca_file,
        certificate=settings.sidecar_tls_cert_file,
        key=settings.sidecar_tls_key_file,
        token=settings.sidecar_token_file,
        server_name=settings.sidecar_tls_server_name,
    )
    client = ServerClient(str(reachable_address(server)), tls_files)
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
            )
            url = await stack.enter_async_context(sidecar)
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        await stack.enter_async_context(periodic_job(client.poll, _POLL_INTERVAL))
        yield url


def reachable_address(server: Address) -> Address:
    """The address at which this machine reaches a server that listens on `server`."""
    with suppress(ValueError):  # a name
        address = ip_address(server.host)
        if address.is_unspecified:
            return server._replace(host="127.0.0.1" if address.version == 4 else "::1")
    return server


def http_limits_of(settings: Settings) -> HttpLimits:
    """The sidecar's limits. Connections take at most a quarter of the open files."""
    return HttpLimits(
        connections=cap_to_fd_limit(settings.sidecar_max_connections, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS"),
        body_bytes=settings.sidecar_max_body_bytes,
        header_timeout=settings.sidecar_header_timeout,
        body_timeout=settings.sidecar_body_timeout,
        keepalive_timeout=settings.sidecar_keepalive,
        failures_per_second=settings.sidecar_failures_per_second,
    )
