"""Spans of the sidecar: one for each request, and one for each RPC that it makes. Neither has a path or a query."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.observability.observed_calls import CallIds, current_ids
from integration_server.observability.spans import Tracing
from integration_server.sidecar.middleware import LIVE_PATH, READY_PATH, route_of

_FIRST_SERVER_ERROR = 500


class TracedApp:
    """An app whose requests have a span that continues the trace of their client. Probes have none."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        ids = current_ids.get()
        if ids is None or scope["path"] in (LIVE_PATH, READY_PATH):
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        route = route_of(scope["path"])
        attributes = {"http.request.method": scope["method"], "http.route": route, "request_id": ids.request_id}
        traceparent = self._tracing.begin(f"{scope['method']} {route}", attributes, ids.traceparent)
        current_ids.set(CallIds(ids.request_id, traceparent))
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            failed = status == 0 or status >= _FIRST_SERVER_ERROR
            self._tracing.end({"http.response.status_code": status}, failed=failed)
