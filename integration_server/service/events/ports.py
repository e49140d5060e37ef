"""The record of what happened to integrations, and who did it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from integration_server.domain.audit import AuditEntry
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import UserId


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What became visible between two looks: numbers that mean something to the store only. `low` belongs to it,
    `high` does not; it is that of the next batch."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event and its number, by which the events of a batch are ordered."""

    number: int
    event: IntegrationEvent


@dataclass(frozen=True, slots=True)
class EventPage:
    """A batch that ends now, with the first of its events, and the store's own time."""

    batch: EventBatch
    time: datetime
    events: Sequence[LoggedEvent]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Whose events, and of which types; None means all."""

    user_id: UserId | None = None
    integration_types: frozenset[str] | None = None

    def matches(self, event: IntegrationEvent) -> bool:
        """Whether an event is among them."""
        return self.user_id in {None, event.user_id} and (
            self.integration_types is None or event.integration_type in self.integration_types
        )


class EventLog(Protocol):
    """What happened to integrations, in the order in which it became visible; kept for some time.

    A batch that was ended by a look never changes afterwards, and nothing appears before its end.
    """

    async def high_water_mark(self) -> tuple[int, datetime]:
        """Where a batch that ends now has its end, and the store's own time."""

    async def read_page(self, low: int, limit: int) -> EventPage:
        """The batch from there up to now, for the one who looks all the time."""

    async def read(self, batch: EventBatch, after: int, event_filter: EventFilter, limit: int) -> Sequence[LoggedEvent]:
        """Events of a batch with a number above `after`."""

    async def prune(self, retention: timedelta) -> int:
        """Forget some of what is older, on the store's own clock; how much it was. 0: nothing is left."""


class AuditLog(Protocol):
    """Where the audit trail is kept: only ever added to."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Keep entries, all or none, in this order. One call at a time. Raises `StoreUnavailable`."""
