"""Keeps calls within what providers allow: a call waits for its turn, rather than being turned away at the provider.

How much a provider takes is declared, and learned from its answers: one that says wait is left alone until then, and
afterwards gets one call at a time, then two, then four; one that tells how much is left gets no more than that.

Turns are fair: the users who wait for a provider take them in a circle, so that one user's flood delays that user's
own calls. docs/calling.md says more.
"""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from integration_server.domain.calls import ApiAnswer, LimitScope, Quota, RateLimit
from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.backoff import backoff
from integration_server.service.ports import Jitter

_SHORTEST_PAUSE = 0.1  # seconds; a provider that says "wait" and "not at all" means something in between
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=1)
_RECOVERED = 64  # calls at once after a pause: from then on it is over
_SWEEP_EVERY = 1000  # turns


class SharedBudgets(Protocol):
    """Counts calls for several processes. It never fails: while it cannot count it lets calls go."""

    async def take(self, places: Sequence[tuple[str, RateLimit]]) -> float:
        """0 if a call was counted in each of the named places; else the seconds after which to ask again."""


class NothingShared:
    """For a process that is alone."""

    async def take(self, places: Sequence[tuple[str, RateLimit]]) -> float:
        """Let all calls go."""
        del places
        return 0.0


# --- one budget ------------------------------------------------------------------------------------------------------


class Window:
    """One declared limit: at most so many calls in any stretch of time as long as its window.

    A call takes a place from before it is sent until so long after its answer: its arrival at the provider lies
    somewhere between, so that the provider never counts more than we do.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._calls = limit.calls
        self._length = limit.window.total_seconds()
        self._under_way = 0
        self._ended: deque[float] = deque()

    def begin(self) -> None:
        """A call takes a place."""
        self._under_way += 1

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has been answered, or was not made after all."""
        self._under_way -= 1
        if was_sent:
            self._ended.append(now)

    def blocked(self, now: float) -> float:
        """Seconds until there may be a place; infinite if that hangs on calls under way."""
        self._forget(now)
        if self._free > 0:
            return 0.0
        return self._ended[0] + self._length - now if self._ended else math.inf

    def estimate(self, now: float, ahead: int) -> float:
        """At least so many seconds until a place is free for one who has so many ahead."""
        self._forget(now)
        missing = ahead - self._free
        if missing < 0:
            return 0.0
        rounds, place = divmod(missing, self._calls)
        first = self._ended[place] + self._length - now if place < len(self._ended) else self._length
        return rounds * self._length + first

    def is_empty(self, now: float) -> bool:
        """Whether nothing is counted."""
        self._forget(now)
        return not self._under_way and not self._ended

    @property
    def _free(self) -> int:
        return self._calls - self._under_way - len(self._ended)

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0] + self._length <= now:
            self._ended.popleft()


class Budget:
    """What may be called now of all that shares a budget: by its windows, and by what the provider's answers told."""

    def __init__(self, limits: Iterable[RateLimit], jitter: Jitter) -> None:
        self._windows = [Window(limit) for limit in limits]
        self._jitter = jitter
        self._under_way = 0
        self._pauses = 0
        self._paused_until = 0.0
        self._at_once: int | None = None
        self._left = 0
        self._left_until = 0.0

    def begin(self, now: float) -> None:
        """A call begins."""
        self._under_way += 1
        if now < self._left_until:
            self._left -= 1
        for window in self._windows:
            window.begin()

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has ended, or was not made after all."""
        self._under_way -= 1
        for window in self._windows:
            window.end(now, was_sent=was_sent)

    def learn(self, answer: ApiAnswer, now: float) -> None:
        """Take note of what an answer tells; the call is still under way."""
        if answer.asks_to_wait:
            self._pause(answer.retry_after, now)
        elif now >= self._paused_until:
            self._recover()
        for quota in answer.quotas:
            self._keep_to(quota, now)

    def _pause(self, retry_after: timedelta | None, now: float) -> None:
        if now >= self._paused_until:  # those who were under way when the first was told add nothing
            self._pauses += 1
        told = 0.0 if retry_after is None else retry_after.total_seconds()
        pause = told if told >= _SHORTEST_PAUSE else self._own_pause()
        self._paused_until = max(self._paused_until, now + pause)
        self._at_once = 1

    def _own_pause(self) -> float:
        return backoff(self._pauses, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter).total_seconds()

    def _recover(self) -> None:
        self._pauses = 0
        if self._at_once is not None:
            self._at_once = None if self._at_once >= _RECOVERED else 2 * self._at_once

    def _keep_to(self, quota: Quota, now: float) -> None:
        # Others under way may not have been counted by the provider yet.
        left = max(0, quota.remaining - (self._under_way - 1))
        if now >= self._left_until or left < self._left:
            self._left, self._left_until = left, now + quota.reset_after.total_seconds()

    def blocked(self, now: float) -> float:
        """Seconds until a call may begin; infinite if that hangs on calls under way."""
        if self._at_once is not None and self._under_way >= self._at_once and now >= self._paused_until:
            return math.inf
        return max(self.told_to_wait(now), *(window.blocked(now) for window in self._windows), 0.0)

    def told_to_wait(self, now: float) -> float:
        """Seconds for which the provider itself has said that it wants no call."""
        spent = self._left_until - now if self._left <= 0 else 0.0
        return max(0.0, self._paused_until - now, spent)

    def estimate(self, now: float, ahead: int) -> float:
        """At least so many seconds until a call may begin that has so many ahead."""
        return max(self.told_to_wait(now), *(window.estimate(now, ahead) for window in self._windows), 0.0)

    def is_empty(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        told = self.told_to_wait(now) or now < self._left_until or self._at_once is not None
        return not self._under_way and not told and all(window.is_empty(now) for window in self._windows)


# --- whose turn it is ------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Waiter:
    """A call that waits for its turn."""

    user_id: UserId
    integration_id: IntegrationId
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Queue:
    """Those who wait, by user and integration: users take turns, and so do a user's integrations."""

    def __init__(self) -> None:
        self._users: OrderedDict[UserId, OrderedDict[IntegrationId, deque[Waiter]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._users)

    def add(self, waiter: Waiter, *, in_front: bool) -> None:
        """Put one in; one whose turn was taken in vain goes in front of the others of its integration."""
        queue = self._users.setdefault(waiter.user_id, OrderedDict()).setdefault(waiter.integration_id, deque())
        if in_front:
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
        """The first of each integration, in the order of their turns."""
        for queues in self._users.values():
            for queue in queues.values():
                yield queue[0]

    def ahead_of(self, user_id: UserId) -> int:
        """How many have their turn before one more of this user's has."""
        own = self._of(user_id)
        return own + sum(min(self._of(other), own + 1) for other in self._users if other != user_id)

    def waiting_for(self, user_id: UserId, integration_id: IntegrationId) -> int:
        """How many of the integration wait."""
        queues = self._users.get(user_id)
        return 0 if queues is None else len(queues.get(integration_id, ()))

    def _of(self, user_id: UserId) -> int:
        queues = self._users.get(user_id)
        return 0 if queues is None else sum(map(len, queues.values()))


class Gate:
    """Lets the calls to one provider go, one after the other, when budgets allow."""

    def __init__(
        self,
        integration_type: str,
        limits: Sequence[RateLimit],
        shared: SharedBudgets,
        monotonic: Callable[[], float],
        jitter: Jitter,
    ) -> None:
        self._type = integration_type
        self._limits = {scope: [limit for limit in limits if limit.scope is scope] for scope in LimitScope}
        self._shared = shared
        self._shared_until = 0.0
        self._now = monotonic
        self._jitter = jitter
        self._app = Budget(self._limits[LimitScope.APP], jitter)
        self._budgets: dict[IntegrationId, Budget] = {}
        self._queue = Queue()
        self._pump: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._turns = 0

    @asynccontextmanager
    async def turn(self, integration: Integration, within: float, *, again: bool) -> AsyncIterator["Turn"]:
        """Wait for a turn at most so many seconds; the call is made in the block.

        Raises `RateLimited`, or `ProviderUnavailable` where the provider itself wants to be left alone for longer.
        """
        await self._wait(Waiter(integration.user_id, integration.integration_id), within, again=again)
        turn = Turn(self._learner(integration.integration_id), self._now)
        try:
            yield turn
        finally:
            self._end(integration.integration_id, was_sent=True)

    async def _wait(self, waiter: Waiter, within: float, *, again: bool) -> None:
        self._require_in_time(waiter, within)
        self._queue.add(waiter, in_front=again)
        self._wake()
        try:
            async with asyncio.timeout(within):
                await waiter.turn
        except TimeoutError:
            self._give_up(waiter)
            raise self._too_late(waiter, _SHORTEST_PAUSE, self._now()) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _require_in_time(self, waiter: Waiter, within: float) -> None:
        now = self._now()
        app = self._app.estimate(now, self._queue.ahead_of(waiter.user_id))
        own = self._budget_of(waiter.integration_id).estimate(
            now, self._queue.waiting_for(waiter.user_id, waiter.integration_id)
        )
        estimate = max(app, own, self._shared_until - now)
        if estimate > within:
            raise self._too_late(waiter, estimate, now)

    def _too_late(self, waiter: Waiter, estimate: float, now: float) -> RateLimited | ProviderUnavailable:
        told = max(self._app.told_to_wait(now), self._budget_of(waiter.integration_id).told_to_wait(now))
        if told >= estimate:
            return ProviderUnavailable("the provider wants no calls for now", retry_after=timedelta(seconds=told))
        return RateLimited(timedelta(seconds=estimate))

    def _give_up(self, waiter: Waiter) -> None:
        if waiter.turn.done() and not waiter.turn.cancelled():
            self._end(waiter.integration_id, was_sent=False)  # its turn came in the same moment
        else:
            waiter.turn.cancel()
            self._queue.remove(waiter)
            self._changed.set()

    # --- letting go

    def _wake(self) -> None:
        self._changed.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._let_go(), name=f"gate-{self._type}")

    async def _let_go(self) -> None:
        while self._queue:
            waiter, wait = self._next()
            if waiter is not None:
                wait = await self._shared.take(self._places(waiter.integration_id))
                if waiter.turn.done():
                    continue  # gave up meanwhile
                if wait <= 0:
                    self._queue.remove(waiter)
                    self._begin(waiter)
                    continue
                self._shared_until = self._now() + wait
            self._changed.clear()
            try:
                async with asyncio.timeout(None if math.isinf(wait) else wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _next(self) -> tuple[Waiter | None, float]:
        """Whose turn it is; or None, and the seconds after which to look again."""
        now = self._now()
        wait = max(self._app.blocked(now), self._shared_until - now)
        if wait > 0:
            return None, wait
        soonest = math.inf
        for waiter in self._queue.heads():
            blocked = self._budget_of(waiter.integration_id).blocked(now)
            if blocked <= 0:
                return waiter, 0.0
            soonest = min(soonest, blocked)
        return None, soonest

    def _places(self, integration_id: IntegrationId) -> Sequence[tuple[str, RateLimit]]:
        app = [(self._type, limit) for limit in self._limits[LimitScope.APP]]
        own = [(f"{self._type}/{integration_id}", limit) for limit in self._limits[LimitScope.INTEGRATION]]
        return [*app, *own]

    # --- counting

    def _begin(self, waiter: Waiter) -> None:
        now = self._now()
        self._app.begin(now)
        self._budget_of(waiter.integration_id).begin(now)
        waiter.turn.set_result(None)

    def _end(self, integration_id: IntegrationId, *, was_sent: bool) -> None:
        now = self._now()
        self._app.end(now, was_sent=was_sent)
        self._budgets[integration_id].end(now, was_sent=was_sent)
        self._changed.set()
        self._turns += 1
        if self._turns % _SWEEP_EVERY == 0:
            self._budgets = {key: budget for key, budget in self._budgets.items() if not budget.is_empty(now)}

    def _learner(self, integration_id: IntegrationId) -> Budget:
        """Whose budget answers tell of: where only the app has limits that is the app's, else the account's."""
        only_app = self._limits[LimitScope.APP] and not self._limits[LimitScope.INTEGRATION]
        return self._app if only_app else self._budgets[integration_id]

    def _budget_of(self, integration_id: IntegrationId) -> Budget:
        budget = self._budgets.get(integration_id)
        if budget is None:
            limits = self._limits[LimitScope.INTEGRATION]
            budget = self._budgets[integration_id] = Budget(limits, self._jitter)
        return budget


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to make one call."""

    _budget: Budget
    _now: Callable[[], float]

    def answered(self, answer: ApiAnswer) -> timedelta:
        """Say what came of it; for how long the provider wants no further call."""
        self._budget.learn(answer, self._now())
        return timedelta(seconds=self._budget.told_to_wait(self._now()))


class Throttling:
    """The gates of all providers. `monotonic` tells seconds."""

    def __init__(self, shared: SharedBudgets, monotonic: Callable[[], float], jitter: Jitter) -> None:
        self._shared = shared
        self._monotonic = monotonic
        self._jitter = jitter
        self._gates: dict[str, Gate] = {}

    def gate(self, integration_type: str, limits: Sequence[RateLimit]) -> Gate:
        """The gate to a provider with these limits."""
        if integration_type not in self._gates:
            self._gates[integration_type] = Gate(integration_type, limits, self._shared, self._monotonic, self._jitter)
        return self._gates[integration_type]
