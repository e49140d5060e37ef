"""Whose turn it is among those who wait for one provider."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from integration_server.domain.integration import IntegrationId, UserId


@dataclass(eq=False, slots=True)
class Waiter:
    """A call that waits for its turn."""

    user_id: UserId
    integration_id: IntegrationId
    permit: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairQueue:
    """Those who wait, by user and integration: users take turns, and so do a user's integrations."""

    def __init__(self) -> None:
        self._users: OrderedDict[UserId, OrderedDict[IntegrationId, deque[Waiter]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._users)

    def add(self, waiter: Waiter, *, at_front: bool) -> None:
        """Put one in; one whose turn was taken in vain goes in front of the others of its integration."""
        queue = self._users.setdefault(waiter.user_id, OrderedDict()).setdefault(waiter.integration_id, deque())
        if at_front:
            queue.appendleft(waiter)
        else:
            queue.append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take one out, and put its user and integration behind the others."""
        queues = self._users[waiter.user_id]
        queue = queues[waiter.integration_id]
        queue.remove(waiter)
        if queue:
            queues.move_to_end(waiter.integration_id)
        else:
            del queues[waiter.integration_id]
        if queues:
            self._users.move_to_end(waiter.user_id)
        else:
            del self._users[waiter.user_id]

    def heads(self) -> Iterator[Waiter]:
        """The first of each integration, in the order of their turns.

        One whose task was cancelled is in here until that task goes on, and is passed over meanwhile.
        """
        for queues in self._users.values():
            for queue in queues.values():
                yield from islice((waiter for waiter in queue if not waiter.permit.done()), 1)

    def count_ahead(self, user_id: UserId) -> int:
        """How many have their turn before one more of this user's has."""
        own = self._count(user_id)
        return own + sum(min(self._count(other), own + 1) for other in self._users if other != user_id)

    def count_waiting(self, user_id: UserId, integration_id: IntegrationId) -> int:
        """How many of the integration wait."""
        queues = self._users.get(user_id)
        return 0 if queues is None else len(queues.get(integration_id, ()))

    def _count(self, user_id: UserId) -> int:
        queues = self._users.get(user_id)
        return 0 if queues is None else sum(map(len, queues.values()))
