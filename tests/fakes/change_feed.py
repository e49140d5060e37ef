"""A change feed whose changes a test records itself."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import IntegrationId
from integration_server.service.events.ports import ChangeBatch, ChangeCursor, ChangeRange, EventFilter, LoggedEvent
from tests.fakes.clock import NOON


class FakeChangeFeed:
    """A `ChangeFeed` without events. A change's index is its position."""

    def __init__(self) -> None:
        self.changed_ids: list[IntegrationId] = []
        self.polls = 0
        self.database_id = "one"
        self.connection = 1
        self.is_unavailable = False
        self.notified = asyncio.Event()

    async def wait_for_change(self) -> None:
        """Wait for `notified`."""
        await self.notified.wait()
        self.notified.clear()

    async def poll(self, cursor: ChangeCursor | None, limit: int) -> ChangeBatch:
        """The changes after the cursor."""
        self.polls += 1
        self.notified.clear()
        if self.is_unavailable:
            raise StoreUnavailable
        after = ChangeCursor(len(self.changed_ids))
        return ChangeBatch(after, NOON, None if cursor is None else frozenset(self.changed_ids[cursor.end :]))

    async def read_events(
        self, positions: ChangeRange, after: int, event_filter: EventFilter, limit: int
    ) -> Sequence[LoggedEvent]:
        """No events."""
        return ()

    async def read_changed_ids(self, position: int, limit: int) -> frozenset[IntegrationId] | None:
        """The changes at the position and above."""
        changed = self.changed_ids[position:]
        return None if len(changed) > limit else frozenset(changed)

    async def read_database_id(self) -> str:
        """The id that the test has set."""
        return self.database_id

    async def prune(self, retention: timedelta) -> int:
        """Delete nothing."""
        return 0
