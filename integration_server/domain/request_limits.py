"""Limits of requests, checked on their wire format before they are parsed.

A small message can be expensive to parse and convert: two bytes are an empty nested message. Therefore not only the
bytes of a request are limited, but also the fields that it contains at all levels, and the depth of its nesting.
https://protobuf.dev/programming-guides/encoding/ describes the wire format.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from integration_server.domain.errors import InvalidField

REQUEST = "request"
"""The field that errors about the whole request name."""

MAX_BYTES = 256 * 1024
"""The most that a method may declare: parsing that many bytes takes less than five milliseconds."""

# A user id, a page token and a few short texts, in any language.
DEFAULT_MAX_BYTES = 16 * 1024
# A config of 64 KiB of JSON, whose settings have 26 bytes each; the largest calendar event has 3,000. Their conversion
# takes about ten milliseconds.
_MAX_FIELDS = 10_000
# Twenty levels of JSON objects: each is a Struct, an entry of its map, and a Value.
_MAX_DEPTH = 64

_STEP = 500  # fields, at most: some 300 microseconds

_VARINT, _DELIMITED = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}  # bytes by wire type
_MAX_VARINT_BYTES = 10
_CONTINUED = bytes(range(0x80, 0x100))  # all bytes of a varint but its last


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of a method's requests.

    `max_bytes` does not include the content of `bulk_field`, a `bytes` field, which costs nothing to parse.
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    bulk_field: str = ""
    max_fields: int = _MAX_FIELDS  # at all levels, repeated ones one by one
    max_depth: int = _MAX_DEPTH  # of messages in messages


@dataclass(slots=True)
class RequestField:
    """What a field of a message contains. Fields of `google.protobuf` messages and of maps have no name in errors."""

    name: str
    message: Mapping[int, "RequestField"] | None
    is_packed: bool
    entry_size: int | None  # in bytes; None: a varint
    is_bulk: bool


@dataclass(slots=True)
class _Message:
    """A message whose fields are being walked over: where it ends, what it contains, and its name in errors."""

    end: int
    fields: Mapping[int, RequestField]
    name: str = ""


class RequestMeter:
    """Measures requests of one type, which has these fields by number.

    A request of at most `harmless_size` bytes is within all limits. Most are, and need not be measured.
    """

    def __init__(self, fields: Mapping[int, RequestField], limits: RequestLimits) -> None:
        self._fields = fields
        self._limits = limits
        # A message in a message has at least two bytes, and each field and entry at least one.
        self.harmless_size = min(limits.max_bytes, limits.max_fields, 2 * limits.max_depth)

    def measure(self, raw: bytes) -> Iterator[None]:
        """Raise `InvalidField` if a request is too large, has too many fields, is nested too deep or is malformed.

        Measures in steps of some hundred microseconds, so that other calls can proceed meanwhile.
        """
        if not self._limits.bulk_field:
            self._check_size(len(raw))
        walk = _Walk(raw, self._fields, self._limits)
        try:
            while walk.advance():
                yield
        except IndexError:
            raise _malformed() from None
        self._check_size(len(raw) - walk.bulk_bytes)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            besides = f" besides {self._limits.bulk_field}" if self._limits.bulk_field else ""
            raise InvalidField(REQUEST, f"has {size} bytes{besides}; the maximum is {self._limits.max_bytes}")


class _Walk:
    """A walk over the fields of a message at all levels, without recursion."""

    def __init__(self, raw: bytes, fields: Mapping[int, RequestField], limits: RequestLimits) -> None:
        self.bulk_bytes = 0
        self._raw = raw
        self._at = 0
        self._limits = limits
        self._count = 0  # fields so far
        self._message = _Message(len(raw), fields)
        self._outer: list[_Message] = []  # the messages that contain it

    def advance(self) -> bool:
        """Walk over the next fields. Return whether there are more. Raises `IndexError` at missing bytes."""
        next_step = self._count + _STEP
        while self._count < next_step:
            while self._at == self._message.end:
                if not self._outer:
                    return False
                self._message = self._outer.pop()
            self._field()
        return True

    def _field(self) -> None:
        """Go past a field, or into the message that is its value."""
        message, tag = self._message, self._varint()
        found = message.fields.get(tag >> 3)
        self._add(1, found)
        size = self._size(tag & 7)
        end = self._at + size
        if end > message.end:
            raise _malformed()
        if found is None or tag & 7 != _DELIMITED:
            self._at = end
        elif found.message is not None:
            self._enter(found.name, found.message, end)
        else:
            self._at = end
            if found.is_packed:
                self._add(self._entries(found, end - size, end), found)
            elif found.is_bulk:
                self.bulk_bytes += size

    def _entries(self, found: RequestField, begin: int, end: int) -> int:
        """The number of entries of a packed field."""
        if found.entry_size is not None:
            return -(-(end - begin) // found.entry_size)
        return len(self._raw[begin:end].translate(None, _CONTINUED))

    def _size(self, wire_type: int) -> int:
        """The number of bytes of a value, after its length or its varint."""
        if wire_type == _DELIMITED:
            return self._varint()
        if wire_type == _VARINT:
            self._varint()
            return 0
        try:
            return _FIXED_SIZES[wire_type]
        except KeyError:  # groups, which proto3 does not have
            raise _malformed() from None

    def _varint(self) -> int:
        number = self._raw[self._at]
        self._at += 1
        if number >= 0x80:
            number, self._at = _varint(self._raw, self._at - 1)
        return number

    def _add(self, count: int, found: RequestField | None) -> None:
        """Count fields and entries."""
        self._count += count
        if self._count > self._limits.max_fields:
            problem = f"has too many fields and entries; a request has at most {self._limits.max_fields}"
            raise self._error("" if found is None else found.name, problem)

    def _enter(self, name: str, fields: Mapping[int, RequestField], end: int) -> None:
        """Begin a message in the message."""
        self._outer.append(self._message)
        self._message = _Message(end, fields, name)
        if len(self._outer) > self._limits.max_depth:
            raise self._error("", f"is nested deeper than {self._limits.max_depth} messages")

    def _error(self, name: str, problem: str) -> InvalidField:
        path = [*(message.name for message in self._outer), self._message.name, name]
        return InvalidField(".".join(filter(None, path)) or REQUEST, problem)


def _malformed() -> InvalidField:
    return InvalidField(REQUEST, "cannot be decoded")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the number at `raw[at]`, and the index after it. Raises `IndexError` at the end of the bytes."""
    number = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _malformed()
