"""Wires the metrics of the server's process: what is read from its objects, and from the database at intervals."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from operator import attrgetter

from integration_server.domain.oauth_client import type_of_key
from integration_server.observability.metrics import METRICS, UNKNOWN, Metric, Metrics, Sample
from integration_server.providers.base import BaseProvider
from integration_server.rpc.call_log import CallLog
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.background_worker import BackgroundWorker
from integration_server.service.background.ports import JobKind
from integration_server.service.common_types import Clock
from integration_server.service.credentials.integration_lookup import CachedLookup
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.settings import Settings
from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database
from integration_server.storage.integration_counts import IntegrationCount, count_batch
from integration_server.storage.refresh_journal import FileRefreshJournal
from integration_server.wiring.system import monotonic

SAMPLE_INTERVAL = timedelta(seconds=1)
"""The interval between two statements of the count."""

_GRANT_ENDS = (timedelta(days=7), timedelta(days=30))
_BATCH = 2_000  # rows, which take a database some milliseconds: a million are counted in less than nine minutes
_MIN_INTERVAL = 15.0  # seconds between the beginnings of two counts, and between the other statements
_MAX_AGE = 60.0  # seconds after which what was read is no longer reported, because the event loop hangs


def read_metrics(
    metrics: Metrics,
    settings: Settings,
    providers: Sequence[BaseProvider],
    database: Database,
    reader: ChangeFeedReader,
    worker: BackgroundWorker,
    trail: AuditTrail,
    clock: Clock,
) -> "DatabaseSampler":
    """Read the metrics that have a state from these objects. Returns what has to poll the database."""
    metrics.types.update(provider.integration_type for provider in providers)
    journal = FileRefreshJournal(settings.refresh_journal_dir)
    sampler = DatabaseSampler(database, SqlDueWork(database), journal, metrics.types, clock, monotonic)
    metrics.read(
        sampler.read,
        partial(read_audit, trail, clock),
        partial(read_events, reader),
        partial(read_breakers, worker),
        partial(read_facts, providers, clock),
    )
    return sampler


def read_calls(call_log: CallLog) -> Iterator[Sample]:
    """The calls that were not served, by their outcome."""
    for outcome, count in call_log.counts.items():
        yield METRICS.calls_not_served, (outcome,), count


def read_audit(trail: AuditTrail, clock: Clock) -> Iterator[Sample]:
    """The audit entries that are not written yet."""
    yield METRICS.audit_lag, (), max(0.0, trail.queue.age(clock()).total_seconds())
    yield METRICS.audit_pending, (), len(trail.queue)


def read_cache(lookup: CachedLookup) -> Iterator[Sample]:
    """The lookups in the credentials cache."""
    yield METRICS.cache_lookups, ("hit",), lookup.hits
    yield METRICS.cache_lookups, ("miss",), lookup.misses


def read_events(reader: ChangeFeedReader) -> Iterator[Sample]:
    """The change feed and the streams."""
    if (lag := reader.lag) is not None:
        yield METRICS.feed_lag, (), lag
    waiting = reader.events.waiting_counts
    yield METRICS.streams, (), len(waiting)
    yield METRICS.stream_waiting, (), max(waiting, default=0)


def read_breakers(worker: BackgroundWorker) -> Iterator[Sample]:
    """The open circuit breakers; 0 for each job, so that the series exists before the first one opens."""
    for kind in JobKind:
        yield METRICS.breakers_open, (kind.value, ""), 0.0
    for kind, job_type in worker.open_breakers():
        yield METRICS.breakers_open, (kind.value, _type_of(kind, job_type)), 1.0


def read_facts(providers: Sequence[BaseProvider], clock: Clock) -> Iterator[Sample]:
    """The facts about providers that end."""
    now = clock()
    for provider in providers:
        for fact in provider.facts_ending_by(date.max):
            remaining = datetime.combine(fact.end, time(), UTC) - now
            yield METRICS.fact_remaining, (provider.integration_type, fact.subject), remaining.total_seconds()


def _type_of(kind: JobKind, job_type: str) -> str:
    """The integration type of due work; a singleton job has none."""
    return "" if kind is JobKind.KEY_ROTATION else type_of_key(job_type)


@dataclass(eq=False)
class DatabaseSampler:
    """Reads the state of the installation from the database: `poll` runs a bounded statement, or a few, at a time.

    What it has read is reported while the database responds. `types` are those of this server; others are counted
    together.
    """

    database: Database
    due_work: SqlDueWork
    journal: FileRefreshJournal
    types: set[str]
    clock: Clock
    monotonic: Callable[[], float]
    _: KW_ONLY
    batch: int = _BATCH
    min_interval: float = _MIN_INTERVAL
    max_age: float = _MAX_AGE

    def __post_init__(self) -> None:
        self._counting: list[IntegrationCount] | None = None
        self._count_due = self._states_due = self._count_time = self._read_time = self.monotonic()
        self._counted: Sequence[Sample] | None = None
        self._states: Sequence[Sample] = ()
        self._is_up: bool | None = None

    async def poll(self) -> None:
        """Read what is due. Raises `StoreUnavailable`."""
        self._read_time = self.monotonic()
        try:
            if self._states_due <= self._read_time:
                self._states_due = self._read_time + self.min_interval
                self._states = await self._read_states()
                self._is_up = True
            await self._count()
            self._is_up = True
        except BaseException:
            self._is_up = False
            self._states_due, self._counting = self._read_time, None
            raise

    def read(self) -> Iterator[Sample]:
        """What was read last; only that the database is down, while it is."""
        if self._is_up is None or self.monotonic() - self._read_time > self.max_age:
            return
        yield METRICS.database_up, (), float(self._is_up)
        if self._is_up:
            yield from self._states
            if self._counted is not None:
                yield from self._counted
                yield METRICS.count_age, (), self.monotonic() - self._count_time

    async def _read_states(self) -> Sequence[Sample]:
        samples: list[Sample] = [(METRICS.journal_entries, (), await self.journal.count())]
        for (kind, job_type), age in (await self.due_work.oldest_ages()).items():
            samples.append((METRICS.due_age, (kind.value, _type_of(kind, job_type)), age.total_seconds()))
        for key in filter(attrgetter("is_active"), await describe_data_keys(self.database)):
            samples.append((METRICS.data_key_age, (), (key.now - key.active_time).total_seconds()))  # noqa: PERF401  # one
        return samples

    async def _count(self) -> None:
        """Count the next batch, or begin a new count when it is due."""
        if self._counting is None:
            if self._count_due > self.monotonic():
                return
            self._count_due, self._counting = self.monotonic() + self.min_interval, []
        after = max((group.last_id for group in self._counting), default=0)
        groups = await count_batch(self.database, after, self.batch, self.clock(), _GRANT_ENDS)
        self._counting = _added(self._counting, groups)
        if sum(group.count for group in groups) < self.batch:
            self._counted, self._counting = list(self._samples(self._counting)), None
            self._count_time = self.monotonic()

    def _samples(self, groups: Sequence[IntegrationCount]) -> Iterator[Sample]:
        values = Counter[tuple[Metric, tuple[str, ...]]]()
        for group in groups:
            name = group.integration_type if group.integration_type in self.types else UNKNOWN
            values[METRICS.integrations, (name, group.status)] += group.count
            values[METRICS.refresh_failing, (name,)] += group.refresh_failing
            values[METRICS.grants_ending, (name, "7d")] += group.ending_soon
            values[METRICS.grants_ending, (name, "30d")] += group.ending_later
            values[METRICS.consumer_lag, (name,)] += group.unacknowledged
        for (metric, labels), value in values.items():
            yield metric, labels, value


def _added(groups: Sequence[IntegrationCount], more: Sequence[IntegrationCount]) -> list[IntegrationCount]:
    """The sums of groups with the same type and status."""
    sums: dict[tuple[str, str], IntegrationCount] = {}
    for group in (*groups, *more):
        key = group.integration_type, group.status
        sums[key] = sums[key] + group if key in sums else group
    return list(sums.values())
