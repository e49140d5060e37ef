import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from integrations.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UnroutedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNROUTED_REASON_UNSPECIFIED: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNREADABLE: _ClassVar[UnroutedReason]
    UNROUTED_REASON_NO_ACCOUNT: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNKNOWN_ACCOUNT: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNKNOWN_ROUTE: _ClassVar[UnroutedReason]
UNROUTED_REASON_UNSPECIFIED: UnroutedReason
UNROUTED_REASON_UNREADABLE: UnroutedReason
UNROUTED_REASON_NO_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ROUTE: UnroutedReason

class UnroutedWebhook(_message.Message):
    __slots__ = ("integration_type", "event_id", "event_type", "receive_time", "reason", "account_id", "route", "payload_bytes")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    event_id: str
    event_type: str
    receive_time: _timestamp_pb2.Timestamp
    reason: UnroutedReason
    account_id: str
    route: str
    payload_bytes: int
    def __init__(self, integration_type: _Optional[str] = ..., event_id: _Optional[str] = ..., event_type: _Optional[str] = ..., receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[_Union[UnroutedReason, str]] = ..., account_id: _Optional[str] = ..., route: _Optional[str] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class ListUnroutedWebhooksRequest(_message.Message):
    __slots__ = ("integration_type", "page_size", "page_token")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    page_size: int
    page_token: str
    def __init__(self, integration_type: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListUnroutedWebhooksResponse(_message.Message):
    __slots__ = ("unrouted_webhooks", "next_page_token")
    UNROUTED_WEBHOOKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    unrouted_webhooks: _containers.RepeatedCompositeFieldContainer[UnroutedWebhook]
    next_page_token: str
    def __init__(self, unrouted_webhooks: _Optional[_Iterable[_Union[UnroutedWebhook, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
