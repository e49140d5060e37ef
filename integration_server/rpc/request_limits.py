"""Limits of requests, checked on their wire format before they are parsed.

A small message can be expensive to parse and convert: two bytes are an empty nested message. Therefore not only the
bytes of a request are limited, but also the fields that it contains at all levels, and the depth of its nesting.
https://protobuf.dev/programming-guides/encoding/ describes the wire format.
"""

import asyncio
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

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

_STEP = 1_000  # fields: some 300 microseconds

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_NOT_PACKED = frozenset({FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING})  # also bytes


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
class _Field:
    """What a field of a message contains. Fields of `google.protobuf` messages and of maps have no name in errors."""

    name: str
    message: Mapping[int, "_Field"] | None
    is_packed: bool
    is_bulk: bool


@dataclass(slots=True)
class _Message:
    """A message whose fields are being walked over: where it ends, what it contains, and its name in errors."""

    end: int
    fields: Mapping[int, _Field]
    name: str = ""


class RequestMeter:
    """Measures requests of one type. `descriptor` is the request's."""

    def __init__(self, descriptor: Any, limits: RequestLimits) -> None:  # noqa: ANN401  # see methods.py
        self._limits = limits
        self._fields = _describe(descriptor, {}, limits.bulk_field)

    async def check(self, raw: bytes) -> None:
        """Raise `InvalidField` if a request is too large, has too many fields, is nested too deep or is malformed.

        Other calls proceed while a large request is measured.
        """
        for _ in self.measure(raw):
            await asyncio.sleep(0)

    def measure(self, raw: bytes) -> Iterator[None]:
        """As `check`, in steps of some hundred microseconds."""
        if not self._limits.bulk_field:
            self._check_size(len(raw))
        try:
            bulk_bytes = yield from self._walk(raw)
        except IndexError:
            raise _malformed() from None
        self._check_size(len(raw) - bulk_bytes)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            besides = f" besides {self._limits.bulk_field}" if self._limits.bulk_field else ""
            raise InvalidField(REQUEST, f"has {size} bytes{besides}; the maximum is {self._limits.max_bytes}")

    def _walk(self, raw: bytes) -> Generator[None, None, int]:
        """Walk over the fields at all levels, without recursion. Return the number of bytes in the bulk field."""
        at, count, next_step, bulk_bytes = 0, 0, _STEP, 0
        message = _Message(len(raw), self._fields)
        outer = list[_Message]()
        while True:
            while at == message.end:
                if not outer:
                    return bulk_bytes
                message = outer.pop()
            tag = raw[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(raw, at - 1)
            found, wire_type = message.fields.get(tag >> 3), tag & 7
            count += 1
            if wire_type == _DELIMITED:
                size = raw[at]
                at += 1
                if size >= 0x80:
                    size, at = _varint(raw, at - 1)
                end = at + size
                if end > message.end:
                    raise _malformed()
                if found is not None and found.message is not None:
                    outer.append(message)
                    message = _Message(end, found.message, found.name)
                    if len(outer) > self._limits.max_depth:
                        problem = f"is nested deeper than {self._limits.max_depth} messages"
                        raise InvalidField(_path(outer, message.name), problem)
                else:
                    at = end
                    if found is not None and found.is_packed:
                        count += size  # an element has at least one byte
                    elif found is not None and found.is_bulk:
                        bulk_bytes += size
            elif wire_type == _VARINT:
                _, at = _varint(raw, at)
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            else:  # groups, which proto3 does not have
                raise _malformed()
            if at > message.end:
                raise _malformed()
            if count > self._limits.max_fields:
                # The field that is too many; that of the message which has just begun is the message's own.
                levels = outer if found is not None and found.message is not None else [*outer, message]
                problem = f"has too many fields and entries; a request has at most {self._limits.max_fields}"
                raise InvalidField(_path(levels, "" if found is None else found.name), problem)
            if count >= next_step:
                next_step = count + _STEP
                yield


def _path(messages: Sequence[_Message], name: str) -> str:
    """The name of a field, in errors, within these messages."""
    return ".".join(filter(None, [*(message.name for message in messages), name])) or REQUEST


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


def _describe(descriptor: Any, known: dict[str, dict[int, _Field]], bulk_field: str = "") -> Mapping[int, _Field]:  # noqa: ANN401
    """Return the fields of a message by number. `known` has the messages that are described already."""
    fields = known.get(descriptor.full_name)
    if fields is not None:
        return fields
    fields = known[descriptor.full_name] = {}  # first: a message may contain itself
    is_named = descriptor.file.package != "google.protobuf" and not descriptor.GetOptions().map_entry
    for one in descriptor.fields:
        fields[one.number] = _Field(
            name=one.name if is_named else "",
            message=None if one.message_type is None else _describe(one.message_type, known),
            is_packed=one.is_repeated and one.cpp_type not in _NOT_PACKED,
            is_bulk=one.name == bulk_field,
        )
    if bulk_field and not any(one.is_bulk for one in fields.values()):
        raise ValueError(f"{descriptor.full_name} has no field {bulk_field}")
    return fields
