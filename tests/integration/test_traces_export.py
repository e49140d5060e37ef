"""Messages with spans are posted to a collector over HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from integration_server.observability.otlp import post_to

Received = list[tuple[str, Mapping[str, str], bytes]]


@contextmanager
def collector(status: int) -> Iterator[tuple[str, Received]]:
    """A collector; yields its endpoint, and the paths, headers and bodies of the requests to it."""
    received: Received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 202, 400, 429, 503])
def test_the_status_of_the_collector_is_returned(status: int) -> None:
    with collector(status) as (endpoint, received):
        assert post_to(endpoint)(b"spans") == status
    ((path, headers, body),) = received
    assert (path, headers["content-type"], body) == ("/v1/traces", "application/x-protobuf", b"spans")


def test_headers_of_the_usual_variable_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b, x-tenant = c ,broken")
    with collector(200) as (endpoint, received):
        post_to(endpoint)(b"")
    ((_, headers, _),) = received
    assert (headers["api-key"], headers["x-tenant"]) == ("a b", "c")


def test_a_collector_that_is_away_raises_an_error() -> None:
    with collector(200) as (endpoint, _):
        pass
    with pytest.raises(OSError, match="refused"):
        post_to(endpoint)(b"")
