"""The port of the due-work mechanism: jobs, claims on due rows, and the store of due times."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


LONGEST_CLAIM = timedelta(hours=1)
"""The longest duration of a claim, whatever number of claims have expired before it."""


class JobKind(Enum):
    """A job of the background worker."""

    REFRESH = "refresh"
    CHECK = "check"
    REVOCATION = "revocation"
    DEVICE_POLL = "device_poll"
    KEY_ROTATION = "key_rotation"


@dataclass(frozen=True, slots=True)
class Claim(Generic[T]):
    """A row that one process works on until `expire_time`, on the database's clock. Then another process may claim it.

    `due_time` is the row's. Both are the fence: whatever gives the row another due time ends the claim, and a process
    whose claim has expired and was replaced cannot change the due time. `item` is what the job works on.

    `expired_claims` is the number of claims in a row that have expired before this one without an outcome: their
    processes have stopped during the work, or died.
    """

    job_kind: JobKind
    row_id: int | str
    due_time: datetime
    expire_time: datetime
    item: T
    expired_claims: int = 0

    def renewed(self, due_time: datetime) -> "Claim[T]":
        """The claim after the row was made due at a time, until which it counts at least."""
        return replace(self, due_time=due_time, expire_time=max(due_time, self.expire_time))


class DueWork(Protocol):
    """The due rows of all jobs, shared by all processes. All times are on the database's clock."""

    async def due_types(self) -> Collection[tuple[JobKind, str]]:
        """The jobs with due rows, each with the types of those rows. Does not write.

        The type is the key of an OAuth client (`domain/oauth_client.py`), or the name of a singleton job.
        """

    async def claim(
        self, job_kind: JobKind, job_type: str, limit: int, *, claim_duration: timedelta
    ) -> Sequence[Claim[Any]]:
        """Claim at most `limit` due rows of a job and type, the longest due first, for `claim_duration`.

        The row keeps its due time, and can be claimed again after `claim_duration`, unless the outcome of the work sets
        another due time. Each claim that expires without an outcome doubles the duration of the next one, up to
        `LONGEST_CLAIM`. May return fewer rows than are due if another process claims at the same time.
        """

    async def postpone(self, claim: Claim[T], delay: timedelta) -> Claim[T] | None:
        """Make the claimed row due after `delay`, and return the claim with the new due time.

        Returns None and changes nothing if the row is gone, has another due time, or was claimed by another process.
        """

    async def release(self, claims: Collection[Claim[Any]]) -> None:
        """End claims whose work has not begun: their rows are due, and these claims do not count as expired.

        Changes nothing for a row that was claimed by another process meanwhile.
        """

    async def prune(self) -> int:
        """Delete the claims that have expired and are of no further use. Returns how many."""
