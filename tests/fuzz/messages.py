"""Strategies for requests of every RPC, built from the contract's descriptors, with valid and hostile values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st

from integration_server.rpc.methods import method_of
from integrations.v1 import google_calendar_pb2, integration_service_pb2, operator_service_pb2
from tests.attack_inputs import HOSTILE_TEXTS
from tests.loop_hold.worst_requests import Shape, largest_of, oversized_of, shapes_of, valid_request

T = TypeVar("T")

METHODS: Sequence[MethodDescriptor] = [
    method
    for file in (integration_service_pb2.DESCRIPTOR, google_calendar_pb2.DESCRIPTOR, operator_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]

PLANTED = "planted-secret-0123456789abcdef"
"""The value of every secret field; no response may contain it."""

_SECRET_FIELDS = {"api_key", "api_secret", "webhook_secret", "code"}
_MAX_DEPTH = 3
_OVERSIZED = 9


@dataclass
class KnownValues:
    """Values that are valid at the moment, by field name."""

    values: dict[str, list[Any]] = field(default_factory=dict)

    def values_of(self, name: str) -> list[Any]:
        """The values for a field."""
        return self.values.get(name, [])


texts = st.one_of(
    st.just(""),
    st.sampled_from(HOSTILE_TEXTS),
    st.text(max_size=30),
    st.sampled_from(
        ["\0", "a\0b", " ", "\n", "../..", "%00", "'; DROP TABLE integrations; --", "\U0010ffff", "{}", "[]"]
    ),
    st.builds(
        lambda text, times: text * times, st.sampled_from(["a", "é", "🦆", "\0"]), st.sampled_from([128, 129, 9000])
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=10) | st.sampled_from(HOSTILE_TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def _numbers(lowest: int, highest: int) -> st.SearchStrategy[int]:
    edges = [edge for edge in (lowest, highest, 0, 1, -1) if lowest <= edge <= highest]
    return st.sampled_from(edges) | st.integers(0, 300) | st.integers(lowest, highest)


def choice_of(strategies: Sequence[st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """A choice with equal probability for each strategy; `one_of` would flatten nested choices."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


def _scalar(of: FieldDescriptor, known: KnownValues) -> st.SearchStrategy[Any]:
    """Values for a field: mostly valid ones, if there are any."""
    is_text = of.cpp_type == FieldDescriptor.CPPTYPE_STRING
    named = [
        value for value in known.values_of(of.name) if isinstance(value, str) is is_text
    ]  # the same field name has several meanings
    meaningful = [*named, *([PLANTED] if of.name in _SECRET_FIELDS else [])]
    odd = _odd(of, meaningful)
    return choice_of([*[st.sampled_from(meaningful)] * 6, odd]) if meaningful else odd


def _odd(of: FieldDescriptor, meaningful: Sequence[Any]) -> st.SearchStrategy[Any]:
    match of.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if of.type == FieldDescriptor.TYPE_BYTES:
                return st.binary(max_size=40)
            altered = st.builds(_altered, st.sampled_from(meaningful), st.integers(0, 400)) if meaningful else texts
            return st.one_of(altered, texts)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return st.floats(width=32)
        case number:
            return _numbers(*_RANGES[number])


def _altered(text: str, at: int) -> str:
    at %= len(text) + 1
    return text[:at] + "A" + text[at + 1 :]


def message(descriptor: Descriptor, known: KnownValues, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of this type, mostly with all fields that have valid values."""
    kind: Any = GetMessageClass(descriptor)
    drawn = {name: _field(of, known, depth) for name, of in descriptor.fields_by_name.items()}
    fields = {name: strategy for name, strategy in drawn.items() if strategy is not None}
    meaningful = {name: strategy for name, strategy in fields.items() if known.values_of(name)}
    others = {name: strategy for name, strategy in fields.items() if not known.values_of(name)}
    likely = st.fixed_dictionaries(meaningful, optional=others)
    values = st.one_of(likely, likely, st.fixed_dictionaries({}, optional=fields))
    return values.map(lambda given: kind(**given))


def _field(of: FieldDescriptor, known: KnownValues, depth: int) -> st.SearchStrategy[Any] | None:
    """Values for a field; None beyond the maximum nesting depth."""
    if of.message_type is None:
        one = _scalar(of, known)
    elif of.message_type.full_name == Struct.DESCRIPTOR.full_name:
        one = st.dictionaries(st.text(max_size=5), json_values, max_size=3).map(_struct)
    elif of.message_type.full_name == FieldMask.DESCRIPTOR.full_name:
        paths = (
            st.sampled_from(["name", "config", "is_active", "user_id", "summary", "start", "attendees", "*", ""])
            | texts
        )
        one = st.lists(paths, max_size=3).map(lambda drawn: FieldMask(paths=drawn))
    elif of.message_type.GetOptions().map_entry:
        kinds = of.message_type.fields_by_name
        return st.dictionaries(_scalar(kinds["key"], known), _scalar(kinds["value"], known), max_size=3)
    elif depth < _MAX_DEPTH:
        one = message(of.message_type, known, depth + 1)
    else:
        return None
    return st.lists(one, max_size=3) if of.is_repeated else one


def _struct(content: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(content)
    return struct


@dataclass(frozen=True, slots=True)
class RpcCase:
    """A call of a method, with a message of its type, with arbitrary bytes or with a shape of `worst_requests`."""

    method: MethodDescriptor
    request: bytes
    is_message: bool
    shape: str = ""

    def __repr__(self) -> str:
        if self.shape:
            return f"{self.method.name}({self.shape}, {len(self.request)} bytes)"
        said: object = (
            GetMessageClass(self.method.input_type).FromString(self.request) if self.is_message else self.request
        )
        return f"{self.method.name}({said!s:.600})"


def rpc_cases(known: KnownValues) -> st.SearchStrategy[RpcCase]:
    """A strategy for calls of any method."""

    def calls_of(method: MethodDescriptor) -> st.SearchStrategy[RpcCase]:
        whole = message(method.input_type, known).map(
            lambda request: RpcCase(method, request.SerializeToString(), True)
        )
        cut = st.builds(_cut, whole, st.binary(max_size=20), st.integers(0, 60))
        return choice_of([*[whole] * 8, cut, _worst(method, known)])

    return choice_of(list(map(calls_of, METHODS)))


def _worst(method: MethodDescriptor, known: KnownValues) -> st.SearchStrategy[RpcCase]:
    """The most expensive requests: of each size that the method may accept, and one in five that is too large."""
    shapes = list(shapes_of(method.input_type, method_of(method).request_limits.bulk_field))
    valid = valid_request(method.input_type, known.values_of)

    def build(shape: Shape, length: int) -> RpcCase:
        if shape.lengths and length < len(shape.lengths):
            request = valid + shape.repeat(shape.lengths[length])
        else:
            request = oversized_of(shape, valid) if length == _OVERSIZED else largest_of(shape, method, valid)
        return RpcCase(method, request, is_message=False, shape=shape.name)

    return st.builds(build, st.sampled_from(shapes), st.integers(0, _OVERSIZED))


def _cut(case: RpcCase, noise: bytes, at: int) -> RpcCase:
    return RpcCase(case.method, case.request[:at] + noise, is_message=False)
