"""The port of the change feed, and of its consumer outside this package."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import IntegrationId, UserId


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event in the change log. `position` is compared with horizons; `number` orders events between two horizons."""

    number: int
    position: int
    event: IntegrationEvent


@dataclass(frozen=True, slots=True)
class ChangeCursor:
    """How far a reader has read: everything below the high-water mark `end`, except the `missing` positions.

    Rows at these may still become visible; each has the time at which it was first missed. `data_version` is for the
    store only.
    """

    end: int
    missing: Mapping[int, datetime] = field(default_factory=dict)
    data_version: Any = None

    @property
    def horizon(self) -> int:
        """The position below which no row can become visible any more."""
        return min(self.missing, default=self.end)


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """The result of a poll: the cursor for the next poll, the store's time, the integrations that a cache must drop,
    and the events, in any order.

    `changed_ids` is None, and `events` empty, if the changes are unknown: in a first poll, and when they are too many.
    """

    cursor: ChangeCursor
    time: datetime
    changed_ids: frozenset[IntegrationId] | None = None
    events: Sequence[LoggedEvent] = ()


@dataclass(frozen=True, slots=True)
class ChangeRange:
    """Positions between two horizons, `low` included, `high` excluded. Its changes are final."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class EventFilter:
    """The user and the integration types whose events are wanted; None means all."""

    user_id: UserId | None = None
    integration_types: frozenset[str] | None = None

    def matches(self, event: IntegrationEvent) -> bool:
        """Whether the event is wanted."""
        return self.user_id in {None, event.user_id} and (
            self.integration_types is None or event.integration_type in self.integration_types
        )


class ChangeFeed(Protocol):
    """The log of changes that all replicas make to integrations, kept for some time."""

    @property
    def connection(self) -> int:
        """A number that differs once polls reach the store over another connection, maybe without an error between."""

    async def wait_for_change(self) -> None:
        """Return when the store notifies of a change. Notifications may be lost, and some stores have none."""

    async def poll(self, cursor: ChangeCursor | None, limit: int) -> ChangeBatch:
        """The changes that became visible since the poll that returned `cursor`, each once, at most `limit`.

        None as cursor begins at the end of the log. Raises `StoreUnavailable`.
        """

    async def read_events(
        self, positions: ChangeRange, after: int, event_filter: EventFilter, limit: int
    ) -> Sequence[LoggedEvent]:
        """The events of a range with a number above `after`, in the order of their numbers."""

    async def read_changed_ids(self, position: int, limit: int) -> frozenset[IntegrationId] | None:
        """The integrations that a cache must drop because of the changes that are visible at `position` and above.

        None if there are more than `limit` changes of any kind.
        """

    async def read_database_id(self) -> str:
        """The identity of the database, which a restore changes. Raises `StoreUnavailable`."""

    async def prune(self, retention: timedelta) -> int:
        """Delete some of the changes that are older, on the store's clock; returns how many. 0: none is left."""


class SharedFeed(Protocol):
    """The state of the change feed, which the process that `leads` shares with the other processes of this machine."""

    @property
    def leads(self) -> bool:
        """Whether it is this process."""

    @property
    def changes(self) -> int:
        """A number that differs after each poll that has found something."""

    @property
    def time(self) -> float:
        """When the last poll began, in monotonic seconds. To be read before `changes`."""

    def publish(self, poll_time: float, *, has_changes: bool) -> None:
        """Share the result of a poll with the other processes."""


class ChangeListener(Protocol):
    """A consumer of the change feed, notified of each change as soon as it is visible: a cache, or streams."""

    def apply_changes(self, integration_ids: Collection[IntegrationId] | None, poll_time: float) -> None:
        """These integrations changed (None: any may have), and no other until `poll_time`, in monotonic seconds."""
