"""HTTP/1.1 parsing that refuses what proxies and servers could read in different ways (request smuggling).

h11 parses. It accepts some forms that RFC 9112 tells servers to refuse or lets them repair, and it shows only the
result: a folded line is unfolded, equal lengths are merged. The raw bytes are therefore checked before h11 reads them.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TypeAlias

import h11

from integration_server.sidecar.http_limits import HttpLimits

# RFC 9110 §5.6.2, without "_": many proxies and CGI map "-" and "_" to the same name, so that `Content_Length` may
# become a second Content-Length (nginx drops such headers by default).
_NAME = rb"[!#$%&'*+.^`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)" % _NAME)  # RFC 9110 §5.5: no other control characters
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ([!-~]+) HTTP/1\.([01])")
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{0,5})?")  # RFC 3986 §3.2.2, §3.2.3
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_SECTION_END = re.compile(rb"\n\r?\n")  # where h11 ends a head or trailers
_MAX_CHUNK_HEADER = 256  # bytes. No client is known to send extensions; they are ignored (RFC 9112 §7.1.1)
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})

Fields: TypeAlias = list[tuple[bytes, bytes]]


class RequestRefused(h11.RemoteProtocolError):
    """A request that is not handled. `error_status_hint` is the status of its response."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message, error_status_hint=status)


class StrictConnection(h11.Connection):
    """One connection's parser. After `next_event` has raised, `refusal` is the status of the response to send."""

    def __init__(self, limits: HttpLimits) -> None:
        super().__init__(h11.SERVER, limits.head_bytes)
        self.refusal = HTTPStatus.BAD_REQUEST
        self._limits = limits
        self._chunks = 0
        self._body_bytes = 0
        self._expects_chunk = False  # the next bytes are a chunk's header, perhaps after the end of a chunk
        self._expects_trailers = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises `RemoteProtocolError`."""
        try:
            if self._limits.refuse_ambiguous:
                self._check(self.trailing_data[0])
            event = super().next_event()
            self._follow(event)
        except h11.RemoteProtocolError as error:
            self.refusal = HTTPStatus(error.error_status_hint)
            raise
        return event

    def _check(self, data: bytes) -> None:
        """Check what h11 reads next."""
        if self.their_state is h11.IDLE:
            self._check_head(data)
        elif self.their_state is h11.SEND_BODY and self._expects_trailers:
            self._check_trailers(data)
        elif self.their_state is h11.SEND_BODY and self._expects_chunk:
            self._check_chunk_header(data)

    def _follow(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> None:
        """Remember what comes after an event, and count chunks."""
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            self._expects_trailers = False
            self._expects_chunk = any(name == b"transfer-encoding" for name, _ in event.headers)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            self._expects_chunk = event.chunk_end
            if self._chunks > self._limits.chunks + self._body_bytes // 1024:
                raise RequestRefused("too many chunks", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def _check_head(self, data: bytes) -> None:
        lines = self._lines(data)
        if lines is None:
            return
        request_line = _REQUEST_LINE.fullmatch(lines[0])
        if request_line is None:
            raise RequestRefused("invalid request line")
        target, minor_version = request_line.groups()
        if len(target) > self._limits.url_bytes:
            raise RequestRefused("the URL is too long", HTTPStatus.REQUEST_URI_TOO_LONG)
        # RFC 9112 §3.2.1. The other forms are for proxies, and name a host that may differ from `Host`.
        if not target.startswith(b"/") or b"#" in target:
            raise RequestRefused("the target is not a path")
        _check_framing(self._fields(lines[1:]), is_http_1_0=minor_version == b"0")

    def _check_chunk_header(self, data: bytes) -> None:
        line, is_complete, rest = data.lstrip(b"\r\n").partition(b"\r\n")
        if len(line) > _MAX_CHUNK_HEADER:
            raise RequestRefused("a chunk's header is too long")
        if not is_complete:
            return
        header = _CHUNK_HEADER.fullmatch(line)
        if header is None:
            raise RequestRefused("invalid chunk header")
        self._expects_chunk = False  # h11 reads the header now, even if nothing of the chunk has arrived
        if not int(header[1], 16):
            self._expects_trailers = True
            self._check_trailers(rest)

    def _check_trailers(self, data: bytes) -> None:
        """They are ignored (RFC 9112 §7.1.2), so they cannot change the request."""
        lines = None if data.startswith(b"\r\n") else self._lines(data)
        if lines is not None and not _FRAMING.isdisjoint(name for name, _ in self._fields(lines)):
            raise RequestRefused("a trailer that frames the message")

    def _lines(self, data: bytes) -> list[bytes] | None:
        """The lines of a head or trailers, or None if they are incomplete; h11 limits the length of incomplete ones."""
        end = _SECTION_END.search(data)
        if end is None:
            return None
        section = data[: end.end()]
        if len(section) > self._limits.head_bytes:
            raise RequestRefused("the head is too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        lines = section.split(b"\r\n")
        if lines[-2:] != [b"", b""]:
            raise RequestRefused("a line that does not end with CRLF")
        return lines[:-2]

    def _fields(self, lines: list[bytes]) -> Fields:
        """The fields with names in lower case. A folded line is no field."""
        if len(lines) > self._limits.headers:
            raise RequestRefused("too many headers", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        fields = [_FIELD.fullmatch(line) for line in lines]
        if None in fields:
            raise RequestRefused("invalid header")
        return [(field[1].lower(), field[2].strip(b"\t ")) for field in fields if field]


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
