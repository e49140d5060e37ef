"""The syntax of HTTP/1.1 requests: refuses what proxies and servers could read in different ways (request smuggling).

Parsers accept some forms that RFC 9112 tells servers to refuse or lets them repair, and they show only the result: a
folded line is unfolded, equal lengths are merged. The raw bytes are therefore checked before a parser reads them.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TypeAlias

# RFC 9110 §5.6.2, without "_": many proxies and CGI map "-" and "_" to the same name, so that `Content_Length` may
# become a second Content-Length (nginx drops such headers by default).
_NAME = rb"[!#$%&'*+.^`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)" % _NAME)  # RFC 9110 §5.5: no other control characters
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ([!-~]+) HTTP/1\.([01])")
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{0,5})?")  # RFC 3986 §3.2.2, §3.2.3
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_SECTION_END = re.compile(rb"\n\r?\n")  # where parsers end a head or trailers
_MAX_CHUNK_HEADER = 256  # bytes. No client is known to send extensions; they are ignored (RFC 9112 §7.1.1)
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})

Fields: TypeAlias = list[tuple[bytes, bytes]]


class RequestRefused(Exception):
    """A request that is not handled, with the status of its response."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


class RequestSyntax:
    """Checks heads and trailers, which have at most `head_bytes` bytes each, `headers` lines, and a URL of `url_bytes`.

    Raises `RequestRefused`. What is incomplete is not checked; the parser limits its length.
    """

    def __init__(self, *, head_bytes: int, headers: int, url_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._headers = headers
        self._url_bytes = url_bytes

    def check_head(self, data: bytes) -> None:
        """Check the head of a request."""
        lines = self._lines(data)
        if lines is None:
            return
        request_line = _REQUEST_LINE.fullmatch(lines[0])
        if request_line is None:
            raise RequestRefused("invalid request line")
        target, minor_version = request_line.groups()
        if len(target) > self._url_bytes:
            raise RequestRefused("the URL is too long", HTTPStatus.REQUEST_URI_TOO_LONG)
        # RFC 9112 §3.2.1. The other forms are for proxies, and name a host that may differ from `Host`.
        if not target.startswith(b"/") or b"#" in target:
            raise RequestRefused("the target is not a path")
        _check_framing(self._fields(lines[1:]), is_http_1_0=minor_version == b"0")

    def check_trailers(self, data: bytes) -> None:
        """Check trailers. They are ignored (RFC 9112 §7.1.2), so they cannot change the request."""
        lines = None if data.startswith(b"\r\n") else self._lines(data)
        if lines is not None and not _FRAMING.isdisjoint(name for name, _ in self._fields(lines)):
            raise RequestRefused("a trailer that frames the message")

    def _lines(self, data: bytes) -> list[bytes] | None:
        """The lines of a head or trailers, or None if they are incomplete."""
        end = _SECTION_END.search(data)
        if end is None:
            return None
        section = data[: end.end()]
        if len(section) > self._head_bytes:
            raise RequestRefused("the head is too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        lines = section.split(b"\r\n")
        if lines[-2:] != [b"", b""]:
            raise RequestRefused("a line that does not end with CRLF")
        return lines[:-2]

    def _fields(self, lines: list[bytes]) -> Fields:
        """The fields with names in lower case. A folded line is no field."""
        if len(lines) > self._headers:
            raise RequestRefused("too many headers", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        fields = [_FIELD.fullmatch(line) for line in lines]
        if None in fields:
            raise RequestRefused("invalid header")
        return [(field[1].lower(), field[2].strip(b"\t ")) for field in fields if field]


def read_chunk_header(data: bytes) -> tuple[int, bytes] | None:
    """The size of a chunk, and what follows its header; None if the header is incomplete. Raises `RequestRefused`.

    The end of the previous chunk may precede it.
    """
    line, is_complete, rest = data.lstrip(b"\r\n").partition(b"\r\n")
    if len(line) > _MAX_CHUNK_HEADER:
        raise RequestRefused("a chunk's header is too long")
    if not is_complete:
        return None
    header = _CHUNK_HEADER.fullmatch(line)
    if header is None:
        raise RequestRefused("invalid chunk header")
    return int(header[1], 16), rest


def _check_framing(fields: Fields, *, is_http_1_0: bool) -> None:
    """Refuse a head in which the length of the body, or the host, is not stated exactly once (RFC 9112 §3.2, §6)."""
    hosts, lengths, codings = (_values(fields, name) for name in (b"host", b"content-length", b"transfer-encoding"))
    if len(lengths) + len(codings) > 1:
        raise RequestRefused("more than one length of the body")
    if not all(map(_LENGTH.fullmatch, lengths)):
        raise RequestRefused("invalid Content-Length")
    # RFC 9112 §6.1: HTTP/1.0 has no Transfer-Encoding.
    if any(coding.lower() != b"chunked" or is_http_1_0 for coding in codings):
        raise RequestRefused("unknown Transfer-Encoding")
    if len(hosts) != 1 and not (is_http_1_0 and not hosts):
        raise RequestRefused("not exactly one Host")
    if not all(map(_HOST.fullmatch, hosts)):
        raise RequestRefused("invalid Host")


def _values(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for field, value in fields if field == name]
