"""The limit of open files caps connections, and is raised at the start; signals stop a process."""

import asyncio
import os
import resource
import signal
from datetime import timedelta

import pytest
import structlog

from integration_server.lifecycle import cap_to_fd_limit, raise_fd_limit, stop_signals

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
