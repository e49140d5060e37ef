"""The limit of open files caps connections; periodic jobs share their wake-ups; signals stop a process."""

import asyncio
import os
import resource
import selectors
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
import structlog

from integration_server.lifecycle import cap_to_fd_limit, periodic_job, raise_fd_limit, stop_signals

INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The soft and hard limits that were set; the last one is in force."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit: limits.append(limit))
    structlog.reset_defaults()
    return limits


def test_connections_that_fit_are_all_allowed(files: list[tuple[int, int]]) -> None:
    with structlog.testing.capture_logs() as lines:
        assert cap_to_fd_limit(512, 1 / 2, setting="GRPC_MAX_CONNECTIONS") == 512
    assert lines == []


def test_more_connections_are_capped_and_logged(files: list[tuple[int, int]]) -> None:
    with structlog.testing.capture_logs() as lines:
        assert cap_to_fd_limit(1000, 1 / 2, setting="GRPC_MAX_CONNECTIONS") == 512
    (line,) = lines
    assert (line["event"], line["setting"]) == ("fd_limit_low", "GRPC_MAX_CONNECTIONS")
    assert (line["connections"], line["allowed"], line["open_files"]) == (1000, 512, 1024)


def test_an_unlimited_number_of_files_caps_nothing(files: list[tuple[int, int]]) -> None:
    files.append((INFINITY, INFINITY))
    assert cap_to_fd_limit(1_000_000, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS") == 1_000_000


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), (4096, 4096)),
        ((256, INFINITY), (65_536, INFINITY)),
        ((1024, 1_048_576), (65_536, 1_048_576)),
        ((100_000, 1_048_576), (100_000, 1_048_576)),
        ((INFINITY, INFINITY), (INFINITY, INFINITY)),
    ],
)
def test_the_soft_limit_is_raised_up_to_the_hard_limit(
    files: list[tuple[int, int]], before: tuple[int, int], after: tuple[int, int]
) -> None:
    files.append(before)
    raise_fd_limit()
    assert files[-1] == after


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: the time of its loop jumps."""

    now = 100.125

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


Work = Callable[[], Awaitable[object]]


def run_times(work: Work, interval: float, *, seconds: float) -> list[float]:
    """When a job runs whose runs do this, in a loop that waits for nothing."""
    times: list[float] = []

    async def job() -> None:
        times.append(asyncio.get_running_loop().time())
        await work()

    async def run() -> None:
        async with periodic_job(job, timedelta(seconds=interval)):
            await asyncio.sleep(seconds)

    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        runner.run(run())
    return times


async def nothing() -> None:
    """Take no time."""


async def fail() -> None:
    raise RuntimeError


def takes(seconds: float) -> Work:
    return lambda: asyncio.sleep(seconds)


@pytest.mark.parametrize("work", [nothing, fail, takes(0.0625)])
def test_a_job_runs_at_once_and_then_at_the_multiples_of_its_interval(work: Work) -> None:
    assert run_times(work, 0.25, seconds=1) == [100.125, 100.25, 100.5, 100.75, 101]
    assert run_times(work, 1, seconds=2.5) == [100.125, 101, 102]


def test_a_job_that_takes_longer_than_its_interval_skips_a_run() -> None:
    assert run_times(takes(0.375), 0.25, seconds=1.25) == [100.125, 100.75, 101.25]


def test_a_job_without_an_interval_waits_itself() -> None:
    assert run_times(takes(0.375), 0, seconds=1) == [100.125, 100.5, 100.875]


DEADLINE = 60  # seconds


async def test_sigterm_drains_until_a_second_signal() -> None:
    draining = asyncio.Event()
    async with stop_signals(draining.set, timedelta(hours=1)) as stop, asyncio.timeout(DEADLINE):
        os.kill(os.getpid(), signal.SIGTERM)
        await draining.wait()
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()


async def test_sigterm_drains_for_a_time() -> None:
    draining = asyncio.Event()
    async with stop_signals(draining.set, timedelta(milliseconds=10)) as stop, asyncio.timeout(DEADLINE):
        os.kill(os.getpid(), signal.SIGTERM)
        await draining.wait()
        await stop.wait()


async def test_ctrl_c_does_not_wait() -> None:
    draining = asyncio.Event()
    async with stop_signals(draining.set, timedelta(hours=1)) as stop, asyncio.timeout(DEADLINE):
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()
