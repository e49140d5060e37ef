"""The port of OAuth clients."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from integration_server.domain.allowed_types import AllowedTypes


class SecretState(StrEnum):
    """The provider's last response to the secrets of a client."""

    PREVIOUS_USED = "previous_used"
    """It refuses the newest secret and accepts the previous one."""

    REFUSED = "refused"
    """It refuses every secret."""


@dataclass(frozen=True, slots=True)
class SecretAlarm:
    """Since when the provider refuses a secret of a client, as any process has seen it."""

    state: SecretState
    refuse_time: datetime


@dataclass(frozen=True, slots=True)
class StoredOAuthClient:
    """A client as stored. `encrypted_secrets` are bound to all other fields but the times."""

    uid: str
    integration_type: str
    name: str
    client_id: str
    callers: Sequence[str]
    version: int
    encrypted_secrets: bytes = field(repr=False)
    create_time: datetime
    update_time: datetime


class OAuthClientStore(Protocol):
    """The clients besides the operator's own, and the alarms of all."""

    async def find(self, integration_type: str, name: str) -> StoredOAuthClient | None:
        """The client of a type with this name."""

    async def list(
        self, integration_type: str, allowed_types: AllowedTypes, after: tuple[str, str], limit: int
    ) -> Sequence[StoredOAuthClient]:
        """Clients after a type and a name, in that order. An empty type means all allowed types."""

    async def names_of(self, integration_types: Collection[str], client_id: str) -> Collection[tuple[str, str]]:
        """The type and name of each client of these types with this client id."""

    async def alarms(self) -> "dict[tuple[str, str], SecretAlarm]":
        """The alarms by type and name; of the operator's own clients the name is empty."""

    async def next_version(self, version: int) -> int:
        """A version that is higher than this one and, on the database's clock, than every earlier one."""

    async def add(self, client: StoredOAuthClient, max_clients: int) -> bool:
        """Add a client. False if there is one with its type and name. Raises `QuotaExceeded` beyond `max_clients`."""

    async def replace(self, client: StoredOAuthClient, version: int) -> bool:
        """Replace the client that has this version. False if it is gone or has another.

        Raises `OAuthClientInUse` if its client id changes and it has integrations, or grants to revoke.
        """

    async def delete(self, integration_type: str, name: str) -> bool:
        """Delete a client and its alarm. False if there is none. Raises `OAuthClientInUse`."""

    async def set_alarm(self, integration_type: str, name: str, state: SecretState | None) -> None:
        """Record whether the provider refuses secrets of a client; None if it accepts the newest one."""
