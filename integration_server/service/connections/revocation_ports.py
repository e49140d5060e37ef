"""The port of the revocation outbox."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from integration_server.domain.integration import UserId
from integration_server.service.background.ports import Claim


@dataclass(frozen=True, slots=True)
class OrphanedGrant:
    """Encrypted credentials that belong to no integration any more.

    The associated data of `encrypted_credentials` is that of the former integration: uid, user, type and
    `bound_values`.
    """

    uid: str
    user_id: UserId
    integration_type: str
    account_id: str | None
    encrypted_credentials: bytes = field(repr=False)
    bound_values: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A grant to revoke. `attempts` counts the claims, `age` is the time since it was added to the outbox."""

    grant: OrphanedGrant
    attempts: int
    age: timedelta


class RevocationOutbox(Protocol):
    """The outbox of grants to revoke, shared by all processes. `DueWork` claims and postpones its rows."""

    async def add(self, grant: OrphanedGrant) -> None:
        """Add a grant that is due at once."""

    async def remove(self, claim: Claim[Revocation]) -> None:
        """Remove a grant that needs no further attempt; does nothing if it is gone."""
