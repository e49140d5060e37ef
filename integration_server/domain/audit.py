"""Entries of the audit log: caller, action and integration."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from integration_server.domain.integration import Integration

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
    LOSE_GRANT = "lose_grant"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action, or a rejected attempt. It contains no secrets.

    `user_id`, `integration_id`, `integration_type` and `purpose` are empty or 0 where they are unknown. `details` is
    the method, path and status of a proxy call. `action` is a plain string only if a stored entry was altered.
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


def background_entry(time: datetime, action: Action, integration: Integration, outcome: str = SUCCESS) -> AuditEntry:
    """An entry of a background job about an integration."""
    integration_id, integration_type = integration.integration_id, integration.integration_type
    return AuditEntry(time, SERVER, action, integration.user_id, integration_id, integration_type, outcome)
