"""The metrics of this server: their declarations, and the numbers of one process.

A metric is declared here and nowhere else. What happens is recorded with a function of `Metrics`; what has a state (a
queue, a cache) is read from its owner when the metrics are read. docs/metrics.md describes each of them.

No label has a value that users, callers or senders choose. An integration type that this server does not have becomes
`unknown`, and a metric has at most `MAX_SERIES` combinations of labels.
"""

import operator
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import accumulate
from math import isfinite
from typing import Literal, Protocol, TypeVar

import structlog

K = TypeVar("K", bound=Hashable)

PREFIX = "integration_server_"
MAX_SERIES = 2_000
"""Of one metric: more than 40 integration types have with all their outcomes."""

MAX_LABEL_LENGTH = 200  # characters

UNKNOWN, OTHER = "unknown", "other"
TYPE_LABEL = "integration_type"

# Seconds. From a response out of the cache to the deadline of the slowest calls.
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAITS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A declared metric. `merge` says how the gauges of several processes become one; all else is added up."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Sequence[str] = ()
    buckets: Sequence[float] = ()
    merge: Literal["sum", "max", "min"] = "sum"

    @property
    def family(self) -> str:
        """The name of its family in the exposition format."""
        return self.name.removesuffix("_total")

    @property
    def sample_names(self) -> Sequence[str]:
        """The names of its samples."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str, merge: Literal["sum", "max", "min"] = "max") -> Metric:
    return Metric(f"{PREFIX}{name}", "gauge", text, labels, merge=merge)


def _histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = _LATENCIES) -> Metric:
    return Metric(f"{PREFIX}{name}", "histogram", text, labels, buckets)


@dataclass(frozen=True, slots=True)
class Declarations:
    """All metrics."""

    # Calls
    rpcs: Metric = _counter(
        "rpcs_total", "RPCs by their gRPC status and the reason of their ErrorInfo.", "method", "status", "reason"
    )
    rpc_duration: Metric = _histogram(
        "rpc_duration_seconds", "Time that unary RPCs take, in all interceptors and the handler.", "method"
    )
    calls_not_served: Metric = _counter(
        "calls_not_served_total",
        "RPCs without success: client_gone, invalid_metadata, unauthenticated, rpc_rejected, or unhandled_exception.",
        "outcome",
    )
    peers_limited: Metric = _counter(
        "authentication_refusals_total", "Calls refused unverified, because their peer sent too many invalid tokens."
    )
    http_requests: Metric = _counter(
        "http_requests_total",
        "Requests of the sidecar. Status 0: the client has gone. Route malformed: refused unread.",
        "route",
        "status",
    )
    http_duration: Metric = _histogram(
        "http_request_duration_seconds", "Time that the sidecar's requests take.", "route"
    )

    # Integrations
    integrations: Metric = _gauge("integrations", "Integrations, as of the last count.", TYPE_LABEL, "status")
    refresh_failing: Metric = _gauge(
        "integrations_refresh_failing", "Integrations in status error whose refreshes keep failing.", TYPE_LABEL
    )
    grants_ending: Metric = _gauge(
        "grants_ending",
        "Usable integrations whose grant ends at a known time within 7 or 30 days.",
        TYPE_LABEL,
        "within",
    )
    count_age: Metric = _gauge("integrations_count_age_seconds", "Age of the last complete count of integrations.")

    # Refreshes and providers
    refreshes: Metric = _counter(
        "token_refreshes_total",
        "Refreshes by outcome: success; transient (retried); terminal (the user has to authorize again); client (our "
        "client was refused); lost (the outcome of a call is unknown).",
        TYPE_LABEL,
        "outcome",
    )
    refresh_calls: Metric = _counter("token_refresh_calls_total", "Calls of token endpoints to refresh.", TYPE_LABEL)
    client_refusals: Metric = _counter(
        "client_secret_refusals_total",
        "Client secrets that a provider has refused, by client (empty: our own) and secret: newest or previous.",
        TYPE_LABEL,
        "oauth_client",
        "secret",
    )
    mass_invalid_grants: Metric = _counter(
        "mass_invalid_grants_total", "Refreshes not counted against users, as most of their type failed.", TYPE_LABEL
    )
    journal_entries: Metric = _gauge("refresh_journal_entries", "Refreshes in the journal on disk, to be committed.")
    provider_requests: Metric = _counter(
        "provider_requests_total", "Requests to providers by class of status, or no_response.", TYPE_LABEL, "class"
    )
    provider_duration: Metric = _histogram(
        "provider_request_duration_seconds", "Time that requests to providers take.", TYPE_LABEL
    )
    rate_limit_wait: Metric = _histogram(
        "rate_limit_wait_seconds", "Time that calls wait for a permit of the rate limiter.", TYPE_LABEL, buckets=_WAITS
    )
    rate_limit_refusals: Metric = _counter(
        "rate_limit_refusals_total", "Calls that could not get a permit within their deadline.", TYPE_LABEL
    )
    fact_remaining: Metric = _gauge(
        "provider_fact_remaining_seconds",
        "Time until a fact about a provider ends, such as the support of an API version; negative afterwards.",
        TYPE_LABEL,
        "fact",
    )

    # Background work
    due_age: Metric = _gauge(
        "due_work_oldest_age_seconds",
        "Time for which the oldest due row of a job that is not in progress has been due; 0 if there is none.",
        "background_job",
        TYPE_LABEL,
    )
    breakers_open: Metric = _gauge(
        "circuit_breakers_open",
        "Processes whose circuit breaker for a job and type is open.",
        "background_job",
        TYPE_LABEL,
        merge="sum",
    )

    # Webhooks
    webhooks: Metric = _counter(
        "webhooks_total",
        "Webhook requests: accepted, invalid_signature, not_found, refused (to be delivered again), too_large, error.",
        TYPE_LABEL,
        "outcome",
    )
    webhooks_unrouted: Metric = _counter(
        "webhooks_unrouted_total", "Verified webhook requests with an event that belongs to no integration.", TYPE_LABEL
    )
    consumer_lag: Metric = _gauge(
        "webhook_consumer_lag_events",
        "Webhook events that the slowest consumer of their integration has not acknowledged, as of the last count.",
        TYPE_LABEL,
    )

    # Events, cache, database
    feed_lag: Metric = _gauge("event_feed_lag_seconds", "Time since the change feed was last read, while it is read.")
    streams: Metric = _gauge("event_streams_open", "Open event streams.", merge="sum")
    stream_waiting: Metric = _gauge("event_stream_waiting_events", "Events that wait in memory for the slowest stream.")
    cache_lookups: Metric = _counter("credentials_cache_lookups_total", "Lookups in the credentials cache.", "result")
    connection_wait: Metric = _histogram(
        "database_connection_wait_seconds", "Time that statements wait for a database connection.", buckets=_WAITS
    )
    database_up: Metric = _gauge("database_up", "1 if the statements of these metrics succeed, else 0.")
    audit_lag: Metric = _gauge("audit_lag_seconds", "Age of the oldest audit entry that is not written yet.")
    audit_pending: Metric = _gauge("audit_pending_entries", "Audit entries that are not written yet.", merge="sum")
    data_key_age: Metric = _gauge("data_key_age_seconds", "Age of the data key that encrypts new values.")

    # Certificates
    certificate_remaining: Metric = _gauge(
        "certificate_remaining_seconds",
        "Time until a certificate in use ends (of several in a file, the first): server, client_ca, sidecar or "
        "sidecar_ca; negative afterwards.",
        "certificate",
        merge="min",
    )
    certificate_lifetime: Metric = _gauge(
        "certificate_lifetime_seconds", "Time for which that certificate is valid in all.", "certificate"
    )

    # Processes
    loop_lag: Metric = _gauge(
        "event_loop_lag_seconds", "Longest delay of the event loop in the last 15 seconds.", "process"
    )
    process_up: Metric = _gauge("process_up", "1 if the process has given its metrics in time, else 0.", "process")

    def __iter__(self) -> Iterator[Metric]:
        return (getattr(self, field.name) for field in fields(self))


METRICS = Declarations()

SIDECAR_METRICS = frozenset({METRICS.http_requests, METRICS.http_duration, METRICS.loop_lag})
"""What the sidecar may report. An attacker who controls it cannot report anything else."""

Labels = tuple[str, ...]
Sample = tuple[Metric, Labels, float]
"""A metric, the values of its labels, and its value."""

SampleKey = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample in the exposition and its labels, in the order of the declaration."""

Read = Callable[[], Iterable[Sample]]
"""Reads values from their owner. It is called in another thread than the event loop's."""


_record_nothing: Callable[..., object] = "".format
"""Accepts everything. Built in, because statements, calls and requests call it where metrics are off."""


class _Count:
    """The counter of one combination of labels."""

    __slots__ = ("key", "value")

    def __init__(self, metric: Metric, labels: Labels) -> None:
        self.key = _key(metric, labels)
        self.value = 0

    def samples(self) -> Iterator[tuple[SampleKey, float]]:
        yield self.key, self.value


class _Distribution:
    """The histogram of one combination of labels: values by the first bucket that they fit in, and their sum."""

    __slots__ = ("buckets", "keys", "total")

    def __init__(self, metric: Metric, labels: Labels) -> None:
        _, pairs = _key(metric, labels)
        bounds = (*map(str, metric.buckets), "+Inf")
        self.keys = (
            *((f"{metric.name}_bucket", (*pairs, ("le", bound))) for bound in bounds),
            *((f"{metric.name}_{part}", pairs) for part in ("count", "sum")),
        )
        self.buckets = [0] * len(bounds)
        self.total = 0.0

    def samples(self) -> Iterator[tuple[SampleKey, float]]:
        counts = list(accumulate(self.buckets))
        return zip(self.keys, (*counts, counts[-1], self.total), strict=True)


S = TypeVar("S", _Count, _Distribution)


class Metrics:
    """The metrics of this process. The thread of its event loop records them; any thread may read them."""

    def __init__(self, *, is_on: bool = True, max_series: int = MAX_SERIES, bounds_labels: bool = True) -> None:
        """Unless `is_on`, nothing is recorded. `bounds_labels` is off only for negative controls."""
        self.is_on = is_on
        self.types = set[str]()
        """The integration types of this server, which are known later than the first record."""
        self._max_series = max_series
        self._bounds_labels = bounds_labels
        self._reads: list[Read] = []
        self._failed_reads = set[Read]()
        self._counts: dict[Metric, dict[Labels, _Count]] = {}
        self._distributions: dict[Metric, dict[Labels, _Distribution]] = {}

    def read(self, *reads: Read) -> None:
        """Call these functions whenever the metrics are read."""
        self._reads.extend(reads)

    def counter(self, metric: Metric) -> Callable[..., object]:
        """A function of the labels' values that counts one."""
        if not self.is_on:
            return _record_nothing
        series = self._series(self._counts, metric, _Count)

        def count(*labels: str) -> None:
            (series.get(labels) or self._bounded_series(series, metric, labels, _Count)).value += 1

        return count

    def histogram(self, metric: Metric) -> Callable[..., object]:
        """A function of a value and the labels' values that records the value."""
        if not self.is_on:
            return _record_nothing
        series, bounds = self._series(self._distributions, metric, _Distribution), metric.buckets

        def observe(value: float, *labels: str) -> None:
            of_labels = series.get(labels) or self._bounded_series(series, metric, labels, _Distribution)
            of_labels.buckets[bisect_left(bounds, value)] += 1
            of_labels.total += value

        return observe

    def samples(self) -> Iterator[Mapping[SampleKey, float]]:
        """The samples of each metric: the states as they are now, and what was recorded."""
        yield from self._states()
        recorded: Sequence[Mapping[Labels, _Count | _Distribution]]
        recorded = [*self._counts.values(), *self._distributions.values()]
        for series in recorded:
            # A copy: the thread of the event loop may add labels meanwhile.
            yield dict(sample for entry in list(series.values()) for sample in entry.samples())

    def _states(self) -> Iterator[Mapping[SampleKey, float]]:
        """Values whose labels become equal are merged."""
        values: dict[Metric, dict[Labels, float]] = {}
        for read in self._reads:
            for metric, labels, value in self._read_samples(read):
                merge(metric, values.setdefault(metric, {}), labels, value)
        for metric, by_labels in values.items():
            yield {_key(metric, labels): value for labels, value in by_labels.items()}

    def _read_samples(self, read: Read) -> Sequence[Sample]:
        """Values that cannot be read are absent; the others are still reported. Logged once for each reader."""
        try:
            return [
                (metric, self._bounded(metric, labels), float(value))
                for metric, labels, value in read()
                if isfinite(value)
            ]
        except Exception as error:
            if read not in self._failed_reads:
                self._failed_reads.add(read)
                structlog.get_logger(__name__).error("metrics_not_read", kind=type(error).__qualname__)
            return ()

    def _series(
        self, recorded: dict[Metric, dict[Labels, S]], metric: Metric, kind: Callable[[Metric, Labels], S]
    ) -> dict[Labels, S]:
        """What is recorded of a metric, by labels. One without labels is there before it is recorded."""
        return recorded.setdefault(metric, {} if metric.labels else {(): kind(metric, ())})

    def _bounded_series(
        self, series: dict[Labels, S], metric: Metric, labels: Labels, kind: Callable[[Metric, Labels], S]
    ) -> S:
        """What is recorded of labels that are new, too long or unknown, or too many."""
        bounded = self._bounded(metric, labels)
        if self._bounds_labels and bounded not in series and len(series) >= self._max_series:
            bounded = (OTHER,) * len(metric.labels)
        return series.get(bounded) or series.setdefault(bounded, kind(metric, bounded))

    def _bounded(self, metric: Metric, labels: Labels) -> Labels:
        """The labels with an integration type that this server has, or `unknown`; empty where there is no type."""
        if not self._bounds_labels:
            return labels
        return tuple(
            UNKNOWN if name == TYPE_LABEL and value and value not in self.types else value[:MAX_LABEL_LENGTH]
            for name, value in zip(metric.labels, labels, strict=True)
        )


def certificate_samples(periods: Mapping[str, tuple[datetime, datetime]], now: datetime) -> Iterator[Sample]:
    """The certificates by the role of their file, with the begin and the end of their validity."""
    for name, (begin, end) in periods.items():
        yield METRICS.certificate_remaining, (name,), (end - now).total_seconds()
        yield METRICS.certificate_lifetime, (name,), (end - begin).total_seconds()


def record_calls(metrics: Metrics) -> Callable[["_Method", str, str, float], object]:
    """The function that records RPCs, with their status, the reason of their error, and their seconds."""
    if not metrics.is_on:
        return _record_nothing
    count, observe = metrics.counter(METRICS.rpcs), metrics.histogram(METRICS.rpc_duration)
    names: dict[str, str] = {}

    def record(method: _Method, status: str, reason: str, seconds: float) -> None:
        name = names.get(method.path) or names.setdefault(method.path, method.path.rpartition(".")[2])
        count(name, status, reason)
        if not method.streams_responses:  # a stream lasts as long as its client wants
            observe(seconds, name)

    return record


class _Method(Protocol):
    """A method of the contract."""

    @property
    def path(self) -> str: ...

    @property
    def streams_responses(self) -> bool: ...


def record_provider_requests(metrics: Metrics) -> Callable[[float, str, str], object]:
    """The function that records requests to providers, with their seconds, their type and the class of their status."""
    return _record_both(metrics, METRICS.provider_requests, METRICS.provider_duration)


def record_requests(metrics: Metrics) -> Callable[[float, str, str], object]:
    """The function that records the sidecar's requests, with their seconds, their route and their status."""
    return _record_both(metrics, METRICS.http_requests, METRICS.http_duration)


def _record_both(metrics: Metrics, counter: Metric, histogram: Metric) -> Callable[[float, str, str], object]:
    """A function that counts something with two labels, of which the histogram of its seconds has the first."""
    if not metrics.is_on:
        return _record_nothing
    count, observe = metrics.counter(counter), metrics.histogram(histogram)

    def record(seconds: float, name: str, outcome: str) -> None:
        count(name, outcome)
        observe(seconds, name)

    return record


def _key(metric: Metric, labels: Labels) -> SampleKey:
    return metric.name, tuple(zip(metric.labels, labels, strict=True))


_MERGES: Mapping[str, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}


def merge(metric: Metric, values: dict[K, float], key: K, value: float) -> None:
    """Merge a value into those of a metric."""
    before = values.get(key)
    values[key] = value if before is None else _MERGES[metric.merge](before, value)
