"""Spans of requests to providers: method, host and status. A URL has accounts and secrets, and is not in them."""

import httpx

from integration_server.observability.spans import OpenSpan


class TracedTransport(httpx.AsyncBaseTransport):
    """Opens a span for each request, until its response begins."""

    def __init__(self, transport: httpx.AsyncBaseTransport, open_span: OpenSpan) -> None:
        self._transport = transport
        self._open_span = open_span

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        attributes = {"http.request.method": request.method, "server.address": request.url.host}
        with self._open_span(request.method, attributes) as span:
            response = await self._transport.handle_async_request(request)
            span.set("http.response.status_code", response.status_code)
            if response.status_code >= httpx.codes.BAD_REQUEST:
                span.fail(str(response.status_code))
            return response

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()
