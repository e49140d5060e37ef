"""How many connections there may be, by the files that the process may open."""

import resource

import pytest
import structlog

from integration_server.lifecycle import cap_to_fd_limit, raise_fd_limit

INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The process's limit, soft and hard: the last of these."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit: limits.append(limit))
    structlog.reset_defaults()
    return limits


def test_connections_that_fit_are_all_allowed(files: list[tuple[int, int]]) -> None:
    with structlog.testing.capture_logs() as lines:
        assert cap_to_fd_limit(512, 1 / 2, setting="GRPC_MAX_CONNECTIONS") == 512
    assert lines == []


def test_more_are_cut_to_their_share_which_is_told(files: list[tuple[int, int]]) -> None:
    with structlog.testing.capture_logs() as lines:
        assert cap_to_fd_limit(1000, 1 / 2, setting="GRPC_MAX_CONNECTIONS") == 512
    (line,) = lines
    assert (line["event"], line["setting"]) == ("fd_limit_low", "GRPC_MAX_CONNECTIONS")
    assert (line["connections"], line["allowed"], line["open_files"]) == (1000, 512, 1024)


def test_without_a_limit_to_files_there_is_no_share(files: list[tuple[int, int]]) -> None:
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
def test_the_soft_limit_is_raised_as_far_as_it_may(
    files: list[tuple[int, int]], before: tuple[int, int], after: tuple[int, int]
) -> None:
    files.append(before)
    raise_fd_limit()
    assert files[-1] == after
