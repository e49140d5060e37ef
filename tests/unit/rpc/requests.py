"""Valid requests, and invalid values for each of their fields, found in the contract's descriptors."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from integration_server.domain.integration import IntegrationId
from integrations.v1 import integration_service_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["IntegrationService"]

# A valid value for each field, by name.
_GOOD: dict[str, Any] = {
    "integration_id": 1,
    "integration_ids": 1,
    "user_id": "ada",
    "state": "state",
    "code": "code",
    "confirmation_token": "token",
    "api_key": "key",
    "consumer": "mail",
    "through_number": 1,
    "endpoint": "app",
    "url": "https://hooks.example/api/v1/webhooks/fake/app",
    "method": "POST",
    "path": "/things",
}
_TYPES = {"Connect": "fake", "ConnectWithApiKey": "fake_key", "ReceiveWebhook": "fake"}

UNKNOWN_INTEGRATION_ID = IntegrationId(999)
"""An id that does not exist."""

METHODS = [method.name for method in _SERVICE.methods]


def input_of(method: str) -> Descriptor:
    """Return the descriptor of the method's request."""
    return _SERVICE.methods_by_name[method].input_type


def good(method: str, /, **changes: Any) -> Any:
    """Return a valid request for the first integration of the first user."""
    fields = input_of(method).fields_by_name
    values = {name: value for name, value in _GOOD.items() if name in fields}
    if method in _TYPES:
        values["integration_type"] = _TYPES[method]
        values.pop("integration_id", None)
    request_class: Callable[..., Message] = getattr(pb, input_of(method).name)
    values |= changes
    for name, value in values.items():
        if fields[name].is_repeated and isinstance(value, int):
            values[name] = [value]
    return request_class(**values)


def fields_of(kind: int) -> list[tuple[str, str]]:
    """Return method and field of all request fields of this type."""
    return [(method, field.name) for method in METHODS for field in input_of(method).fields if field.type == kind]


def with_text(method: str, field: str, text: str) -> Any:
    """Return a valid request with this text in the field."""
    return good(method, **{field: [text] if input_of(method).fields_by_name[field].is_repeated else text})


TEXT_FIELDS = fields_of(FieldDescriptor.TYPE_STRING)
NUMBER_FIELDS = [
    *((method, field, 63) for method, field in fields_of(FieldDescriptor.TYPE_INT64) if field != "content_length"),
    *((method, field, 31) for method, field in fields_of(FieldDescriptor.TYPE_INT32)),
]


def fields_holding(message: type[Message]) -> list[tuple[str, str]]:
    """Return method and field of all request fields of this message type."""
    return [
        (method, field.name)
        for method in METHODS
        for field in input_of(method).fields
        if field.message_type is not None and field.message_type.full_name == message.DESCRIPTOR.full_name
    ]


STRUCT_FIELDS = fields_holding(Struct)
DURATION_FIELDS = fields_holding(Duration)
MASK_FIELDS = fields_holding(FieldMask)


def structs_with(text: str) -> Iterator[Struct]:
    """Yield configs with the text in every possible position."""
    contents: list[dict[str, Any]] = [
        {"k": text},
        {text: 1},
        {"k": [1, {"k": [text]}]},
        {"k": {"k": {text: None}}},
    ]
    for content in contents:
        struct = Struct()
        struct.update(content)
        yield struct
