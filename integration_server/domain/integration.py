"""An integration: the connection of one user to one account at a provider, and its status."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationInactive, IntegrationPending, ReauthorizationRequired
from integration_server.domain.oauth_client import client_key

IntegrationId = NewType("IntegrationId", int)
UserId = NewType("UserId", str)


class Status(StrEnum):
    """The status of an integration, as the requirements name it."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    ERROR = "error"
    PENDING = "pending"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of an integration: a reason of `errors.py`, its time, and a message that is safe to show."""

    error_class: str
    time: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Integration:
    """A stored integration without its credentials.

    `oauth_client` is the name of the client that its grant belongs to; empty for the operator's own.

    `uid` is an immutable name that exists before the row; encrypted values are bound to it. `version` counts the
    changes of the credentials: a commit of new ones names the version that it replaces. `settings_version` counts the
    changes of name, config, active state and webhook secret. `webhook_secret_id` names the webhook secrets that were
    set last; it is empty if none were. `refresh_retry_time` ends the pause after a failed refresh. `refresh_failures`
    counts consecutive failed refreshes. `refresh_due_time` and `check_due_time` are the next proactive refresh and
    health check; None where there is none.
    """

    integration_id: IntegrationId
    uid: str
    user_id: UserId
    integration_type: str
    auth_method: AuthMethod
    create_time: datetime
    update_time: datetime
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    is_active: bool = True
    account_id: str | None = None
    account_label: str | None = None
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    lacks_required_scope: bool = False
    is_renewable: bool = False
    reauthorization_required: bool = False
    last_error: Failure | None = None
    error_count: int = 0
    last_health_check: datetime | None = None
    access_token_expire_time: datetime | None = None
    refresh_token_expire_time: datetime | None = None
    connect_time: datetime | None = None
    refresh_retry_time: datetime | None = None
    refresh_failures: int = 0
    refresh_due_time: datetime | None = None
    check_due_time: datetime | None = None
    version: int = 0
    settings_version: int = 0
    webhook_secret_id: str = ""
    oauth_client: str = ""

    @property
    def client_key(self) -> str:
        """The key of its client (`domain/oauth_client.py`)."""
        return client_key(self.integration_type, self.oauth_client)

    @property
    def grant_expire_time(self) -> datetime | None:
        """When the user must authorize again, as far as the provider has named the time."""
        return self.refresh_token_expire_time if self.is_renewable else self.access_token_expire_time

    @property
    def is_connected(self) -> bool:
        """Whether it has credentials."""
        return self.connect_time is not None

    def status(self, now: datetime) -> Status:
        """The status, computed from the stored fields at each call."""
        if not self.is_connected:
            return Status.PENDING
        if not self.is_active:
            return Status.INACTIVE
        if self.reauthorization_required or self._has_expired(now):
            return Status.EXPIRED
        if self.last_error is not None or self.lacks_required_scope:
            return Status.ERROR
        return Status.ACTIVE

    @property
    def log_fields(self) -> Mapping[str, object]:
        """The fields that name it in log events."""
        client = {"oauth_client": self.oauth_client} if self.oauth_client else {}
        return {"integration_id": self.integration_id, "integration_type": self.integration_type, **client}

    @property
    def is_usable(self) -> bool:
        """Whether it is connected, active, and does not require reauthorization."""
        return self.is_connected and self.is_active and not self.reauthorization_required

    def require_connected(self) -> None:
        """Raise `IntegrationPending` if it has no credentials."""
        if not self.is_connected:
            raise IntegrationPending

    def require_active(self) -> None:
        """Raise `IntegrationPending` or `IntegrationInactive` if it has no credentials or is switched off."""
        self.require_connected()
        if not self.is_active:
            raise IntegrationInactive

    def require_usable(self) -> None:
        """Raise `IntegrationPending`, `IntegrationInactive` or `ReauthorizationRequired` if it is not usable."""
        self.require_active()
        if self.reauthorization_required:
            raise ReauthorizationRequired

    def connected_to(self, account_id: str | None, account_label: str | None, now: datetime) -> "Integration":
        """The integration as a connection of an account leaves it, without its new credentials.

        Account fields that the provider does not give keep their values.
        """
        return replace(
            self,
            account_id=account_id or self.account_id,
            account_label=account_label or self.account_label,
            is_active=True,
            connect_time=now,
        )

    def _has_expired(self, now: datetime) -> bool:
        expire_time = self.access_token_expire_time
        return not self.is_renewable and expire_time is not None and expire_time <= now


@dataclass(frozen=True, slots=True)
class StoredIntegration:
    """An integration with its encrypted credentials; the encrypted value says whether there are any yet."""

    integration: Integration
    encrypted_credentials: bytes | None = field(repr=False)
