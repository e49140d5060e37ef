"""The commands that serve."""

from collections.abc import Mapping
from typing import Annotated

import structlog
import typer
from rich.console import Console

from integration_server.bootstrap import running_server
from integration_server.cli.shared import fail, load_settings, prepare_database, run
from integration_server.dev import run_dev
from integration_server.lifecycle import freeze_gc, stop_signals
from integration_server.settings import Address, Settings, parse_address
from integration_server.wiring.sidecar import running_sidecar


def serve() -> None:
    """Serve gRPC, with the sidecar beside it, until SIGTERM or Ctrl-C."""
    settings, environment = load_settings()
    run(_serve(settings, environment))


async def _serve(settings: Settings, environment: Mapping[str, str]) -> None:
    log = structlog.get_logger(__name__)
    key = await prepare_database(settings)
    async with stop_signals() as stop, running_server(settings, environment, key=key) as running:
        freeze_gc()
        log.info("serving", grpc=running.grpc_address, sidecar=running.sidecar_url)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def sidecar() -> None:
    """Serve the HTTP sidecar alone: it receives browsers on SIDECAR_ADDRESS and calls the server on GRPC_ADDRESS."""
    settings, _ = load_settings(needs_key=False)
    run(_sidecar(settings))


async def _sidecar(settings: Settings) -> None:
    log = structlog.get_logger(__name__)
    async with (
        stop_signals() as stop,
        running_sidecar(settings, settings.grpc_address) as url,
    ):
        log.info("serving", sidecar=url, grpc=str(settings.grpc_address))
        await stop.wait()


def dev(
    sandbox_address: Annotated[
        str, typer.Option(envvar="SANDBOX_ADDRESS", help="Where the sandbox provider listens.")
    ] = "127.0.0.1:9090",
) -> None:
    """Serve in dev mode beside a sandbox provider, with one sample account connected over the real flow."""
    try:
        address = parse_address(sandbox_address)
    except ValueError as error:
        fail(f"SANDBOX_ADDRESS: {error}")
    settings, environment = load_settings({"DEV_MODE": "true", "LOG_LEVEL": "WARNING"})
    run(_dev(settings, environment, address))


async def _dev(settings: Settings, environment: Mapping[str, str], sandbox_address: Address) -> None:
    key = await prepare_database(settings)
    async with stop_signals() as stop:
        await run_dev(settings, environment, key, sandbox_address, stop, Console())
