import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from integrations.v1 import integration_pb2 as _integration_pb2
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

class Job(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_UNSPECIFIED: _ClassVar[Job]
    JOB_REFRESH: _ClassVar[Job]
    JOB_CHECK: _ClassVar[Job]
    JOB_REVOCATION: _ClassVar[Job]
    JOB_DEVICE_POLL: _ClassVar[Job]
    JOB_KEY_ROTATION: _ClassVar[Job]
SECRET_STATE_UNSPECIFIED: SecretState
SECRET_STATE_PREVIOUS_USED: SecretState
SECRET_STATE_REFUSED: SecretState
UNROUTED_REASON_UNSPECIFIED: UnroutedReason
UNROUTED_REASON_UNREADABLE: UnroutedReason
UNROUTED_REASON_NO_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ACCOUNT: UnroutedReason
UNROUTED_REASON_UNKNOWN_ROUTE: UnroutedReason
JOB_UNSPECIFIED: Job
JOB_REFRESH: Job
JOB_CHECK: Job
JOB_REVOCATION: Job
JOB_DEVICE_POLL: Job
JOB_KEY_ROTATION: Job

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

class FindIntegrationsRequest(_message.Message):
    __slots__ = ("integration_type", "status", "account_id", "page_size", "page_token", "count_only")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COUNT_ONLY_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    status: _integration_pb2.Status
    account_id: str
    page_size: int
    page_token: str
    count_only: bool
    def __init__(self, integration_type: _Optional[str] = ..., status: _Optional[_Union[_integration_pb2.Status, str]] = ..., account_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., count_only: _Optional[bool] = ...) -> None: ...

class FindIntegrationsResponse(_message.Message):
    __slots__ = ("integrations", "next_page_token", "counts")
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    integrations: _containers.RepeatedCompositeFieldContainer[_integration_pb2.Integration]
    next_page_token: str
    counts: _containers.RepeatedCompositeFieldContainer[IntegrationCount]
    def __init__(self, integrations: _Optional[_Iterable[_Union[_integration_pb2.Integration, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., counts: _Optional[_Iterable[_Union[IntegrationCount, _Mapping]]] = ...) -> None: ...

class IntegrationCount(_message.Message):
    __slots__ = ("integration_type", "status", "count")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    status: _integration_pb2.Status
    count: int
    def __init__(self, integration_type: _Optional[str] = ..., status: _Optional[_Union[_integration_pb2.Status, str]] = ..., count: _Optional[int] = ...) -> None: ...

class DueWork(_message.Message):
    __slots__ = ("job", "integration_type", "oauth_client", "integration_id", "user_id", "due_time", "attempts", "due_count")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    OAUTH_CLIENT_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    DUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    job: Job
    integration_type: str
    oauth_client: str
    integration_id: int
    user_id: str
    due_time: _timestamp_pb2.Timestamp
    attempts: int
    due_count: int
    def __init__(self, job: _Optional[_Union[Job, str]] = ..., integration_type: _Optional[str] = ..., oauth_client: _Optional[str] = ..., integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[int] = ..., due_count: _Optional[int] = ...) -> None: ...

class ListDueWorkRequest(_message.Message):
    __slots__ = ("job", "integration_type", "oldest_only", "page_size", "page_token")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    OLDEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    job: Job
    integration_type: str
    oldest_only: bool
    page_size: int
    page_token: str
    def __init__(self, job: _Optional[_Union[Job, str]] = ..., integration_type: _Optional[str] = ..., oldest_only: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDueWorkResponse(_message.Message):
    __slots__ = ("due_work", "next_page_token")
    DUE_WORK_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    due_work: _containers.RepeatedCompositeFieldContainer[DueWork]
    next_page_token: str
    def __init__(self, due_work: _Optional[_Iterable[_Union[DueWork, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("time", "caller", "action", "user_id", "integration_id", "integration_type", "integration_version", "outcome", "purpose", "details", "call_count", "erased", "unreadable")
    TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    caller: str
    action: str
    user_id: str
    integration_id: int
    integration_type: str
    integration_version: int
    outcome: str
    purpose: str
    details: str
    call_count: int
    erased: bool
    unreadable: bool
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., caller: _Optional[str] = ..., action: _Optional[str] = ..., user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., integration_type: _Optional[str] = ..., integration_version: _Optional[int] = ..., outcome: _Optional[str] = ..., purpose: _Optional[str] = ..., details: _Optional[str] = ..., call_count: _Optional[int] = ..., erased: _Optional[bool] = ..., unreadable: _Optional[bool] = ...) -> None: ...

class ListAuditEntriesRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "caller", "action", "start_time", "end_time", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    caller: str
    action: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., caller: _Optional[str] = ..., action: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAuditEntriesResponse(_message.Message):
    __slots__ = ("audit_entries", "next_page_token")
    AUDIT_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    audit_entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, audit_entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
