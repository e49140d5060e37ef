"""The most expensive HTTP requests of each shape for a path of the sidecar, as raw bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

_URL_BYTES = 10_000
_HEAD_BYTES = 15_000
_BODY_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024  # what a socket may return at once

_QUERIES = ("a", "a=b&", "&", "%00", "%zz", "+", "state=a&", "=", "%F0%9F%A6%8A", "a=b;")
_SEGMENTS = ("a", "/", "../", "%2e%2e/", ";", "%00", "%", "\\")
_HEADERS = (
    "Accept: {text/html;q=0.1,}",
    "Accept: {;q=}",
    "Accept-Language: {en,}",
    "Authorization: Bearer {eyJhbGciOiJub25lIn0.}",
    "Content-Type: multipart/form-data; boundary={-}",
    "Cookie: {a=b; }",
    "Forwarded: {for=1.2.3.4,}",
    "Host: {a.}",
    "Stripe-Signature: {t=1,v1=a,}",
    "X-Forwarded-For: {1.2.3.4, }",
    "X-{a}: b",
    "X-Hub-Signature-256: sha256={0}",
)
_BODIES = (b"\0", b"[", b"{},", b"a=b&", b'{"a":', b"9")
_END = "Connection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class WorstHttp:
    """The bytes that a client sends on one connection."""

    shape: str
    raw: bytes

    def __str__(self) -> str:
        return f"{self.shape}, {len(self.raw)} bytes"


def worst_http(path: str, method: str) -> Iterator[WorstHttp]:
    """Yield the requests of each shape for a path."""
    for name, raw in _requests(path, method):
        yield WorstHttp(f"{method} {path}: {name}", raw)


def _requests(path: str, method: str) -> Iterator[tuple[str, bytes]]:
    def head(target: str, *headers: str) -> bytes:
        return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: sidecar", *headers, _END]).encode()

    def filled(text: str, size: int) -> str:
        return text * (size // len(text))

    for text in _QUERIES:
        yield f"a query of {text}", head(f"{path}?{filled(text, 8000)}")
    for text in _SEGMENTS:
        yield f"a path of {text}", head(f"{path}/{filled(text, _URL_BYTES)}")
    for header in _HEADERS:
        before, _, rest = header.partition("{")
        text, _, after = rest.partition("}")
        yield f"the header {header}", head(path, f"{before}{filled(text, _HEAD_BYTES)}{after}")
    yield "100 headers", head(path, *(f"X-{number}: {'y' * 100}" for number in range(95)))
    yield "small headers", head(path, *["a:"] * (_HEAD_BYTES // 4))
    yield "endless headers", head(path, *["a:"] * _READ_BYTES)
    for body in _BODIES:
        content = body * (_BODY_BYTES // len(body))
        yield f"a body of {body!r}", head(path, f"Content-Length: {len(content)}") + content
    for size, count in ((1, 300_000), (16, 60_000), (1000, 1000)):
        chunks = (b"%x\r\n" % size + b"x" * size + b"\r\n") * count + b"0\r\n\r\n"
        yield f"chunks of {size} bytes", head(path, "Transfer-Encoding: chunked") + chunks
    extended = (b"1;" + b"e" * 1000 + b"\r\nx\r\n") * 500 + b"0\r\n\r\n"
    yield "chunks with extensions", head(path, "Transfer-Encoding: chunked") + extended
    trailers = b"1\r\nx\r\n0\r\n" + b"a:b\r\n" * 10_000 + b"\r\n"
    yield "trailers", head(path, "Transfer-Encoding: chunked") + trailers
    yield "pipelined requests", f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 300
    yield "pipelined new lines", b"\r\n" * _READ_BYTES
    yield "noise", b"\xff" * _READ_BYTES
