"""Records each request of the sidecar by its route, status and time. A path is never recorded: anybody chooses it."""

import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.sidecar.middleware import LIVE_PATH, READY_PATH, Area

RecordRequest = Callable[[str, int, float], object]
"""Records a request: its route, its status or 0 if the client has gone before the response, and its seconds."""

MALFORMED = "malformed"
"""The route of a request that the parser or a limit refused, of which nothing is known."""


class RecordedApp:
    """An app whose requests are recorded."""

    def __init__(self, app: ASGIApp, record: RecordRequest) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        begin, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(HTTPStatus(message["status"]))
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._record(route_of(scope["path"]), status, time.perf_counter() - begin)


def route_of(path: str) -> str:
    """`callback`, `webhooks`, `other`, or the path of a probe."""
    return path if path in (LIVE_PATH, READY_PATH) else Area.of(path).name.lower()
