"""Work that the server does by itself when it is due: refreshing ahead of need, and checking health.

There is no leader. Every process looks for what is due and claims a little of it; a claim moves the due time ahead, so
that nobody else does the same, and what a crashed process had claimed is due again. Each provider has a number of
places of its own, so that one that hangs holds up no other, and one that only fails is left alone for a while.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import structlog

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.backoff import backoff
from integration_server.service.ports import Agenda, Clock, Jitter, Providers, StoredIntegration, Work

Do = Callable[[StoredIntegration], Awaitable[bool]]
"""Does the work for one integration; whether its provider is well, as far as that showed."""

_FAILURES = 5  # in a row, over all integrations of a provider: by then it is not about one of them
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Pace:
    """What one provider gets from one process: so many calls at once, and so many begun in a second."""

    at_once: int
    per_second: float


class Upkeep:
    """Does one kind of work. Within the context it may be running; leaving it ends what is under way.

    `hold` is how long claimed work is nobody else's: longer than doing it takes.
    """

    def __init__(
        self,
        work: Work,
        do: Do,
        agenda: Agenda,
        providers: Providers,
        clock: Clock,
        jitter: Jitter,
        *,
        pace: Pace,
        hold: timedelta,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._work = work
        self._do = do
        self._agenda = agenda
        self._providers = providers
        self._clock = clock
        self._pace = pace
        self._hold = hold
        self._pause = pause
        self._log = structlog.get_logger(__name__)
        self._breakers: defaultdict[str, Breaker] = defaultdict(lambda: Breaker(jitter))
        self._running: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._running)

    async def look(self) -> None:
        """Set about what is due, for each provider that is not being worked on already."""
        known = {provider.integration_type for provider in self._providers.all()}
        for integration_type in known.intersection(await self._agenda.due_types(self._work, self._clock())):
            if integration_type not in self._running:
                task = asyncio.get_running_loop().create_task(self._work_off(integration_type), name=integration_type)
                self._running[integration_type] = task
                task.add_done_callback(lambda done: self._running.pop(done.get_name()))

    async def _work_off(self, integration_type: str) -> None:
        """Claim and do until nothing is due, or the provider needs a pause; what is claimed then is due again later."""
        breaker = self._breakers[integration_type]
        claimed: deque[StoredIntegration] = deque()
        async with asyncio.TaskGroup() as group:
            under_way: set[asyncio.Task[None]] = set()
            while True:
                places = breaker.places(self._pace.at_once, self._clock())
                if not claimed and len(under_way) < places:
                    claimed.extend(await self._claim(integration_type, places))
                while claimed and len(under_way) < places:
                    under_way.add(group.create_task(self._do_one(claimed.popleft(), breaker)))
                    await self._pause(1 / self._pace.per_second)  # spread, so that callers of ours get their turn
                if not under_way:
                    return
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self, integration_type: str, places: int) -> list[StoredIntegration]:
        now = self._clock()
        with suppress(StoreUnavailable):  # the next look finds it due
            return list(await self._agenda.claim(self._work, integration_type, now, now + self._hold, places))
        return []

    async def _do_one(self, stored: StoredIntegration, breaker: "Breaker") -> None:
        try:
            is_well = await self._do(stored)
        except Exception as error:  # one integration's trouble must not end the others' work
            self._log.error(
                "upkeep_failed",
                work=self._work.value,
                integration_id=stored.integration.integration_id,
                kind=type(error).__qualname__,
            )
            return
        breaker.note(is_well, self._clock())


class Breaker:
    """Leaves a provider alone that has failed many times in a row, and then tries it with one call at a time."""

    def __init__(self, jitter: Jitter) -> None:
        self._jitter = jitter
        self._failures = 0
        self._closed_until: datetime | None = None

    def places(self, at_once: int, now: datetime) -> int:
        """How many calls it may get at once."""
        if self._failures < _FAILURES:
            return at_once
        return 1 if self._closed_until is None or self._closed_until <= now else 0

    def note(self, is_well: bool, now: datetime) -> None:
        """Count the outcome of a call."""
        self._failures = 0 if is_well else self._failures + 1
        if self._failures >= _FAILURES:
            pause = backoff(self._failures - _FAILURES + 1, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter)
            self._closed_until = now + pause
