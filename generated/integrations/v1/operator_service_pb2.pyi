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

class SecretState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SECRET_STATE_UNSPECIFIED: _ClassVar[SecretState]
    SECRET_STATE_PREVIOUS_USED: _ClassVar[SecretState]
    SECRET_STATE_REFUSED: _ClassVar[SecretState]

class UnroutedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNROUTED_REASON_UNSPECIFIED: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNREADABLE: _ClassVar[UnroutedReason]
    UNROUTED_REASON_NO_ACCOUNT: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNKNOWN_ACCOUNT: _ClassVar[UnroutedReason]
    UNROUTED_REASON_UNKNOWN_ROUTE: _ClassVar[UnroutedReason]
SECRET_STATE_UNSPECIFIED: SecretState
SECRET_STATE_PREVIOUS_USED: SecretState
SECRET_STATE_REFUSED: SecretState
UNROUTED_REASON_UNSPECIFIED: UnroutedReason
UNROUTED_REASON_UNREADABLE: UnroutedReason
UNROUTED_REASON_NO_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ROUTE: UnroutedReason

class OAuthClient(_message.Message):
    __slots__ = ("integration_type", "name", "client_id", "callers", "has_previous_secret", "has_webhook_secret", "webhook_url", "secret_state", "refuse_time", "altered", "create_time", "update_time")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    HAS_PREVIOUS_SECRET_FIELD_NUMBER: _ClassVar[int]
    HAS_WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    SECRET_STATE_FIELD_NUMBER: _ClassVar[int]
    REFUSE_TIME_FIELD_NUMBER: _ClassVar[int]
    ALTERED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    name: str
    client_id: str
    callers: _containers.RepeatedScalarFieldContainer[str]
    has_previous_secret: bool
    has_webhook_secret: bool
    webhook_url: str
    secret_state: SecretState
    refuse_time: _timestamp_pb2.Timestamp
    altered: bool
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, integration_type: _Optional[str] = ..., name: _Optional[str] = ..., client_id: _Optional[str] = ..., callers: _Optional[_Iterable[str]] = ..., has_previous_secret: _Optional[bool] = ..., has_webhook_secret: _Optional[bool] = ..., webhook_url: _Optional[str] = ..., secret_state: _Optional[_Union[SecretState, str]] = ..., refuse_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., altered: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PutOAuthClientRequest(_message.Message):
    __slots__ = ("integration_type", "name", "client_id", "client_secret", "callers", "webhook_secret", "webhook_verify_token", "end_rotation")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SECRET_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_VERIFY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_ROTATION_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    name: str
    client_id: str
    client_secret: str
    callers: _containers.RepeatedScalarFieldContainer[str]
    webhook_secret: str
    webhook_verify_token: str
    end_rotation: bool
    def __init__(self, integration_type: _Optional[str] = ..., name: _Optional[str] = ..., client_id: _Optional[str] = ..., client_secret: _Optional[str] = ..., callers: _Optional[_Iterable[str]] = ..., webhook_secret: _Optional[str] = ..., webhook_verify_token: _Optional[str] = ..., end_rotation: _Optional[bool] = ...) -> None: ...

class PutOAuthClientResponse(_message.Message):
    __slots__ = ("oauth_client",)
    OAUTH_CLIENT_FIELD_NUMBER: _ClassVar[int]
    oauth_client: OAuthClient
    def __init__(self, oauth_client: _Optional[_Union[OAuthClient, _Mapping]] = ...) -> None: ...

class ListOAuthClientsRequest(_message.Message):
    __slots__ = ("integration_type", "page_size", "page_token")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    page_size: int
    page_token: str
    def __init__(self, integration_type: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListOAuthClientsResponse(_message.Message):
    __slots__ = ("oauth_clients", "next_page_token")
    OAUTH_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    oauth_clients: _containers.RepeatedCompositeFieldContainer[OAuthClient]
    next_page_token: str
    def __init__(self, oauth_clients: _Optional[_Iterable[_Union[OAuthClient, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteOAuthClientRequest(_message.Message):
    __slots__ = ("integration_type", "name")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    name: str
    def __init__(self, integration_type: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteOAuthClientResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnroutedWebhook(_message.Message):
    __slots__ = ("integration_type", "event_id", "event_type", "receive_time", "reason", "account_id", "route", "payload_bytes", "oauth_client")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OAUTH_CLIENT_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    event_id: str
    event_type: str
    receive_time: _timestamp_pb2.Timestamp
    reason: UnroutedReason
    account_id: str
    route: str
    payload_bytes: int
    oauth_client: str
    def __init__(self, integration_type: _Optional[str] = ..., event_id: _Optional[str] = ..., event_type: _Optional[str] = ..., receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[_Union[UnroutedReason, str]] = ..., account_id: _Optional[str] = ..., route: _Optional[str] = ..., payload_bytes: _Optional[int] = ..., oauth_client: _Optional[str] = ...) -> None: ...

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
