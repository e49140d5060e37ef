"""The outbox of grants to be revoked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from integration_server.domain.integration import UserId


@dataclass(frozen=True, slots=True)
class OrphanedGrant:
    """Credentials that no integration has (any more), sealed for the place of the one that they were for."""

    uid: str
    user_id: UserId
    integration_type: str
    account_id: str | None
    encrypted_credentials: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A grant that is to be revoked, claimed by whoever has this.

    `attempts` counts the claims, this one included: who is not the last to have claimed may not put it off. `age` is
    how long it had been in the outbox by then.
    """

    revocation_id: int
    grant: OrphanedGrant
    attempts: int
    age: timedelta


class RevocationOutbox(Protocol):
    """The outbox of grants to be revoked, shared by all processes and replicas.

    A claim is its holder's alone for a while on the database's clock. Then it is due again: the work of one who
    crashed is not lost.
    """

    async def add(self, grant: OrphanedGrant) -> None:
        """Put a grant in, due at once."""

    async def due_types(self) -> Sequence[str]:
        """The types of which something is due. Only reads."""

    async def claim_due(self, integration_type: str, limit: int, *, claim_duration: timedelta) -> Sequence[Revocation]:
        """Claim what is due of a type, longest due first."""

    async def postpone(self, revocation: Revocation, pause: timedelta) -> None:
        """Give up the claim; it is due again after the pause. Does nothing if another has claimed it by now."""

    async def remove(self, revocation: Revocation) -> None:
        """Take it out: there is nothing more to be done."""
