"""What one refresh at a time, that loses nothing, is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.integrations.ports import NewCredentials


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to refresh one version of an integration's tokens, until it lapses on the database's clock.

    It is marked from the beginning: whoever takes it over learns that the refresh token may be spent.
    `previous_call_age` is
    how long ago an earlier holder began to call the provider with this version's refresh token, and has not come back
    since. None if nobody has.
    """

    integration_id: IntegrationId
    version: int
    owner: str
    previous_call_age: timedelta | None


class RefreshLeases(Protocol):
    """One refresh at a time of each integration, over all processes and replicas that share the database."""

    async def is_free(self, integration: Integration) -> bool:
        """Whether `claim` has a chance. Only reads, so that many may wait."""

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """A lease on this version for `owner`, who is about to call the provider.

        None while another's lasts, or if the integration is gone, not in use, or of another version by now.
        """

    async def release(self, lease: Lease, *, outcome_known: bool) -> None:
        """Let others claim, if the lease is still the owner's. Unless it is `outcome_known` what became of the owner's
        call,
        they learn that there was one.

        That can be settled by an owner who has lost the lease; what became of an earlier holder's call never is.
        """


@dataclass(frozen=True, slots=True)
class JournaledRefresh:
    """A refresh that the provider has answered and that could not be committed.

    The last three say what to revoke if the integration is gone by then; a former version did not note them.
    """

    integration_id: IntegrationId
    user_id: UserId
    version: int
    credentials: NewCredentials
    uid: str | None = None
    integration_type: str | None = None
    account_id: str | None = None


class RefreshJournal(Protocol):
    """Where answers are kept, on this machine's disk, until the database is back."""

    async def append(self, refresh: JournaledRefresh) -> None:
        """Keep it durably: on return it survives a crash of process and machine."""

    async def pending(self) -> Sequence[JournaledRefresh]:
        """All that is kept, also from before a restart."""

    async def remove(self, refresh: JournaledRefresh) -> None:
        """Forget one that has been committed, or overtaken."""
