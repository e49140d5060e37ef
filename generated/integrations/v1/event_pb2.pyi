import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from integrations.v1 import integration_pb2 as _integration_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IntegrationEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTEGRATION_EVENT_KIND_UNSPECIFIED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_CREATED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_UPDATED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_STATUS_CHANGED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_CREDENTIALS_REFRESHED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_DISCONNECTED: _ClassVar[IntegrationEventKind]
    INTEGRATION_EVENT_KIND_WEBHOOK_RECEIVED: _ClassVar[IntegrationEventKind]
INTEGRATION_EVENT_KIND_UNSPECIFIED: IntegrationEventKind
INTEGRATION_EVENT_KIND_CREATED: IntegrationEventKind
INTEGRATION_EVENT_KIND_UPDATED: IntegrationEventKind
INTEGRATION_EVENT_KIND_STATUS_CHANGED: IntegrationEventKind
INTEGRATION_EVENT_KIND_CREDENTIALS_REFRESHED: IntegrationEventKind
INTEGRATION_EVENT_KIND_DISCONNECTED: IntegrationEventKind
INTEGRATION_EVENT_KIND_WEBHOOK_RECEIVED: IntegrationEventKind

class IntegrationEvent(_message.Message):
    __slots__ = ("kind", "event_time", "integration_id", "user_id", "integration_type", "status_before", "status_after", "webhook_event_number")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    STATUS_AFTER_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_EVENT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    kind: IntegrationEventKind
    event_time: _timestamp_pb2.Timestamp
    integration_id: int
    user_id: str
    integration_type: str
    status_before: _integration_pb2.Status
    status_after: _integration_pb2.Status
    webhook_event_number: int
    def __init__(self, kind: _Optional[_Union[IntegrationEventKind, str]] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., status_before: _Optional[_Union[_integration_pb2.Status, str]] = ..., status_after: _Optional[_Union[_integration_pb2.Status, str]] = ..., webhook_event_number: _Optional[int] = ...) -> None: ...
