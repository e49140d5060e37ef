import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import error_details_pb2 as _error_details_pb2
from google.rpc import status_pb2 as _status_pb2
from integrations.v1 import credentials_pb2 as _credentials_pb2
from integrations.v1 import event_pb2 as _event_pb2
from integrations.v1 import integration_pb2 as _integration_pb2
from integrations.v1 import options_pb2 as _options_pb2
from integrations.v1 import webhook_pb2 as _webhook_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("user_id", "integration_type", "redirect_uri", "scopes", "return_url", "name", "config", "integration_id", "oauth_client")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URI_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    RETURN_URL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    OAUTH_CLIENT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_type: str
    redirect_uri: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    return_url: str
    name: str
    config: _struct_pb2.Struct
    integration_id: int
    oauth_client: str
    def __init__(self, user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., redirect_uri: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., return_url: _Optional[str] = ..., name: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., integration_id: _Optional[int] = ..., oauth_client: _Optional[str] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("authorization_url", "state", "expire_time", "integration_id", "user_code", "verification_uri", "verification_uri_complete")
    AUTHORIZATION_URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_CODE_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_URI_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_URI_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    authorization_url: str
    state: str
    expire_time: _timestamp_pb2.Timestamp
    integration_id: int
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    def __init__(self, authorization_url: _Optional[str] = ..., state: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., integration_id: _Optional[int] = ..., user_code: _Optional[str] = ..., verification_uri: _Optional[str] = ..., verification_uri_complete: _Optional[str] = ...) -> None: ...

class HandleCallbackRequest(_message.Message):
    __slots__ = ("code", "state", "integration_type", "iss", "error", "error_description", "user_id", "query")
    CODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    ISS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    code: str
    state: str
    integration_type: str
    iss: str
    error: str
    error_description: str
    user_id: str
    query: str
    def __init__(self, code: _Optional[str] = ..., state: _Optional[str] = ..., integration_type: _Optional[str] = ..., iss: _Optional[str] = ..., error: _Optional[str] = ..., error_description: _Optional[str] = ..., user_id: _Optional[str] = ..., query: _Optional[str] = ...) -> None: ...

class HandleCallbackResponse(_message.Message):
    __slots__ = ("success", "integration_id", "redirect_url", "message", "reason", "confirmation_token", "display_name", "account_label")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_LABEL_FIELD_NUMBER: _ClassVar[int]
    success: bool
    integration_id: int
    redirect_url: str
    message: str
    reason: str
    confirmation_token: str
    display_name: str
    account_label: str
    def __init__(self, success: _Optional[bool] = ..., integration_id: _Optional[int] = ..., redirect_url: _Optional[str] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., confirmation_token: _Optional[str] = ..., display_name: _Optional[str] = ..., account_label: _Optional[str] = ...) -> None: ...

class ConfirmConnectionRequest(_message.Message):
    __slots__ = ("confirmation_token", "user_id")
    CONFIRMATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    confirmation_token: str
    user_id: str
    def __init__(self, confirmation_token: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class ConfirmConnectionResponse(_message.Message):
    __slots__ = ("success", "integration_id", "redirect_url", "message", "reason", "display_name", "account_label")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_LABEL_FIELD_NUMBER: _ClassVar[int]
    success: bool
    integration_id: int
    redirect_url: str
    message: str
    reason: str
    display_name: str
    account_label: str
    def __init__(self, success: _Optional[bool] = ..., integration_id: _Optional[int] = ..., redirect_url: _Optional[str] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., display_name: _Optional[str] = ..., account_label: _Optional[str] = ...) -> None: ...

class ConnectWithApiKeyRequest(_message.Message):
    __slots__ = ("user_id", "integration_type", "name", "config", "api_key", "api_secret", "webhook_secret", "integration_id", "secret_fields")
    class SecretFieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    API_SECRET_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELDS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_type: str
    name: str
    config: _struct_pb2.Struct
    api_key: str
    api_secret: str
    webhook_secret: str
    integration_id: int
    secret_fields: _containers.ScalarMap[str, str]
    def __init__(self, user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., name: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., api_key: _Optional[str] = ..., api_secret: _Optional[str] = ..., webhook_secret: _Optional[str] = ..., integration_id: _Optional[int] = ..., secret_fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ConnectWithApiKeyResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: _integration_pb2.Integration
    def __init__(self, integration: _Optional[_Union[_integration_pb2.Integration, _Mapping]] = ...) -> None: ...

class ListIntegrationsRequest(_message.Message):
    __slots__ = ("user_id", "integration_type", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_type: str
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIntegrationsResponse(_message.Message):
    __slots__ = ("integrations", "next_page_token")
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integrations: _containers.RepeatedCompositeFieldContainer[_integration_pb2.Integration]
    next_page_token: str
    def __init__(self, integrations: _Optional[_Iterable[_Union[_integration_pb2.Integration, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetIntegrationRequest(_message.Message):
    __slots__ = ("integration_id", "user_id")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...

class GetIntegrationResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: _integration_pb2.Integration
    def __init__(self, integration: _Optional[_Union[_integration_pb2.Integration, _Mapping]] = ...) -> None: ...

class UpdateIntegrationRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "name", "config", "is_active", "update_mask")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    IS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    name: str
    config: _struct_pb2.Struct
    is_active: bool
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., name: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., is_active: _Optional[bool] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateIntegrationResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: _integration_pb2.Integration
    def __init__(self, integration: _Optional[_Union[_integration_pb2.Integration, _Mapping]] = ...) -> None: ...

class DisconnectIntegrationRequest(_message.Message):
    __slots__ = ("integration_id", "user_id")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...

class DisconnectIntegrationResponse(_message.Message):
    __slots__ = ("success", "message", "integration_id", "provider_revoked", "revocation_state")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_REVOKED_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_STATE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    integration_id: int
    provider_revoked: bool
    revocation_state: _integration_pb2.RevocationState
    def __init__(self, success: _Optional[bool] = ..., message: _Optional[str] = ..., integration_id: _Optional[int] = ..., provider_revoked: _Optional[bool] = ..., revocation_state: _Optional[_Union[_integration_pb2.RevocationState, str]] = ...) -> None: ...

class CheckAllHealthRequest(_message.Message):
    __slots__ = ("user_id", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class CheckAllHealthResponse(_message.Message):
    __slots__ = ("total_integrations", "healthy_count", "error_count", "inactive_count", "integrations", "check_time", "next_page_token")
    TOTAL_INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_COUNT_FIELD_NUMBER: _ClassVar[int]
    ERROR_COUNT_FIELD_NUMBER: _ClassVar[int]
    INACTIVE_COUNT_FIELD_NUMBER: _ClassVar[int]
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    CHECK_TIME_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    total_integrations: int
    healthy_count: int
    error_count: int
    inactive_count: int
    integrations: _containers.RepeatedCompositeFieldContainer[_integration_pb2.HealthCheck]
    check_time: _timestamp_pb2.Timestamp
    next_page_token: str
    def __init__(self, total_integrations: _Optional[int] = ..., healthy_count: _Optional[int] = ..., error_count: _Optional[int] = ..., inactive_count: _Optional[int] = ..., integrations: _Optional[_Iterable[_Union[_integration_pb2.HealthCheck, _Mapping]]] = ..., check_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CheckHealthRequest(_message.Message):
    __slots__ = ("integration_id", "user_id")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...

class CheckHealthResponse(_message.Message):
    __slots__ = ("health_check",)
    HEALTH_CHECK_FIELD_NUMBER: _ClassVar[int]
    health_check: _integration_pb2.HealthCheck
    def __init__(self, health_check: _Optional[_Union[_integration_pb2.HealthCheck, _Mapping]] = ...) -> None: ...

class ListHealthChecksRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "page_size", "page_token")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    page_size: int
    page_token: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListHealthChecksResponse(_message.Message):
    __slots__ = ("health_checks", "next_page_token", "error_rates")
    HEALTH_CHECKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATES_FIELD_NUMBER: _ClassVar[int]
    health_checks: _containers.RepeatedCompositeFieldContainer[_integration_pb2.HealthCheck]
    next_page_token: str
    error_rates: _containers.RepeatedCompositeFieldContainer[_integration_pb2.ErrorRate]
    def __init__(self, health_checks: _Optional[_Iterable[_Union[_integration_pb2.HealthCheck, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., error_rates: _Optional[_Iterable[_Union[_integration_pb2.ErrorRate, _Mapping]]] = ...) -> None: ...

class RefreshTokenRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "force")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    force: bool
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class RefreshTokenResponse(_message.Message):
    __slots__ = ("success", "refreshed", "message", "access_token_expire_time", "retry_info")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    REFRESHED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ACCESS_TOKEN_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRY_INFO_FIELD_NUMBER: _ClassVar[int]
    success: bool
    refreshed: bool
    message: str
    access_token_expire_time: _timestamp_pb2.Timestamp
    retry_info: _error_details_pb2.RetryInfo
    def __init__(self, success: _Optional[bool] = ..., refreshed: _Optional[bool] = ..., message: _Optional[str] = ..., access_token_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., retry_info: _Optional[_Union[_error_details_pb2.RetryInfo, _Mapping]] = ...) -> None: ...

class ListIntegrationTypesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIntegrationTypesResponse(_message.Message):
    __slots__ = ("integration_types", "next_page_token")
    INTEGRATION_TYPES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integration_types: _containers.RepeatedCompositeFieldContainer[_integration_pb2.IntegrationTypeInfo]
    next_page_token: str
    def __init__(self, integration_types: _Optional[_Iterable[_Union[_integration_pb2.IntegrationTypeInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetCredentialsRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "min_ttl", "required_scopes")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_TTL_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_SCOPES_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    min_ttl: _duration_pb2.Duration
    required_scopes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., min_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., required_scopes: _Optional[_Iterable[str]] = ...) -> None: ...

class GetCredentialsResponse(_message.Message):
    __slots__ = ("credentials",)
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    credentials: _credentials_pb2.Credentials
    def __init__(self, credentials: _Optional[_Union[_credentials_pb2.Credentials, _Mapping]] = ...) -> None: ...

class BatchGetCredentialsRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[GetCredentialsRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[GetCredentialsRequest, _Mapping]]] = ...) -> None: ...

class BatchGetCredentialsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CredentialsResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CredentialsResult, _Mapping]]] = ...) -> None: ...

class CredentialsResult(_message.Message):
    __slots__ = ("credentials", "error")
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    credentials: _credentials_pb2.Credentials
    error: _status_pb2.Status
    def __init__(self, credentials: _Optional[_Union[_credentials_pb2.Credentials, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class WatchCredentialsRequest(_message.Message):
    __slots__ = ("integration_ids", "user_id", "min_ttl", "required_scopes", "cursor")
    INTEGRATION_IDS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_TTL_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_SCOPES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    integration_ids: _containers.RepeatedScalarFieldContainer[int]
    user_id: str
    min_ttl: _duration_pb2.Duration
    required_scopes: _containers.RepeatedScalarFieldContainer[str]
    cursor: str
    def __init__(self, integration_ids: _Optional[_Iterable[int]] = ..., user_id: _Optional[str] = ..., min_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., required_scopes: _Optional[_Iterable[str]] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchCredentialsResponse(_message.Message):
    __slots__ = ("results", "cursor")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[WatchedCredentials]
    cursor: str
    def __init__(self, results: _Optional[_Iterable[_Union[WatchedCredentials, _Mapping]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchedCredentials(_message.Message):
    __slots__ = ("integration_id", "result")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    result: CredentialsResult
    def __init__(self, integration_id: _Optional[int] = ..., result: _Optional[_Union[CredentialsResult, _Mapping]] = ...) -> None: ...

class ReceiveWebhookRequest(_message.Message):
    __slots__ = ("integration_type", "endpoint", "headers", "body", "url", "method")
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    integration_type: str
    endpoint: str
    headers: _containers.RepeatedCompositeFieldContainer[_webhook_pb2.WebhookHeader]
    body: bytes
    url: str
    method: str
    def __init__(self, integration_type: _Optional[str] = ..., endpoint: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[_webhook_pb2.WebhookHeader, _Mapping]]] = ..., body: _Optional[bytes] = ..., url: _Optional[str] = ..., method: _Optional[str] = ...) -> None: ...

class ReceiveWebhookResponse(_message.Message):
    __slots__ = ("status_code", "headers", "body", "verified")
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    status_code: int
    headers: _containers.RepeatedCompositeFieldContainer[_webhook_pb2.WebhookHeader]
    body: bytes
    verified: bool
    def __init__(self, status_code: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[_webhook_pb2.WebhookHeader, _Mapping]]] = ..., body: _Optional[bytes] = ..., verified: _Optional[bool] = ...) -> None: ...

class ListWebhookEventsRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "consumer", "page_size", "page_token")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    consumer: str
    page_size: int
    page_token: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., consumer: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListWebhookEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_webhook_pb2.WebhookEvent]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[_webhook_pb2.WebhookEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AckWebhookEventsRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "consumer", "through_number")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    THROUGH_NUMBER_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    consumer: str
    through_number: int
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., consumer: _Optional[str] = ..., through_number: _Optional[int] = ...) -> None: ...

class AckWebhookEventsResponse(_message.Message):
    __slots__ = ("through_number",)
    THROUGH_NUMBER_FIELD_NUMBER: _ClassVar[int]
    through_number: int
    def __init__(self, through_number: _Optional[int] = ...) -> None: ...

class GetWebhookEndpointRequest(_message.Message):
    __slots__ = ("integration_id", "user_id")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...

class GetWebhookEndpointResponse(_message.Message):
    __slots__ = ("webhook_url", "has_secret", "secret_set_time", "previous_expire_time")
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    HAS_SECRET_FIELD_NUMBER: _ClassVar[int]
    SECRET_SET_TIME_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    webhook_url: str
    has_secret: bool
    secret_set_time: _timestamp_pb2.Timestamp
    previous_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, webhook_url: _Optional[str] = ..., has_secret: _Optional[bool] = ..., secret_set_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., previous_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SetWebhookSecretRequest(_message.Message):
    __slots__ = ("integration_id", "user_id", "webhook_secret", "previous_ttl")
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TTL_FIELD_NUMBER: _ClassVar[int]
    integration_id: int
    user_id: str
    webhook_secret: str
    previous_ttl: _duration_pb2.Duration
    def __init__(self, integration_id: _Optional[int] = ..., user_id: _Optional[str] = ..., webhook_secret: _Optional[str] = ..., previous_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SetWebhookSecretResponse(_message.Message):
    __slots__ = ("webhook_url", "webhook_secret", "previous_expire_time")
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SECRET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    webhook_url: str
    webhook_secret: str
    previous_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, webhook_url: _Optional[str] = ..., webhook_secret: _Optional[str] = ..., previous_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchIntegrationsRequest(_message.Message):
    __slots__ = ("user_id", "integration_type", "cursor")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_type: str
    cursor: str
    def __init__(self, user_id: _Optional[str] = ..., integration_type: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchIntegrationsResponse(_message.Message):
    __slots__ = ("cursor", "event")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    event: _event_pb2.IntegrationEvent
    def __init__(self, cursor: _Optional[str] = ..., event: _Optional[_Union[_event_pb2.IntegrationEvent, _Mapping]] = ...) -> None: ...

class CallProviderRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "method", "path", "query", "headers", "body", "idempotency_key", "api", "sub_account")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    SUB_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    method: str
    path: str
    query: _containers.RepeatedCompositeFieldContainer[QueryParameter]
    headers: _containers.RepeatedCompositeFieldContainer[HttpHeader]
    body: bytes
    idempotency_key: str
    api: str
    sub_account: str
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[_Iterable[_Union[QueryParameter, _Mapping]]] = ..., headers: _Optional[_Iterable[_Union[HttpHeader, _Mapping]]] = ..., body: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ..., api: _Optional[str] = ..., sub_account: _Optional[str] = ...) -> None: ...

class CallProviderResponse(_message.Message):
    __slots__ = ("status_code", "headers", "body")
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status_code: int
    headers: _containers.RepeatedCompositeFieldContainer[HttpHeader]
    body: bytes
    def __init__(self, status_code: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[HttpHeader, _Mapping]]] = ..., body: _Optional[bytes] = ...) -> None: ...

class StreamProviderRequest(_message.Message):
    __slots__ = ("user_id", "integration_id", "method", "path", "query", "headers", "body", "idempotency_key", "api", "sub_account", "content_length")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    SUB_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    integration_id: int
    method: str
    path: str
    query: _containers.RepeatedCompositeFieldContainer[QueryParameter]
    headers: _containers.RepeatedCompositeFieldContainer[HttpHeader]
    body: bytes
    idempotency_key: str
    api: str
    sub_account: str
    content_length: int
    def __init__(self, user_id: _Optional[str] = ..., integration_id: _Optional[int] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[_Iterable[_Union[QueryParameter, _Mapping]]] = ..., headers: _Optional[_Iterable[_Union[HttpHeader, _Mapping]]] = ..., body: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ..., api: _Optional[str] = ..., sub_account: _Optional[str] = ..., content_length: _Optional[int] = ...) -> None: ...

class StreamProviderResponse(_message.Message):
    __slots__ = ("status_code", "headers", "body")
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status_code: int
    headers: _containers.RepeatedCompositeFieldContainer[HttpHeader]
    body: bytes
    def __init__(self, status_code: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[HttpHeader, _Mapping]]] = ..., body: _Optional[bytes] = ...) -> None: ...

class HttpHeader(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class QueryParameter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
