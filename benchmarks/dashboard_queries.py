"""Whether the queries of all dashboards return data, with a Prometheus of its own that scrapes a running server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

DEPLOY = Path(__file__).parents[1] / "deploy"
_SCRAPE_INTERVAL = 5  # seconds
_RATE_INTERVAL = "60s"  # of Grafana: four scrapes at least
_START = 30.0  # seconds until Prometheus responds
_MAX_REASON = 500  # characters of a line of its log


@dataclass(frozen=True, slots=True)
class DashboardQuery:
    """A query of a panel, as Grafana sends it for all instances."""

    dashboard: str
    panel: str
    expression: str

    @property
    def without_default(self) -> "DashboardQuery":
        """The query without what it shows where nothing has happened (`or vector(0)`): with it, it always has data."""
        return replace(self, expression=self.expression.partition(" or ")[0])


def dashboard_queries(folder: Path = DEPLOY / "grafana") -> Iterator[DashboardQuery]:
    """The queries of all dashboards."""
    for path in sorted(folder.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", _RATE_INTERVAL).replace("$instance", ".*")
                yield DashboardQuery(path.stem, panel["title"], expression)


@dataclass(frozen=True, slots=True)
class Scraper:
    """A running Prometheus."""

    url: str
    client: httpx.AsyncClient = field(repr=False)

    async def without_data(self, queries: Sequence[DashboardQuery]) -> Sequence[DashboardQuery]:
        """The queries that return nothing. Raises `httpx.HTTPError`, also for one that Prometheus refuses."""
        return [query for query in queries if not await self._query(query.expression)]

    async def _query(self, expression: str) -> Any:  # noqa: ANN401  # JSON
        response = await self.client.get(f"{self.url}/api/v1/query", params={"query": expression})
        return response.raise_for_status().json()["data"]["result"]


@asynccontextmanager
async def scraping(
    metrics_address: str, program: str | None, *, start_timeout: float = _START
) -> AsyncIterator[Scraper]:
    """Scrape the metrics of a server with the rules of `deploy/prometheus`.

    `program` is the path of Prometheus, None if it is not installed. Raises `NoPrometheus` if it is not ready within
    `start_timeout` seconds.
    """
    if program is None:
        raise NoPrometheus("it is not installed")
    config = {
        "global": {"scrape_interval": f"{_SCRAPE_INTERVAL}s", "evaluation_interval": f"{_SCRAPE_INTERVAL}s"},
        "rule_files": [str(DEPLOY / "prometheus" / "alerts.yaml")],
        "scrape_configs": [{"job_name": "integration-server", "static_configs": [{"targets": [metrics_address]}]}],
    }
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        address = f"127.0.0.1:{_free_port()}"
        config_file, log = Path(folder, "prometheus.yml"), Path(folder, "log")
        await asyncio.to_thread(config_file.write_text, json.dumps(config))  # which YAML includes
        arguments = [
            f"--config.file={config_file}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ]
        process = await _start(program, arguments, log)
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                try:
                    async with asyncio.timeout(start_timeout):
                        await _wait_until_ready(client, f"http://{address}", process, log)
                except TimeoutError:
                    raise NoPrometheus(f"it is not ready after {start_timeout:g} seconds") from None
                yield Scraper(f"http://{address}", client)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class NoPrometheus(Exception):
    """Prometheus does not start; says why."""


async def _start(program: str, arguments: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    """Start it. Its output goes to the file."""
    try:
        with log.open("wb") as output:  # once
            return await asyncio.create_subprocess_exec(program, *arguments, stdout=output, stderr=output)
    except OSError as error:
        raise NoPrometheus(f"{program}: {error.strerror}") from error


async def _wait_until_ready(
    client: httpx.AsyncClient, url: str, process: asyncio.subprocess.Process, log: Path
) -> None:
    while process.returncode is None:
        with suppress(httpx.TransportError):
            if (await client.get(f"{url}/-/ready")).is_success:
                return
        await asyncio.sleep(0.2)
    raise NoPrometheus(f"it ended with code {process.returncode}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    """The line with the error; those before it have what led to it."""
    *_, last = ["", *log.read_text(errors="replace").splitlines()]
    return last[:_MAX_REASON]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
