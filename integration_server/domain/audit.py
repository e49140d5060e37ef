"""What the audit trail remembers: who did what to which integration."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

SUCCESS = "OK"
"""The outcome of what succeeded; otherwise it is a reason: of `errors.py`, or of an answer that is no success."""

SERVER = "server"
"""The caller of what a server does by itself."""

OPERATOR = "operator"
"""The caller of a command."""


class Action(StrEnum):
    """What was done."""

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
    """One thing that was done, or refused. `user_id`, `integration_id` and `integration_type` are empty or 0 where they
    are not known, `purpose` where the caller gave none. `details` has method, path and status of a call to a provider.
    `action` is another text only where somebody has altered what was written. Nothing in it is secret."""

    time: datetime
    caller: str
    action: Action | str
    user_id: str = ""
    integration_id: int = 0
    integration_type: str = ""
    outcome: str = SUCCESS
    purpose: str = ""
    details: str = ""
