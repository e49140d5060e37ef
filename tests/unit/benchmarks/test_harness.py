"""Load, statistics and bounds of benchmarks."""

import asyncio
import time
from collections.abc import Sequence

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from benchmarks.__main__ import run_benchmark
from benchmarks.event_fan_out import EventFanOutPlan
from benchmarks.harness import (
    ALL,
    Call,
    Comparison,
    LoadPhase,
    Result,
    compare,
    load,
    load_both,
    merge_phases,
    percentile,
    speed_bounds,
)


async def nothing() -> None:
    """An RPC that completes at once."""


def phase(*latencies: float, failures: dict[str, int] | None = None) -> LoadPhase:
    return LoadPhase({"Get": list(latencies)}, lateness=[0.0] * len(latencies), failures=failures or {}, cpu_usage=[])


def comparison(*ratios: float) -> Comparison:
    return Comparison("Get", 1, 1, 1, 1, ratios)


async def test_sends_the_calls_in_turn_at_their_rate() -> None:
    result = await load([Call("Get", nothing), Call("List", nothing)], rate=200, seconds=0.1, cpu_seconds=float)

    assert {name: len(values) for name, values in result.latencies.items()} == {"Get": 10, "List": 10}
    assert len(result.latencies_of(ALL)) == len(result.lateness) == 20


async def test_reports_the_cpu_usage_of_the_servers() -> None:
    used = iter([5.0, 5.05])

    result = await load([Call("Get", nothing)], rate=100, seconds=0.1, cpu_seconds=lambda: next(used))

    (usage,) = result.cpu_usage
    assert 0 < usage < 0.6, "0.05 s of CPU time in a tenth of a second, or in more on a busy machine"


async def test_does_not_wait_for_slow_responses() -> None:
    in_flight = 0
    all_sent = asyncio.Event()

    async def slow() -> None:
        nonlocal in_flight
        in_flight += 1
        if in_flight == 20:
            all_sent.set()
        await all_sent.wait()

    result = await load([Call("Get", slow)], rate=200, seconds=0.1, cpu_seconds=float)

    assert len(result.latencies["Get"]) == 20


async def test_a_latency_counts_from_when_the_call_should_have_been_sent() -> None:
    stalls = iter([0.2])

    async def stalling() -> None:
        time.sleep(next(stalls, 0))  # noqa: ASYNC251 - delays the sending of the next calls

    result = await load([Call("Get", stalling)], rate=100, seconds=0.1, cpu_seconds=float)

    assert min(result.latencies["Get"]) > 0.1, "late calls must not look fast"


async def test_counts_failures() -> None:
    async def failing() -> None:
        raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata())

    result = await load([Call("Get", failing), Call("List", nothing)], rate=200, seconds=0.02, cpu_seconds=float)

    assert result.failures == {"Get: UNAVAILABLE": 2}


async def test_loads_two_systems_in_turn_at_the_same_time() -> None:
    order: list[str] = []

    def recording_calls(name: str) -> Sequence[Call]:
        async def record() -> None:
            order.append(name)

        return [Call("Get", record)]

    reference, other = await load_both(
        (recording_calls("reference"), recording_calls("other")), (float, float), rate=50, seconds=0.2
    )

    assert len(reference.latencies_of(ALL)) == len(other.latencies_of(ALL)) == 10
    assert 0 < order.index("other") < 5, "neither waits for the other to complete"


def test_percentiles() -> None:
    values = [float(value) for value in range(101)]

    assert (percentile(values, 50), percentile(values, 99)) == (50, 99)


def test_compares_each_pair_and_all_together() -> None:
    pairs = [(phase(1, 1), phase(2, 2)), (phase(10, 10), phase(10, 10))]

    get, everything = compare(pairs)

    assert (get.name, everything.name) == ("Get", ALL)
    assert get.p99_ratios == everything.p99_ratios == [2, 1]
    assert get.ratio == 1.5
    assert (get.reference_p50, get.load_p50) == (5.5, 6)


def test_merges_phases() -> None:
    whole = merge_phases([phase(1, failures={"Get: UNKNOWN": 1}), phase(2, 3, failures={"Get: UNKNOWN": 2})])

    assert whole == phase(1, 2, 3, failures={"Get: UNKNOWN": 3})


@pytest.mark.parametrize(
    ("ratios", "holds"), [((1, 1, 9), True), ((1, 2, 9), True), ((1, 2.1, 9), False), ((3,), False)]
)
def test_the_median_of_the_phases_must_keep_the_bound(ratios: Sequence[float], holds: bool) -> None:
    speed, _ = speed_bounds([comparison(1), comparison(*ratios)], 2, [phase(1)])

    assert speed.holds is holds


@pytest.mark.parametrize(("failures", "holds"), [({}, True), ({"Get: UNAVAILABLE": 1}, False)])
def test_a_failed_rpc_breaks_the_bound(failures: dict[str, int], holds: bool) -> None:
    _, failing = speed_bounds([comparison(1)], 2, [phase(1), phase(1, failures=failures)])

    assert failing.holds is holds


def test_a_benchmark_that_fails_does_not_end_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(_progress: object) -> Result:
        raise ExceptionGroup("calls", [OSError("connection refused")])

    plan = EventFanOutPlan(streams=1, other_streams=0, events=20, bound=1)
    assert run_benchmark("event-fan-out", "Costs of events.", plan, fail) is False
    assert "connection refused" in capsys.readouterr().out
