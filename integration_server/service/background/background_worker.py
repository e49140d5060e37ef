"""The background worker: claims due work of every job and runs the job's handler.

There is no leader. Each process polls for due rows and claims a few at a time. While a claim lasts, no other process
does the same work; a row that a crashed process had claimed is then claimed again, for longer each time, so that a row
whose work ends the process does so ever less often. Each job and OAuth client has a concurrency limit and a circuit
breaker of its own, so that one slow or failing provider, or one client that its provider refuses, delays no other. A
type of due work is the key of a client, or the name of a singleton job.

All jobs and types share one budget (`WorkBudget`): a backlog of due work delays no RPC, whatever number of providers
it is of.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self

import structlog

from integration_server.domain.due_times import backoff
from integration_server.domain.errors import IntegrationServerError, StoreUnavailable
from integration_server.domain.oauth_client import type_of_key
from integration_server.service.background.ports import Claim, DueWork, JobKind
from integration_server.service.common_types import Clock, Jitter
from integration_server.service.provider_port import ProviderSet

JobHandler = Callable[[Claim[Any]], Awaitable[bool]]
"""Does the work for one claimed row. Returns False if the provider failed in a way that concerns all its integrations.

The handler stores the next due time with the outcome of its work. If it returns False or raises, and has stored none,
the worker postpones the row, so that rows without an outcome delay no others. An `IntegrationServerError` concerns this
row only.
"""

_FAILURE_THRESHOLD = 5  # in a row, over all rows of a type: one row alone is not the cause
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(seconds=30)  # so that all integrations recover within a minute after their provider


_MAX_FULL_TYPES = 8
"""How many types have all their concurrent handlers at a time. If more have due work, each has a share of as many."""

_IDLE_TIME = 2.0
"""How long the event loop is left to itself for each second that it was busy. It follows that background work uses
what RPCs leave of half of the loop's time."""

_MAX_GROUP = 4
"""How many handlers of a type start at once while the event loop is not busy. A refresh then costs about a tenth less,
because its code is still in the caches. More would hold the loop for longer: a step takes up to half a millisecond."""

_SHORT_PAUSE = 0.05
"""In seconds. A longer pause is due while the loop is busy: then handlers start one after the other."""

_SLOWEST = 0.05
"""The share of `per_second` that is started however busy RPCs keep the loop: else tokens would expire."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits of one process.

    `max_concurrent` is the number of handlers at a time for each job and type, `per_second` the handlers started in a
    second for all together. Without `yields`, a negative control, they are started however busy the event loop is.
    """

    max_concurrent: int
    per_second: float
    yields: bool = True


class WorkBudget:
    """The budget of all jobs and types: when the next handler may start, and how many of a type may run.

    Types take turns. Before each start the event loop has a pause, which grows with the time that the loop's thread was
    busy since the one before, with RPCs or handlers alike. While the loop is not busy, a few handlers start at once,
    after as many pauses.
    """

    def __init__(
        self,
        limits: WorkerLimits,
        pause: Callable[[float], Awaitable[None]],
        busy_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._limits = limits
        self._pause = pause
        self._busy_time = busy_time
        self._turns = asyncio.Lock()  # its waiters are served in their order
        self._busy = busy_time()
        self._last_group = 1

    def share(self, type_count: int) -> int:
        """The handlers of a type at a time while this many types have due work."""
        fair = _MAX_FULL_TYPES * self._limits.max_concurrent // max(1, type_count)
        return max(1, min(self._limits.max_concurrent, fair))

    async def take_turn(self, wanted: int = 1) -> int:
        """Wait until handlers may start. Returns how many: at most `wanted`, and one while the loop is busy."""
        async with self._turns:
            shortest = 1 / self._limits.per_second
            longest = self._last_group * (shortest / _SLOWEST if self._limits.yields else shortest)
            busy = self._busy_time() - self._busy
            self._busy += busy
            idle = _IDLE_TIME * busy
            group = 1 if self._limits.yields and idle > _SHORT_PAUSE else min(wanted, _MAX_GROUP)
            await self._pause(min(max(group * shortest, idle), max(longest, group * shortest)))
            self._last_group = group
            return group


@dataclass(frozen=True, slots=True)
class DueJob:
    """A job of the worker.

    `claim_duration` must be longer than one run of the handler takes. With `needs_provider`, the job skips rows whose
    type is not a provider of this process; another replica may have that provider.
    """

    kind: JobKind
    handler: JobHandler
    claim_duration: timedelta
    needs_provider: bool = True


async def _never_wait() -> None:
    """Without an audit trail, no entry waits for room."""


@dataclass(eq=False, repr=False)
class BackgroundWorker:
    """Runs the due work of all jobs. It works while its context is entered; leaving the context cancels handlers."""

    jobs: Iterable[DueJob]
    due_work: DueWork
    providers: ProviderSet
    clock: Clock
    jitter: Jitter
    _: KW_ONLY
    limits: WorkerLimits
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    busy_time: Callable[[], float] = time.thread_time  # seconds for which the event loop's thread was busy
    wait_for_audit: Callable[[], Awaitable[None]] = _never_wait  # raises `StoreUnavailable`

    def __post_init__(self) -> None:
        self._budget = WorkBudget(self.limits, self.pause, self.busy_time)
        self._jobs = {job.kind: job for job in self.jobs}
        self._log = structlog.get_logger(__name__)
        self._breakers: defaultdict[tuple[JobKind, str], CircuitBreaker] = defaultdict(
            lambda: CircuitBreaker(self.jitter)
        )
        self._running: dict[tuple[JobKind, str], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def open_breakers(self) -> Sequence[tuple[JobKind, str]]:
        """The jobs and types whose calls are stopped, or tried one at a time."""
        return [key for key, breaker in list(self._breakers.items()) if breaker.is_open]

    async def poll(self) -> None:
        """Start the due work of each job and type that is not running already."""
        provider_types = {provider.integration_type for provider in self.providers.all()}
        # In another order each time: if there are too many types for one poll, none of them is always the last.
        for key in sorted(await self.due_work.due_types(), key=lambda _: self.jitter()):
            job, integration_type = self._jobs.get(key[0]), type_of_key(key[1])
            if job is None or key in self._running or (job.needs_provider and integration_type not in provider_types):
                continue
            if len(self._running) >= _MAX_FULL_TYPES * self.limits.max_concurrent:
                return
            task = asyncio.get_running_loop().create_task(self._run_jobs(job, key[1]))
            self._running[key] = task
            task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: tuple[JobKind, str], _task: asyncio.Task[None]) -> None:
        del self._running[key]

    async def _run_jobs(self, job: DueJob, job_type: str) -> None:
        """Claim and run until nothing is due, the circuit breaker is open, or the worker stops."""
        breaker = self._breakers[job.kind, job_type]
        async with self._unstarted_claims() as claimed, asyncio.TaskGroup() as group:
            in_flight: set[asyncio.Task[None]] = set()
            while True:
                capacity = breaker.capacity(self._budget.share(len(self._running)), self.clock())
                if not claimed and len(in_flight) < capacity:
                    claimed.extend(await self._claim(job, job_type, capacity))
                while claimed and len(in_flight) < capacity:
                    for _ in range(await self._budget.take_turn(min(len(claimed), capacity - len(in_flight)))):
                        in_flight.add(group.create_task(self._run_job(job, claimed.popleft(), breaker)))
                if not in_flight:
                    return
                _, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)

    @asynccontextmanager
    async def _unstarted_claims(self) -> AsyncIterator[deque[Claim[Any]]]:
        """A queue for claims. Those that are left in it are released: else they would be taken for abandoned work."""
        claimed: deque[Claim[Any]] = deque()
        try:
            yield claimed
        finally:
            if claimed:
                with suppress(StoreUnavailable):  # they expire by themselves
                    await self.due_work.release(claimed)

    async def _claim(self, job: DueJob, job_type: str, limit: int) -> Iterable[Claim[Any]]:
        try:
            await self.wait_for_audit()  # before the work, whose audit entries are queued in any case
            claims = await self.due_work.claim(job.kind, job_type, limit, claim_duration=job.claim_duration)
        except StoreUnavailable:  # the rows are still due at the next poll
            return ()
        for claim in claims:
            if claim.expired_claims:
                fields = {"job_kind": job.kind.value, "job_type": job_type, "row_id": claim.row_id}
                self._log.warning("background_job_abandoned", **fields, expired_claims=claim.expired_claims)
        return claims

    async def _run_job(self, job: DueJob, claim: Claim[Any], breaker: "CircuitBreaker") -> None:
        has_outcome = False
        try:
            has_outcome = await job.handler(claim)
            breaker.record(has_outcome, self.clock())
        except StoreUnavailable:
            pass  # says nothing about the provider
        except IntegrationServerError:
            breaker.record(True, self.clock())
        except Exception as error:  # a failure of one row must not end the work on the others
            self._log.error(
                "background_job_failed",
                job_kind=job.kind.value,
                row_id=claim.row_id,
                kind=type(error).__qualname__,
            )
        if not has_outcome:
            with suppress(StoreUnavailable):  # the row is due when the claim expires
                await self.due_work.postpone(claim, job.claim_duration)


class CircuitBreaker:
    """Stops calls after many failures in a row, and then allows one trial call after each pause."""

    def __init__(self, jitter: Jitter) -> None:
        self._jitter = jitter
        self._failures = 0
        self._open_until: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last calls have failed."""
        return self._failures >= _FAILURE_THRESHOLD

    def capacity(self, max_concurrent: int, now: datetime) -> int:
        """The number of calls allowed at a time: 0 while open, 1 for a trial, else `max_concurrent`."""
        if not self.is_open:
            return max_concurrent
        return 1 if self._open_until is None or self._open_until <= now else 0

    def record(self, is_healthy: bool, now: datetime) -> None:
        """Count the outcome of a call."""
        self._failures = 0 if is_healthy else self._failures + 1
        if self.is_open:
            pause = backoff(self._failures - _FAILURE_THRESHOLD + 1, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter)
            self._open_until = now + pause
