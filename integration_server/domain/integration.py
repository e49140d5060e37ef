"""An integration: one user's connection to one account at a provider, and how it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationInactive, IntegrationPending, ReauthorizationRequired

IntegrationId = NewType("IntegrationId", int)
UserId = NewType("UserId", str)


class Status(StrEnum):
    """How an integration stands, in the document's words."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    ERROR = "error"
    PENDING = "pending"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Failure:
    """The last thing that went wrong: a reason of `errors.py`, when, and words that are safe to show."""

    error_class: str
    time: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Integration:
    """An integration as it is stored, without its credentials.

    `uid` is its immutable name, made before it is stored: sealed values are bound to it. `version` counts the changes
    of its credentials: who commits new ones must name the version that they replace. Until `refresh_retry_time` a
    provider that failed is left alone; `refresh_failures` is how many refreshes have failed in a row, and
    `refresh_refusals` how many of the last were refused, though not said to be of a dead grant.
    From its due times on the server refreshes or checks it by itself, and never where they are None.
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
    refresh_refusals: int = 0
    refresh_due_time: datetime | None = None
    check_due_time: datetime | None = None
    version: int = 0

    @property
    def grant_expire_time(self) -> datetime | None:
        """When it dies for want of a new authorization, as far as the provider has told."""
        return self.refresh_token_expire_time if self.is_renewable else self.access_token_expire_time

    @property
    def is_connected(self) -> bool:
        """Whether there are credentials."""
        return self.connect_time is not None

    def status(self, now: datetime) -> Status:
        """How the integration stands; never stored, so it cannot contradict what it follows from."""
        if not self.is_connected:
            return Status.PENDING
        if not self.is_active:
            return Status.INACTIVE
        if self.reauthorization_required or self._has_run_out(now):
            return Status.EXPIRED
        if self.last_error is not None or self.lacks_required_scope:
            return Status.ERROR
        return Status.ACTIVE

    @property
    def is_usable(self) -> bool:
        """Whether a backend may use it: it is connected, switched on, and its grant is alive."""
        return self.is_connected and self.is_active and not self.reauthorization_required

    def require_usable(self) -> None:
        """Raise what keeps a backend from using it: that it is pending, switched off, or has lost its grant."""
        if not self.is_connected:
            raise IntegrationPending
        if not self.is_active:
            raise IntegrationInactive
        if self.reauthorization_required:
            raise ReauthorizationRequired

    def _has_run_out(self, now: datetime) -> bool:
        expire_time = self.access_token_expire_time
        return not self.is_renewable and expire_time is not None and expire_time <= now
