"""The Prometheus that `make load` runs: if it does not start or ends, a line says so and the load goes on."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.dashboard_queries import DashboardQuery, NoPrometheus, Scraper, scraping
from benchmarks.load import check_dashboards


def program(folder: Path, script: str, mode: int = 0o755) -> str:
    """A program in the place of Prometheus."""
    path = folder / "prometheus"
    path.write_text(script)
    path.chmod(mode)
    return str(path)


async def problem_of(path: str | None, start_timeout: float = 60.0) -> str:
    """Why Prometheus does not start."""
    with pytest.raises(NoPrometheus) as raised:
        async with scraping("127.0.0.1:1", path, start_timeout=start_timeout):
            pass
    return str(raised.value)


@pytest.mark.parametrize(
    ("script", "mode", "problem"),
    [
        ("#!/bin/sh\necho 'level=info'; echo 'cannot open the database' >&2; exit 1", 0o755, "code 1: cannot open the"),
        ("#!/bin/sh\nexit 0", 0o755, "it ended with code 0: "),
        ("#!/bin/sh\nkill -9 $$", 0o755, "it ended with code -9: "),
        ("#!/bin/sh\nprintf '\\377\\376' >&2; exit 2", 0o755, "it ended with code 2: "),
        ("#!/no/such/interpreter", 0o755, "No such file or directory"),
        ("not a program", 0o755, "Exec format error"),
        ("#!/bin/sh", 0o644, "Permission denied"),
    ],
)
async def test_a_prometheus_that_does_not_start_says_why(tmp_path: Path, script: str, mode: int, problem: str) -> None:
    assert problem in await problem_of(program(tmp_path, script, mode))


async def test_a_prometheus_that_is_not_installed_or_never_ready_says_so(tmp_path: Path) -> None:
    assert await problem_of(None) == "it is not installed"
    hanging = program(tmp_path, f"#!{sys.executable}\nimport time; time.sleep(3600)")
    assert await problem_of(hanging, start_timeout=0.01) == "it is not ready after 0.01 seconds"


async def test_the_reason_is_one_line_of_a_bounded_length(tmp_path: Path) -> None:
    long = program(tmp_path, f"#!{sys.executable}\nimport sys; sys.exit('x' * 100_000)")
    assert len(await problem_of(long)) < 600


async def test_a_prometheus_that_has_ended_is_named_when_the_dashboards_are_checked() -> None:
    lines: list[str] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        await check_dashboards(Scraper("http://127.0.0.1:1", client), asyncio.Event(), lines.append)
    (line,) = lines
    assert line.startswith("Dashboards: not checked, because Prometheus fails: ConnectError")


async def test_what_only_shows_its_default_is_named() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        found: list[object] = [{}] if "vector(" in request.url.params["query"] else []
        return httpx.Response(200, json={"data": {"result": found}})

    lines: list[str] = []
    stop = asyncio.Event()
    stop.set()
    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        await check_dashboards(Scraper("http://prometheus", client), stop, lines.append)
    assert "  nothing has happened: overview, Processes down" in lines
    assert any(line.startswith("  no data: overview, ") for line in lines)


async def test_queries_without_data_are_asked_again() -> None:
    asked = set[str]()

    def respond(request: httpx.Request) -> httpx.Response:
        query = request.url.params["query"]
        found: list[object] = [{}] if query in asked else []
        asked.add(query)
        return httpx.Response(200, json={"data": {"result": found}})

    lines: list[str] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        await check_dashboards(Scraper("http://prometheus", client), asyncio.Event(), lines.append)
    assert not [line for line in lines if line.startswith("  no data: ")]


@pytest.mark.parametrize(
    ("expression", "core"),
    [
        ("sum(rate(a[1m])) or vector(0)", "sum(rate(a[1m]))"),
        ("min by (a) (b) or on() vector(Inf)", "min by (a) (b)"),
        ("a / b or 0 * b", "a / b"),
        ("sum(a)", "sum(a)"),
    ],
)
def test_the_default_of_a_query_is_left_out(expression: str, core: str) -> None:
    query = DashboardQuery("overview", "panel", expression)
    assert query.without_default == DashboardQuery("overview", "panel", core)
