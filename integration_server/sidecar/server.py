"""Serves the sidecar's app with its limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from integration_server.domain.peers import Network, TrustedProxies
from integration_server.http_serving import SignalFreeServer, serving_http
from integration_server.logs import written_access_log
from integration_server.observability.observed_calls import CallIdReader
from integration_server.observability.spans import Tracing
from integration_server.redaction import redact_text
from integration_server.sidecar.app import create_app
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.http_protocol import limited_protocol
from integration_server.sidecar.middleware import MALFORMED, AnonymousLimits, IdentifiedApp, RecordedApp, RecordRequest
from integration_server.sidecar.request_spans import TracedApp


@asynccontextmanager
async def run_sidecar(
    *,
    server: ServerClient,
    host: str,
    port: int,
    limits: HttpLimits,
    public_url: str,
    trusted_proxies: tuple[Network, ...] = (),
    record: RecordRequest = lambda *_: None,
    default_return_url: str | None = None,
    draining: asyncio.Event | None = None,
    has_access_log: bool = True,
    tracing: Tracing | None = None,
) -> AsyncIterator[str]:
    """Run the sidecar; yields its local base URL. Port 0 selects a free port. Closes `server` at the end.

    Raises `OSError`, with the address in it, if the port is taken. The gRPC server may start later: until then
    `/readyz` responds 503, and again from when `draining` is set. At exit the listener closes, and requests in progress
    have 5 seconds to finish. `has_access_log`: each verified request has a line in the log.
    Without `tracing` no request has a span.
    """
    anonymous = AnonymousLimits(
        limits, TrustedProxies(trusted_proxies), record_refusal=lambda status: record(0.0, MALFORMED, str(int(status)))
    )
    with written_access_log(is_on=has_access_log) as access_log:
        app: ASGIApp = create_app(server, limits, public_url, anonymous, default_return_url, draining, access_log)
        app = RecordedApp(app, record)
        if tracing is not None:
            server.trace(tracing.client)
            app = TracedApp(app, tracing)
        app = IdentifiedApp(app, CallIdReader(partial(redact_text, escape=str)))
        served = SignalFreeServer(_config(app, limits, anonymous))
        async with aclosing(server), serving_http(served, host, port) as url:
            yield url


def _config(app: ASGIApp, limits: HttpLimits, anonymous: AnonymousLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(limits, anonymous),
        ws="none",
        lifespan="off",
        # uvicorn's access log contains the query, and its TRACE level whole requests, both with code and state.
        access_log=False,
        log_config=None,
        # A warning is a line for each malformed request; `AnonymousLimits` logs them.
        log_level="error",
        # `TrustedProxies` reads their headers. uvicorn would replace the connection's address, which limits need.
        proxy_headers=False,
        server_header=False,
        # Each accepted connection is an open file before it is counted.
        backlog=64,
        timeout_keep_alive=round(limits.keepalive_timeout.total_seconds()),
        # Seconds. Most requests wait for one response of a provider, which rarely takes longer.
        timeout_graceful_shutdown=5,
    )
