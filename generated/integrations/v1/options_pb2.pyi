from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Permission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERMISSION_UNSPECIFIED: _ClassVar[Permission]
    PERMISSION_READ: _ClassVar[Permission]
    PERMISSION_CONNECT: _ClassVar[Permission]
    PERMISSION_MANAGE: _ClassVar[Permission]
    PERMISSION_CHECK: _ClassVar[Permission]
    PERMISSION_CREDENTIALS: _ClassVar[Permission]
    PERMISSION_CALLS: _ClassVar[Permission]
    PERMISSION_CALLBACKS: _ClassVar[Permission]
    PERMISSION_WATCH: _ClassVar[Permission]
    PERMISSION_WEBHOOKS: _ClassVar[Permission]
    PERMISSION_WEBHOOK_DELIVERY: _ClassVar[Permission]
    PERMISSION_OPERATE: _ClassVar[Permission]

class AuditAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_ACTION_UNSPECIFIED: _ClassVar[AuditAction]
    AUDIT_ACTION_NONE: _ClassVar[AuditAction]
    AUDIT_ACTION_CONNECT: _ClassVar[AuditAction]
    AUDIT_ACTION_COMPLETE: _ClassVar[AuditAction]
    AUDIT_ACTION_CONFIRM: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_CREDENTIALS: _ClassVar[AuditAction]
    AUDIT_ACTION_REFRESH: _ClassVar[AuditAction]
    AUDIT_ACTION_CALL: _ClassVar[AuditAction]
    AUDIT_ACTION_UPDATE: _ClassVar[AuditAction]
    AUDIT_ACTION_DISCONNECT: _ClassVar[AuditAction]
    AUDIT_ACTION_SET_WEBHOOK_SECRET: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_WEBHOOKS: _ClassVar[AuditAction]
    AUDIT_ACTION_ACK_WEBHOOKS: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_UNROUTED_WEBHOOKS: _ClassVar[AuditAction]
    AUDIT_ACTION_PUT_OAUTH_CLIENT: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_OAUTH_CLIENTS: _ClassVar[AuditAction]
    AUDIT_ACTION_DELETE_OAUTH_CLIENT: _ClassVar[AuditAction]
    AUDIT_ACTION_FIND_INTEGRATIONS: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_DUE_WORK: _ClassVar[AuditAction]
    AUDIT_ACTION_READ_AUDIT_ENTRIES: _ClassVar[AuditAction]
PERMISSION_UNSPECIFIED: Permission
PERMISSION_READ: Permission
PERMISSION_CONNECT: Permission
PERMISSION_MANAGE: Permission
PERMISSION_CHECK: Permission
PERMISSION_CREDENTIALS: Permission
PERMISSION_CALLS: Permission
PERMISSION_CALLBACKS: Permission
PERMISSION_WATCH: Permission
PERMISSION_WEBHOOKS: Permission
PERMISSION_WEBHOOK_DELIVERY: Permission
PERMISSION_OPERATE: Permission
AUDIT_ACTION_UNSPECIFIED: AuditAction
AUDIT_ACTION_NONE: AuditAction
AUDIT_ACTION_CONNECT: AuditAction
AUDIT_ACTION_COMPLETE: AuditAction
AUDIT_ACTION_CONFIRM: AuditAction
AUDIT_ACTION_READ_CREDENTIALS: AuditAction
AUDIT_ACTION_REFRESH: AuditAction
AUDIT_ACTION_CALL: AuditAction
AUDIT_ACTION_UPDATE: AuditAction
AUDIT_ACTION_DISCONNECT: AuditAction
AUDIT_ACTION_SET_WEBHOOK_SECRET: AuditAction
AUDIT_ACTION_READ_WEBHOOKS: AuditAction
AUDIT_ACTION_ACK_WEBHOOKS: AuditAction
AUDIT_ACTION_READ_UNROUTED_WEBHOOKS: AuditAction
AUDIT_ACTION_PUT_OAUTH_CLIENT: AuditAction
AUDIT_ACTION_READ_OAUTH_CLIENTS: AuditAction
AUDIT_ACTION_DELETE_OAUTH_CLIENT: AuditAction
AUDIT_ACTION_FIND_INTEGRATIONS: AuditAction
AUDIT_ACTION_READ_DUE_WORK: AuditAction
AUDIT_ACTION_READ_AUDIT_ENTRIES: AuditAction
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor
REQUEST_SIZE_FIELD_NUMBER: _ClassVar[int]
request_size: _descriptor.FieldDescriptor

class RequestSize(_message.Message):
    __slots__ = ("max_bytes", "bulk_field")
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    BULK_FIELD_FIELD_NUMBER: _ClassVar[int]
    max_bytes: int
    bulk_field: str
    def __init__(self, max_bytes: _Optional[int] = ..., bulk_field: _Optional[str] = ...) -> None: ...

class Access(_message.Message):
    __slots__ = ("permission", "audit_action", "await_audit", "names_user", "items_field", "requires_all_types")
    PERMISSION_FIELD_NUMBER: _ClassVar[int]
    AUDIT_ACTION_FIELD_NUMBER: _ClassVar[int]
    AWAIT_AUDIT_FIELD_NUMBER: _ClassVar[int]
    NAMES_USER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_ALL_TYPES_FIELD_NUMBER: _ClassVar[int]
    permission: Permission
    audit_action: AuditAction
    await_audit: bool
    names_user: bool
    items_field: str
    requires_all_types: bool
    def __init__(self, permission: _Optional[_Union[Permission, str]] = ..., audit_action: _Optional[_Union[AuditAction, str]] = ..., await_audit: _Optional[bool] = ..., names_user: _Optional[bool] = ..., items_field: _Optional[str] = ..., requires_all_types: _Optional[bool] = ...) -> None: ...
