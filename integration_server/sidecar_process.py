"""The sidecar's process, which `serve` starts as `python -m integration_server sidecar_process`.

Its settings and its link to the server come over the supervisor's channel. Of the server the process imports only the
domain, and none of its libraries; it gets none of its environment: it has no key, no database and no provider's secret.
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from integration_server.lifecycle import AddressTaken, freeze_gc, protect_memory, raise_fd_limit
from integration_server.logs import configure_logging
from integration_server.observability.metrics import Metrics
from integration_server.sidecar_settings import SidecarSettings
from integration_server.supervisor import SupervisorChannel
from integration_server.wiring.metrics_listener import measured_process
from integration_server.wiring.sidecar import SidecarLink, running_sidecar


async def serve_sidecar(
    channel: SupervisorChannel, settings: SidecarSettings, link: SidecarLink, metrics_socket: Path | None
) -> None:
    """Serve until the supervisor stops this process. Raises `AddressTaken`."""
    metrics = Metrics(is_on=metrics_socket is not None)
    draining = asyncio.Event()
    async with (
        measured_process(metrics, "sidecar", metrics_socket),
        running_sidecar(settings, link.client(), metrics, draining) as url,
        channel.commands(draining.set) as stop,
    ):
        freeze_gc()
        channel.report_ready(sidecar=url)
        await stop.wait()


def main() -> None:
    """Serve with the config of the supervisor."""
    raise_fd_limit()
    channel = SupervisorChannel()
    config = channel.receive_config()
    settings = SidecarSettings.model_validate(config["settings"])
    configure_logging(settings.log_level, process="sidecar", terminal=config["terminal"])
    protect_memory()
    try:
        link = SidecarLink([Path(socket) for socket in config["sockets"]], config["token"])
        metrics_socket = link.metrics_socket("sidecar") if config["metrics"] else None
        uvloop.run(serve_sidecar(channel, settings, link, metrics_socket))
    except (AddressTaken, OSError) as error:
        sys.exit(str(error))
