"""The access rules and request sizes of each RPC, read from the options beside the RPC (integrations/v1/options.proto).

The contracts of health and reflection are not ours; their permissions are in `_THIRD_PARTY_PERMISSIONS`, and their
requests have the default size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from integration_server.domain.audit import Action
from integration_server.domain.callers import Permission
from integration_server.domain.request_limits import DEFAULT_MAX_BYTES, RequestField, RequestLimits, RequestMeter
from integrations.v1 import options_pb2

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
"""The context of a call."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""The metadata of a call."""

Behavior: TypeAlias = Callable[[Any, Any], Any]
"""Takes a request and its `Context`; returns a response (awaitable), or an async generator of responses if the method
streams them."""

CallerLookup: TypeAlias = Callable[[Context], str]
"""Returns the name of a call's caller."""

_THIRD_PARTY_PERMISSIONS: Mapping[str, Permission] = {
    "grpc.health.v1.Health": Permission.HEALTH,
    "grpc.reflection.v1alpha.ServerReflection": Permission.REFLECTION,
}

_NOT_PACKED = frozenset({FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING})  # also bytes
_FIXED_TYPES: Mapping[int, int] = {  # bytes of an entry of a packed field; entries of other types are varints
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC, its access rules and the limits of its requests."""

    path: str  # "/package.Service/Name"
    permission: Permission | None = None  # None: denied to every caller
    audit_action: Action | None = None  # None: not recorded
    awaits_audit: bool = False
    names_user: bool = True
    requires_all_types: bool = False  # of the caller
    items_field: str = ""  # the repeated field whose entries are authorized, counted and recorded one by one
    streams_requests: bool = False
    streams_responses: bool = False
    request_class: type[Message] = Message
    request_limits: RequestLimits = field(default_factory=RequestLimits)

    @property
    def repeats_responses(self) -> bool:
        """Whether equal calls have equal responses while nothing has changed (hot_path.py)."""
        is_unary = not (self.streams_requests or self.streams_responses)
        return self.audit_action is Action.READ_CREDENTIALS and is_unary and not self.items_field

    @property
    def records_items(self) -> bool:
        """Whether the credentials that it returns have an audit entry each, instead of one for the call."""
        is_stream = self.streams_responses and self.audit_action is Action.READ_CREDENTIALS
        return bool(self.items_field) or is_stream

    @property
    def name(self) -> str:
        """The name without its service."""
        return self.path.rpartition("/")[2]


Interceptor: TypeAlias = Callable[[Method, Behavior], Behavior]
"""Wraps the behavior of a method."""

UNKNOWN_METHOD = Method("unknown")
"""Stands for any path that the server does not have: the path itself is the client's text and is not logged."""


def describe_method(path: str) -> Method:
    """Read the access rules of the RPC at `path`, whose generated code must be imported."""
    service, _, name = path.removeprefix("/").partition("/")
    descriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    return method_of(descriptor)


def method_of(descriptor: Any) -> Method:  # noqa: ANN401  # MethodDescriptor, which protoc and upb type differently
    """Return the RPC of a descriptor. An RPC whose access rules are missing or incomplete has no permission."""
    service = descriptor.containing_service
    permission, action = _THIRD_PARTY_PERMISSIONS.get(service.full_name), None
    access = descriptor.GetOptions().Extensions[options_pb2.access]
    size = descriptor.GetOptions().Extensions[options_pb2.request_size]
    if access.permission and access.audit_action and access.HasField("names_user"):
        permission = Permission[options_pb2.Permission.Name(access.permission).removeprefix("PERMISSION_")]
        if access.audit_action != options_pb2.AUDIT_ACTION_NONE:
            action = Action[options_pb2.AuditAction.Name(access.audit_action).removeprefix("AUDIT_ACTION_")]
    return Method(
        path=f"/{service.full_name}/{descriptor.name}",
        permission=permission,
        audit_action=action,
        awaits_audit=access.await_audit,
        names_user=access.names_user if access.HasField("names_user") else True,
        requires_all_types=access.requires_all_types,
        items_field=access.items_field,
        streams_requests=descriptor.client_streaming,
        streams_responses=descriptor.server_streaming,
        request_limits=RequestLimits(size.max_bytes or DEFAULT_MAX_BYTES, size.bulk_field),
        request_class=message_factory.GetMessageClass(descriptor.input_type),
    )


def request_meter(descriptor: Any, limits: RequestLimits) -> RequestMeter:  # noqa: ANN401  # as above
    """Return what measures requests with this descriptor."""
    return RequestMeter(_describe_fields(descriptor, {}, limits.bulk_field), limits)


def _describe_fields(
    descriptor: Any,  # noqa: ANN401  # as in `method_of`
    known: dict[str, dict[int, RequestField]],
    bulk_field: str = "",
) -> Mapping[int, RequestField]:
    """Return the fields of a message by number. `known` has the messages that are described already."""
    fields = known.get(descriptor.full_name)
    if fields is not None:
        return fields
    fields = known[descriptor.full_name] = {}  # first: a message may contain itself
    is_named = descriptor.file.package != "google.protobuf" and not descriptor.GetOptions().map_entry
    for field in descriptor.fields:
        fields[field.number] = RequestField(
            name=field.name if is_named else "",
            message=None if field.message_type is None else _describe_fields(field.message_type, known),
            is_packed=field.is_repeated and field.cpp_type not in _NOT_PACKED,
            entry_size=_FIXED_TYPES.get(field.type),
            is_bulk=field.name == bulk_field,
        )
    if bulk_field and not any(field.is_bulk for field in fields.values()):
        raise ValueError(f"{descriptor.full_name} has no field {bulk_field}")
    return fields
