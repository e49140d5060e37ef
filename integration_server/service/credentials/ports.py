"""The ports of the refresher: leases and the journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.integrations.ports import NewCredentials


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The state of an integration's lease. By default there has been none.

    `forced_wait` is the time until a forced refresh may call the provider; 0 if it may. `failure` is the reason of the
    error with which the last refresh of this version ended, if it did. The rest is as in `Lease`.
    """

    is_free: bool = True
    forced_wait: timedelta = timedelta(0)
    failure: str | None = None
    previous_call_age: timedelta | None = None
    previous_call_is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """The exclusive right to refresh one version of an integration's tokens, until it expires on the database's clock.

    `previous_call_age` is the time since an earlier owner claimed the lease to call the provider with the same refresh
    token, if the outcome of that call is unknown; otherwise None. `previous_call_is_lost`: that owner knows that it
    gets no response; otherwise it may still commit one. `refusal_age` is the time since the provider first responded
    `invalid_grant` for this version, if it did.
    """

    integration_id: IntegrationId
    version: int
    owner: str
    previous_call_age: timedelta | None
    previous_call_is_lost: bool = False
    refusal_age: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """The outcome of the last refresh of an integration: it succeeded, or the provider responded `invalid_grant`."""

    integration: Integration
    is_refused: bool


class RefreshLeases(Protocol):
    """One lease per integration, over all processes and replicas that share the database."""

    async def state(self, integration: Integration) -> LeaseState:
        """The state of the lease. Does not write, so that many processes may poll."""

    async def claim(
        self, integration: Integration, owner: str, cause: RefreshCause = RefreshCause.EXPIRY
    ) -> Lease | None:
        """Claim the lease for `owner`, and record that `owner` is about to call the provider.

        None while another owner's lease lasts, or if the integration is not usable or has another version, or if a
        forced refresh comes too early. `FORCE` also claims for a grant that has ended.
        """

    async def release(
        self, lease: Lease, *, outcome_known: bool, is_lost: bool = False, failure: str | None = None
    ) -> None:
        """Release the lease, if it is still the owner's. `outcome_known` also removes the record of the owner's call.

        An owner whose lease has expired can still remove the record of its own call, but not of another owner's call.
        `is_lost` keeps the record, and records that the owner gets no response. `failure` is the reason of the error
        with which the refresh ended.
        """

    async def record_refusal(self, lease: Lease) -> None:
        """Record that the provider responded `invalid_grant`, so that other processes count it."""

    async def latest_outcomes(
        self, integration: Integration, within: timedelta, limit: int
    ) -> Sequence[RefreshOutcome]:
        """The outcomes of the latest refreshes of other integrations of the type, at most `limit`, at most so old.

        Refreshes of all processes; of each integration only the last one, and none that is running or failed in another
        way.
        """


@dataclass(frozen=True, slots=True)
class JournaledRefresh:
    """Refreshed credentials that could not be committed. `integration` is the row whose version they replace."""

    integration: Integration
    credentials: NewCredentials


class RefreshJournal(Protocol):
    """Keeps refreshed credentials on this machine's disk while the database is unavailable."""

    async def append(self, refresh: JournaledRefresh) -> None:
        """Write durably: after the return, the refresh survives a crash of the process and of the machine."""

    async def pending(self) -> Sequence[JournaledRefresh]:
        """All refreshes in the journal, including those from before a restart."""

    async def remove(self, refresh: JournaledRefresh) -> None:
        """Remove a refresh that was committed or superseded."""
