"""The queue of calls that wait for one provider, fair between users."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from integration_server.domain.integration import IntegrationId, UserId

Lane: TypeAlias = tuple[IntegrationId, str]
"""An integration, and the resource of a call: a part of the API that has rate limits of its own; empty for none."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A call that waits. `permit` is completed when the call may start."""

    user_id: UserId
    integration_id: IntegrationId
    resource: str = ""
    permit: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def lane(self) -> Lane:
        """The queue of the call: a resource whose limit is reached delays no call of another one."""
        return self.integration_id, self.resource


_EMPTY: Mapping[Lane, deque[Waiter]] = {}


class FairQueue:
    """Waiting calls by user, integration and resource. Users take turns, and so do the integrations of a user."""

    def __init__(self) -> None:
        self._users: OrderedDict[UserId, OrderedDict[Lane, deque[Waiter]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._users)

    def add(self, waiter: Waiter, *, at_front: bool) -> None:
        """Append a waiter to its integration's calls. `at_front` is for the retry of a call that had its turn."""
        queue = self._users.setdefault(waiter.user_id, OrderedDict()).setdefault(waiter.lane, deque())
        queue.insert(0 if at_front else len(queue), waiter)

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter, and move its user and integration behind the others."""
        queues = self._users[waiter.user_id]
        queue = queues[waiter.lane]
        queue.remove(waiter)
        queues.move_to_end(waiter.lane)
        self._users.move_to_end(waiter.user_id)
        if not queue:
            del queues[waiter.lane]
        if not queues:
            del self._users[waiter.user_id]

    def heads(self) -> Iterator[Waiter]:
        """The first waiter of each lane, in the order of their turns.

        A waiter whose task was cancelled stays in the queue until that task runs, and is skipped until then.
        """
        for queues in self._users.values():
            for queue in queues.values():
                waiter = next((waiter for waiter in queue if not waiter.permit.done()), None)
                if waiter is not None:
                    yield waiter

    def count_ahead(self, user_id: UserId) -> int:
        """The number of waiters whose turn is before that of one more waiter of the user."""
        own = self._count(user_id)
        return own + sum(min(self._count(other), own + 1) for other in self._users if other != user_id)

    def count_waiting(self, user_id: UserId, lane: Lane) -> int:
        """The number of waiters of an integration's resource."""
        return len(self._users.get(user_id, _EMPTY).get(lane, ()))

    def _count(self, user_id: UserId) -> int:
        return sum(map(len, self._users.get(user_id, _EMPTY).values()))
