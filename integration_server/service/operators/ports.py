"""The ports of what operators read: the search across users, the due rows of all jobs, and the audit log."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from integration_server.domain.audit import AuditEntry
from integration_server.domain.integration import IntegrationId, Status, StoredIntegration, UserId
from integration_server.domain.oauth_client import type_of_key
from integration_server.service.background.ports import JobKind


@dataclass(frozen=True, slots=True)
class IntegrationFilter:
    """The conditions of a search, which apply together. None: any; `account_id` empty: any."""

    integration_types: Collection[str] | None = None
    status: Status | None = None
    account_id: str = ""


@dataclass(frozen=True, slots=True)
class SearchedPage:
    """What a page of a search has found. The next page continues after `last`; None: this is the last page."""

    items: Sequence[StoredIntegration]
    last: IntegrationId | None


@dataclass(frozen=True, slots=True)
class IntegrationCount:
    """The number of integrations of a type and status."""

    integration_type: str
    status: Status
    count: int


@dataclass(frozen=True, slots=True)
class CountedPage:
    """The numbers of the integrations that a page has examined; `last` is as in `SearchedPage`."""

    counts: Sequence[IntegrationCount]
    last: IntegrationId | None


class IntegrationSearchStore(Protocol):
    """Searches the integrations of all users. Each call examines a bounded number of rows."""

    async def find(
        self, condition: IntegrationFilter, now: datetime, after: IntegrationId, limit: int, max_bytes: int
    ) -> SearchedPage:
        """Integrations with an id above `after` that meet the condition at `now`, ordered by id.

        At most `limit`, and at most `max_bytes` of them, as the store estimates their size in a response; but at least
        one, if there is one among those that are examined.
        """

    async def count(self, condition: IntegrationFilter, now: datetime, after: IntegrationId) -> CountedPage:
        """The numbers of integrations with an id above `after` that meet the condition at `now`."""


_NO_USER = UserId("")

SINGLETON_JOBS = frozenset({JobKind.KEY_ROTATION})
"""The jobs of the installation, which belong to no integration type."""

MAX_DUE_COUNT = 1000
"""What is counted of the due work of a job and client: more tells an operator nothing else."""


@dataclass(frozen=True, slots=True)
class DueItem:
    """A due row of a job. `row_id` is its key, `job_type` its client key, or the name of a singleton job.

    `due_count` is the number of due rows of the job and type, at most `MAX_DUE_COUNT`, where it was asked for; else 0.
    """

    job_kind: JobKind
    job_type: str
    due_time: datetime
    row_id: int | str
    integration_id: IntegrationId = IntegrationId(0)
    user_id: UserId = _NO_USER
    attempts: int = 0
    due_count: int = 0

    @property
    def integration_type(self) -> str:
        """The integration type; empty for a singleton job, which belongs to none."""
        return "" if self.job_kind in SINGLETON_JOBS else type_of_key(self.job_type)

    @property
    def oauth_client(self) -> str:
        """The name of the OAuth client; empty for the operator's own."""
        return self.job_type.partition("/")[2]


@dataclass(frozen=True, slots=True)
class DuePosition:
    """The position of a row in the list."""

    job_kind: JobKind
    job_type: str
    due_time: datetime
    row_id: int | str


class DueRows(Protocol):
    """The due rows of all jobs, as operators read them."""

    async def list_due(
        self, job_kind: JobKind, job_type: str, after: DuePosition | None, limit: int
    ) -> Sequence[DueItem]:
        """The due rows of a job and type after a position of the same job and type, the longest due first."""

    async def oldest_due(self, job_kind: JobKind, job_type: str) -> Sequence[DueItem]:
        """The longest due row of a job and type, with the number of its due rows; nothing if none is due."""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The conditions of a list of entries, which apply together. Empty, 0 and None: any.

    `caller` and `user_id` are as callers send them, not escaped. `start_time` is the first time, `end_time` the first
    one after the last.
    """

    user_id: UserId = _NO_USER
    integration_id: IntegrationId = IntegrationId(0)
    caller: str = ""
    action: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry; None if its row cannot be read. `is_erased`: it names no user, purpose and details any more."""

    entry: AuditEntry | None
    is_erased: bool = False


@dataclass(frozen=True, slots=True)
class AuditPosition:
    """The position of an entry in the log, and the number of entries after it to skip: those that cannot be read.

    Without a time, from the newest entry on.
    """

    time: datetime | None
    chain_id: str = ""
    sequence: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, the newest first. The next page continues after `last`; None: no older entry meets the conditions."""

    items: Sequence[ListedEntry]
    last: AuditPosition | None


class AuditEntries(Protocol):
    """The entries of the audit log, to be read. Each call examines a bounded number of them."""

    async def list(self, condition: AuditFilter, after: AuditPosition | None, limit: int) -> AuditPage:
        """At most `limit` entries that follow a position, which are older."""
