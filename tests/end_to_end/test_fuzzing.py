"""A short run of `make test-fuzz`, and tests that the fuzzer finds faults."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import run_server_process
from tests.fuzz.http import HttpCase
from tests.fuzz.messages import METHODS, PLANTED, RpcCase
from tests.fuzz.run import ALLOWED_GROWTH, SETTINGS, Finding, Fuzzer, IssuingSandbox
from tests.loop_hold.meter import MAX_HOLD, HoldRecorder, LoopHolds
from tests.loopback import accepting

CASES = 300
CONNECT_WITH_KEY = next(method for method in METHODS if method.name == "ConnectWithApiKey")


@asynccontextmanager
async def fuzzer(directory: Path, database_url: str) -> AsyncIterator[Fuzzer]:
    """A fuzzer with its own server process."""
    sandbox = IssuingSandbox()
    holds = LoopHolds(directory)
    settings = {**SETTINGS, **holds.environment}
    async with run_server_process(directory, database_url, sandbox=sandbox, forked=False, **settings) as system:
        yield Fuzzer(system, sandbox, holds)


@pytest.mark.slow
async def test_every_fuzzed_request_gets_a_valid_response_without_secrets(database_url: str, tmp_path: Path) -> None:
    async with fuzzer(tmp_path, database_url) as fuzz:
        report = await fuzz.run(CASES, seed=20_010)
    assert report.cases >= CASES
    assert report.growth < ALLOWED_GROWTH
    assert 0 < report.longest_hold.seconds < MAX_HOLD
    assert report.outcomes["OK"]
    assert report.outcomes["INVALID_ARGUMENT"]
    assert any(outcome.startswith("HTTP 4") for outcome in report.outcomes)


# --- negative controls: faulty servers -----------------------------------------------------------------------------


class FaultySystem:
    """The part of a system that the fuzzer needs to judge a response."""

    client_secret = PLANTED
    sidecar_url = ""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel


@asynccontextmanager
async def faulty_server(handler: Any) -> AsyncIterator[Any]:
    """A server with this handler of `ConnectWithApiKey`."""
    server: Any = grpc.aio.server()
    handlers: Any = {CONNECT_WITH_KEY.name: grpc.unary_unary_rpc_method_handler(handler)}
    server.add_registered_method_handlers(CONNECT_WITH_KEY.containing_service.full_name, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield FaultySystem(channel)
    await server.stop(None)


async def fail(request: bytes, context: Any) -> bytes:
    """An exception that is not converted into a status."""
    raise RuntimeError("a fault")


async def echo(request: bytes, context: Any) -> bytes:
    """Return the request."""
    return request


async def refuse_with_secret(request: bytes, context: Any) -> bytes:
    """An error that quotes the request."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{PLANTED} is wrong")
    return b""


async def refuse_without_reason(request: bytes, context: Any) -> bytes:
    """An error without a reason."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
    return b""


@pytest.mark.parametrize(
    ("handler", "finding"),
    [
        (fail, "UNKNOWN"),
        (echo, "a secret"),
        (refuse_with_secret, "a secret"),
        (refuse_without_reason, "without ErrorInfo"),
    ],
)
async def test_the_fuzzer_finds_a_faulty_rpc_handler(handler: Any, finding: str) -> None:
    request = pb.ConnectWithApiKeyRequest(api_key=PLANTED).SerializeToString()
    async with faulty_server(handler) as system:
        with pytest.raises(Finding, match=finding):
            await Fuzzer(system, IssuingSandbox()).judge(RpcCase(CONNECT_WITH_KEY, request, is_message=True))


async def test_the_fuzzer_finds_an_rpc_handler_that_holds_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold_loop(request: bytes, context: Any) -> bytes:
        begin = time.thread_time()
        while time.thread_time() - begin < 1.2 * MAX_HOLD:
            pass
        return b""

    handle: Any = asyncio.Handle
    monkeypatch.setattr(handle, "_run", HoldRecorder(tmp_path / "test.hold").measure(handle._run))
    async with faulty_server(hold_loop) as system:
        fuzz = Fuzzer(system, IssuingSandbox(), LoopHolds(tmp_path))
        case = RpcCase(CONNECT_WITH_KEY, b"", is_message=True)
        await fuzz.judge(case)
        with pytest.raises(Finding, match=r"ms in .* for one of"):
            fuzz.judge_hold([case])


@pytest.mark.parametrize(
    ("response", "finding"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "HTTP 500"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no policy"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + PLANTED.encode(), "a secret"),
    ],
)
async def test_the_fuzzer_finds_a_faulty_http_response(response: bytes, finding: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(response)
        await writer.drain()

    async with accepting(serve) as port, grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        system: Any = FaultySystem(channel)
        system.sidecar_url = f"http://127.0.0.1:{port}"
        with pytest.raises(Finding, match=finding):
            await Fuzzer(system, IssuingSandbox()).judge(HttpCase(b"GET / HTTP/1.1\r\n\r\n", needs_end=True))
