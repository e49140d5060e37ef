"""Commands whose standard streams are closed, full, or not read: servers serve, and others say so in a line."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import pytest

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import DEADLINE, ROOT
from tests.end_to_end.processes import free_port, server_environment
from tests.end_to_end.system import clients_of

pytestmark = pytest.mark.slow

UNREAD = "# unread"  # a comment for the shell
SLOW = pytest.mark.slow
TYPES, SHOW = "types --json", "types show google_calendar"


def in_shell(arguments: str, redirections: str) -> Sequence[str]:
    """A shell's command line."""
    return ["sh", "-c", f'exec "{sys.executable}" -m integration_server {arguments} {redirections}']


def process_environment(settings: Mapping[str, str]) -> Mapping[str, str]:
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"}
    return {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **path, **settings}


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def process_of(
    directory: Path, environment: Mapping[str, str], arguments: str, redirections: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process of a server, which is stopped when the block ends, with its children; and its standard error.

    Its standard error is redirected, or a pipe: without a reader, or full and never read (`UNREAD`).
    """
    reading, writing = os.pipe()
    if redirections == UNREAD:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"." * 4096)
        os.set_blocking(writing, True)
    else:
        os.close(reading)
    process = subprocess.Popen(
        in_shell(arguments, redirections),
        cwd=directory,
        env=process_environment(environment),
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    try:
        yield process, reading
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if redirections == UNREAD:
            os.close(reading)


@pytest.mark.quick_on("sqlite")
@pytest.mark.parametrize(
    ("arguments", "redirections"),
    [
        ("serve", "2>/dev/full"),
        pytest.param("serve", "", marks=SLOW),
        pytest.param("serve", "<&- >&- 2>&-", marks=SLOW),
        pytest.param("serve", UNREAD, marks=SLOW),
        pytest.param("dev", UNREAD, marks=SLOW),
        pytest.param("dev", "2>/dev/full", marks=SLOW),
        pytest.param("dev", "2>&-", marks=SLOW),
        # It prints a line for each call to standard output.
        pytest.param("dev", ">/dev/full", marks=SLOW),
        pytest.param("dev", ">&2", marks=SLOW),
    ],
)
async def test_a_server_whose_log_cannot_be_written_serves_and_stops(
    tmp_path: Path, database_url: str, arguments: str, redirections: str
) -> None:
    grpc_address, sidecar_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = server_environment(
        database_url,
        GRPC_ADDRESS=grpc_address,
        SIDECAR_ADDRESS=sidecar_address,
        SANDBOX_ADDRESS=f"127.0.0.1:{free_port()}",
        PUBLIC_URL="",
        LOG_LEVEL="DEBUG",
        REFRESH_JOURNAL_DIR=str(tmp_path / "journal"),
    )
    with process_of(tmp_path, environment, arguments, redirections) as (process, errors):
        async with clients_of(grpc_address, f"http://{sidecar_address}") as clients:
            async with asyncio.timeout(DEADLINE):
                while not await is_ready(clients.browser, f"http://{sidecar_address}/readyz"):
                    assert process.poll() is None
                    await asyncio.sleep(0.05)
            # Each of these writes a line, and all of them more than one batch.
            for number in range(50):
                request = pb.ListIntegrationsRequest(user_id=f"user-{number}")
                assert not (await clients.service.ListIntegrations(request, timeout=DEADLINE)).integrations
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await clients.service.GetIntegration(pb.GetIntegrationRequest(), timeout=DEADLINE)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            response = await clients.browser.get(f"http://{sidecar_address}/nothing")
            assert response.status_code == 404
            assert await is_ready(clients.browser, f"http://{sidecar_address}/readyz")
            if (arguments, redirections) == ("serve", UNREAD):
                os.set_blocking(errors, False)
                found = b""
                async with asyncio.timeout(DEADLINE):
                    while b'"event": "log_lines_lost"' not in found:
                        await clients.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
                        with suppress(BlockingIOError):
                            found += os.read(errors, 2**20).strip(b".")
                        await asyncio.sleep(0.05)
        process.terminate()
        async with asyncio.timeout(DEADLINE):
            while process.poll() is None:  # noqa: ASYNC110  # a process of its own sets no event of ours
                await asyncio.sleep(0.05)
        assert process.returncode == 0


async def is_ready(browser: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await browser.get(url)).status_code == 200
    except httpx.TransportError:
        return False


# --- other commands --------------------------------------------------------------------------------------------------


def run_command(directory: Path, arguments: str, redirections: str) -> tuple[int, str]:
    """Run a command. Returns its exit code, and what it prints to standard error."""
    command = in_shell(arguments, redirections)
    completed = subprocess.run(
        command,
        cwd=directory,
        env=process_environment({}),
        stdout=open_without_reader(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    return completed.returncode, completed.stderr


def open_without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    ("arguments", "redirections", "code", "message"),
    [
        ("types", "", 1, ""),
        ("types", ">/dev/full", 1, "No space left on device\n"),
        ("types", ">&-", 0, ""),
        pytest.param("types", "<&- >&- 2>&-", 0, "", marks=SLOW),
        pytest.param(TYPES, "", 1, "", marks=SLOW),
        pytest.param(TYPES, ">/dev/full", 1, '{"error": {"message": "No space left on device"}}\n', marks=SLOW),
        pytest.param(SHOW, "", 1, "", marks=SLOW),
        pytest.param("--help", "", 1, "", marks=SLOW),
        pytest.param("--version", "", 1, "", marks=SLOW),
        pytest.param("--version", ">/dev/full", 1, "No space left on device\n", marks=SLOW),
        pytest.param("doctor", "", 1, "", marks=SLOW),
        pytest.param("doctor --json", "", 1, "", marks=SLOW),
        pytest.param("healthcheck --help", ">/dev/full", 1, "No space left on device\n", marks=SLOW),
        pytest.param("serve --nonsense", "2>/dev/full", 2, "", marks=SLOW),
        pytest.param("types show nothing", "2>/dev/full", 1, "", marks=SLOW),
        pytest.param("integrations list --address 127.0.0.1:1 --user ada", "2>/dev/full", 3, "", marks=SLOW),
    ],
)
def test_a_command_whose_output_cannot_be_written_ends_without_a_traceback(
    tmp_path: Path, arguments: str, redirections: str, code: int, message: str
) -> None:
    assert run_command(tmp_path, arguments, redirections) == (code, message)
