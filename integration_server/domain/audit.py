"""Entries of the audit log: caller, action and integration."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any

from integration_server.domain.integration import Integration
from integration_server.domain.text_escaping import EscapedText, escape, is_plain

SUCCESS = "OK"
"""The outcome of a successful action. Any other outcome is a reason: of `errors.py`, or of a failed response."""

SERVER = "server"
"""The caller of background jobs."""

OPERATOR = "operator"
"""The caller of operator commands."""


class Action(StrEnum):
    """An audited action."""

    CONNECT = "connect"
    COMPLETE = "complete"
    CONFIRM = "confirm"
    READ_CREDENTIALS = "read_credentials"
    REFRESH = "refresh"
    CALL = "call"
    UPDATE = "update"
    DISCONNECT = "disconnect"
    CHANGE_KEYS = "change_keys"
    SET_WEBHOOK_SECRET = "set_webhook_secret"
    READ_WEBHOOKS = "read_webhooks"
    ACK_WEBHOOKS = "ack_webhooks"
    READ_UNROUTED_WEBHOOKS = "read_unrouted_webhooks"
    PUT_OAUTH_CLIENT = "put_oauth_client"
    READ_OAUTH_CLIENTS = "read_oauth_clients"
    DELETE_OAUTH_CLIENT = "delete_oauth_client"
    FIND_INTEGRATIONS = "find_integrations"
    READ_DUE_WORK = "read_due_work"
    READ_AUDIT_ENTRIES = "read_audit_entries"
    LOSE_GRANT = "lose_grant"
    ERASE_USER = "erase_user"
    STORE_CREDENTIALS = "store_credentials"


_MAX_LENGTHS = {
    # In characters, before escaping, which makes at most ten of one.
    "caller": 255,  # the longest name in a policy
    "user_id": 128,  # the longest valid one; longer ones are in entries of rejected calls
    "integration_type": 255,
    "outcome": 255,
    "purpose": 255,
    "details": 512,
}


_SHORT = min(_MAX_LENGTHS.values())  # texts that have no more characters together are all short enough
_CALL = attrgetter("action", "integration_id", "integration_version", *_MAX_LENGTHS)
_TEXTS = attrgetter(*_MAX_LENGTHS)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action, or a rejected attempt. It contains no secrets.

    `user_id`, `integration_id`, `integration_type` and `purpose` are empty or 0 where they are unknown. `details` is
    the method, path and status of a proxy call. `action` is a plain string only if a stored entry was altered.
    `integration_version` is the version of the credentials that the action has stored, else 0. `call_count` is the
    number of equal calls that share the entry, whose time is that of the first.

    Texts are bounded when the entry is made: of a longer one, the escaped beginning stays, with a digest of the whole.
    All are escaped when the entry is stored, so that two different ones are never recorded as the same.
    """

    time: datetime
    caller: str
    action: Action | str
    user_id: str = ""
    integration_id: int = 0
    integration_type: str = ""
    outcome: str = SUCCESS
    purpose: str = ""
    details: str = ""
    integration_version: int = 0
    call_count: int = 1

    def __post_init__(self) -> None:
        if sum(map(len, _TEXTS(self))) <= _SHORT:
            return
        for name, max_length in _MAX_LENGTHS.items():
            if len(text := getattr(self, name)) > max_length:
                object.__setattr__(self, name, escape(text, max_length))

    def escaped(self) -> "AuditEntry":
        """The entry as it is stored. An `EscapedText` stays as it is."""
        if is_plain(_TEXTS(self)):
            return self
        texts: dict[str, Any] = {}
        for name in _MAX_LENGTHS:
            if (escaped := escape(text := getattr(self, name))) != text:
                texts[name] = escaped
        return replace(self, **texts) if texts else self

    @property
    def call(self) -> tuple[object, ...]:
        """What equal calls have in common: everything but the time."""
        return _CALL(self)


def recorded_user_id(user_id: str) -> EscapedText:
    """Return a user as its entries name it."""
    return escape(user_id, _MAX_LENGTHS["user_id"])


def recorded_caller(caller: str) -> EscapedText:
    """Return a caller as its entries name it."""
    return escape(caller, _MAX_LENGTHS["caller"])


def background_entry(
    time: datetime, action: Action, integration: Integration, outcome: str = SUCCESS, *, new_version: int = 0
) -> AuditEntry:
    """An entry of a background job about an integration, whose credentials it has replaced by `new_version`, if any."""
    return AuditEntry(
        time,
        SERVER,
        action,
        integration.user_id,
        integration.integration_id,
        integration.integration_type,
        outcome,
        integration_version=new_version,
    )
