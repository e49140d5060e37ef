"""Heads are recorded when they change; a sink that fails or hangs is reported once and holds nothing up."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.service.audit.audit_heads import AUDIT_CHAIN, Head, HeadRecorder, decode_head, encode_head
from tests.fakes.clock import NOON

FIRST = Head(AUDIT_CHAIN, "c-1", 1, 10, b"\x01" * 32)
SECOND = Head(AUDIT_CHAIN, "c-2", 2, 4, b"\x02" * 32)


class InMemorySink:
    """Keeps lines, unless it fails or hangs."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.error: Exception | None = None
        self.hangs = False

    async def append(self, lines: Sequence[bytes]) -> None:
        """Keep the lines."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.heads += map(decode_head, lines)


class Source:
    """Heads that the test sets."""

    def __init__(self, *heads: Head) -> None:
        self.heads = list(heads)

    def __call__(self) -> Sequence[Head]:
        """The current heads."""
        return self.heads


async def test_only_changed_heads_are_recorded() -> None:
    source, sink = Source(), InMemorySink()
    async with HeadRecorder(source, sink, lambda: NOON) as recorder:
        assert await recorder.record()
        assert sink.heads == []
        source.heads = [SECOND, FIRST]
        await recorder.record()
        await recorder.record()
        assert sink.heads == [FIRST, SECOND]
        longer = replace(SECOND, version=5, mac=b"\x03" * 32)
        source.heads = [FIRST, longer]
    assert sink.heads == [FIRST, SECOND, longer]  # the last ones on exit


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("secret"), TimeoutError()])
async def test_a_failure_is_logged_once_and_the_newest_head_is_recorded_later(error: Exception) -> None:
    source, sink = Source(FIRST), InMemorySink()
    sink.error = error
    async with HeadRecorder(source, sink, lambda: NOON) as recorder:
        with capture_logs() as logs:
            assert [await recorder.record() for _ in range(3)] == [False] * 3
            source.heads = [replace(FIRST, version=11)]
            sink.error = None
            assert await recorder.record()
    assert sink.heads == [replace(FIRST, version=11)]
    assert [(log["event"], log.get("kind")) for log in logs] == [
        ("audit_heads_not_recorded", type(error).__qualname__),
        ("audit_heads_recorded_again", None),
    ]
    assert "secret" not in str(logs)


async def test_a_sink_that_hangs_does_not_prevent_the_exit() -> None:
    sink = InMemorySink()
    sink.hangs = True
    with capture_logs() as logs:
        async with (
            asyncio.timeout(60),
            HeadRecorder(Source(FIRST), sink, lambda: NOON, close_timeout=timedelta(milliseconds=1)),
        ):
            pass
    assert [log["event"] for log in logs] == ["audit_heads_not_recorded"]


async def test_a_recording_that_is_cancelled_is_repeated_on_exit() -> None:
    sink = InMemorySink()
    sink.hangs = True
    async with HeadRecorder(Source(FIRST), sink, lambda: NOON) as recorder:
        recording = asyncio.create_task(recorder.record())
        await asyncio.sleep(0)
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        sink.hangs = False
    assert sink.heads == [FIRST]


def test_a_line_has_what_the_documentation_describes() -> None:
    line = encode_head(FIRST, "2026-11-29T12:00:00+00:00")
    assert json.loads(line) == {
        "kind": "audit_chain",
        "name": "c-1",
        "number": 1,
        "version": 10,
        "mac": "01" * 32,
        "time": "2026-11-29T12:00:00+00:00",
    }
    assert line.endswith(b"}\n")
    assert decode_head(line) == FIRST
    assert decode_head(line.replace(b"audit_chain", b"other").replace(b"{", b'{"more": [], ')).kind == "other"


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"{}", b"[]", b"null", b"\xff", b'{"kind": "audit_ch', b"[" * 100_000]
    + [
        json.dumps({"kind": "k", "name": "n", "number": 1, "version": 1, "mac": "00", **wrong}).encode()
        for wrong in ({"mac": "0"}, {"mac": 1}, {"version": "1"}, {"version": True}, {"number": None}, {"name": 1})
    ],
)  # fmt: skip
def test_a_line_that_is_no_head_is_reported(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_head(line)
