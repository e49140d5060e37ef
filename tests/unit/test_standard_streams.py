"""A log that cannot be written fails nothing: on a full disk, without a reader, closed, without any memory left."""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
import structlog
from rich.console import Console

from integration_server.logs import configure_logging, new_access_log
from integration_server.observability.observed_calls import CallIdReader, ObservedCalls, ObservedMethod
from integration_server.observability.otlp import OtlpExporter, Response
from integration_server.observability.tracing import SpanTracing
from integration_server.standard_streams import BoundedOutput, UnfailingStream, unfailing
from tests.fakes.inmemory_grpc import FakeContext

IDS = CallIdReader(str).read([])
LONG = "x" * 5000  # more than a batch of the access log


class Refusing(StringIO):
    """A stream that fails in some way that the others do not."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        """Fail."""
        raise self.error

    def flush(self) -> None:
        """Fail."""
        raise self.error


def full() -> TextIO:
    return Path("/dev/full").open("w")  # closed by the fixture


def without_reader() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def closed() -> TextIO:
    stream = Path(os.devnull).open("w")  # noqa: SIM115  # closed at once
    stream.close()
    return stream


BROKEN: dict[str, Callable[[], TextIO]] = {
    "full": full,
    "no reader": without_reader,
    "closed": closed,
    "would block": lambda: Refusing(BlockingIOError(errno.EAGAIN, "again")),
    "read-only": lambda: Refusing(OSError(errno.EROFS, "read-only")),
    "no such device": lambda: Refusing(OSError(errno.EIO, "gone")),
    "not encodable": lambda: Refusing(UnicodeEncodeError("ascii", "é", 0, 1, "no")),
    "written in a signal": lambda: Refusing(RuntimeError("reentrant call inside")),
}


@pytest.fixture(params=list(BROKEN.values()), ids=list(BROKEN))
def broken(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """Standard error that cannot be written."""
    configured, handlers = structlog.get_config(), logging.root.handlers[:]
    stream = request.param()
    yield stream
    with suppress(OSError, ValueError, RuntimeError):
        stream.close()
    structlog.configure(**configured)
    logging.root.handlers[:] = handlers


async def make_call(stream: TextIO | None) -> None:
    """A call with a line in the access log, too long for the batch that it is in."""
    access_log = new_access_log(stream)
    assert access_log is not None
    calls = ObservedCalls(CallIdReader(str), access_log.rpc)
    method, context = ObservedMethod(f"/service/{LONG}"), cast("Any", FakeContext())
    for _ in range(2):
        calls.end(method, "OK", "", 0.001, context, calls.begin(method, context), "127.0.0.1")
    access_log.flush()


async def log_event(_stream: TextIO | None) -> None:
    structlog.get_logger().warning("something", text=LONG)


LINES = [log_event, make_call]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("write", LINES)
async def test_a_line_that_cannot_be_written_fails_nothing(
    broken: TextIO, write: Callable[[TextIO | None], Any], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", broken)
    configure_logging("INFO", terminal=terminal)
    await write(None)
    logging.getLogger("of.a.library").warning("something")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("write", LINES)
async def test_negative_control_on_the_stream_itself_it_fails(
    broken: TextIO, write: Callable[[TextIO | None], Any], *, terminal: bool
) -> None:
    configure_logging("INFO", terminal=terminal, stream=broken)
    with pytest.raises((OSError, ValueError, RuntimeError)):
        await write(broken)


def exported(collector: Callable[[bytes], Response]) -> None:
    """Export two batches."""
    exporter = OtlpExporter(collector, "", str, interval=3600, retry_delay=0.0)
    tracing = SpanTracing(exporter.add)
    for _ in range(2 * 512):
        tracing.add("a", {}, "", 0.001)
    exporter.close()


@pytest.mark.parametrize("is_safe", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_exporter_of_traces_goes_on_after_a_line_that_cannot_be_written(
    broken: TextIO, monkeypatch: pytest.MonkeyPatch, *, is_safe: bool
) -> None:
    """Second: the negative control, whose thread ends."""
    received = []

    def collect(content: bytes) -> Response:
        received.append(content)
        return Response(400)

    monkeypatch.setattr(sys, "stderr", broken)
    configure_logging("INFO", terminal=False, stream=None if is_safe else broken)
    exported(collect)
    assert len(received) == (2 if is_safe else 1)


def test_messages_of_commands_do_not_fail(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", broken)
    monkeypatch.setattr(sys, "stderr", unfailing(sys.stderr))
    print("text", file=sys.stderr, flush=True)
    sys.stderr.writelines(["a", "b"])
    Console(stderr=True).print("text")
    assert not sys.stderr.isatty()


def test_what_can_be_written_is_written() -> None:
    stream = StringIO()
    unfailing = UnfailingStream(stream)
    assert unfailing.write("a") == 1
    unfailing.writelines(["b", "c"])
    unfailing.flush()
    assert (stream.getvalue(), unfailing.getvalue(), unfailing.isatty()) == ("abc", "abc", False)  # type: ignore[operator]


# --- a reader that does not read -------------------------------------------------------------------------------------


@contextmanager
def full_pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe without room: the end to read from, and a stream to write to."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def read_all(reading: int) -> bytes:
    """What is in the pipe, without what filled it."""
    found = b""
    with suppress(BlockingIOError):
        while True:
            found += os.read(reading, 2**20)
    return found.strip(b".")


@pytest.mark.parametrize("text", ["line\n", f"{LONG}\n", f"{LONG * 100}\n"])
def test_what_a_stopped_reader_does_not_take_is_lost_until_it_reads_again(text: str) -> None:
    with full_pipe() as (reading, stream):
        unfailing = UnfailingStream(stream, max_wait=0.01)
        for _ in range(3):
            print(text, file=unfailing, end="", flush=True)
        assert read_all(reading) == b""
        print("read again", file=unfailing)
        assert read_all(reading) == b"read again\n"


@pytest.mark.parametrize("max_wait", [0.01, None])
def test_a_write_ends_although_nobody_reads(max_wait: float | None) -> None:
    """Second: the negative control, which waits for the reader."""
    with full_pipe() as (reading, stream):
        unfailing = UnfailingStream(stream, max_wait=max_wait)
        thread = threading.Thread(target=print, args=["line"], kwargs={"file": unfailing})
        thread.start()
        thread.join(60 if max_wait else 0.3)
        assert thread.is_alive() is (max_wait is None)
        found = read_all(reading)
        thread.join(60)
        assert found + read_all(reading) == (b"" if max_wait else b"line\n")


def test_the_output_counts_what_is_lost() -> None:
    with full_pipe() as (reading, stream):
        output = BoundedOutput(stream.fileno(), max_wait=0.01)
        for _ in range(2):
            output.write(b"a" * 10_000)
        assert output.lost == 20_000
        read_all(reading)
        output.write(b"b" * 10_000)
        assert (output.lost, read_all(reading)) == (20_000, b"b" * 10_000)


class SlowReader:
    """Takes a piece every half a second, by a clock that only waits move."""

    def __init__(self) -> None:
        self.now, self.waited, self.next_piece = 0.0, 0.0, 0.0

    def poll(self, milliseconds: float | None) -> bool:
        assert milliseconds is not None
        wait = min(max(0.0, self.next_piece - self.now), milliseconds / 1000)
        self.now, self.waited = self.now + wait, self.waited + wait
        has_room = self.now >= self.next_piece
        if has_room:
            self.next_piece = self.now + 0.5
        return has_room


@pytest.mark.parametrize("share", [0.01, 1e9])
def test_a_reader_that_is_too_slow_blocks_its_writer_for_a_hundredth_of_the_time(share: float) -> None:
    """Second: the negative control, which is blocked most of the time."""
    reader = SlowReader()
    with Path(os.devnull).open("w") as stream:
        output = BoundedOutput(stream.fileno(), waiting_share=share, monotonic=lambda: reader.now, poll=reader.poll)
        while reader.now < 100:
            output.write(b"line\n")
            reader.now += 0.01
    assert reader.waited < 1 + 0.01 * 101 if share < 1 else reader.waited > 90


def test_a_line_that_is_cut_does_not_damage_the_next_one() -> None:
    with full_pipe() as (reading, stream):
        os.read(reading, 4096)
        output = BoundedOutput(stream.fileno(), max_wait=0.01)
        output.write(b"a" * 5000 + b"\n")
        assert output.lost == 5001 - 4096
        assert read_all(reading) == b"a" * 4096
        output.write(b"b\n")
        assert read_all(reading) == b"\nb\n"
        output.write(b"c\n")
        assert read_all(reading) == b"c\n"


@pytest.mark.parametrize("max_wait", [0.01, None])
def test_a_write_to_a_terminal_that_takes_a_part_of_it_ends(max_wait: float | None) -> None:
    """Second: the negative control, which waits for the terminal."""
    terminal, descriptor = os.openpty()
    output = BoundedOutput(descriptor, max_wait=max_wait)

    def write() -> None:
        with suppress(OSError):  # once the terminal is closed
            for _ in range(1000):
                output.write(b"a line of an odd length\n")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(60 if max_wait else 0.3)
    is_waiting = thread.is_alive()
    os.close(terminal)
    thread.join(60)
    os.close(descriptor)
    assert (is_waiting, output.lost > 0) == (max_wait is None, max_wait is not None)


def test_lines_of_several_threads_stay_whole() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "w") as stream:
        unfailing = UnfailingStream(stream)
        texts = [character * 60 + "\n" for character in "abcd"]
        threads = [
            threading.Thread(target=lambda text=text: [unfailing.write(text) for _ in range(200)]) for text in texts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stream.close()
        assert sorted(source.read().decode().splitlines(keepends=True)) == sorted(texts * 200)
