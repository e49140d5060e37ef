"""The services of `compose.yaml` as processes start in order, and serve the requirements' requests through Envoy."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio

from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from tests.compose import RunningProject, can_confine, confined, image_user, read_project, run_project
from tests.end_to_end.rest_user import RestUser, make_nine_requests
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.system import APP_CALLBACK, CLIENT_ID
from tests.envoy import SKIP_REASON, Envoy, are_healthy, find_envoy, is_ejected, run_envoy
from tests.postgres import run_postgres
from tools import compose_secrets
from tools.certificates import Authority

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_envoy() is None, reason=SKIP_REASON),
]

NOT_CONFINED = "only root on Linux can give a process a read-only root file system"


@dataclass(frozen=True, slots=True)
class Installation:
    """The running services, and a user with the token for a trial."""

    project: RunningProject
    is_healthy: Callable[[str], Awaitable[bool]]
    user: RestUser = field(repr=False)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder on the disk: a confined process has a /dev/shm of its own, so that of `tmp_path` is not in it."""
    with TemporaryDirectory(prefix="compose-") as folder:
        yield Path(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(folder: Path) -> AsyncIterator[Installation]:
    """All services, with a provider on this machine: for it the servers are in dev mode."""
    compose_secrets.write(folder)
    sandbox, client_secret = Sandbox(), secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, client_secret, [APP_CALLBACK])
    providers = folder / "providers"
    providers.mkdir()
    token = (folder / "ada.jwt").read_text()
    with run_postgres() as postgres:
        async with run_sandbox(sandbox) as sandbox_url:
            declare_sandbox(providers, sandbox_url)
            # As with Google, there is no issuer to compare: the requirements' page passes on no `iss` (RFC 9207).
            declaration = providers / "sandbox.toml"
            declaration.write_text(re.sub(r"^issuer = .*\n", "", declaration.read_text(), flags=re.MULTILINE))
            overrides = {
                "DEV_MODE": "true",
                "WORKERS": "1",  # the start of ten processes takes long on a busy machine
                "PROVIDERS_DIR": str(providers),
                "SANDBOX_CLIENT_ID": CLIENT_ID,
                "SANDBOX_CLIENT_SECRET": client_secret,
                "ALLOWED_REDIRECT_URIS": APP_CALLBACK,
            }
            async with (
                run_project(folder, postgres, **overrides) as (project, is_healthy),
                httpx.AsyncClient(base_url=project.url, trust_env=False, timeout=60) as client,
                httpx.AsyncClient(trust_env=False, timeout=60) as browser,
            ):
                await wait_until_served(client)
                yield Installation(project, is_healthy, RestUser(client, browser, lambda _: token, "sandbox"))


async def wait_until_served(client: httpx.AsyncClient) -> None:
    """Wait until Envoy has found the servers: a request without a token is refused by one of them."""
    async with asyncio.timeout(120):
        while True:
            try:
                if (await client.get("/api/v1/integrations/status")).status_code == httpx.codes.UNAUTHORIZED:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


async def test_the_requirements_requests_pass_through_envoy(installation: Installation) -> None:
    await make_nine_requests(installation.user)


async def test_every_service_runs_and_is_healthy(installation: Installation) -> None:
    project = installation.project
    assert set(project.processes) | set(project.left_out) | {"postgres"} == set(read_project()["services"])
    assert {name: process.returncode for name, process in project.processes.items()} == {
        name: 0 if name == "migrate" else None for name in project.processes
    }
    checked = [name for name, service in read_project()["services"].items() if "healthcheck" in service]
    assert set(checked) == {"postgres", "server-1", "server-2"}
    for name in checked:
        assert await installation.is_healthy(name)


def assert_confined(process: psutil.Process) -> None:
    """Assert that a process runs as the image's user, and cannot write to its root file system."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert f"Uid:\t{image_user()}\t{image_user()}\t" in status
    assert "NoNewPrivs:\t1" in status
    mounts = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
    (root,) = (line for line in mounts if " / / " in line)
    assert root.split()[5].split(",")[0] == "ro"


async def test_the_servers_run_without_rights_on_a_read_only_file_system(installation: Installation) -> None:
    if not installation.project.is_confined:
        pytest.skip(NOT_CONFINED)
    for name in ("server-1", "server-2"):
        main = psutil.Process(installation.project.processes[name].pid)
        processes = [main, *main.children(recursive=True)]
        assert len(processes) == 4  # supervisor, server, sidecar, metrics
        for process in processes:
            assert_confined(process)


async def test_negative_control_elsewhere_a_confined_process_cannot_write(folder: Path) -> None:
    if not can_confine():
        pytest.skip(NOT_CONFINED)
    volume, elsewhere = folder / "volume", folder / "elsewhere"
    volume.mkdir()
    elsewhere.mkdir()
    elsewhere.chmod(0o777)

    async def can_write(folder: Path, program: Sequence[str] = ()) -> bool:
        process = await asyncio.create_subprocess_exec(*program, "touch", str(folder / "file"))
        return await process.wait() == 0

    assert await can_write(volume, confined(image_user(), [volume]))
    assert not await can_write(elsewhere, confined(image_user(), [volume]))
    assert await can_write(elsewhere)


async def test_both_servers_are_behind_envoy(installation: Installation) -> None:
    """Over TLS, whose certificate Envoy verifies."""
    envoy = Envoy(installation.project.url, f"http://{installation.project.addresses['envoy']}:9901")
    healths = await envoy.wait_until(are_healthy)
    hosts = [installation.project.addresses[name] for name in ("server-1", "server-2")]
    assert healths.keys() == {f"{host}:{port}" for host in hosts for port in (50051, 8080)}


async def test_prometheus_scrapes_both_servers_and_evaluates_the_alerts(installation: Installation) -> None:
    project = installation.project
    if "prometheus" in project.left_out:
        pytest.skip(f"{project.left_out['prometheus']}; on Debian: apt-get install prometheus")
    url = f"http://{project.addresses['prometheus']}:9090/api/v1"
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(120):
        up: dict[str, str] = {}
        while sorted(up.values()) != ["1", "1"]:
            found = (await client.get(f"{url}/query", params={"query": "up"})).json()["data"]["result"]
            up = {result["metric"]["instance"]: result["value"][1] for result in found}
            await asyncio.sleep(0.5)
        groups = (await client.get(f"{url}/rules")).json()["data"]["groups"]
        assert len(groups) > 1
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] == "err"} == {}


async def test_an_altered_token_is_refused(installation: Installation) -> None:
    response = await installation.user.client.get(
        "/api/v1/integrations/status", headers={"Authorization": f"Bearer {installation.user.token('ada')}x"}
    )
    assert response.status_code == httpx.codes.UNAUTHORIZED


def expect_another_name(tls: dict[str, Any]) -> None:
    """Change the name that Envoy looks for in the servers' certificate."""
    tls["validation_context"]["match_typed_subject_alt_names"][0]["matcher"]["exact"] = "other-servers"


@asynccontextmanager
async def another_envoy(
    installation: Installation, folder: Path, authority: bytes, **options: Any
) -> AsyncIterator[Envoy]:
    """A second Envoy in front of the servers, that trusts an authority."""
    (folder / "ca.pem").write_bytes(authority)
    hosts = [installation.project.addresses[name] for name in ("server-1", "server-2")]
    servers, sidecars = ([f"{host}:{port}" for host in hosts] for port in (50051, 8080))
    async with run_envoy(folder, servers, sidecars, authority=folder / "ca.pem", **options) as envoy:
        yield envoy


def servers_in(healths: Mapping[str, str]) -> Mapping[str, str]:
    """Those of the gRPC servers."""
    return {address: health for address, health in healths.items() if address.endswith(":50051")}


def sidecars_are_healthy(healths: Mapping[str, str]) -> bool:
    """Whether all sidecars are, which have no certificate."""
    return are_healthy({address: healths[address] for address in healths.keys() - servers_in(healths).keys()})


@pytest.mark.parametrize("mistake", ["authority", "name"])
async def test_envoy_connects_to_no_server_whose_certificate_is_anothers(
    mistake: str, installation: Installation, tmp_path: Path
) -> None:
    own = (installation.project.folder / "ca.pem").read_bytes()
    authority, options = (
        (Authority().certificate, {}) if mistake == "authority" else (own, {"change_tls": expect_another_name})
    )
    statistic = "fail_verify_error" if mistake == "authority" else "fail_verify_san"
    async with (
        another_envoy(installation, tmp_path, authority, until=sidecars_are_healthy, **options) as envoy,
        httpx.AsyncClient(trust_env=False) as client,
        asyncio.timeout(60),
    ):
        refused = "0"
        while int(refused) < 4:  # both servers, at least once
            text = (await client.get(f"{envoy.admin_url}/stats?filter=cluster.servers.ssl.{statistic}")).text
            refused = text.rpartition(": ")[2]
            await asyncio.sleep(0.2)
        assert all(is_ejected(health) for health in servers_in(await envoy.healths(client)).values())
        response = await client.get(f"{envoy.url}/api/v1/integrations/status", headers=installation.user.bearer())
        assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE


async def test_negative_control_without_the_verification_envoy_accepts_any_certificate(
    installation: Installation, tmp_path: Path
) -> None:
    unverified = {"change_tls": lambda tls: tls.pop("validation_context")}
    async with another_envoy(installation, tmp_path, Authority().certificate, **unverified) as envoy:
        await envoy.wait_until(are_healthy)
