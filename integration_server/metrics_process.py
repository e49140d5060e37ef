"""The process of the metrics listener, which `serve` starts as `python -m integration_server metrics_process`.

It gets its address and the sockets of the other processes over the supervisor's channel. It has no key, no database and
no provider's secret, and imports no part of the server but the domain.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from integration_server.lifecycle import AddressTaken, freeze_gc, protect_memory, raise_fd_limit
from integration_server.logs import configure_logging
from integration_server.observability.listener import SocketSource
from integration_server.observability.metrics import SIDECAR_METRICS
from integration_server.setting_types import Address
from integration_server.supervisor import SupervisorChannel
from integration_server.wiring.metrics_listener import running_metrics_listener


async def serve_metrics(
    channel: SupervisorChannel, address: Address, sources: Mapping[str, SocketSource], *, may_move: bool
) -> None:
    """Serve until the supervisor stops this process. Raises `AddressTaken`."""
    async with running_metrics_listener(address, sources, may_move=may_move) as url, channel.commands() as stop:
        freeze_gc()
        channel.report_ready(metrics=url)
        await stop.wait()


def main() -> None:
    """Serve with the config of the supervisor."""
    raise_fd_limit()
    channel = SupervisorChannel()
    config = channel.receive_config()
    configure_logging(config["log_level"], process="metrics", terminal=config["terminal"])
    protect_memory()
    sources = {
        name: SocketSource(Path(socket), SIDECAR_METRICS if name == "sidecar" else None)
        for name, socket in config["sockets"].items()
    }
    try:
        address = Address(*config["address"])
        may_move = config["may_move"] or not address.port
        if channel.predecessor:  # whoever scrapes this server knows the address that was reported
            address = Address(address.host, urlsplit(channel.predecessor["metrics"]).port or 0)
        uvloop.run(serve_metrics(channel, address, sources, may_move=may_move))
    except (AddressTaken, OSError) as error:
        sys.exit(str(error))
