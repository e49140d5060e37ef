"""Request ids of RPCs, and their lines in the access log."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from integration_server.domain.callers import Permission
from integration_server.domain.errors import IntegrationNotFound
from integration_server.observability.observed_calls import (
    REQUEST_ID,
    TRACEPARENT,
    CallIdReader,
    CallIds,
    ObservedCalls,
    ObservedMethod,
    call_metadata,
    current_ids,
)
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import convert_errors
from integration_server.rpc.methods import Metadata, Method
from tests.fakes.inmemory_grpc import FakeContext

METHOD = Method("/s/M")
PROBE = Method("/h/Check", Permission.HEALTH)
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
GIVEN: Metadata = [(REQUEST_ID, "given"), (TRACEPARENT, PARENT)]


class Observed:
    """Calls through `convert_errors`, and the lines that they write."""

    def __init__(self, *, is_known: bool = True, has_log: bool = True) -> None:
        self.lines: list[Sequence[Any]] = []
        self.seen: list[CallIds | None] = []
        write = (lambda *line: self.lines.append(line)) if has_log else None
        reader = CallIdReader(str, lambda: "new")
        self.calls = ObservedCalls(reader, write, lambda _: "sync", lambda _: is_known)

    async def call(
        self, error: Exception | None = None, metadata: Metadata = GIVEN, method: Method = METHOD
    ) -> FakeContext:
        async def behavior(_request: object, _context: object) -> None:
            self.seen.append(current_ids.get())
            if error is not None:
                raise error

        call_metadata.set(metadata)
        context = FakeContext()
        with suppress(grpc.aio.AbortError), capture_logs():
            await convert_errors(calls=self.calls)(method, behavior)(Message(), context)
        return context

    def without_time(self) -> list[Sequence[Any]]:
        return [[*line[:3], *line[4:]] for line in self.lines]


async def test_a_response_has_the_callers_id_and_so_has_the_line() -> None:
    observed = Observed()
    context = await observed.call()
    ids = CallIds("given", PARENT)
    assert context.trailing_metadata == ((REQUEST_ID, "given"),)
    assert observed.seen == [ids]
    assert observed.without_time() == [["/s/M", "OK", "", "sync", ids]]


async def test_the_address_of_a_client_without_a_name_is_read_when_its_call_begins() -> None:
    """gRPC's core ends the process when it is asked for the peer of a call that is gone."""
    lines: list[Sequence[Any]] = []
    addresses = ["10.0.0.1"]
    calls = ObservedCalls(CallIdReader(str, lambda: "new"), lambda *line: lines.append(line))

    async def behavior(_request: object, _context: object) -> None:
        assert addresses == []

    convert = convert_errors(address_of=lambda _: addresses.pop(), calls=calls)
    await convert(METHOD, behavior)(Message(), FakeContext())
    assert [line[4] for line in lines] == ["10.0.0.1"]


async def test_a_call_without_an_id_gets_one() -> None:
    observed = Observed()
    context = await observed.call(metadata=())
    assert context.trailing_metadata == ((REQUEST_ID, "new"),)
    assert observed.without_time() == [["/s/M", "OK", "", "sync", CallIds("new")]]


@pytest.mark.parametrize("error", [IntegrationNotFound(), Unauthenticated("no token"), ZeroDivisionError()])
async def test_each_error_has_the_id(error: Exception) -> None:
    context = await Observed().call(error)
    assert context.error is not None
    assert (REQUEST_ID, "given") in context.error.wire[2]
    if isinstance(error, IntegrationNotFound):
        assert context.error.info.metadata["request_id"] == "given"


async def test_calls_of_unknown_callers_write_no_line_but_their_success() -> None:
    """They have bounded lines of their own; control: a known caller's failure has a line."""
    unknown, known = Observed(is_known=False), Observed()
    for observed in (unknown, known):
        await observed.call(IntegrationNotFound())
    assert unknown.lines == []
    assert known.without_time() == [["/s/M", "NOT_FOUND", "INTEGRATION_NOT_FOUND", "sync", CallIds("given", PARENT)]]
    await unknown.call()
    assert len(unknown.lines) == 1


async def test_probes_write_a_line_only_if_they_fail() -> None:
    observed = Observed()
    await observed.call(method=PROBE)
    assert observed.lines == []
    await observed.call(ZeroDivisionError(), method=PROBE)
    assert [line[1] for line in observed.lines] == ["INTERNAL"]


@pytest.mark.parametrize(
    ("has_log", "metadata", "returned", "lines"),
    [
        (True, GIVEN, ((REQUEST_ID, "given"),), 1),
        (True, (), ((REQUEST_ID, "new"),), 1),
        (False, GIVEN, ((REQUEST_ID, "given"),), 0),
        (False, (), (), 0),  # nobody would ever see it
    ],
)
async def test_a_repeated_response_has_an_id_that_somebody_can_see(
    has_log: bool, metadata: Metadata, returned: object, lines: int
) -> None:
    observed = Observed(has_log=has_log)
    context: Any = FakeContext()
    observed.calls.note_repeated(ObservedMethod(METHOD.path), metadata, context, 0.001, "sync")
    assert context.trailing_metadata == returned
    assert len(observed.lines) == lines
