"""Serves the metrics of all processes, and makes one process give its own.

Nothing of the server is imported here, and nothing that holds a key.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog

from integration_server.domain.peers import TrustedProxies
from integration_server.lifecycle import AddressTaken, periodic_job
from integration_server.observability.event_loop import INTERVAL, EventLoopLag
from integration_server.observability.listener import PATH, MetricsApp, MetricsCollector, SnapshotSource
from integration_server.observability.metrics import METRICS, Metrics, Sample
from integration_server.observability.snapshots import encode_snapshot, snapshot_server, take_snapshot
from integration_server.setting_types import Address
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.wiring.system import random_token

# Scrapers of some Prometheus servers, and people. Whoever opens more connections closes their own.
_LIMITS = HttpLimits(
    connections=64,
    body_bytes=1024,
    header_timeout=timedelta(seconds=10),
    body_timeout=timedelta(seconds=10),
    keepalive_timeout=timedelta(seconds=75),
)


@asynccontextmanager
async def running_metrics_listener(
    address: Address, sources: Mapping[str, SnapshotSource], *, may_move: bool = False
) -> AsyncIterator[str]:
    """Serve the metrics of the processes with these names; yields the URL. Raises `AddressTaken`.

    With `may_move`, if the address is taken, a free port of the same host takes its place.
    """
    # As in `running_sidecar`.
    import uvicorn  # noqa: PLC0415

    from integration_server.http_serving import SignalFreeServer, serving_http  # noqa: PLC0415
    from integration_server.sidecar.http_protocol import limited_protocol  # noqa: PLC0415
    from integration_server.sidecar.middleware import AnonymousLimits  # noqa: PLC0415

    limits = AnonymousLimits(_LIMITS, TrustedProxies(()))
    config = uvicorn.Config(
        MetricsApp(MetricsCollector(sources)),
        http=limited_protocol(_LIMITS, limits),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",
        proxy_headers=False,
        server_header=False,
        backlog=64,
        timeout_keep_alive=round(_LIMITS.keepalive_timeout.total_seconds()),
        timeout_graceful_shutdown=1,
    )
    async with AsyncExitStack() as stack:
        serve = partial(serving_http, SignalFreeServer(config), address.host)
        try:
            url = await stack.enter_async_context(serve(address.port))
        except OSError as error:
            if not may_move:
                off = "set an empty value, which switches it off"
                raise AddressTaken("METRICS_ADDRESS", address, error, off) from error
            structlog.get_logger(__name__).warning("metrics_address_taken", address=str(address))
            url = await stack.enter_async_context(serve(0))
        yield f"{url}{PATH}"


@asynccontextmanager
async def measured_process(metrics: Metrics, name: str, socket: Path | None = None) -> AsyncIterator[None]:
    """Measure the event loop of this process, and give the metrics to whoever connects to the Unix socket."""
    lag = EventLoopLag()

    def read() -> Iterator[Sample]:
        yield METRICS.loop_lag, (name,), lag.seconds()

    metrics.read(read)
    instance = random_token()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(periodic_job(lag.tick, INTERVAL))
        if socket is not None:
            stack.enter_context(snapshot_server(socket, lambda: encode_snapshot(take_snapshot(metrics, instance))))
        yield
