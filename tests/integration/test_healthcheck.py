"""The command `healthcheck`, against sidecars that respond in various ways."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from integration_server.command_errors import CommandFailed
from integration_server.healthcheck import find_problem, healthcheck
from integration_server.setting_types import parse_address
from tests.unit.client.test_imports import imported

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nnot ready"


@asynccontextmanager
async def sidecar(respond: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """A server that responds to the first line of a request, or never for None; its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        response = respond(await reader.readline())
        if response is None:
            await reader.read()  # until the client gives up
        else:
            writer.write(response)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1")
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def problem(address: str, path: str = "/readyz", deadline: float = 30) -> str | None:
    """What the command finds at the address."""
    return await asyncio.to_thread(find_problem, {"SIDECAR_ADDRESS": address}, path, deadline)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (OK, None),
        (NOT_READY, "responds 503 to /readyz: not ready"),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "responds 302"),
        (b"SSH-2.0-OpenSSH_9\r\n", "no response"),
        (b"", "no response"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000, "no response"),
    ],
)
async def test_only_200_is_healthy(response: bytes, found: str | None) -> None:
    async with sidecar(lambda _: response) as address:
        result = await problem(address)
    assert (result is None) == (found is None)
    assert (found or "") in (result or "")


async def test_a_file_that_has_become_invalid_fails_no_check_that_needs_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("no assignment\n")
    monkeypatch.delenv("SIDECAR_ADDRESS", raising=False)
    with pytest.raises(CommandFailed, match="is not an assignment"):
        healthcheck()
    async with sidecar(lambda _: OK) as address:
        monkeypatch.setenv("SIDECAR_ADDRESS", address)
        await asyncio.to_thread(healthcheck)


async def test_liveness_asks_another_path_than_readiness() -> None:
    async with sidecar(lambda line: OK if line.startswith(b"GET /healthz ") else NOT_READY) as address:
        assert await problem(address, "/healthz") is None
        assert await problem(address) is not None


async def test_a_sidecar_that_hangs_is_unhealthy() -> None:
    async with sidecar(lambda _: None) as address:
        assert "no response" in (await problem(address, deadline=0.2) or "")


async def test_a_sidecar_on_all_addresses_is_asked_on_loopback() -> None:
    async with sidecar(lambda _: OK) as address:
        assert await problem(address.replace("127.0.0.1", "0.0.0.0")) is None


async def test_without_a_sidecar_the_problem_names_address_and_setting() -> None:
    async with sidecar(lambda _: OK) as address:
        pass
    assert (await problem(address) or "").startswith(f"no response from {address} (SIDECAR_ADDRESS): ")


@pytest.mark.parametrize("address", ["8080", "0.0.0.0", "http://127.0.0.1:8080/", "127.0.0.1:70000"])
async def test_an_invalid_address_is_a_problem_of_its_setting(address: str) -> None:
    assert (await problem(address) or "").startswith("SIDECAR_ADDRESS: ")


@pytest.mark.parametrize(
    ("listening", "reachable"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.1.2.3:1", "10.1.2.3:1"),
        ("server:1", "server:1"),
    ],
)
def test_the_reachable_address(listening: str, reachable: str) -> None:
    assert str(parse_address(listening).reachable) == reachable


def test_it_imports_none_of_the_other_commands() -> None:
    """It runs every few seconds in every container."""
    _, modules = imported("integration_server.healthcheck")
    assert {"typer", "pydantic"} <= modules
    assert modules & {"sqlalchemy", "grpc", "httpx", "cryptography", "integration_server.cli"} == set()
