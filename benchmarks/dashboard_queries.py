"""Whether the queries of all dashboards return data, with a Prometheus of its own that scrapes a running server."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

DEPLOY = Path(__file__).parents[1] / "deploy"
_SCRAPE_INTERVAL = 5  # seconds
_RATE_INTERVAL = "60s"  # of Grafana: four scrapes at least
_START = 30.0  # seconds until Prometheus responds


@dataclass(frozen=True, slots=True)
class DashboardQuery:
    """A query of a panel, as Grafana sends it for all instances."""

    dashboard: str
    panel: str
    expression: str


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
async def scraping(metrics_address: str) -> AsyncIterator[Scraper | None]:
    """Scrape the metrics of a server with the rules of `deploy/prometheus`; None if Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None or not metrics_address:
        yield None
        return
    config = {
        "global": {"scrape_interval": f"{_SCRAPE_INTERVAL}s", "evaluation_interval": f"{_SCRAPE_INTERVAL}s"},
        "rule_files": [str(DEPLOY / "prometheus" / "alerts.yaml")],
        "scrape_configs": [{"job_name": "integration-server", "static_configs": [{"targets": [metrics_address]}]}],
    }
    with TemporaryDirectory() as folder:
        address = f"127.0.0.1:{_free_port()}"
        config_file = Path(folder, "prometheus.yml")
        await asyncio.to_thread(config_file.write_text, json.dumps(config))  # which YAML includes
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config_file}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                await _wait_until_ready(client, f"http://{address}", process)
                yield Scraper(f"http://{address}", client)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _wait_until_ready(client: httpx.AsyncClient, url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START):
        while process.returncode is None:
            with suppress(httpx.TransportError):
                if (await client.get(f"{url}/-/ready")).is_success:
                    return
            await asyncio.sleep(0.2)
    raise OSError(f"prometheus ended with code {process.returncode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
