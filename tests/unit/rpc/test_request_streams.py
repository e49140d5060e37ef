"""A stream of requests: the first says what the call is about, and its end counts only if the client is there."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest

from integration_server.domain.errors import InvalidField, QuotaExceeded
from integration_server.rpc.interceptors import RequestReader, compose, read_request
from integration_server.rpc.methods import describe_method
from integration_server.rpc.request_streams import RequestStream
from integration_server.rpc.stream_limits import write_in_time
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import FakeContext

METHOD = describe_method("/integrations.v1.IntegrationService/StreamProvider")
HEAD = pb.StreamProviderRequest(user_id="ada", integration_id=1, method="PUT", path="/x", body=b"1")
PART = pb.StreamProviderRequest(body=b"23")


class StreamContext(FakeContext):
    """A client that sends these requests. If it is gone, its requests end too, and the call is cancelled later."""

    def __init__(self, requests: Sequence[pb.StreamProviderRequest], *, is_gone: bool = False) -> None:
        super().__init__()
        self._requests = [request.SerializeToString() for request in requests]
        self._is_gone = is_gone

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return self._requests.pop(0) if self._requests else grpc.aio.EOF

    async def send_initial_metadata(self, _metadata: object) -> None:
        await asyncio.sleep(0)
        if self._is_gone:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch")


async def take_turns() -> None:
    """Let happen what needs no time."""
    for _ in range(200):
        await asyncio.sleep(0)


async def upload(context: StreamContext, **options: Any) -> list[str]:
    """What a method reads of a stream of requests, with "end" for its end."""
    events: list[str] = []

    async def behavior(requests: RequestStream, _context: Any) -> AsyncGenerator[None, None]:
        assert requests.first.user_id == "ada"  # type: ignore[attr-defined]
        async for request in requests:
            text = request.body.decode()  # type: ignore[attr-defined]
            events.append(text)
        events.append(f"end after {requests.body_size} bytes")
        yield None

    async def call() -> None:
        handler = compose(METHOD, behavior, [read_request(RequestReader(timedelta(seconds=60)), **options)])
        async with aclosing(handler(None, context)) as responses:
            async for _ in responses:
                pass

    task = asyncio.create_task(call())
    await take_turns()
    task.cancel()  # as gRPC does when it learns that the client is gone
    with suppress(asyncio.CancelledError):
        await task
    return events


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_stream_has_all_requests_and_an_end(count: int) -> None:
    events = await upload(StreamContext([HEAD, *[PART] * count]))
    assert events == ["1", *["23"] * count, f"end after {1 + 2 * count} bytes"]


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_the_requests_of_a_client_that_is_gone_have_no_end(count: int) -> None:
    assert await upload(StreamContext([HEAD, *[PART] * count], is_gone=True)) == ["1", *["23"] * count]


async def test_negative_control_without_the_check_they_seem_complete() -> None:
    events = await upload(StreamContext([HEAD, PART], is_gone=True), confirm_end=False)
    assert events == ["1", "23", "end after 3 bytes"]


@pytest.mark.parametrize(
    ("name", "value"), [("user_id", "eve"), ("integration_id", 2), ("method", "GET"), ("idempotency_key", "k")]
)
async def test_a_further_request_cannot_concern_anything_else(name: str, value: object) -> None:
    other = pb.StreamProviderRequest(body=b"x")
    setattr(other, name, value)
    with pytest.raises(InvalidField) as raised:
        await upload(StreamContext([HEAD, other]))
    assert raised.value.field == name


async def test_the_limits_apply_to_every_request() -> None:
    large = pb.StreamProviderRequest(body=b"x", path="/" + "x" * 300_000)
    with pytest.raises(InvalidField) as raised:
        await upload(StreamContext([HEAD, large]))
    assert raised.value.field == "request"


class BusyContext(StreamContext):
    """gRPC takes its time for the metadata, and `is_sending` meanwhile."""

    is_sending = False

    def __init__(self, requests: Sequence[pb.StreamProviderRequest]) -> None:
        super().__init__(requests)
        self.began = asyncio.Event()

    async def send_initial_metadata(self, _metadata: object) -> None:
        self.is_sending = True
        self.began.set()
        for _ in range(10):
            await asyncio.sleep(0)
        self.is_sending = False


@pytest.mark.parametrize("ends", ["response", "error", "return"])
@pytest.mark.parametrize("settle_end", [True, False])  # False: the negative control
async def test_nothing_is_sent_while_grpc_sends_the_metadata(ends: str, settle_end: bool) -> None:
    context = BusyContext([HEAD])
    overlaps = list[bool]()

    async def behavior(requests: RequestStream, _context: Any) -> AsyncGenerator[None, None]:
        await anext(requests)
        reading = asyncio.ensure_future(anext(requests))
        await context.began.wait()
        reading.cancel()  # as an upload that a provider's response ends
        await asyncio.wait({reading})
        if ends == "response":
            yield None
        elif ends == "error":
            raise InvalidField("x", "is wrong")

    handler = compose(METHOD, behavior, [read_request(RequestReader(timedelta(seconds=60)), settle_end=settle_end)])
    with suppress(InvalidField):
        overlaps += [context.is_sending async for _ in handler(None, context)]
    overlaps.append(context.is_sending)
    assert any(overlaps) is not settle_end


class UnreadContext(StreamContext):
    """A client that takes a number of responses and no more."""

    taken = 0

    async def write(self, _response: object) -> None:
        if self.taken >= 2:
            await asyncio.Event().wait()
        self.taken += 1


@pytest.mark.parametrize("timeout", [timedelta(seconds=0.01), None])  # None: the negative control
async def test_a_client_that_takes_no_responses_holds_a_stream_for_a_limited_time(timeout: timedelta | None) -> None:
    context, is_closed = UnreadContext([HEAD]), asyncio.Event()

    async def behavior(_requests: object, _context: Any) -> AsyncGenerator[str, None]:
        try:
            for _ in range(9):
                yield "response"
        finally:
            is_closed.set()

    async def call() -> None:
        async for _ in compose(METHOD, behavior, [write_in_time(timeout)])(None, context):
            pytest.fail("a response is written, not yielded")

    task = asyncio.create_task(call())
    if timeout:
        await asyncio.wait({task}, timeout=60)
    else:
        await take_turns()
    assert (context.taken, is_closed.is_set()) == (2, timeout is not None)
    if timeout:
        with pytest.raises(QuotaExceeded):
            await task
    task.cancel()
