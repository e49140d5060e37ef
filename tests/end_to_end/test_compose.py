"""The services of `compose.yaml` as processes start in order, and serve the requirements' requests through Envoy."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio

from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from tests.compose import RunningProject, read_project, run_project
from tests.end_to_end.rest_user import RestUser, make_nine_requests
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.system import APP_CALLBACK, CLIENT_ID
from tests.envoy import SKIP_REASON, Envoy, are_healthy, find_envoy
from tests.postgres import run_postgres
from tools import compose_secrets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_envoy() is None, reason=SKIP_REASON),
]


@dataclass(frozen=True, slots=True)
class Installation:
    """The running services, and a user with the token for a trial."""

    project: RunningProject
    is_healthy: Callable[[str], Awaitable[bool]]
    user: RestUser = field(repr=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    """All services, with a provider on this machine: for it the servers are in dev mode."""
    folder = tmp_path_factory.mktemp("compose")
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


async def test_both_servers_are_behind_envoy(installation: Installation) -> None:
    """Over TLS, whose certificate Envoy verifies."""
    envoy = Envoy(installation.project.url, f"http://{installation.project.addresses['envoy']}:9901")
    healths = await envoy.wait_until(are_healthy)
    assert {cluster: len(hosts) for cluster, hosts in healths.items()} == {"servers": 2, "sidecars": 2}


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
        (group,) = (await client.get(f"{url}/rules")).json()["data"]["groups"]
        assert len(group["rules"]) >= 3
        assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"] if rule["health"] == "err"} == {}


async def test_an_altered_token_is_refused(installation: Installation) -> None:
    response = await installation.user.client.get(
        "/api/v1/integrations/status", headers={"Authorization": f"Bearer {installation.user.token('ada')}x"}
    )
    assert response.status_code == httpx.codes.UNAUTHORIZED
