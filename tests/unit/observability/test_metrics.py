"""The declared metrics, and what bounds their labels."""

import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from secrets import token_urlsafe

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from integration_server.observability.event_loop import INTERVAL, EventLoopLag
from integration_server.observability.merging import SnapshotMerger
from integration_server.observability.metrics import METRICS, OTHER, PREFIX, UNKNOWN, Metrics, Sample, SampleKey
from integration_server.observability.snapshots import decode_snapshot, encode_snapshot, take_snapshot

WAIT = 60.0  # seconds, on a busy machine
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
UNBOUNDED = {
    "user",
    "user_id",
    "account",
    "account_id",
    "path",
    "peer",
    "address",
    "caller",
    "integration_id",
    "consumer",
}


def values(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples of an exposition by name and labels."""
    exposition = SnapshotMerger().exposition({"server": take_snapshot(metrics, "1")}).decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_names_follow_prometheus_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(rf"{PREFIX}[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not re.search("_(milliseconds|ms|days|minutes|kilobytes)", metric.name)  # base units
        assert metric.help.endswith(".")
        assert (metric.kind == "histogram") == bool(metric.buckets)


def test_no_label_names_what_users_or_callers_choose() -> None:
    assert {label for metric in METRICS for label in metric.labels}.isdisjoint(UNBOUNDED)


def test_no_label_has_a_name_that_prometheus_gives_to_its_targets() -> None:
    """It would be renamed to `exported_…` in every query."""
    assert {label for metric in METRICS for label in metric.labels}.isdisjoint({"job", "instance", "le", "quantile"})


def test_the_page_describes_every_metric_as_it_is_declared() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    declared = [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in METRICS
    ]
    assert rows == declared


@pytest.mark.parametrize("name", ["never-declared", "", "sandbox\n", "ada@example.org", "SANDBOX", "{}"])
def test_an_integration_type_that_the_server_does_not_have_is_unknown(name: str) -> None:
    metrics = Metrics()
    metrics.types.add("sandbox")
    count = metrics.counter(METRICS.webhooks)
    for integration_type in ("sandbox", name):
        count(integration_type, "accepted")
    expected = {"sandbox", UNKNOWN} if name else {"sandbox", ""}
    assert {labels[0] for labels in values(metrics)[METRICS.webhooks.name]} == expected


def test_senders_cannot_add_series_nor_fill_the_memory() -> None:
    metrics = Metrics(max_series=10)
    count, wait = metrics.counter(METRICS.webhooks), metrics.histogram(METRICS.rate_limit_wait)
    for _ in range(100):
        count(token_urlsafe(), token_urlsafe())
        wait(0.1, token_urlsafe())
    found = values(metrics)
    assert len(found[METRICS.webhooks.name]) == 11
    assert found[METRICS.webhooks.name][OTHER, OTHER] == 90
    assert found[f"{METRICS.rate_limit_wait.name}_count"] == {(UNKNOWN,): 100}


def test_negative_control_without_the_bound_each_text_is_a_series() -> None:
    metrics = Metrics(max_series=10, bounds_labels=False)
    count = metrics.counter(METRICS.webhooks)
    for _ in range(100):
        count(token_urlsafe(), token_urlsafe())
    assert len(values(metrics)[METRICS.webhooks.name]) == 100


def test_a_metric_has_one_recorder_for_all_who_record_it() -> None:
    metrics = Metrics()
    metrics.types.add("sandbox")
    for _ in range(2):
        metrics.counter(METRICS.refresh_calls)("sandbox")
        metrics.histogram(METRICS.connection_wait)(0.2)
    found = values(metrics)
    assert found[METRICS.refresh_calls.name] == {("sandbox",): 2}
    assert found[f"{METRICS.connection_wait.name}_count"] == {(): 2}


def test_another_thread_reads_while_series_are_added() -> None:
    """Each snapshot is complete in itself, and no counter falls from one to the next."""
    metrics = Metrics()
    count, observe = metrics.counter(METRICS.rpcs), metrics.histogram(METRICS.rpc_duration)
    begin, end, snapshots = threading.Event(), threading.Event(), list[Mapping[SampleKey, float]]()

    def read() -> None:
        begin.wait(WAIT)
        while not end.is_set():
            snapshots.append(take_snapshot(metrics, "1").values)

    interval = sys.getswitchinterval()
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    sys.setswitchinterval(1e-6)  # seconds: the threads take turns within the reading of a metric
    try:
        begin.set()
        for number in range(2_000):
            count(f"method-{number}", "OK", "")
            observe(0.1, f"method-{number}")
    finally:
        sys.setswitchinterval(interval)
        end.set()
        reader.join(WAIT)
    snapshots.append(take_snapshot(metrics, "1").values)
    before: Mapping[SampleKey, float] = {}
    for after in snapshots:
        assert all(after[key] >= value for key, value in before.items())
        before = after
        for (name, labels), value in after.items():
            if name == f"{METRICS.rpc_duration.name}_count":
                assert after[f"{METRICS.rpc_duration.name}_bucket", (*labels, ("le", "+Inf"))] == value
    assert sum(value for (name, _), value in before.items() if name == METRICS.rpcs.name) == 2_000


def test_states_are_read_when_the_metrics_are() -> None:
    waiting = [1, 2, 3]

    def read() -> Iterator[Sample]:
        yield METRICS.audit_pending, (), len(waiting)

    metrics = Metrics()
    metrics.read(read)
    assert values(metrics)[METRICS.audit_pending.name] == {(): 3}
    waiting.clear()
    assert values(metrics)[METRICS.audit_pending.name] == {(): 0}


def test_what_a_listener_would_refuse_is_not_sent() -> None:
    """A long fact of a plugin, or a number that is none, costs its own sample and no other."""
    metrics = Metrics()
    metrics.read(
        lambda: [
            (METRICS.fact_remaining, ("", "x" * 5000), 1.0),
            (METRICS.fact_remaining, ("", "forever"), float("inf")),
            (METRICS.audit_lag, (), float("nan")),
        ]
    )
    metrics.read(lambda: [(METRICS.loop_lag, (), 1.0)])  # a label too few
    metrics.read(lambda: [(METRICS.streams, (), 2.0)])
    sent = decode_snapshot(encode_snapshot(take_snapshot(metrics, "1")))
    assert list(sent.values.values()) == [1.0, 2.0]


def test_what_cannot_be_read_is_absent_and_logged_once() -> None:
    def fail() -> Iterable[Sample]:
        raise RuntimeError("deque mutated during iteration")

    metrics = Metrics()
    metrics.read(fail)
    metrics.read(lambda: [(METRICS.streams, (), 2.0)])
    with capture_logs() as events:
        assert values(metrics)[METRICS.streams.name] == values(metrics)[METRICS.streams.name] == {(): 2}
    assert [event["event"] for event in events] == ["metrics_not_read"]


async def test_the_lag_of_the_loop_is_the_longest_of_fifteen_seconds() -> None:
    now = [0.0]
    lag = EventLoopLag(lambda: now[0])
    interval = INTERVAL.total_seconds()
    for late in (0.0, 0.3, 0.1):
        now[0] += interval + late
        await lag.tick()
    assert lag.seconds() == pytest.approx(0.3)
    for _ in range(80):  # 20 seconds
        now[0] += interval
        await lag.tick()
    assert lag.seconds() == pytest.approx(0)


async def test_the_lag_grows_while_the_loop_is_blocked() -> None:
    now = [0.0]
    lag = EventLoopLag(lambda: now[0])
    await lag.tick()
    now[0] += 5.0
    assert lag.seconds() == pytest.approx(5 - INTERVAL.total_seconds())
