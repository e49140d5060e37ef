"""Heads are sent to a URL, as docs/audit.md describes the request. The receiver here appends each body to a file."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from integration_server.service.audit.audit_heads import AUDIT_CHAIN, Head
from integration_server.settings import Settings
from integration_server.storage.audit_head_file import read_heads
from integration_server.wiring.audit_heads import open_head_recorder
from tests.fakes.clock import NOON
from tests.integration.providers.socket_servers import serving
from tests.loopback import accepting

HEAD = Head(AUDIT_CHAIN, "c-1", 1, 10, b"\x01" * 32)


@asynccontextmanager
async def receiving(path: Path, *statuses: str, location: str = "") -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a receiver, and the heads of the requests that it gets."""
    remaining, requests = list(statuses), list[bytes]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        requests.append(head)
        (length,) = (int(line.split(b":")[1]) for line in head.lower().splitlines() if line[:15] == b"content-length:")
        body = await reader.readexactly(length)
        status = remaining.pop(0) if remaining else "204 No Content"
        if status.startswith("2"):
            with path.open("ab") as file:
                file.write(body)
        extra = f"Location: {location}\r\n" if location else ""
        writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()

    async with accepting(handle) as port:
        yield f"http://127.0.0.1:{port}/heads?key=k1", requests


def settings_for(url: str) -> Settings:
    return Settings.from_environment({"DEV_MODE": "true", "AUDIT_HEADS": url})


def source() -> Sequence[Head]:
    return [HEAD]


async def test_heads_are_posted_as_lines_of_json_and_can_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "received"
    async with receiving(path) as (url, requests), open_head_recorder(settings_for(url), source, lambda: NOON):
        pass
    (request,) = requests
    assert request.startswith(b"POST /heads?key=k1 HTTP/1.1\r\n")
    assert b"content-type: application/x-ndjson" in request.lower()
    assert read_heads(path).of_chain("c-1") == {HEAD}


@pytest.mark.parametrize("status", ["500 Internal Server Error", "401 Unauthorized", "404 Not Found"])
async def test_heads_that_were_not_accepted_are_sent_again(tmp_path: Path, status: str) -> None:
    path = tmp_path / "received"
    async with receiving(path, status) as (url, _), open_head_recorder(settings_for(url), source, lambda: NOON) as sent:
        assert sent is not None
        with capture_logs() as logs:
            assert not await sent.record()
        assert await sent.record()
    assert read_heads(path).of_chain("c-1") == {HEAD}
    assert "audit_heads_not_recorded" in [log["event"] for log in logs]
    assert "k1" not in str(logs)  # the URL may authorize its sender


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    async with receiving(elsewhere) as (other, others_requests):
        redirecting = receiving(tmp_path / "received", "307 Temporary Redirect", location=other)
        async with redirecting as (url, _), open_head_recorder(settings_for(url), source, lambda: NOON) as sent:
            assert sent is not None
            assert not await sent.record()
    assert others_requests == []


async def test_a_receiver_that_is_not_there_is_reported(tmp_path: Path) -> None:
    async with serving(lambda _reader, _writer: asyncio.sleep(0)) as url:
        pass
    async with open_head_recorder(settings_for(url), source, lambda: NOON) as sent:
        assert sent is not None
        assert not await sent.record()


async def test_without_the_setting_nothing_is_recorded() -> None:
    async with open_head_recorder(Settings.from_environment({"DEV_MODE": "true"}), source, lambda: NOON) as sent:
        assert sent is None
