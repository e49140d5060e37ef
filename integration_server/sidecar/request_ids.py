"""Gives each request its ids: those of its client or its proxy, or a new request id. The response returns it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.observability.observed_calls import (
    REQUEST_ID,
    TRACEPARENT,
    CallIdReader,
    CallIds,
    current_ids,
)

_HEADERS = {name.encode(): name for name in (REQUEST_ID, TRACEPARENT)}
_RESPONSE_HEADER = REQUEST_ID.encode()


class IdentifiedApp:
    """An app whose requests have ids, which its log lines and its calls to the server have too."""

    def __init__(self, app: ASGIApp, reader: CallIdReader) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        ids = self._reader.read(
            [(_HEADERS[name], value.decode("latin-1")) for name, value in scope["headers"] if name in _HEADERS]
        )
        header = (_RESPONSE_HEADER, ids.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The app's own responses have none; those to webhooks have headers that a provider's type declares.
                others = [one for one in message.get("headers", ()) if one[0] != _RESPONSE_HEADER]
                message = {**message, "headers": [*others, header]}
            await send(message)

        # The connection's next request may run in the same context.
        token = current_ids.set(ids)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            current_ids.reset(token)


def metadata_of_ids(ids: CallIds | None) -> list[tuple[str, str]]:
    """The metadata with which a call to the server continues a request."""
    if ids is None:
        return []
    trace = [(TRACEPARENT, ids.traceparent)] if ids.traceparent else []
    return [(REQUEST_ID, ids.request_id), *trace]
