"""The port of the due-work mechanism: jobs, claims on due rows, and the store of due times."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class JobKind(Enum):
    """A job of the background worker."""

    REFRESH = "refresh"
    CHECK = "check"
    REVOCATION = "revocation"
    DEVICE_POLL = "device_poll"
    KEY_ROTATION = "key_rotation"


@dataclass(frozen=True, slots=True)
class Claim(Generic[T]):
    """A due row that one process works on until `due_time`, when the row is due again.

    `due_time` is on the database's clock. It is also the fence: a process whose claim has expired and was replaced
    cannot change the due time. `item` is what the job works on.
    """

    job_kind: JobKind
    row_id: int | str
    due_time: datetime
    item: T


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

        A claimed row is due again after `claim_duration`, unless the outcome of the work sets another due time.
        """

    async def postpone(self, claim: Claim[T], delay: timedelta) -> Claim[T] | None:
        """Make the claimed row due after `delay`, and return the claim with the new due time.

        Returns None and changes nothing if the row is gone or another process has claimed it.
        """
