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
from integration_server.service.background.backoff import backoff
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.common_types import Clock, Jitter
from integration_server.service.integrations.ports import StoredIntegration
from integration_server.service.provider_port import Providers

JobHandler = Callable[[StoredIntegration], Awaitable[bool]]
"""Does the work for one integration; whether its provider is well, as far as that showed."""

_FAILURE_THRESHOLD = 5  # in a row, over all integrations of a provider: by then it is not about one of them
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one provider gets from one process: so many calls at once, and so many begun in a second."""

    max_concurrent: int
    per_second: float


class BackgroundWorker:
    """Does one kind of work. Within the context it may be running; leaving it ends what is under way.

    `claim_duration` is how long claimed work is nobody else's: longer than doing it takes.
    """

    def __init__(
        self,
        job_kind: JobKind,
        handler: JobHandler,
        due_work: DueWork,
        providers: Providers,
        clock: Clock,
        jitter: Jitter,
        *,
        limits: WorkerLimits,
        claim_duration: timedelta,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._job_kind = job_kind
        self._handler = handler
        self._agenda = due_work
        self._providers = providers
        self._clock = clock
        self._limits = limits
        self._claim_duration = claim_duration
        self._pause = pause
        self._log = structlog.get_logger(__name__)
        self._breakers: defaultdict[str, CircuitBreaker] = defaultdict(lambda: CircuitBreaker(jitter))
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

    async def poll(self) -> None:
        """Set about what is due, for each provider that is not being worked on already."""
        known = {provider.integration_type for provider in self._providers.all()}
        for integration_type in known.intersection(await self._agenda.due_types(self._job_kind, self._clock())):
            if integration_type not in self._running:
                task = asyncio.get_running_loop().create_task(self._run_jobs(integration_type), name=integration_type)
                self._running[integration_type] = task
                task.add_done_callback(lambda done: self._running.pop(done.get_name()))

    async def _run_jobs(self, integration_type: str) -> None:
        """Claim and do until nothing is due, or the provider needs a pause; what is claimed then is due again later."""
        breaker = self._breakers[integration_type]
        claimed: deque[StoredIntegration] = deque()
        async with asyncio.TaskGroup() as group:
            in_flight: set[asyncio.Task[None]] = set()
            while True:
                capacity = breaker.capacity(self._limits.max_concurrent, self._clock())
                if not claimed and len(in_flight) < capacity:
                    claimed.extend(await self._claim(integration_type, capacity))
                while claimed and len(in_flight) < capacity:
                    in_flight.add(group.create_task(self._run_job(claimed.popleft(), breaker)))
                    await self._pause(1 / self._limits.per_second)  # spread, so that callers of ours get their turn
                if not in_flight:
                    return
                _, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self, integration_type: str, capacity: int) -> list[StoredIntegration]:
        now = self._clock()
        with suppress(StoreUnavailable):  # the next look finds it due
            return list(
                await self._agenda.claim(self._job_kind, integration_type, now, now + self._claim_duration, capacity)
            )
        return []

    async def _run_job(self, stored: StoredIntegration, breaker: "CircuitBreaker") -> None:
        try:
            is_healthy = await self._handler(stored)
        except Exception as error:  # one integration's trouble must not end the others' work
            self._log.error(
                "background_job_failed",
                job_kind=self._job_kind.value,
                integration_id=stored.integration.integration_id,
                kind=type(error).__qualname__,
            )
            return
        breaker.record(is_healthy, self._clock())


class CircuitBreaker:
    """Leaves a provider alone that has failed many times in a row, and then tries it with one call at a time."""

    def __init__(self, jitter: Jitter) -> None:
        self._jitter = jitter
        self._failures = 0
        self._open_until: datetime | None = None

    def capacity(self, max_concurrent: int, now: datetime) -> int:
        """How many calls it may get at once."""
        if self._failures < _FAILURE_THRESHOLD:
            return max_concurrent
        return 1 if self._open_until is None or self._open_until <= now else 0

    def record(self, is_healthy: bool, now: datetime) -> None:
        """Count the outcome of a call."""
        self._failures = 0 if is_healthy else self._failures + 1
        if self._failures >= _FAILURE_THRESHOLD:
            pause = backoff(self._failures - _FAILURE_THRESHOLD + 1, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter)
            self._open_until = now + pause
