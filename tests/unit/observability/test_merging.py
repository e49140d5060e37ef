"""Snapshots of several processes, and their sums."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from integration_server.observability.listener import MetricsApp, MetricsCollector
from integration_server.observability.merging import SnapshotMerger
from integration_server.observability.metrics import METRICS, SIDECAR_METRICS, Metrics
from integration_server.observability.snapshots import (
    InvalidSnapshot,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
    take_snapshot,
)

RPCS = (METRICS.rpcs.name, (("method", "S/Get"), ("status", "OK"), ("reason", "")))


def sample(metrics: bytes, name: str, **labels: str) -> float | None:
    """The value of a sample in an exposition."""
    for family in text_string_to_metric_families(metrics.decode()):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return one.value
    return None


def process(
    *, rpcs: int = 0, waiting: int = 0, lag: float = 0.0, instance: str = "1", name: str = "server"
) -> Snapshot:
    """The snapshot of a process that has counted so many calls."""
    metrics = Metrics()
    count, observe = metrics.counter(METRICS.rpcs), metrics.histogram(METRICS.rpc_duration)
    for _ in range(rpcs):
        count("S/Get", "OK", "")
        observe(0.02, "S/Get")
    metrics.read(
        lambda: [
            (METRICS.audit_pending, (), waiting),
            (METRICS.audit_lag, (), float(waiting)),
            (METRICS.certificate_remaining, ("server",), float(waiting)),
            (METRICS.loop_lag, (name,), lag),
        ]
    )
    return take_snapshot(metrics, instance)


def rpcs_of(exposition: bytes) -> float | None:
    """The calls in an exposition."""
    return sample(exposition, METRICS.rpcs.name, method="S/Get", status="OK", reason="")


def test_counters_and_histograms_of_processes_add_up_and_gauges_merge_as_declared() -> None:
    merged = SnapshotMerger().exposition(
        {
            "one": process(rpcs=3, waiting=2, lag=0.5, name="one"),
            "two": process(rpcs=4, waiting=5, lag=0.1, name="two"),
        }
    )
    assert rpcs_of(merged) == 7
    assert sample(merged, f"{METRICS.rpc_duration.name}_count", method="S/Get") == 7
    assert sample(merged, f"{METRICS.rpc_duration.name}_bucket", method="S/Get", le="0.025") == 7
    assert sample(merged, f"{METRICS.rpc_duration.name}_bucket", method="S/Get", le="0.01") == 0
    assert sample(merged, METRICS.audit_pending.name) == 7  # sum
    assert sample(merged, METRICS.audit_lag.name) == 5  # max
    assert sample(merged, METRICS.certificate_remaining.name, certificate="server") == 2  # min
    assert sample(merged, METRICS.loop_lag.name, process="one") == 0.5
    assert sample(merged, METRICS.process_up.name, process="two") == 1


def test_a_counter_does_not_fall_when_a_process_is_restarted() -> None:
    merger = SnapshotMerger()
    seen = [
        rpcs_of(merger.exposition({"server": snapshot}))
        for snapshot in (
            process(rpcs=5, instance="a"),
            None,
            process(rpcs=0, instance="b"),
            process(rpcs=2, instance="b"),
            process(rpcs=1, instance="c"),
            None,
        )
    ]
    assert seen == [5, 5, 5, 7, 8, 8]


def test_negative_control_without_the_ended_processes_a_counter_falls() -> None:
    merger = SnapshotMerger(keeps_ended=False)
    merger.exposition({"server": process(rpcs=5, instance="a")})
    assert rpcs_of(merger.exposition({"server": process(rpcs=2, instance="b")})) == 2


def test_the_gauges_of_a_process_that_does_not_answer_are_absent() -> None:
    merger = SnapshotMerger()
    merger.exposition({"server": process(rpcs=1, waiting=3)})
    silent = merger.exposition({"server": None})
    assert sample(silent, METRICS.audit_pending.name) is None
    assert sample(silent, METRICS.process_up.name, process="server") == 0
    assert rpcs_of(silent) == 1


def test_a_snapshot_survives_its_encoding() -> None:
    snapshot = process(rpcs=2, waiting=1, lag=0.25)
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot
    assert snapshot.values[RPCS] == 2


def samples(*values: Any) -> bytes:
    """A snapshot of these samples."""
    return json.dumps({"instance": "1", "samples": values}).encode()


NAME = METRICS.http_requests.name
LABELS = [["route", "callback"], ["status", "200"]]
FORGED = {
    "no JSON": b"\xff{",
    "no object": b"[1]",
    "deep": b'{"samples":' + b"[" * 100_000,
    "not declared": samples(["integration_server_users_total", [], 1]),
    "another label": samples([NAME, [["route", "callback"], ["user", "ada"]], 1]),
    "one more label": samples([NAME, [*LABELS, ["user", "ada"]], 1]),
    "a long label": samples([NAME, [["route", "x" * 300], ["status", "200"]], 1]),
    "a label that is no text": samples([NAME, [["route", 1], ["status", "200"]], 1]),
    "not a number": samples([NAME, LABELS, "1"]),
    "NaN": samples([NAME, LABELS, 1]).replace(b" 1]", b" NaN]"),
    "infinite": samples([NAME, LABELS, 1]).replace(b" 1]", b" 1e999]"),
    "a boolean": samples([NAME, LABELS, True]),
    "a bucket without its bound": samples([f"{METRICS.http_duration.name}_bucket", [["route", "callback"]], 1]),
    "a line break": samples([f"{NAME}\n# TYPE x gauge", LABELS, 1]),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_process_cannot_send_anything_but_declared_samples(forged: bytes) -> None:
    with pytest.raises(InvalidSnapshot):
        decode_snapshot(forged)


def test_the_sidecar_reports_its_own_metrics_only() -> None:
    forged = samples([METRICS.rpcs.name, RPCS[1], 1e6])
    with pytest.raises(InvalidSnapshot):
        decode_snapshot(forged, SIDECAR_METRICS)
    assert decode_snapshot(samples([NAME, LABELS, 3]), SIDECAR_METRICS).values == {
        (NAME, (("route", "callback"), ("status", "200"))): 3
    }


def test_negative_control_another_process_may_report_it() -> None:
    assert decode_snapshot(samples([METRICS.rpcs.name, RPCS[1], 1e6])).values == {RPCS: 1e6}


class FakeSource:
    """A process whose responses are given; an exception is raised, None never comes."""

    def __init__(self, *responses: Snapshot | Exception | None) -> None:
        self.responses = list(responses)
        self.fetches = 0

    async def fetch(self) -> Snapshot:
        """The next response."""
        self.fetches += 1
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if response is None:
            await asyncio.Event().wait()
        if isinstance(response, Exception):
            raise response
        assert response is not None
        return response


async def test_a_process_that_hangs_costs_a_scrape_its_own_numbers_only() -> None:
    sources = {
        "server": FakeSource(process(rpcs=4)),
        "hangs": FakeSource(None),
        "gone": FakeSource(ConnectionRefusedError()),
        "lies": FakeSource(InvalidSnapshot()),
    }
    collector = MetricsCollector(sources, timeout=0.01, max_age=0.0)
    with capture_logs() as events:
        await collector.exposition()
        merged = await collector.exposition()
    assert rpcs_of(merged) == 4
    up = {name: sample(merged, METRICS.process_up.name, process=name) for name in sources}
    assert up == {"server": 1, "hangs": 0, "gone": 0, "lies": 0}
    assert sorted(event["name"] for event in events) == ["gone", "hangs", "lies"]  # once each


async def test_many_scrapes_read_each_process_once_a_second() -> None:
    now, source = [100.0], FakeSource(process(rpcs=1))
    collector = MetricsCollector({"server": source}, monotonic=lambda: now[0])
    await asyncio.gather(*(collector.exposition() for _ in range(50)))
    assert source.fetches == 1
    now[0] += 1.0
    await asyncio.gather(*(collector.exposition() for _ in range(50)))
    assert source.fetches == 2


async def test_negative_control_without_the_minimum_age_each_scrape_reads() -> None:
    source = FakeSource(process(rpcs=1))
    collector = MetricsCollector({"server": source}, max_age=0.0)
    for _ in range(5):
        await collector.exposition()
    assert source.fetches == 5


async def respond(app: MetricsApp, method: str, path: str) -> tuple[int, bytes]:
    """The status and the body of a response."""
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path}, None, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/metrics", 200), ("HEAD", "/metrics", 200), ("POST", "/metrics", 405), ("GET", "/", 404),
     ("GET", "/metrics/", 404), ("GET", "/debug", 404)],
)  # fmt: skip
async def test_only_metrics_are_served(method: str, path: str, status: int) -> None:
    app = MetricsApp(MetricsCollector({"server": FakeSource(process(rpcs=1))}))
    assert (await respond(app, method, path))[0] == status


def test_an_exposition_parses_and_has_each_family_once() -> None:
    merged = SnapshotMerger().exposition({"one": process(rpcs=1), "two": process(rpcs=1)})
    names: Sequence[str] = [family.name for family in text_string_to_metric_families(merged.decode())]
    assert len(names) == len(set(names)) >= 5
