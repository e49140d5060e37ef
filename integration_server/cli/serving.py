"""The commands that serve: `serve`, `sidecar` and `dev`."""

from typing import Annotated

import structlog
import typer
from rich.console import Console

from integration_server.bootstrap import running_server
from integration_server.cli.shared import command, fail, load_settings, prepare_database
from integration_server.dev import run_dev
from integration_server.lifecycle import freeze_gc, stop_signals
from integration_server.settings import parse_address
from integration_server.wiring.sidecar import running_sidecar


@command
async def serve() -> None:
    """Serve gRPC and the HTTP sidecar until SIGTERM or Ctrl-C."""
    log = structlog.get_logger(__name__)
    settings, environment = await prepare_database()
    async with stop_signals() as stop, running_server(settings, environment) as addresses:
        freeze_gc()
        log.info("serving", grpc=addresses.grpc_address, sidecar=addresses.sidecar_url)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


@command
async def sidecar() -> None:
    """Serve only the HTTP sidecar: it listens on SIDECAR_ADDRESS and calls the server at GRPC_ADDRESS."""
    settings, _ = await load_settings(needs_key=False)
    async with stop_signals() as stop, running_sidecar(settings, settings.grpc_address) as url:
        structlog.get_logger(__name__).info("serving", sidecar=url, grpc=str(settings.grpc_address))
        await stop.wait()


@command
async def dev(
    sandbox_address: Annotated[
        str, typer.Option(envvar="SANDBOX_ADDRESS", help="The address of the sandbox provider.")
    ] = "127.0.0.1:9090",
) -> None:
    """Serve in dev mode with a sandbox provider, and connect a sample account over the OAuth flow."""
    try:
        address = parse_address(sandbox_address)
    except ValueError as error:
        fail(f"SANDBOX_ADDRESS: {error}")
    settings, environment = await prepare_database({"DEV_MODE": "true", "LOG_LEVEL": "WARNING"})
    async with stop_signals() as stop:
        await run_dev(settings, environment, address, stop, Console())
