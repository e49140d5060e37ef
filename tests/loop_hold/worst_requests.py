"""The most expensive requests of each shape for an RPC, built from the descriptor of its request.

The bytes are made by hand, because building such a message costs more than sending it.
"""

import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from integration_server.rpc.methods import method_of

Wrap = Callable[[bytes], bytes]

KnownValuesOf = Callable[[str], Sequence[Any]]
"""Returns the values that are valid for a field at the moment, by its name."""

OVERSIZED = 1200 * 1024
"""The bytes of a request that gRPC accepts and no RPC does."""

_TEXTS = ("a", "\u202e", "🦊", "\0", "%00", "&a=b", "../", "{}[],", '\\"', "eyJhbGciOiJub25lIn0.", "9", "a@b.c:/ ")
_USUAL = (b"a", "\u202e".encode(), b"\0", b"{},")
_LENGTHS = (128, 255, 2048, 8192, 16 * 1024)  # the maximum lengths of texts
_BODIES = (b"\0", b"[", b"{},", b'{"a":', b"a=b&", b"%00&", b"9", b"<a>", b'"\\u0000",', b"\n", b" ")
_DOUBLES = (1e308, 5e-324, math.nan, -math.inf)
_MAX_NESTING = 7
_DEEP = (20, 30, 60, 99, 3000)
_MARGIN = 200  # bytes and fields around the repetitions
_UNKNOWN = 2047  # a field number that no message has


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of requests: `repeat` makes one from a number of repetitions; each has some bytes and fields.

    A text has no fields of its own, whatever its length.
    """

    name: str
    repeat: Callable[[int], bytes]
    unit_bytes: int
    unit_fields: int = 1
    is_rare: bool = False  # a variant of another shape
    is_bulk: bool = False  # in a field whose bytes the method's limit does not include
    lengths: Sequence[int] = ()  # the repetitions that are of interest, besides the most that fit

    def of_size(self, max_bytes: int, max_fields: int) -> bytes:
        """Return the largest request of this shape within the two limits."""
        return self.repeat(max(1, min(max_bytes // self.unit_bytes, max_fields // max(1, self.unit_fields))))


def shapes_of(descriptor: Descriptor, bulk_field: str = "") -> Iterator[Shape]:
    """Yield the shapes of a message type."""
    yield from _raw_shapes()
    yield from _field_shapes(descriptor, "", lambda content: content, [], bulk_field)


def _raw_shapes() -> Iterator[Shape]:
    """Shapes of any message: unknown fields of each wire type, and malformed bytes."""
    tags = {wire_type: _varint(_UNKNOWN << 3 | wire_type) for wire_type in range(6)}
    units = {
        "unknown varints": tags[0] + b"\0",
        "unknown long varints": tags[0] + b"\xff" * 9 + b"\x01",
        "unknown fixed64": tags[1] + bytes(8),
        "unknown texts": tags[2] + b"\0",
        "nested unknown messages": b"\x0a\x02",
        "nested groups": tags[3],
        "groups": tags[3] + tags[4],
        "unknown fixed32": tags[5] + bytes(4),
        "an endless varint": b"\xff",
        "zeros": b"\0",
        "a cut text": b"\x0a\x7f",
    }
    for name, unit in units.items():
        yield _repeated(name, unit)


def _repeated(name: str, unit: bytes, wrap: Wrap = bytes, fields: int = 1) -> Shape:
    return Shape(name, lambda count: wrap(unit * count), len(unit), fields)


def _field_shapes(
    descriptor: Descriptor, parent: str, wrap: Wrap, path: Sequence[Descriptor], bulk_field: str = ""
) -> Iterator[Shape]:
    """Yield the shapes of a message's fields. `wrap` puts the content of the message into the request."""
    path = [*path, descriptor]
    for field in descriptor.fields:
        name = f"{parent}{field.name}"
        if field.message_type is not None:
            yield from _message_shapes(field, name, wrap, path)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            is_bulk = field.name == bulk_field
            for body in _BODIES:
                yield _filled(f"{name} of {body!r}", body, field.number, wrap, is_bulk=is_bulk)
        elif field.type == FieldDescriptor.TYPE_STRING:
            for text in _TEXTS:
                yield _filled(f"{name} of {text!a}", text.encode(), field.number, wrap)
            yield _repeated(f"empty {name}", _delimited(field.number, b""), wrap)
            yield _repeated(f"short {name}", _delimited(field.number, b"name"), wrap)
        else:
            yield _repeated(f"{name} again and again", _scalar(field, 0), wrap)
            yield Shape(f"packed {name}", _fill(b"\1", field.number, wrap), 1)


def _filled(name: str, text: bytes, number: int, wrap: Wrap, *, is_bulk: bool = False) -> Shape:
    lengths = [max(1, length // len(text.decode())) for length in _LENGTHS]
    return Shape(name, _fill(text, number, wrap), len(text), 0, text not in _USUAL, is_bulk, lengths)


def _fill(text: bytes, number: int, wrap: Wrap) -> Callable[[int], bytes]:
    return lambda count: wrap(_delimited(number, text * count))


def _message_shapes(field: FieldDescriptor, name: str, wrap: Wrap, path: Sequence[Descriptor]) -> Iterator[Shape]:
    """Yield the shapes of a field with messages: many with at most one field each, nested deep, and their fields."""
    message = field.message_type
    assert message is not None

    def wrap_in_field(content: bytes) -> bytes:
        return wrap(_delimited(field.number, content))

    yield _repeated(f"empty {name}", _delimited(field.number, b""), wrap)
    for inner in message.fields:
        for sample in _samples(inner):
            yield _repeated(f"{name} with {inner.name}", _delimited(field.number, sample), wrap, 2)
    if message.GetOptions().map_entry:
        yield _entries(name, field, wrap)
    if message in path:  # the nesting from the message to itself
        yield from _deep_shapes(field, name, wrap, path[path.index(message) :])
    if len(path) < _MAX_NESTING and list(path).count(message) < 2:
        yield from _field_shapes(message, f"{name}.", wrap_in_field, path)


def _samples(field: FieldDescriptor) -> Iterator[bytes]:
    if field.message_type is not None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield _delimited(field.number, b"")
    elif field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        for number in _DOUBLES:
            yield _varint(field.number << 3 | 1) + struct.pack("<d", number)
    else:
        yield _scalar(field, 1)


def _scalar(field: FieldDescriptor, value: int) -> bytes:
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _varint(field.number << 3 | 1) + struct.pack("<d", value)
    return _varint(field.number << 3) + _varint(value)


def _entries(name: str, field: FieldDescriptor, wrap: Wrap) -> Shape:
    """Entries of a map with different keys."""

    def repeat(count: int) -> bytes:
        return wrap(b"".join(_delimited(field.number, _delimited(1, f"{key:06x}".encode())) for key in range(count)))

    return Shape(f"entries of {name}", repeat, 10, 2)


def _deep_shapes(field: FieldDescriptor, name: str, wrap: Wrap, cycle: Sequence[Descriptor]) -> Iterator[Shape]:
    """Messages nested in themselves over the fields that lead from each message of the cycle to the next."""
    steps = [
        next(one.number for one in outer.fields if one.message_type is inner)
        for outer, inner in itertools.pairwise(cycle)
    ]
    numbers = [field.number, *reversed(steps)]  # from the inside to the outside

    def nest(count: int) -> bytes:
        content = b""
        for level in range(count):
            content = _delimited(numbers[level % len(numbers)], content)
        return wrap(content)

    yield Shape(f"nested {name}", lambda count: nest(min(count, _DEEP[-1])), 6, 1, lengths=_DEEP)


# --- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorstRequest:
    """A request of an RPC. `raw` is valid up to the part that the shape adds."""

    method: MethodDescriptor
    shape: str
    raw: bytes

    def __str__(self) -> str:
        return f"{self.method.name}: {self.shape}, {len(self.raw)} bytes"


def valid_request(descriptor: Descriptor, values_of: KnownValuesOf) -> bytes:
    """Return a request with the first known value of each of its fields."""
    kind: Any = GetMessageClass(descriptor)
    values: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.message_type is None:
            is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING
            fitting = [value for value in values_of(field.name) if isinstance(value, str) is is_text]
            values |= {field.name: [fitting[0]] if field.is_repeated else fitting[0]} if fitting else {}
    request: bytes = kind(**values).SerializeToString()
    return request


def largest_of(shape: Shape, method: MethodDescriptor, valid: bytes) -> bytes:
    """Return the largest request of the shape that the RPC accepts."""
    limits = method_of(method).request_limits
    max_bytes = OVERSIZED - limits.max_bytes if shape.is_bulk else limits.max_bytes - len(valid) - _MARGIN
    return valid + shape.of_size(max_bytes, limits.max_fields - _MARGIN)


def oversized_of(shape: Shape, valid: bytes) -> bytes:
    """Return a request of the shape that is too large for any RPC."""
    return valid + shape.of_size(OVERSIZED, OVERSIZED)


def worst_requests(
    method: MethodDescriptor, values_of: KnownValuesOf, *, all_sizes: bool = True
) -> Iterator[WorstRequest]:
    """Yield the largest request of each shape that the RPC accepts.

    `all_sizes` adds rare shapes, requests that are too large, and texts and messages of other lengths and depths.
    """
    valid = valid_request(method.input_type, values_of)
    for shape in shapes_of(method.input_type, method_of(method).request_limits.bulk_field):
        if shape.is_rare and not all_sizes:
            continue
        requests = {largest_of(shape, method, valid)}
        if all_sizes:
            requests |= {oversized_of(shape, valid), *(valid + shape.repeat(length) for length in shape.lengths)}
        for raw in requests:
            yield WorstRequest(method, shape.name, raw)
