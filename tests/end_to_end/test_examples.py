"""The programs in examples/ and README.md, unchanged but for the port, against the server of `make run`."""

import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import ROOT, Command, output_paths
from tests.end_to_end.processes import free_port, run, started
from tests.end_to_end.system import clients_of

pytestmark = pytest.mark.slow  # each example runs as its users run it, in processes of its own

EXAMPLES = ROOT / "examples"


@asynccontextmanager
async def dev_server(directory: Path, **settings: str) -> AsyncIterator[tuple[Command, dict[str, str]]]:
    """The server of `make run`, on free ports."""
    names = ("GRPC_ADDRESS", "SIDECAR_ADDRESS", "SANDBOX_ADDRESS", "METRICS_ADDRESS")
    environment = {"COLUMNS": "200", **{name: f"127.0.0.1:{free_port()}" for name in names}, **settings}
    async with started(directory, environment, "dev") as command:
        await command.wait_for_output("Press Ctrl-C to stop.")
        yield command, environment


def readme_program(directory: Path, grpc_address: str) -> Path:
    """The first call and the connection of README.md, as one program."""
    text = (ROOT / "README.md").read_text()
    first_call, connection = re.findall(r"<<'END'\n(.*?)\nEND\n|```python\n(.*?)```", text, re.DOTALL)
    path = directory / "readme.py"
    path.write_text("\n".join((*first_call, *connection)).replace("127.0.0.1:50051", grpc_address))
    return path


def run_example(directory: Path, name: str, *arguments: str) -> str:
    """Run a program of examples/, or any other by its absolute path. Returns its output."""
    out_path, err_path = output_paths(directory)
    with out_path.open("wb") as out, err_path.open("wb") as err:
        code = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            cwd=directory,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "PATH": "/usr/bin:/bin"},
            stdout=out,
            stderr=err,
            timeout=60,
            check=False,
        ).returncode
    assert (code, err_path.read_text()) == (0, "")
    return out_path.read_text()


async def test_connect_and_call_calendar_sync_and_readme_work(tmp_path: Path) -> None:
    async with dev_server(tmp_path) as (_, environment):
        output = run_example(tmp_path, "client_quick_start.py", "--server", environment["GRPC_ADDRESS"])
        assert "Connected: sandbox" in output
        assert "Through the server: 200" in output

        server = ("--server", environment["GRPC_ADDRESS"])
        called = run_example(tmp_path, "connect_and_call.py", "--allow", *server)
        assert "Connected: integration" in called
        assert "'email': 'ada@example.com'" in called
        again = run_example(tmp_path, "connect_and_call.py", "--allow", *server)  # the account is already connected
        assert "'email': 'ada@example.com'" in again
        synced = run_example(tmp_path, "calendar_sync.py", *server)
        assert "Appointment #42" in synced
        assert "On that day: 2024-01-15T10:00:00Z Appointment #42" in synced
        printed = run_example(tmp_path, str(readme_program(tmp_path, environment["GRPC_ADDRESS"])))
        assert "valid until" in printed
        assert f"open in a browser: http://{environment['SANDBOX_ADDRESS']}/oauth/authorize?" in printed


def documented_commands(page: str) -> Iterator[list[str]]:
    """The arguments of the commands for a running server in the code blocks of a page, in their order."""
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^\.venv/bin/python -m integration_server (.+)$", block, re.MULTILINE):
            arguments = shlex.split(line, comments=True)
            if arguments[0] in {"integrations", "due-work", "webhooks", "events", "clients", "status"}:
                yield arguments


async def test_the_documented_commands_work_as_written(tmp_path: Path) -> None:
    pages = [list(documented_commands(page)) for page in ("README.md", "docs/command-line.md")]
    assert list(map(len, pages)) == [3, 12]
    async with dev_server(tmp_path) as (_, environment):
        address = {"INTEGRATIONS_ADDRESS": environment["GRPC_ADDRESS"]}
        for arguments in (arguments for commands in pages for arguments in commands):
            if arguments[0] == "events":  # has no end, and nothing to print before something happens
                arguments = [*arguments, "--help"]  # noqa: PLW2901
            completed = await run(tmp_path, address, *arguments)
            assert completed.code == 0, (arguments, completed)


async def test_webhook_consumer_example_handles_each_event_once(tmp_path: Path) -> None:
    async with dev_server(tmp_path) as (_, environment):
        consumed = run_example(tmp_path, "webhook_consumer.py", "--send", "3", "--server", environment["GRPC_ADDRESS"])
    events = [line for line in consumed.splitlines() if line.startswith("Event ")]
    assert events == [f'Event {n}: thing.happened {{"type": "thing.happened", "number": {n}}}' for n in (1, 2, 3)]


@pytest.fixture(scope="session")
def installed_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLES / "acme-provider")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return target


async def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, installed_package: Path) -> None:
    sandbox, secret = Sandbox(), "a-secret-of-acmes-0123456789"
    async with run_sandbox(sandbox) as acme_url:
        settings = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}:{installed_package}",
            "ACME_BASE_URL": acme_url,
            "ACME_CLIENT_ID": "integration-server",
            "ACME_CLIENT_SECRET": secret,
        }
        async with dev_server(tmp_path, **settings) as (_, environment):
            sidecar_url = f"http://{environment['SIDECAR_ADDRESS']}"
            callback = f"{sidecar_url}/api/v1/integrations/callback/acme"
            sandbox.register_client("integration-server", secret, [callback])
            async with clients_of(environment["GRPC_ADDRESS"], sidecar_url) as clients:
                connect_response = await clients.begin(integration_type="acme")
                response = await clients.browser.get(await decide(clients.browser, connect_response.authorization_url))
                assert response.is_success
                called = await clients.service.CallProvider(
                    pb.CallProviderRequest(
                        user_id="ada", integration_id=connect_response.integration_id, method="GET", path="/userinfo"
                    )
                )
                assert called.status_code == 200
                assert b"ada@example.com" in called.body
