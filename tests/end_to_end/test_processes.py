"""`serve` runs two processes that behave as one: the gRPC server, which has the keys, and the sidecar without any."""

import asyncio
import base64
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from integration_server.bootstrap import running_grpc_server
from integration_server.sidecar_settings import SidecarSettings
from integration_server.wiring.sidecar import SidecarLink, new_sidecar_link
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.authenticated_system import CredentialIssuer
from tests.end_to_end.commands import DEADLINE, ROOT, Command
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.processes import new_key, run_server_process, server_environment, serving, started
from tests.end_to_end.system import query_of, settings_for

MAX_REGION = 256 << 20  # bytes; larger ones are reserved address space


# --- the keys -------------------------------------------------------------------------------------------


def memory_of(pid: int) -> bytes:
    """All readable memory of a process, without what the kernel maps for itself."""
    mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    regions = [line.split(maxsplit=1)[0].split("-") for line in mapped if " r" in line[:40] and "[v" not in line]
    contents = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in ((int(start, 16), int(end, 16)) for start, end in regions):
            memory.seek(start)
            try:
                contents.append(memory.read(min(end - start, MAX_REGION)))
            except OSError:
                continue  # a guard page, or a file that became shorter
    return b"\n".join(contents)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a process that protects it")
async def test_the_sidecars_memory_environment_and_command_line_have_no_secret(
    postgres_url: str, tmp_path: Path
) -> None:
    """Negative control: the server's memory has all of them."""
    key = new_key()
    (tmp_path / ".env").write_text("ENCRYPTION_KEYS_RETIRED=" + (retired := new_key()))
    async with run_server_process(tmp_path, postgres_url, ENCRYPTION_KEY=key) as system:
        await system.connect("ada")  # so that both have done all their work
        secrets = {
            "key": key.encode(),
            "key bytes": base64.b64decode(key),
            "retired key": retired.encode(),
            "client secret": system.client_secret.encode(),
            "database": postgres_url.encode(),
        }
        memory = {name: memory_of(system.command.pid(name)) for name in ("server", "sidecar")}
        sidecar = Path(f"/proc/{system.command.pid('sidecar')}")
        given = (sidecar / "environ").read_bytes() + (sidecar / "cmdline").read_bytes()
    assert {name for name, secret in secrets.items() if secret in memory["server"]} == set(secrets)
    assert {name for name, secret in secrets.items() if secret in memory["sidecar"]} == set()
    names = {line.partition(b"=")[0].decode() for line in given.split(b"\0")}
    assert not names & {"ENCRYPTION_KEY", "DATABASE_URL", "DEV_MODE", "SANDBOX_CLIENT_SECRET", "GRPC_ADDRESS"}
    assert b"PATH" in given


@pytest.mark.slow  # import-linter has the same rule
def test_the_sidecars_settings_have_no_key_and_its_process_imports_nothing_of_the_server() -> None:
    """Negative control: the command line's process imports all of it."""
    fields = set(SidecarSettings.model_fields)
    assert not [name for name in fields if re.search("key|secret|token|database|redis|password", name)]
    heavy = {"sqlalchemy", "asyncpg", "httpx", "typer", "integration_server.settings"}
    heavy |= {f"integration_server.{name}" for name in ("storage", "service", "providers", "rpc", "bootstrap")}
    program = "import sys, {}; print(*sys.modules)"
    imported = {
        module: set(
            subprocess.run(
                [sys.executable, "-c", program.format(module)],
                env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"},
                capture_output=True,
                check=True,
                text=True,
            ).stdout.split()
        )
        for module in ("integration_server.sidecar_process", "integration_server.cli.program")
    }
    assert imported["integration_server.sidecar_process"] & heavy == set()
    assert heavy <= imported["integration_server.cli.program"]


def read_environment_of(pid: int) -> str:
    """What a process of the same user, without special rights, sees of the environment of another."""
    program = f"print(open('/proc/{pid}/environ').read())"
    read = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.without_capabilities", "-c", program],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    return read.stdout + read.stderr


def core_limit(pid: int) -> str:
    """The soft limit of the size of core dumps."""
    (limit,) = re.findall(r"^Max core file size +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    return str(limit)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_processes_with_keys_are_not_dumpable(sqlite_url: str, tmp_path: Path) -> None:
    """Negative control: the memory of a process that does not protect it can be read."""
    environment = server_environment(sqlite_url)
    module = "tests.end_to_end.without_capabilities"
    async with (
        started(tmp_path, environment, "-m", "integration_server", "serve", module=module) as command,
        started(tmp_path, environment, "-m", "tests.end_to_end.server_without_limits", module=module) as control,
    ):
        await control.wait_for_output('"event": "serving"')
        output = await command.wait_for_output('"event": "serving"')
        pids = json.loads(next(line for line in output.splitlines() if '"event": "serving"' in line))["pids"]
        for pid in (command.process.pid, pids["server"], pids["sidecar"]):
            seen = read_environment_of(pid)
            assert "PermissionError" in seen
            assert environment["ENCRYPTION_KEY"] not in seen
            assert core_limit(pid) == "0"
        assert environment["ENCRYPTION_KEY"] in read_environment_of(control.process.pid)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        assert core_limit(control.process.pid) == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))
        command.send(signal.SIGTERM)
        assert (await command.finished()).code == 0


# --- the sidecar's identity -----------------------------------------------------------------------------


@asynccontextmanager
async def server_with_link(database_url: str, settings: Mapping[str, str]) -> AsyncIterator[tuple[str, SidecarLink]]:
    """A gRPC server in this process; its address, and the link of its sidecar."""
    with new_sidecar_link() as link:
        async with running_grpc_server(settings_for(database_url, **settings), {}, link) as server:
            yield server.address, link


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await asyncio.wait_for(call, DEADLINE)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def codes_over(target: str, token: str | None) -> dict[str, grpc.StatusCode]:
    """The status of some calls with a token. A wrong argument shows that a call is permitted."""
    given = () if token is None else (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        service = IntegrationServiceStub(channel)
        untyped: Any = channel
        reflection: Any = ServerReflectionStub(untyped)
        unknown: Any = channel.unary_unary("/integrations.v1.IntegrationService/Nothing")
        reflected = reflection.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]), metadata=given)
        calls: dict[str, Awaitable[Any]] = {
            "callbacks": service.HandleCallback(pb.HandleCallbackRequest(state="forged", code="x"), metadata=given),
            "webhook_delivery": service.ReceiveWebhook(
                pb.ReceiveWebhookRequest(integration_type="stripe", endpoint="none", method="POST"), metadata=given
            ),
            "health": HealthStub(channel).Check(HealthCheckRequest(), metadata=given),
            "read": service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"), metadata=given),
            "connect": service.Connect(pb.ConnectRequest(user_id="ada"), metadata=given),
            "credentials": service.GetCredentials(
                pb.GetCredentialsRequest(integration_id=1, user_id="ada"), metadata=given
            ),
            "watch": service.WatchIntegrations(pb.WatchIntegrationsRequest(cursor="forged"), metadata=given).read(),
            "reflection": reflected.read(),
            "unknown": unknown(b"", metadata=given),
        }
        return {name: await code_of(call) for name, call in calls.items()}


PERMITTED = {"callbacks", "webhook_delivery", "health"}
REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # after too many failures
    grpc.StatusCode.INTERNAL,  # of gRPC's client, for a call that the server ends before it has read its request
}
DENIED = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("is_authenticated", [False, True], ids=["open", "authenticated"])
async def test_the_sidecars_socket_gives_its_permissions_to_its_secret_and_nothing_else(
    sqlite_url: str, tmp_path: Path, is_authenticated: bool
) -> None:
    """Also where callers are not authenticated. Negative control: over TCP such a server permits everything."""
    settings = CredentialIssuer(tmp_path).token_settings if is_authenticated else {}
    async with server_with_link(sqlite_url, settings) as (address, link):
        codes = await codes_over(link.target, link.token)
        assert {name for name, code in codes.items() if code not in DENIED} == {*PERMITTED, "unknown"}
        assert codes["unknown"] == grpc.StatusCode.UNIMPLEMENTED
        for token in (None, "", "x", link.token[:-1], link.token + "x", link.token.swapcase(), "ä" * 43):
            if token is None or token.isascii():
                assert set((await codes_over(link.target, token)).values()) <= REFUSED, token
        over_tcp = await codes_over(address, None)
        if is_authenticated:
            assert set(over_tcp.values()) <= REFUSED
        else:
            assert not DENIED & set(over_tcp.values())
        assert stat.S_IMODE(link.socket.parent.stat().st_mode) == 0o700
        assert link.token not in repr(link)
    assert not link.socket.parent.exists()


# --- behaving as one process ----------------------------------------------------------------------------


@pytest.mark.slow
async def test_one_signal_lets_a_callback_finish_before_the_server_stops(sqlite_url: str, tmp_path: Path) -> None:
    """Every process gets the signal, as when systemd stops a service."""
    async with run_server_process(tmp_path, sqlite_url) as system:
        watch = system.health.Watch(HealthCheckRequest())
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        location = await system.decide(await system.begin("ada"), account="ada")
        held = HeldResponse()
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
        callback = asyncio.ensure_future(system.follow(location))
        await held.wait_for_requests(1)

        for pid in (system.command.process.pid, system.command.pid("server"), system.command.pid("sidecar")):
            os.kill(pid, signal.SIGTERM)
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        assert not callback.done()
        held.released.set()
        response = await callback
        assert (response.status_code, response.json()["success"]) == (200, True), query_of(location)
        finished = await system.command.finished()
        assert finished.code == 0
        assert "process_killed" not in finished.err


def replaced_events(command: Command, event: str) -> list[dict[str, Any]]:
    """The log's events of this name."""
    lines = (json.loads(line) for line in command.output.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


@pytest.mark.slow  # tests/integration/test_supervisor.py has it with small programs
async def test_a_process_that_dies_is_restarted_and_the_other_continues(sqlite_url: str, tmp_path: Path) -> None:
    async with run_server_process(tmp_path, sqlite_url) as system:
        command = system.command
        for name in ("sidecar", "server"):
            os.kill(command.pid(name), signal.SIGKILL)
            await command.wait_for_output(f'{{"name": "{name}", "pids"')
        died = replaced_events(command, "process_died")
        assert [(event["name"], event["exit_code"], event["process"]) for event in died] == [
            ("sidecar", -9, "supervisor"),
            ("server", -9, "supervisor"),
        ]
        sidecar, server = replaced_events(command, "process_restarted")
        async with asyncio.timeout(DEADLINE):  # until the sidecar has found the new server on its socket
            while (await system.browser.get(f"{sidecar['sidecar']}/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert server["pids"]["sidecar"] == sidecar["pids"]["sidecar"] != command.pid("sidecar")
        command.send(signal.SIGTERM)
        assert (await command.finished()).code == 0


@pytest.mark.slow
async def test_each_log_line_names_its_process(sqlite_url: str, tmp_path: Path) -> None:
    async with run_server_process(tmp_path, sqlite_url) as system:
        await system.connect("ada")
        await system.command.wait_for_output('"path": "/api/v1/integrations/callback/sandbox"')
        lines = [json.loads(line) for line in system.command.err_path.read_text().splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "server", "sidecar"}


@pytest.mark.slow
async def test_killing_the_supervisor_leaves_no_process(sqlite_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path, server_environment(sqlite_url)) as command:
        children = [psutil.Process(command.pid(name)) for name in ("server", "sidecar")]
        command.send(signal.SIGKILL)
        await command.finished()
        _, alive = psutil.wait_procs(
            [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE],
            timeout=DEADLINE,
        )
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
