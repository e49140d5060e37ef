"""Keeps calls within what providers allow: a call waits for its turn, rather than being turned away at the provider.

How much a provider takes is declared, and learned from its answers: one that says wait is left alone until then, and
afterwards gets one call at a time, then two, then four; one that tells how much is left gets no more than that.

Turns are fair: the users who wait for a provider take them in a circle, so that one user's flood delays that user's
own calls. docs/calling.md says more.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from integration_server.domain.calls import ApiAnswer, LimitScope, RateLimit
from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.budgets import SHORTEST_PAUSE, Budget
from integration_server.service.ports import Jitter, Provider
from integration_server.service.turns import Queue, Waiter

_SWEEP_EVERY = 1000  # turns


@dataclass(frozen=True, slots=True)
class Full:
    """A place in which no further call is counted for so many seconds."""

    name: str
    wait: float


class SharedBudgets(Protocol):
    """Counts calls for several processes. It never fails: while it cannot count it lets calls go."""

    async def take(self, places: Sequence[tuple[str, RateLimit]]) -> "Full | None":
        """None if a call was counted in each of the named places; else one that is full."""


class NothingShared:
    """For a process that is alone."""

    async def take(self, places: Sequence[tuple[str, RateLimit]]) -> Full | None:
        """Let all calls go."""
        del places
        return None


class Gate:
    """Lets the calls to one provider go, one after the other, when budgets allow."""

    def __init__(
        self,
        integration_type: str,
        limits: Sequence[RateLimit],
        shared: SharedBudgets,
        monotonic: Callable[[], float],
        jitter: Jitter,
        *,
        calls_at_once: int | None = None,
    ) -> None:
        self._type = integration_type
        self._calls_at_once = calls_at_once
        self._limits = {scope: [limit for limit in limits if limit.scope is scope] for scope in LimitScope}
        self._shared = shared
        self._full_until: dict[str, float] = {}
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
        self._require_in_time(waiter, within, again=again)
        self._queue.add(waiter, in_front=again)
        self._wake()
        try:
            async with asyncio.timeout(within):
                await waiter.turn
        except TimeoutError:
            self._give_up(waiter)
            raise self._too_late(waiter, SHORTEST_PAUSE, self._now()) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _require_in_time(self, waiter: Waiter, within: float, *, again: bool) -> None:
        now = self._now()
        user_id, integration_id = waiter.user_id, waiter.integration_id
        in_app, in_own = self._queue.ahead_of(user_id), self._queue.waiting_for(user_id, integration_id)
        if again:
            in_app = in_own = 0  # it goes in front
        app = self._app.estimate(now, in_app)
        own = self._budget_of(integration_id).estimate(now, in_own)
        estimate = max(app, own, self._full_for(self._type, now), self._full_for(self._own_name(integration_id), now))
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
                full = await self._shared.take(self._places(waiter.integration_id))
                if full is not None:
                    self._full_until[full.name] = self._now() + full.wait
                elif not waiter.turn.done():  # did not give up meanwhile
                    self._queue.remove(waiter)
                    self._begin(waiter)
                continue
            self._changed.clear()
            try:
                async with asyncio.timeout(None if math.isinf(wait) else wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _next(self) -> tuple[Waiter | None, float]:
        """Whose turn it is; or None, and the seconds after which to look again."""
        now = self._now()
        wait = max(self._app.blocked(now), self._full_for(self._type, now))
        if wait > 0:
            return None, wait
        soonest = math.inf
        for waiter in self._queue.heads():
            own = self._budget_of(waiter.integration_id).blocked(now)
            blocked = max(own, self._full_for(self._own_name(waiter.integration_id), now))
            if blocked <= 0:
                return waiter, 0.0
            soonest = min(soonest, blocked)
        return None, soonest

    def _places(self, integration_id: IntegrationId) -> Sequence[tuple[str, RateLimit]]:
        app = [(self._type, limit) for limit in self._limits[LimitScope.APP]]
        own = [(self._own_name(integration_id), limit) for limit in self._limits[LimitScope.INTEGRATION]]
        return [*app, *own]

    def _own_name(self, integration_id: IntegrationId) -> str:
        return f"{self._type}/{integration_id}"

    def _full_for(self, name: str, now: float) -> float:
        """Seconds for which a shared place is full, as far as is known."""
        return self._full_until.get(name, 0.0) - now

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
            self._full_until = {name: until for name, until in self._full_until.items() if until > now}

    def _learner(self, integration_id: IntegrationId) -> Budget:
        """Whose budget answers tell of: where only the app has limits that is the app's, else the account's."""
        only_app = self._limits[LimitScope.APP] and not self._limits[LimitScope.INTEGRATION]
        return self._app if only_app else self._budgets[integration_id]

    def _budget_of(self, integration_id: IntegrationId) -> Budget:
        budget = self._budgets.get(integration_id)
        if budget is None:
            limits = self._limits[LimitScope.INTEGRATION]
            budget = self._budgets[integration_id] = Budget(limits, self._jitter, self._calls_at_once)
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

    def gate(self, provider: Provider) -> Gate:
        """The gate to a provider, within its limits."""
        integration_type = provider.integration_type
        if integration_type not in self._gates:
            self._gates[integration_type] = Gate(
                integration_type,
                provider.rate_limits,
                self._shared,
                self._monotonic,
                self._jitter,
                calls_at_once=provider.calls_at_once,
            )
        return self._gates[integration_type]
