"""`StreamProvider` through a running server: bodies of any length, odd ends of both sides, and the limits."""

import asyncio
import gzip
import hashlib
import itertools
import shutil
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import select

from integration_server.bootstrap import running_server
from integration_server.storage.tables import audit_entries
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.commands import Command
from tests.end_to_end.databases import fetch
from tests.end_to_end.fake_api import declare_api, run_fake_api
from tests.end_to_end.processes import server_environment, serving
from tests.end_to_end.replicas import wait_until
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error, invalid
from tests.end_to_end.streaming_api import PART, StreamingApi, digest_of
from tests.end_to_end.system import Clients, clients_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNAVAILABLE = RpcError(grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
WAIT = 60.0  # seconds; every call ends much sooner
TRANSFER = 1800.0  # the same for a large body


@dataclass(frozen=True, slots=True)
class Scenario:
    """A server in this process, the API, and an integration of ada's."""

    api: StreamingApi
    clients: Clients
    integration_id: int

    def head(self, path: str, method: str = "PUT", **fields: Any) -> pb.StreamProviderRequest:
        """The first request of a stream."""
        return pb.StreamProviderRequest(
            user_id="ada", integration_id=self.integration_id, method=method, path=path, **fields
        )

    def stream(self, requests: Iterable[pb.StreamProviderRequest] | None = None, **options: Any) -> Any:
        """A call with these requests; without any, the caller writes them."""
        return self.clients.service.StreamProvider(None if requests is None else iter(requests), **options)

    async def result(self, *requests: pb.StreamProviderRequest) -> tuple[int, bytes]:
        """The status and the body of a complete response."""
        status, _, body = await response_of(self.stream(requests, timeout=WAIT))
        return status, body

    async def uploaded(self, number: int = 0) -> Any:
        """A request that the API has received, once its connection is closed."""

        async def is_closed() -> bool:
            return len(self.api.uploads) > number and self.api.uploads[number].is_closed

        await wait_until(is_closed)
        return self.api.uploads[number]


async def response_of(call: Any) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of a complete response. Raises `AioRpcError`."""
    head, *rest = [response async for response in read_all(call)]
    headers = {header.name: header.value for header in head.headers}
    return head.status_code, headers, b"".join(response.body for response in rest)


async def read_all(call: Any) -> AsyncIterator[pb.StreamProviderResponse]:
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


def parts(count: int, part: bytes = PART) -> Iterator[pb.StreamProviderRequest]:
    return (pb.StreamProviderRequest(body=part) for _ in range(count))


@asynccontextmanager
async def scenario(tmp_path: Path, database_url: str, limits: str = "", **settings: str) -> AsyncIterator[Scenario]:
    async with AsyncExitStack() as stack:
        api = StreamingApi()
        await stack.enter_async_context(run_fake_api(api))
        declare_api(tmp_path, api, limits)
        settings_of_server = settings_for(database_url, PROVIDERS_DIR=str(tmp_path), **settings)
        running = await stack.enter_async_context(running_server(settings_of_server, {}))
        clients = await stack.enter_async_context(clients_of(running.grpc_address, running.sidecar_url))
        yield Scenario(api, clients, await connect(clients))


async def connect(clients: Clients) -> int:
    """Connect ada's account."""
    request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="acme", api_key="key-of-ada")
    return int((await clients.service.ConnectWithApiKey(request)).integration.integration_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scenario]:
    directory = tmp_path_factory.mktemp("streams")
    shutil.copy(_sqlite_template, directory / "server.db")
    (directory / "providers").mkdir()
    async with scenario(directory / "providers", f"sqlite:///{directory / 'server.db'}") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def on(shared: Scenario) -> Scenario:
    """The shared server, and an API and an account without a past."""
    shared.api.uploads.clear()
    shared.api.gate = asyncio.Event()
    return replace(shared, integration_id=await connect(shared.clients))


# --- bodies in both directions ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("has_length", [True, False])
async def test_an_upload_arrives_unchanged(on: Scenario, has_length: bool) -> None:
    announced: dict[str, Any] = {"content_length": 40 * len(PART)} if has_length else {}
    head = on.head("/take", body=PART, **announced)
    status, body = await on.result(head, *parts(39))
    assert (status, body.decode()) == (200, f"{40 * len(PART)} {digest_of(40)}")
    sent = on.api.uploads[0].headers
    assert sent.get("content-length") == (str(40 * len(PART)) if has_length else None)
    assert sent.get("transfer-encoding") == (None if has_length else "chunked")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_download_arrives_unchanged(on: Scenario, method: str) -> None:
    status, headers, body = await response_of(on.stream([on.head("/send/40", method)]))
    assert (status, headers["content-length"], headers["x-kind"]) == (200, str(40 * len(PART)), "odd")
    assert hashlib.sha256(body).hexdigest() == digest_of(40)
    assert "transfer-encoding" not in on.api.uploads[0].headers


async def test_a_download_needs_no_end_of_the_requests(on: Scenario) -> None:
    call = on.stream(timeout=WAIT)
    await call.write(on.head("/send/2", "GET"))
    assert len((await response_of(call))[2]) == 2 * len(PART)


async def test_a_provider_may_respond_while_it_reads(on: Scenario) -> None:
    call = on.stream(timeout=WAIT)
    await call.write(on.head("/echo", "POST", body=b"first"))
    assert (await call.read()).status_code == 200
    for text in (b"first", b"second", b"third"):
        assert (await call.read()).body == text
        if text != b"third":
            await call.write(pb.StreamProviderRequest(body={b"first": b"second", b"second": b"third"}[text]))
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert on.api.uploads[0].is_complete


# --- a side that ends early ------------------------------------------------------------------------------------------


def endless(head: pb.StreamProviderRequest) -> Iterator[pb.StreamProviderRequest]:
    return itertools.chain([head], (pb.StreamProviderRequest(body=PART) for _ in itertools.count()))


@pytest.mark.parametrize("announced", [{}, {"content_length": 1 << 40}], ids=["unknown length", "known length"])
async def test_a_caller_that_is_gone_never_completes_an_upload(on: Scenario, announced: dict[str, Any]) -> None:
    for number in range(5):
        call = on.stream()
        await call.write(on.head("/take", body=PART, **announced))
        await has_uploads(on, number + 1)
        call.cancel()
    for number in range(5):
        upload = await on.uploaded(number)  # its connection is closed, too
        assert not upload.is_complete


async def has_uploads(on: Scenario, count: int) -> None:
    async def condition() -> bool:
        return len(on.api.uploads) >= count and on.api.uploads[-1].size > 0

    await wait_until(condition)


@pytest.mark.parametrize(("length", "count"), [(3 * len(PART), 2), (1, 1), (len(PART) + 1, 1), (len(PART) - 1, 2)])
async def test_a_body_of_another_length_than_announced_is_never_complete(on: Scenario, length: int, count: int) -> None:
    call = on.stream([on.head("/take", content_length=length), *parts(count)], timeout=WAIT)
    assert await expect_rpc_error(response_of(call)) == invalid("content_length")
    assert not (await on.uploaded()).is_complete


async def test_an_upload_of_the_announced_length_needs_no_end_of_the_requests(on: Scenario) -> None:
    call = on.stream(timeout=WAIT)
    await call.write(on.head("/take", content_length=len(PART), body=PART))
    assert (await response_of(call))[2].decode() == f"{len(PART)} {digest_of(1)}"


@pytest.mark.parametrize(("action", "status"), [("refuse", 413), ("enough", 200)])
async def test_a_response_that_ends_before_the_body_ends_the_upload(on: Scenario, action: str, status: int) -> None:
    received, body = await response_of_blocking_client(on, endless(on.head(f"/{action}")))
    assert (received, bool(body)) == (status, True)
    on.api.gate.set()
    assert not (await on.uploaded()).is_complete


EARLY = {
    "redirect": b"307 Elsewhere\r\nLocation: /v1/other\r\nContent-Length: 0",
    "conflict": b"409 Conflict\r\nContent-Length: 0",
    "success": b"200 OK\r\nContent-Length: 0",
    "two lengths": b"200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
    "no HTTP": b"",
}


@pytest.mark.parametrize("answer", EARLY.values(), ids=EARLY)
async def test_a_response_at_the_moment_of_the_last_part_ends_the_call(on: Scenario, answer: bytes) -> None:
    raw = (b"HTTP/1.1 %s\r\n\r\n" % answer).hex()
    is_broken = answer in (EARLY["two lengths"], EARLY["no HTTP"])
    for count in (0, 0, 0, 1, 2):
        response = response_of_blocking_client(on, [on.head(f"/raw/{raw}", "POST", body=b"x"), *parts(count)])
        if is_broken:
            assert await expect_rpc_error(response) == UNAVAILABLE
        else:
            assert (await response)[0] == int(answer[:3])


async def response_of_blocking_client(on: Scenario, requests: Iterable[pb.StreamProviderRequest]) -> tuple[int, bytes]:
    """The status and the body. grpc.aio's client may report INTERNAL if the server ends a call while it writes."""

    def call() -> tuple[int, bytes]:
        with grpc.insecure_channel(on.clients.grpc_address) as channel:
            first, *rest = IntegrationServiceStub(channel).StreamProvider(iter(requests), timeout=WAIT)
            return first.status_code, b"".join(response.body for response in rest)

    return await asyncio.to_thread(call)


GZIPPED = gzip.compress(b"as it is sent " * 100)
BROKEN = {
    "fewer bytes than announced": b"Content-Length: 9\r\n\r\n12345678",
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "half a chunk": b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc",
    "compressed data without its end": b"Content-Encoding: gzip\r\n\r\n" + GZIPPED[:-1],
    "the same in complete chunks": b"Transfer-Encoding: chunked\r\nContent-Encoding: x-gzip\r\n\r\n"
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(GZIPPED) - 9, GZIPPED[:-9]),
    "a chunk that is none": b"Transfer-Encoding: chunked\r\n\r\nabc",
}


@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN)
async def test_a_response_that_ends_early_is_an_error(on: Scenario, rest: bytes) -> None:
    raw = (b"HTTP/1.1 200 OK\r\n" + rest).hex()
    assert await expect_rpc_error(response_of(on.stream([on.head(f"/raw/{raw}", "GET")], timeout=WAIT))) == UNAVAILABLE


WHOLE = {
    "gzip": (b"Content-Encoding: gzip", GZIPPED),
    "two members": (b"Content-Encoding: gzip", GZIPPED + GZIPPED),
    "another coding": (b"Content-Encoding: br", b"\x0b\x02\x80hello\x03"),
    "no coding": (b"Content-Encoding: aws-chunked, gzip", b"plain"),
    "part of a body": (b"Content-Range: bytes 5-8/100", b"5678"),
    "empty": (b"Content-Encoding: gzip", b""),
}


@pytest.mark.parametrize(("header", "sent"), WHOLE.values(), ids=WHOLE)
async def test_a_body_is_passed_on_as_it_is_sent_with_its_headers(on: Scenario, header: bytes, sent: bytes) -> None:
    raw = b"HTTP/1.1 200 OK\r\n%s\r\nContent-Length: %d\r\n\r\n%s" % (header, len(sent), sent)
    asked = {"headers": [pb.HttpHeader(name="Range", value="bytes=5-8")]}
    _, headers, body = await response_of(on.stream([on.head(f"/raw/{raw.hex()}", "GET", **asked)], timeout=WAIT))
    name, _, value = header.decode().partition(": ")
    assert (headers[name.lower()], headers["content-length"], body) == (value, str(len(sent)), sent)
    request = on.api.uploads[0].headers
    assert (request["accept-encoding"], request["range"]) == ("identity", "bytes=5-8")


async def test_a_response_to_head_has_headers_only(on: Scenario) -> None:
    status, headers, body = await response_of(on.stream([on.head("/send/3", "HEAD")], timeout=WAIT))
    assert (status, headers["content-length"], body) == (200, str(3 * len(PART)), b"")


# --- pressure and silence --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_caller_sends_no_faster_than_the_provider_takes(on: Scenario) -> None:
    call = on.stream()
    await call.write(on.head("/hang"))
    sent, waits = 0, False
    while sent < 1024 * MIB and not waits:
        writing = asyncio.ensure_future(call.write(pb.StreamProviderRequest(body=PART)))
        waits = not (await asyncio.wait({writing}, timeout=3))[0]
        sent += len(PART)
    print(f"accepted for a provider that takes nothing: {sent / MIB:.1f} MiB")
    assert sent < 24 * MIB  # of gRPC, of the kernel, and a part of ours
    call.cancel()
    on.api.gate.set()


@pytest.mark.slow
@pytest.mark.parametrize("writes", [0, 1])
async def test_a_stream_in_which_one_side_is_silent_ends_with_the_name_of_that_side(
    tmp_path: Path, sqlite_url: str, writes: int
) -> None:
    async with scenario(tmp_path, sqlite_url, PROXY_STREAM_IDLE_SECONDS="0.5") as on:
        silent_provider = on.stream([on.head("/hang", "POST"), *parts(writes)], timeout=WAIT)
        assert await expect_rpc_error(response_of(silent_provider)) == UNAVAILABLE
        silent_caller = on.stream(timeout=WAIT)
        await silent_caller.write(on.head("/take", "POST"))
        for request in parts(writes):
            await silent_caller.write(request)
        quota = RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert replace(await expect_rpc_error(response_of(silent_caller)), retry_delay=None) == quota
        if writes:
            assert not (await on.uploaded(1)).is_complete
        on.api.gate.set()


@pytest.mark.slow
async def test_a_stream_ends_whose_caller_does_not_read_the_response(tmp_path: Path, sqlite_url: str) -> None:
    settings = {"PROXY_STREAM_IDLE_SECONDS": "0.5", "CALLER_MAX_STREAMS_PER_USER": "1"}
    async with scenario(tmp_path, sqlite_url, **settings) as on:
        for number, method in enumerate(("GET", "POST", "DELETE")):
            unread = on.stream([on.head("/send/10000", method)], timeout=WAIT)
            assert (await unread.read()).status_code == 200
            await on.uploaded(number * 2)  # its connection to the provider is closed
            assert (await on.result(on.head("/send/1", "GET")))[0] == 200  # and its place is free
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await response_of(unread)  # what was on its way, and then the status
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_caller_that_is_gone_holds_no_connection_to_the_provider(on: Scenario, method: str) -> None:
    calls = [on.stream([on.head("/send/10000", method)]) for _ in range(5)]
    for call in calls:
        assert (await call.read()).status_code == 200
    await asyncio.sleep(0.2)  # until the server waits for the caller
    for call in calls:
        call.cancel()
    for number in range(5):
        await on.uploaded(number)


@pytest.mark.slow
async def test_a_slow_stream_does_not_end_while_bytes_move(tmp_path: Path, sqlite_url: str) -> None:
    async with scenario(tmp_path, sqlite_url, PROXY_STREAM_IDLE_SECONDS="4") as on:
        call = on.stream(timeout=WAIT)
        await call.write(on.head("/take", "POST"))
        for _ in range(9):
            await asyncio.sleep(0.5)
            await call.write(pb.StreamProviderRequest(body=PART))
        await call.done_writing()
        assert (await response_of(call))[2].decode() == f"{9 * len(PART)} {digest_of(9)}"


# --- policy, retries, limits -----------------------------------------------------------------------------------------


async def test_the_policy_is_that_of_call_provider(on: Scenario) -> None:
    header = pb.HttpHeader
    cases: dict[str, pb.StreamProviderRequest] = {
        "method": on.head("/take", "TRACE"),
        "path": on.head("/../take"),
        "headers[0].name": on.head("/take", headers=[header(name="Authorization", value="Bearer x")]),
        "headers[0].value": on.head("/take", headers=[header(name="Accept", value="a\r\nX-B: c")]),
        "query[0].name": on.head("/take", query=[pb.QueryParameter(name="access_token", value="x")]),
        "content_length": on.head("/take", content_length=-1),
        "api": on.head("/take", api="none"),
        "sub_account": on.head("/take", sub_account="1"),
    }
    for field, head in cases.items():
        assert await expect_rpc_error(response_of(on.stream([head, *parts(1)], timeout=WAIT))) == invalid(field), field
    absent = on.head("/take", body=b"x")
    absent.integration_id += 1
    assert (await expect_rpc_error(response_of(on.stream([absent])))).reason == "INTEGRATION_NOT_FOUND"
    assert on.api.uploads == []


@pytest.mark.parametrize("field", ["user_id", "integration_id", "method", "path", "content_length"])
async def test_a_further_request_has_nothing_but_a_part_of_the_body(on: Scenario, field: str) -> None:
    other = pb.StreamProviderRequest(body=b"x")
    setattr(other, field, 7 if field in {"integration_id", "content_length"} else "eve")
    call = on.stream([on.head("/take"), *parts(1), other], timeout=WAIT)
    assert await expect_rpc_error(response_of(call)) == invalid(field)
    assert not (await on.uploaded()).is_complete


async def test_response_headers_are_filtered(on: Scenario) -> None:
    fields = ("Set-Cookie: s=1", "X-Echo: key-of-ada", "X-Kept: yes", "WWW-Authenticate: Basic")
    raw = b"HTTP/1.1 200 OK\r\n%sContent-Length: 0\r\n\r\n" % b"".join(b"%s\r\n" % field.encode() for field in fields)
    _, headers, _ = await response_of(on.stream([on.head(f"/raw/{raw.hex()}", "GET")], timeout=WAIT))
    assert headers == {"x-kept": "yes", "content-length": "0"}


@pytest.mark.parametrize("rejection", ["429/Retry-After: 0.2", "503/Retry-After: 0.2", "403/Retry-After: 0.2"])
async def test_nothing_is_sent_again_after_a_part_of_the_body(on: Scenario, rejection: str) -> None:
    raw = status_line(rejection)
    upload = on.stream([on.head(f"/answer/{raw}"), *parts(1)], timeout=WAIT)
    error = await expect_rpc_error(response_of(upload))
    assert (error.reason, error.retry_delay is not None) == ("PROVIDER_UNAVAILABLE", True)
    assert len(on.api.uploads) == 1
    download = on.stream([on.head(f"/answer/{raw}", "GET")], timeout=WAIT)  # waits and tries again, until its deadline
    reading = asyncio.ensure_future(response_of(download))
    async with asyncio.timeout(WAIT):
        while len(on.api.uploads) <= 2:  # the provider sets no event
            assert not reading.done()
            await asyncio.sleep(0.02)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


def status_line(rejection: str) -> str:
    status, _, header = rejection.partition("/")
    return f"HTTP/1.1 {status} Wait\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode().hex()


async def test_the_streams_of_one_caller_are_limited(tmp_path: Path, sqlite_url: str) -> None:
    async with scenario(tmp_path, sqlite_url, CALLER_MAX_STREAMS_PER_USER="2") as on:
        held = [on.stream() for _ in range(2)]
        for call in held:
            await call.write(on.head("/take", body=PART))
        await has_uploads(on, 2)
        watch: Any = on.clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
        assert (await watch.read()).cursor  # another method has a quota of its own
        error = await expect_rpc_error(response_of(on.stream([on.head("/send/1", "GET")], timeout=WAIT)))
        assert error.reason == "QUOTA_EXCEEDED"
        for call in held:
            await call.done_writing()
            assert (await response_of(call))[0] == 200
        assert (await on.result(on.head("/send/1", "GET")))[0] == 200


@pytest.mark.slow
async def test_a_stream_has_one_audit_entry_with_its_sizes(tmp_path: Path, sqlite_url: str) -> None:
    async with scenario(tmp_path, sqlite_url) as on:
        await on.result(on.head("/take", query=[pb.QueryParameter(name="q", value="x")], body=PART), *parts(2))
        call = on.stream()
        await call.write(on.head("/take", body=PART))
        await has_uploads(on, 2)
        call.cancel()
        await on.uploaded(1)
        rows: list[Any] = []
        audit = audit_entries.c

        async def are_recorded() -> bool:
            rows[:] = await fetch(sqlite_url, select(audit.outcome, audit.details).where(audit.action == "call"))
            return len(rows) >= 2

        await wait_until(are_recorded)
        received = len(f"{3 * len(PART)} {digest_of(3)}")
        assert {tuple(row) for row in rows} == {
            ("OK", f"PUT /take 200; {3 * len(PART)} bytes sent, {received} received"),
            ("CANCELLED", f"PUT /take; {len(PART)} bytes sent, 0 received"),
        }


@pytest.mark.slow
async def test_a_stream_in_progress_is_completed_while_the_server_stops(tmp_path: Path, sqlite_url: str) -> None:
    async with AsyncExitStack() as stack:
        on, command = await stack.enter_async_context(process_scenario(tmp_path, sqlite_url))
        call = on.stream(timeout=WAIT)
        await call.write(on.head("/take", body=PART))
        await has_uploads(on, 1)
        command.send(signal.SIGTERM)
        for request in parts(4):
            await asyncio.sleep(0.1)
            await call.write(request)
        await call.done_writing()
        assert (await response_of(call))[2].decode() == f"{5 * len(PART)} {digest_of(5)}"


# --- memory ----------------------------------------------------------------------------------------------------------

MIB = 1024 * 1024
MAX_GROWTH = 64 * MIB


def memory(command: Command, key: str) -> int:
    """Resident memory of the server's process in bytes: `VmRSS`, or `VmHWM` for its maximum."""
    status = Path(f"/proc/{command.pid('server')}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [16, pytest.param(1024, marks=pytest.mark.slow)])
async def test_a_body_passes_through_in_each_direction_with_constant_memory(
    tmp_path: Path, sqlite_url: str, mebibytes: int
) -> None:
    count = mebibytes * MIB // len(PART)
    async with process_scenario(tmp_path, sqlite_url) as (on, command):
        for path, sent in (("/take", 20), ("/send/20", 0), ("/echo", 20)):  # the first of each kind fills pools
            await digest_of_response(on.stream([on.head(path, "POST"), *parts(sent)], timeout=WAIT))
        before = memory(command, "VmRSS")
        for head in (on.head("/take", content_length=count * len(PART)), on.head("/take")):
            call = on.stream(itertools.chain([head], parts(count)), timeout=TRANSFER)
            assert (await response_of(call))[2].decode() == f"{count * len(PART)} {digest_of(count)}"
        assert await digest_of_response(on.stream([on.head(f"/send/{count}", "GET")])) == digest_of(count)
        echoed = on.stream(itertools.chain([on.head("/echo", "POST")], parts(count)), timeout=TRANSFER)
        assert await digest_of_response(echoed) == digest_of(count)
        growth = memory(command, "VmHWM") - before
        print(f"{mebibytes} MiB in each direction, four times: the server's memory grew by {growth / MIB:.1f} MiB")
        assert growth <= MAX_GROWTH


@pytest.mark.slow
async def test_negative_control_a_body_that_is_read_as_a_whole_takes_its_size(tmp_path: Path, sqlite_url: str) -> None:
    """`CallProvider` keeps whole bodies, here with limits that are raised for them."""
    size = 48 * MIB
    limits = {name: str(64 * MIB) for name in ("PROXY_MAX_RESPONSE_BYTES", "GRPC_MAX_MESSAGE_BYTES")}
    async with process_scenario(tmp_path, sqlite_url, **limits) as (on, command):
        request = pb.CallProviderRequest(user_id="ada", integration_id=on.integration_id, method="GET", path="/send/1")
        assert (await on.clients.service.CallProvider(request)).status_code == 200
        before = memory(command, "VmRSS")
        request.path = f"/send/{size // len(PART)}"
        channel = grpc.aio.insecure_channel(on.clients.grpc_address, [("grpc.max_receive_message_length", 64 * MIB)])
        async with channel:
            response = await IntegrationServiceStub(channel).CallProvider(request, timeout=TRANSFER)
        assert len(response.body) == size
        assert memory(command, "VmHWM") - before > MAX_GROWTH


@asynccontextmanager
async def process_scenario(
    tmp_path: Path, database_url: str, **settings: str
) -> AsyncIterator[tuple[Scenario, Command]]:
    """As `scenario`, with the server in its own process."""
    providers = tmp_path / "providers"
    providers.mkdir()
    async with AsyncExitStack() as stack:
        api = StreamingApi()
        await stack.enter_async_context(run_fake_api(api))
        declare_api(providers, api)
        environment = server_environment(database_url, PROVIDERS_DIR=str(providers), **settings)
        command = await stack.enter_async_context(serving(tmp_path, environment))
        addresses = command.serving
        clients = await stack.enter_async_context(clients_of(addresses["grpc"], addresses["sidecar"]))
        yield Scenario(api, clients, await connect(clients)), command


async def digest_of_response(call: Any) -> str:
    digest = hashlib.sha256()
    async for part in read_all(call):
        digest.update(part.body)
    assert await call.code() is grpc.StatusCode.OK
    return digest.hexdigest()
