import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_ACTIVE: _ClassVar[Status]
    STATUS_INACTIVE: _ClassVar[Status]
    STATUS_ERROR: _ClassVar[Status]
    STATUS_PENDING: _ClassVar[Status]
    STATUS_EXPIRED: _ClassVar[Status]

class AuthMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTH_METHOD_UNSPECIFIED: _ClassVar[AuthMethod]
    AUTH_METHOD_OAUTH2: _ClassVar[AuthMethod]
    AUTH_METHOD_API_KEY: _ClassVar[AuthMethod]
    AUTH_METHOD_BASIC: _ClassVar[AuthMethod]

class RevocationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVOCATION_STATE_UNSPECIFIED: _ClassVar[RevocationState]
    REVOCATION_STATE_REVOKED: _ClassVar[RevocationState]
    REVOCATION_STATE_PENDING: _ClassVar[RevocationState]
    REVOCATION_STATE_NOT_SUPPORTED: _ClassVar[RevocationState]
    REVOCATION_STATE_GRANT_SHARED: _ClassVar[RevocationState]
    REVOCATION_STATE_NOTHING_TO_REVOKE: _ClassVar[RevocationState]
STATUS_UNSPECIFIED: Status
STATUS_ACTIVE: Status
STATUS_INACTIVE: Status
STATUS_ERROR: Status
STATUS_PENDING: Status
STATUS_EXPIRED: Status
AUTH_METHOD_UNSPECIFIED: AuthMethod
AUTH_METHOD_OAUTH2: AuthMethod
AUTH_METHOD_API_KEY: AuthMethod
AUTH_METHOD_BASIC: AuthMethod
REVOCATION_STATE_UNSPECIFIED: RevocationState
REVOCATION_STATE_REVOKED: RevocationState
REVOCATION_STATE_PENDING: RevocationState
REVOCATION_STATE_NOT_SUPPORTED: RevocationState
REVOCATION_STATE_GRANT_SHARED: RevocationState
REVOCATION_STATE_NOTHING_TO_REVOKE: RevocationState

class Integration(_message.Message):
    __slots__ = ("integration_id", "user_id", "integration_type", "name", "config", "is_active", "status", "auth_method", "scopes", "missing_scopes", "account_id", "account_label", "is_connected", "last_error", "error_count", "last_health_check", "access_token_expire_time", "refresh_token_expire_time", "create_time", "update_time", "connect_time", "oauth_client")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    IS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AUTH_METHOD_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    MISSING_SCOPES_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_LABEL_FIELD_NUMBER: _ClassVar[int]
    IS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_HEALTH_CHECK_FIELD_NUMBER: _ClassVar[int]
    ACCESS_TOKEN_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REFRESH_TOKEN_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CONNECT_TIME_FIELD_NUMBER: _ClassVar[int]
    OAUTH_CLIENT_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    integration_type: str
    name: str
    config: _struct_pb2.Struct
    is_active: bool
    status: Status
    auth_method: AuthMethod
    scopes: _containers.RepeatedScalarFieldContainer[str]
    missing_scopes: _containers.RepeatedScalarFieldContainer[str]
    account_id: str
    account_label: str
    is_connected: bool
    last_error: LastError
    error_count: int
    last_health_check: _timestamp_pb2.Timestamp
    access_token_expire_time: _timestamp_pb2.Timestamp
    refresh_token_expire_time: _timestamp_pb2.Timestamp
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    connect_time: _timestamp_pb2.Timestamp
    oauth_client: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., name: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., is_active: _Optional[bool] = ..., status: _Optional[_Union[Status, str]] = ..., auth_method: _Optional[_Union[AuthMethod, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., missing_scopes: _Optional[_Iterable[str]] = ..., account_id: _Optional[str] = ..., account_label: _Optional[str] = ..., is_connected: _Optional[bool] = ..., last_error: _Optional[_Union[LastError, _Mapping]] = ..., error_count: _Optional[int] = ..., last_health_check: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., access_token_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., refresh_token_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., connect_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., oauth_client: _Optional[str] = ...) -> None: ...

class LastError(_message.Message):
    __slots__ = ("error_class", "error_time", "message")
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    ERROR_TIME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    error_class: str
    error_time: _timestamp_pb2.Timestamp
    message: str
    def __init__(self, error_class: _Optional[str] = ..., error_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class HealthCheck(_message.Message):
    __slots__ = ("integration_id", "integration_type", "name", "status", "healthy", "check_time", "latency", "error_class", "message")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    CHECK_TIME_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    integration_type: str
    name: str
    status: Status
    healthy: bool
    check_time: _timestamp_pb2.Timestamp
    latency: _duration_pb2.Duration
    error_class: str
    message: str
    def __init__(self, integration_id: _Optional[int] = ..., integration_type: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[_Union[Status, str]] = ..., healthy: _Optional[bool] = ..., check_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., error_class: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ErrorRate(_message.Message):
    __slots__ = ("window", "checks", "failures", "rate")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    window: _duration_pb2.Duration
    checks: int
    failures: int
    rate: float
    def __init__(self, window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., checks: _Optional[int] = ..., failures: _Optional[int] = ..., rate: _Optional[float] = ...) -> None: ...

class IntegrationTypeInfo(_message.Message):
    __slots__ = ("integration_type", "display_name", "auth_method", "scopes", "required_fields", "configured", "missing_settings", "aliases", "config_fields", "secret_fields", "has_authorization_page", "has_device_authorization")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    AUTH_METHOD_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    MISSING_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELDS_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELDS_FIELD_NUMBER: _ClassVar[int]
    HAS_AUTHORIZATION_PAGE_FIELD_NUMBER: _ClassVar[int]
    HAS_DEVICE_AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    display_name: str
    auth_method: AuthMethod
    scopes: _containers.RepeatedScalarFieldContainer[str]
    required_fields: _containers.RepeatedScalarFieldContainer[str]
    configured: bool
    missing_settings: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    config_fields: _containers.RepeatedCompositeFieldContainer[DeclaredField]
    secret_fields: _containers.RepeatedCompositeFieldContainer[DeclaredField]
    has_authorization_page: bool
    has_device_authorization: bool
    def __init__(self, integration_type: _Optional[str] = ..., display_name: _Optional[str] = ..., auth_method: _Optional[_Union[AuthMethod, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., required_fields: _Optional[_Iterable[str]] = ..., configured: _Optional[bool] = ..., missing_settings: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Iterable[str]] = ..., config_fields: _Optional[_Iterable[_Union[DeclaredField, _Mapping]]] = ..., secret_fields: _Optional[_Iterable[_Union[DeclaredField, _Mapping]]] = ..., has_authorization_page: _Optional[bool] = ..., has_device_authorization: _Optional[bool] = ...) -> None: ...

class DeclaredField(_message.Message):
    __slots__ = ("name", "title", "help", "pattern", "choices", "required", "default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    title: str
    help: str
    pattern: str
    choices: _containers.RepeatedScalarFieldContainer[str]
    required: bool
    default: str
    def __init__(self, name: _Optional[str] = ..., title: _Optional[str] = ..., help: _Optional[str] = ..., pattern: _Optional[str] = ..., choices: _Optional[_Iterable[str]] = ..., required: _Optional[bool] = ..., default: _Optional[str] = ...) -> None: ...
