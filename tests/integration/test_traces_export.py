"""Messages with spans are posted to a collector over HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from structlog.testing import capture_logs

from integration_server.observability.otlp import Response, post_to

Received = list[tuple[str, Mapping[str, str], bytes]]


@contextmanager
def collector(status: int, location: str = "", retry_after: str = "") -> Iterator[tuple[str, Received]]:
    """A collector; yields its endpoint, and the paths, headers and bodies of the requests to it.

    Its responses have a `location` and a `retry_after`.
    """
    received: Received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # the name of the base class

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])  # seconds between two looks for the end
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 202, 400, 429, 503])
@pytest.mark.parametrize("retry_after", ["", "7"])
def test_the_status_of_the_collector_is_returned(status: int, retry_after: str) -> None:
    with collector(status, retry_after=retry_after) as (endpoint, received):
        response = post_to(endpoint)(b"spans")
    assert response == Response(status, retry_after if status >= 400 else "")
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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    with collector(200) as (other, stolen), collector(status, other) as (endpoint, received):
        assert post_to(endpoint)(b"spans").status == status
    assert (len(received), stolen) == (1, [])


@pytest.mark.parametrize("status", [301, 302, 303])
def test_negative_control_a_redirect_that_is_followed_gets_the_keys_and_loses_the_spans(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    with collector(200) as (other, stolen), collector(status, other) as (endpoint, _):
        assert post_to(endpoint, follows_redirects=True)(b"spans").status == 200
    ((_, headers, body),) = stolen
    assert (headers["api-key"], body) == ("secret", b"")


@pytest.mark.parametrize("given", ["api-key=a%0Ab", "api-key=a%00", "api-key=%E2%82%AC", "api%20key=secret", "=secret"])
def test_headers_that_http_forbids_are_left_out_and_not_quoted(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"{given},x-tenant=%C3%A9")
    with collector(200) as (endpoint, received), capture_logs() as lines:
        assert post_to(endpoint)(b"spans").status == 200
    ((_, headers, _),) = received
    assert ("api-key" in headers, headers["x-tenant"]) == (False, "\xe9")
    assert lines == [
        {
            "event": "traces_headers_invalid",
            "variable": "OTEL_EXPORTER_OTLP_HEADERS",
            "headers": 1,
            "log_level": "warning",
        }
    ]


def test_a_host_that_is_no_name_raises_an_error_that_the_exporter_expects() -> None:
    with pytest.raises((OSError, ValueError)):
        post_to("http://collector..invalid:4318/v1/traces")(b"")
