"""HTTP/2 frames of a client (RFC 9113), written by hand: gRPC's own client does not misbehave."""

from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS = 0x1, 0x4

_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0x0, 0x1, 0x3, 0x4
_CANCEL = 8
_MAX_FRAME_SIZE = 16_384  # §4.2, without another setting

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame (§4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def opening() -> bytes:
    """The first bytes of a connection: the preface, empty settings, and the acknowledgement of the server's."""
    return PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, 1, 0)


def call_headers(path: str, metadata: Fields = ()) -> bytes:
    """The header block of a gRPC call."""
    required = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return b"".join(_literal(name, value) for name, value in (*required, *metadata))


def headers(stream_id: int, block: bytes, *, end_stream: bool = False) -> bytes:
    """A HEADERS frame with a complete header block."""
    return frame(_HEADERS, END_HEADERS | (END_STREAM if end_stream else 0), stream_id, block)


def message(stream_id: int, content: bytes, *, compressed: bool = False, end_stream: bool = True) -> bytes:
    """DATA frames with one gRPC message of at most 64 KiB, the window of a new stream."""
    payload = bytes([compressed]) + len(content).to_bytes(4, "big") + content
    parts = [payload[start : start + _MAX_FRAME_SIZE] for start in range(0, len(payload), _MAX_FRAME_SIZE)]
    last = len(parts) - 1
    return b"".join(
        frame(_DATA, END_STREAM if end_stream and number == last else 0, stream_id, part)
        for number, part in enumerate(parts)
    )


def reset(stream_id: int) -> bytes:
    """A RST_STREAM frame: the client cancels the call."""
    return frame(_RST_STREAM, 0, stream_id, _CANCEL.to_bytes(4, "big"))


def _literal(name: str, value: str) -> bytes:
    """A literal header field that is not indexed (RFC 7541 §6.2.2). `\\udcff` is the byte 0xff (PEP 383)."""
    return b"\0" + b"".join(_string(text.encode(errors="surrogateescape")) for text in (name, value))


def _string(text: bytes) -> bytes:
    """A string without Huffman coding (RFC 7541 §5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - 127, b"\x7f"
    while rest >= 128:
        encoded += bytes([rest % 128 + 128])
        rest //= 128
    return encoded + bytes([rest]) + text
