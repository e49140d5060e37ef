"""`make bench` on a small scale: each benchmark completes, and its exit code shows whether its bounds hold.

Latencies are not checked, because the machine is busy with tests.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest

from tests.end_to_end.commands import ROOT

pytestmark = pytest.mark.slow

UNBOUNDED, UNREACHABLE = "--bound=1000000", "--bound=0.001"
SMALL = ("--database=sqlite", "--seconds=0.5", "--rate=40")


async def bench(directory: Path, *arguments: str, small: Sequence[str] = SMALL) -> tuple[int | None, str]:
    """Run a benchmark in the directory. Returns its exit code, and its output with single spaces."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks", *arguments, *small),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    written, _ = await process.communicate()
    output = written.decode()
    assert "Raw figures" in output, output
    return process.returncode, " ".join(output.split())


def raw_figures(directory: Path, name: str) -> Any:
    """The file with the raw figures."""
    return json.loads((directory / "build" / "bench" / f"{name}.json").read_text())


def verdicts(raw: Any) -> Sequence[bool]:
    """Whether each bound holds."""
    return [bound["holds"] for bound in raw["bounds"]]


async def test_slow_provider_holds_without_a_latency_bound(tmp_path: Path) -> None:
    code, output = await bench(tmp_path, "slow-provider", "--refreshes=1", "--rounds=1", UNBOUNDED)

    raw = raw_figures(tmp_path, "slow-provider-sqlite")
    assert verdicts(raw)[:2] == [True, True], output
    assert code == (0 if all(verdicts(raw)) else 1), "an RPC may fail on a busy machine"
    assert "1 at least" in output
    assert [len(raw["raw"]["pairs"][0][side]["latencies"]["GetCredentials"]) for side in (0, 1)] == [5, 5]


async def test_proactive_refresh_fails_with_an_unreachable_latency_bound(tmp_path: Path) -> None:
    code, output = await bench(tmp_path, "proactive-refresh", "--integrations=5", "--minutes=0.1", UNREACHABLE)

    raw = raw_figures(tmp_path, "proactive-refresh-sqlite")
    assert verdicts(raw)[:3] == [True, True, False], output
    assert code == 1
    assert "BROKEN the p99 of each RPC is at most 0.001 times its reference" in output
    assert raw["raw"]["samples"][-1]["token_calls"]["refreshed"] == 5


@pytest.mark.parametrize("name", ["metrics-cost", "traces"])
@pytest.mark.parametrize(("bound", "holds"), [(UNBOUNDED, True), (UNREACHABLE, False)])
async def test_the_cpu_of_metrics_and_traces_is_judged_and_they_arrive(
    tmp_path: Path, name: str, bound: str, holds: bool
) -> None:
    code, output = await bench(tmp_path, name, "--rounds=1", "--calls=20", bound, small=("--database=sqlite",))

    raw = raw_figures(tmp_path, f"{name}-sqlite")
    assert verdicts(raw) == [holds, holds, True], output
    assert code == (0 if holds else 1)
    assert sum(raw["raw"]["bytes"]) > 1000


async def test_workers_compares_the_cpu_of_an_rpc(tmp_path: Path) -> None:
    code, output = await bench(tmp_path, "workers", "--rounds=1", UNBOUNDED)

    raw = raw_figures(tmp_path, "workers-sqlite")
    assert verdicts(raw)[0], output
    assert code == (0 if all(verdicts(raw)) else 1), "a machine may be busy"
    assert [len(share) for share in raw["raw"]["shares"]] == [2]


async def test_invalidation_delay_waits_for_every_read_and_stream(tmp_path: Path) -> None:
    small = ("--database=sqlite", "--servers=1", "--changes=2", "--transaction-seconds=0.5")
    code, output = await bench(tmp_path, "invalidation-delay", small=small)

    raw = raw_figures(tmp_path, "invalidation-delay-sqlite")
    assert verdicts(raw)[-1], output
    assert code == (0 if all(verdicts(raw)) else 1), "a machine may be busy"
    delays = [seconds for kind in ("disconnect", "rotation") for seconds in raw["raw"][kind].values()]
    assert [len(seconds) for seconds in delays] == [2, 2, 2, 2]


@pytest.mark.parametrize(("bound", "holds"), [(UNBOUNDED, True), (UNREACHABLE, False)])
async def test_idle_judges_start_memory_and_cpu(tmp_path: Path, bound: str, holds: bool) -> None:
    code, output = await bench(tmp_path, "idle", "--rounds=1", bound, small=("--database=sqlite", "--seconds=0.5"))

    raw = raw_figures(tmp_path, "idle-sqlite")
    assert verdicts(raw)[:2] == [holds, holds], output
    assert code == (0 if all(verdicts(raw)) else 1)
    assert [len(raw["raw"]["rounds"][0][name]) for name in ("pss", "rss", "cpu")] == [2, 2, 2]


async def test_hostile_clients_holds_without_a_latency_bound(tmp_path: Path) -> None:
    code, output = await bench(tmp_path, "hostile-clients", "--attack=rapid-reset", "--rounds=1", UNBOUNDED)

    raw = raw_figures(tmp_path, "hostile-clients-sqlite")
    assert verdicts(raw) == [True] * 4, output
    assert code == 0
    attack = raw["raw"]["rapid-reset"]
    assert attack["requests"] > 100
    assert [len(phase["latencies"]["GetCredentials"]) for phase in attack["pairs"][0]] == [20, 20]
