"""A real Prometheus with the rules of deploy/, whose durations are divided so that alerts fire within seconds."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.dashboard_queries import DashboardQuery, dashboard_queries
from tests.end_to_end.processes import free_port

RULES = Path(__file__).parents[1] / "deploy" / "prometheus"
SKIP_REASON = "prometheus is not installed; on Debian: apt-get install prometheus"
DIVISOR = 30
"""As deploy/prometheus/alerts.yaml says: a window of five minutes becomes ten seconds, with ten scrapes."""

EVENTS_WITH_DEFAULT: Mapping[str, Sequence[str]] = {
    "AuthenticationFails": ["authentication_refusals_total"],
    "CallersRefused": ['reason="QUOTA_EXCEEDED"'],
    "CertificateEnds": ["certificate_remaining_seconds"],
    "ClientSecretRefused": ["client_secret_refusals_total"],
    "MassInvalidGrants": ["mass_invalid_grants_total"],
    "ProcessDown": ["process_up", "ALERTS"],
    "ProviderRateLimits": ["rate_limit_refusals_total"],
    "ProviderUnavailable": ['class=~"5xx|no_response"'],
    "RefreshesFail": ['outcome!="success"'],
    "WebhooksUnrouted": ["webhooks_unrouted_total"],
}
"""Alerts, and what the queries of panels select that show the same event. These have a default for its absence
(`or vector(0)`), and so always have data; without it, they have data when the alert fires."""

_DEADLINE = 120.0  # seconds; a busy machine scrapes late
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def find_programs() -> Sequence[str] | None:
    """The paths of prometheus and promtool, if both are installed."""
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    return None if None in found else [path for path in found if path]


def queries_with_default(alert: str) -> Sequence[DashboardQuery]:
    """The queries of the dashboards that have a default, and show the event of the alert."""
    return [
        query
        for query in dashboard_queries()
        if query.without_default != query
        and any(selected in query.without_default.expression for selected in EVENTS_WITH_DEFAULT.get(alert, ()))
    ]


def divided(rules: str, divisor: int = DIVISOR) -> str:
    """The rules with all durations divided: `for`, `interval`, `offset` and windows."""

    def shorten(match: re.Match[str]) -> str:
        before, number, unit = match.groups()
        return f"{before}{int(number) * _SECONDS[unit] * 1000 // divisor}ms"

    return re.sub(r"(for: |interval: |offset |\[)(\d+)([smhd])\b", shorten, rules)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str
    client: httpx.AsyncClient = field(repr=False)
    targets_path: Path

    async def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """The result of a query. Raises `AssertionError` with the error of Prometheus."""
        response = (await self.client.get(f"{self.url}/query", params={"query": expression})).json()
        assert response["status"] == "success", (expression, response)
        data = response["data"]
        return data["result"] if data["resultType"] == "vector" else [data]

    async def wait_until_shown(self, alerts: Iterable[str]) -> None:
        """Wait until the panels show the event of alerts that fire. Raises `AssertionError` with those that do not."""
        missing = [query.without_default for alert in alerts for query in queries_with_default(alert)]
        try:
            async with asyncio.timeout(_DEADLINE):
                while missing := [query for query in missing if not await self.query(query.expression)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"without data: {missing}") from None

    async def rules(self) -> Sequence[Mapping[str, Any]]:
        """All rules, with their health."""
        groups = (await self.client.get(f"{self.url}/rules")).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def firing(self) -> set[str]:
        """The names of the alerts that fire, without the prefix."""
        alerts = (await self.client.get(f"{self.url}/alerts")).json()["data"]["alerts"]
        firing = (alert for alert in alerts if alert["state"] == "firing")
        return {alert["labels"]["alertname"].removeprefix("IntegrationServer") for alert in firing}

    async def wait_until(self, is_reached: Callable[[set[str]], bool], within: float = _DEADLINE) -> None:
        """Wait for alerts. Raises `AssertionError` with those that fire instead."""
        firing: set[str] = set()
        try:
            async with asyncio.timeout(within):
                while not is_reached(firing := await self.firing()):  # noqa: ASYNC110  # another process's state
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"firing: {sorted(firing)}") from None

    def set_targets(self, *addresses: str) -> None:
        """Scrape these addresses from now on."""
        new = self.targets_path.with_suffix(".new")
        new.write_text(json.dumps([{"targets": list(addresses)}]))
        new.rename(self.targets_path)


@asynccontextmanager
async def run_prometheus(folder: Path, *addresses: str) -> AsyncIterator[Prometheus]:
    """Run Prometheus in an empty folder; it scrapes the addresses every second."""
    (folder / "alerts.yaml").write_text(divided((RULES / "alerts.yaml").read_text()))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
        "rule_files: [alerts.yaml]\n"
        "scrape_configs:\n"
        "  - job_name: integration-server\n"
        "    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    programs = find_programs()
    assert programs is not None
    log_path = folder / "log"
    log_path.touch()
    with log_path.open("wb") as log:  # once
        async with httpx.AsyncClient(trust_env=False) as client:
            prometheus = Prometheus(f"http://{address}/api/v1", client, folder / "targets.json")
            prometheus.set_targets(*addresses)
            process = await asyncio.create_subprocess_exec(
                programs[0],
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                stdout=log,
                stderr=log,
            )
            try:
                await _wait_for_scrapes(prometheus, len(addresses), process, folder / "log")
                yield prometheus
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def _wait_for_scrapes(prometheus: Prometheus, count: int, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(_DEADLINE):
        while True:
            assert process.returncode is None, f"it ended: see {log}"
            try:
                if len(await prometheus.query("up == 1")) == count:
                    return
            except (httpx.TransportError, json.JSONDecodeError):
                pass
            await asyncio.sleep(0.2)
