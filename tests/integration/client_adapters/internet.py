"""The hosts of providers, all of them on this machine: names resolve to a TLS server whose authority is trusted."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tools.certificates import Authority

HOSTS = (
    "api.github.com",
    "api.stripe.com",
    "api.twilio.com",
    "calendar.googleapis.com",
    "graph.microsoft.com",
    "s3.amazonaws.com",
    "s3.us-east-1.amazonaws.com",
    "slack.com",
    "www.googleapis.com",
)
# What the libraries take trusted authorities from.
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
CA_ATTRIBUTES = ("httplib2.CA_CERTS", "stripe.ca_bundle_path")

Response = tuple[str, bytes]
"""A content type and a body."""


@contextmanager
def simulated_internet(
    monkeypatch: pytest.MonkeyPatch, folder: Path, respond: Callable[[str, str, str], Response]
) -> Iterator[list[tuple[str, str]]]:
    """Serve all HOSTS in threads. `respond` gets the host, the path and the Authorization header.

    Yields the host and the Authorization header of each request.
    """
    received: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            host, authorization = self.headers["Host"].partition(":")[0], self.headers.get("Authorization", "")
            received.append((host, authorization))
            content_type, body = respond(host, self.path, authorization)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _respond  # noqa: N815 — the base class's names

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = _tls_context(monkeypatch, folder).wrap_socket(server.socket, server_side=True)
        _resolve_to(monkeypatch, server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


def as_json(value: object) -> Response:
    """A response in JSON."""
    return "application/json", json.dumps(value).encode()


def _tls_context(monkeypatch: pytest.MonkeyPatch, folder: Path) -> ssl.SSLContext:
    authority = Authority()
    pair = authority.issue([x509.DNSName(host) for host in HOSTS])
    ca_file, certificate_file = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(authority.certificate)
    certificate_file.write_bytes(pair.certificate + pair.key)
    for name in CA_VARIABLES:
        monkeypatch.setenv(name, str(ca_file))
    for name in CA_ATTRIBUTES:
        monkeypatch.setattr(name, str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file)
    return context


def _resolve_to(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def local(host: Any, *args: Any, **options: Any) -> Any:
        if host not in HOSTS:
            return resolve(host, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    def connect_locally(self: socket.socket, address: Any) -> None:
        is_one = isinstance(address, tuple) and address[0] in HOSTS  # httplib2 resolves, and then connects to the name
        connect(self, ("127.0.0.1", port) if is_one else address)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    monkeypatch.setattr(socket.socket, "connect", connect_locally)
