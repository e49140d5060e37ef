"""Spans reach a collector as messages of OTLP, in batches from a thread; a collector that fails costs spans only."""

import threading
from http.client import RemoteDisconnected
from typing import TypeAlias

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from integration_server.observability.otlp import MAX_WAITING, OtlpExporter, Response, SpanEncoder
from integration_server.observability.spans import SpanKind
from integration_server.observability.tracing import RecordedSpan, SpanTracing

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NEVER = 3600.0  # seconds


Answer: TypeAlias = int | tuple[int, str] | Exception


class Collector:
    """A collector that answers with these statuses in turn, the last one for ever; an exception is raised.

    A status may have a `Retry-After`.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers: list[Answer] = list(answers or [200])
        self.requests: list[bytes] = []
        self.received = threading.Condition()

    def post(self, content: bytes) -> Response:
        """Answer a request."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        with self.received:
            self.requests.append(content)
            self.received.notify_all()
        if isinstance(answer, Exception):
            raise answer
        return Response(*answer) if isinstance(answer, tuple) else Response(answer)

    def exporter(self, interval: float = NEVER, retry_delay: float = 0.0) -> OtlpExporter:
        """An exporter to this collector."""
        return OtlpExporter(self.post, "server-1", str, interval=interval, retry_delay=retry_delay)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        with self.received:
            assert self.received.wait_for(lambda: len(self.requests) >= count, 60)

    @property
    def spans(self) -> list[Span]:
        """The spans of all requests."""
        messages = [ExportTraceServiceRequest.FromString(content) for content in self.requests]
        return [span for message in messages for span in message.resource_spans[0].scope_spans[0].spans]


def make_spans(exporter: OtlpExporter, count: int) -> None:
    """Begin and end traces of one span."""
    tracing = SpanTracing(exporter.add)
    for number in range(count):
        with tracing.root(f"job {number}", {}):
            pass


def texts_of(span: Span) -> dict[str, str | int]:
    """The attributes of a span."""
    return {attribute.key: attribute.value.string_value or attribute.value.int_value for attribute in span.attributes}


def test_a_call_and_its_request_are_spans_of_the_trace_of_the_caller() -> None:
    collector = Collector()
    exporter = collector.exporter()
    tracing = SpanTracing(exporter.add)
    passed_on = tracing.begin("service/Method", {"request_id": "f81d4fae"}, f"00-{TRACE_ID}-{PARENT_ID}-01")
    with pytest.raises(OSError, match="secret"), tracing.client("POST", {"http.response.status_code": 500}):
        raise OSError("secret")
    tracing.end({"rpc.response.status_code": "OK"}, failed=False)
    exporter.close()

    (content,) = collector.requests
    (of_process,) = ExportTraceServiceRequest.FromString(content).resource_spans
    names = {attribute.key: attribute.value.string_value for attribute in of_process.resource.attributes}
    assert names == {"service.name": "integration-server", "service.instance.id": "server-1"}
    inner, outer = collector.spans
    assert {inner.trace_id, outer.trace_id} == {bytes.fromhex(TRACE_ID)}
    assert (outer.parent_span_id, inner.parent_span_id) == (bytes.fromhex(PARENT_ID), outer.span_id)
    assert passed_on == f"00-{TRACE_ID}-{outer.span_id.hex()}-01"
    assert (outer.name, outer.kind, outer.flags) == ("service/Method", Span.SPAN_KIND_SERVER, 0x301)
    assert (inner.name, inner.kind, inner.flags) == ("POST", Span.SPAN_KIND_CLIENT, 0x101)
    assert texts_of(outer) == {"request_id": "f81d4fae", "rpc.response.status_code": "OK"}
    assert texts_of(inner) == {"http.response.status_code": 500, "error.type": "OSError"}
    assert (outer.status.code, inner.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    assert 0 < outer.start_time_unix_nano <= inner.start_time_unix_nano
    assert inner.end_time_unix_nano <= outer.end_time_unix_nano


LONG = "ab" * 40_000


@pytest.mark.parametrize("kind", ["server", "client", "internal"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"request_id": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"},
        {"request_id": "r" * 128, "rpc.system.name": "grpc"},
        {"request_id": ""},
        {"http.response.status_code": 503, "a": 0, "b": -1, "c": 2**40},
        {"server.address": "bücher.example", "name": "名" * 50, "empty": ""},
        {"long": LONG, "request_id": LONG},
    ],
)
def test_a_span_is_encoded_as_protobuf_encodes_it(kind: SpanKind, attributes: dict[str, str | int]) -> None:
    spans = [
        RecordedSpan(
            f"{kind} ü",
            kind,
            f"00-{TRACE_ID}-00000000000000{number:02x}-01",
            parent_id,
            has_remote_parent=bool(parent_id),
            is_sampled=True,
            attributes=attributes,
            begin=2**62 + number,
            end=2**63 + number,
            has_failed=bool(number),
        )
        for number, parent_id in enumerate(["", PARENT_ID])
    ]
    content = SpanEncoder("server-1", str).encode(spans)
    (of_process,) = ExportTraceServiceRequest.FromString(content).resource_spans
    (of_scope,) = of_process.scope_spans
    assert of_scope.scope.name == "integration_server"
    assert list(of_scope.spans) == [
        Span(
            name=f"{kind} ü",
            kind=Span.SpanKind.Value(f"SPAN_KIND_{kind.upper()}"),
            trace_id=bytes.fromhex(TRACE_ID),
            span_id=number.to_bytes(8, "big"),
            parent_span_id=bytes.fromhex(parent_id),
            flags=0x301 if parent_id else 0x101,
            attributes=[
                KeyValue(
                    key=name,
                    value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value),
                )
                for name, value in attributes.items()
            ],
            start_time_unix_nano=2**62 + number,
            end_time_unix_nano=2**63 + number,
            status=Status(code=Status.STATUS_CODE_ERROR) if number else None,
        )
        for number, parent_id in enumerate(["", PARENT_ID])
    ]


@pytest.mark.parametrize(("flags", "count"), [("01", 2), ("03", 2), ("00", 0)])
def test_the_trace_of_a_caller_is_recorded_as_its_flags_say(flags: str, count: int) -> None:
    collector = Collector()
    exporter = collector.exporter()
    tracing = SpanTracing(exporter.add, sample_ratio=0.0)
    passed_on = tracing.begin("a", {}, f"00-{TRACE_ID}-{PARENT_ID}-{flags}")
    with tracing.client("b", {}) as span:
        span.set("c", "d")
    tracing.end({}, failed=False)
    exporter.close()
    assert len(collector.spans) == count
    assert passed_on.startswith(f"00-{TRACE_ID}-")
    assert passed_on.endswith("-01" if count else "-00")
    assert PARENT_ID not in passed_on


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.5, 300, 700), (1.0, 1000, 1000)])
def test_a_share_of_new_traces_is_recorded(ratio: float, least: int, most: int) -> None:
    spans: list[object] = []
    tracing = SpanTracing(spans.append, sample_ratio=ratio)
    for _ in range(1000):
        tracing.add("a", {}, "", 0.001)
    assert least <= len(spans) <= most


def test_a_request_after_the_end_of_its_call_has_no_span() -> None:
    spans: list[object] = []
    tracing = SpanTracing(spans.append)
    tracing.begin("a", {}, "")
    tracing.end({}, failed=False)
    with tracing.client("b", {}):
        pass
    assert len(spans) == 1


def test_a_full_batch_is_sent_at_once_and_the_rest_at_the_end() -> None:
    collector = Collector()
    exporter = collector.exporter()
    make_spans(exporter, 513)
    collector.wait_for(1)
    exporter.close()
    assert len(collector.requests) == 2
    assert [span.name for span in collector.spans] == [f"job {number}" for number in range(513)]


def test_few_spans_are_sent_after_the_interval() -> None:
    collector = Collector()
    exporter = collector.exporter(interval=0.01)
    make_spans(exporter, 1)
    collector.wait_for(1)
    exporter.close()
    assert len(collector.spans) == 1


@pytest.mark.parametrize(
    "answer",
    [
        *(429, 502, 503, 504),
        *(ConnectionRefusedError("no"), TimeoutError("late"), RemoteDisconnected("no"), UnicodeError("no host")),
    ],
)
def test_a_batch_is_sent_again_once_after_a_failure_that_may_pass(answer: int | Exception) -> None:
    collector = Collector(answer, 200)
    exporter = collector.exporter()
    make_spans(exporter, 1)
    with structlog.testing.capture_logs() as lines:
        exporter.close()
    assert len(collector.requests) == 2
    assert lines == []


@pytest.mark.parametrize(
    ("answer", "requests", "problem"),
    [(400, 1, 400), (503, 2, 503), (ConnectionRefusedError("no"), 2, "ConnectionRefusedError")],
)
def test_a_batch_that_is_not_accepted_is_dropped_and_logged_once(
    answer: int | Exception, requests: int, problem: int | str
) -> None:
    collector = Collector(answer)
    with structlog.testing.capture_logs() as lines:
        exporter = collector.exporter()
        make_spans(exporter, 512)
        collector.wait_for(requests)
        make_spans(exporter, 512)
        exporter.close()
    assert len(collector.requests) == 2 * requests
    assert [(line["event"], line.get("problem")) for line in lines] == [("traces_not_exported", problem)]


def test_a_collector_that_hangs_costs_the_spans_beyond_the_queue() -> None:
    released = threading.Event()
    collector = Collector()

    def hang(content: bytes) -> Response:
        response = collector.post(content)
        released.wait(60)
        return response

    exporter = OtlpExporter(hang, "", str, interval=NEVER)
    make_spans(exporter, 512)
    collector.wait_for(1)
    make_spans(exporter, MAX_WAITING + 100)
    released.set()
    exporter.close()
    assert len(collector.spans) == 512 + MAX_WAITING


# --- the pause that a collector asks for -----------------------------------------------------------------------------


class Pauses:
    """A clock that only waiting moves. An exporter is closed while it waits for the one with number `closed_in`."""

    def __init__(self, closed_in: int = 0) -> None:
        self.waited: list[float] = []
        self.now = 0.0
        self._closed_in = closed_in

    def monotonic(self) -> float:
        """The seconds that have passed."""
        return self.now

    def wait(self, seconds: float) -> bool:
        """Wait. Returns whether the exporter is closed."""
        self.waited.append(seconds)
        self.now += seconds
        return len(self.waited) == self._closed_in


def export_over(collector: Collector, pauses: Pauses, batches: int = 1, max_pause: float = 60.0) -> None:
    """Export so many batches, one after the other; no delay of the exporter's own."""
    exporter = OtlpExporter(
        collector.post,
        "",
        str,
        interval=NEVER,
        retry_delay=0.0,
        max_pause=max_pause,
        monotonic=pauses.monotonic,
        wait=pauses.wait,
    )
    make_spans(exporter, 512 * batches)
    exporter.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        *(("7", 7, 7), (" 7 ", 7, 7), ("0", 0, 0), ("86400", 60, 60), ("9" * 39, 60, 60)),
        ("Thu, 01 Jan 2060 00:00:00 GMT", 60, 60),
        ("Thursday, 01-Jan-60 00:00:00 GMT", 60, 60),
        ("Thu Jan  1 00:00:00 2060", 60, 60),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        *(
            (text, 0, 0)
            for text in ("", "-1", "1.5", "soon", "nan", "inf", "1e3", "7" * 5000, "Mon, 99 Foo 9999 99:99")
        ),
    ],
)
def test_a_batch_waits_as_long_as_the_collector_asks_within_a_bound(
    status: int, retry_after: str, least: float, most: float
) -> None:
    collector, pauses = Collector((status, retry_after), 200), Pauses()
    export_over(collector, pauses)
    assert len(collector.spans) == 2 * 512
    assert least <= sum(pauses.waited) <= most


def test_negative_control_without_the_bound_a_collector_is_asked_at_once() -> None:
    collector, pauses = Collector((429, "7"), 200), Pauses()
    export_over(collector, pauses, max_pause=0.0)
    assert (len(collector.requests), sum(pauses.waited)) == (2, 0)


def test_the_next_batch_waits_too_and_no_longer_than_is_left_of_the_pause() -> None:
    collector, pauses = Collector((503, "7"), (503, "5"), 200), Pauses()
    export_over(collector, pauses, batches=2)
    assert [seconds for seconds in pauses.waited if seconds] == [7, 5]
    assert len(collector.requests) == 3  # one batch is dropped, as after any two failures


@pytest.mark.parametrize("status", [200, 400, 413])
def test_a_pause_with_another_status_means_nothing(status: int) -> None:
    collector, pauses = Collector((status, "7")), Pauses()
    export_over(collector, pauses, batches=2)
    assert (len(collector.requests), pauses.waited) == (2, [])


def test_a_pause_that_outlasts_the_process_is_kept_and_its_spans_are_dropped() -> None:
    collector, pauses = Collector((503, "7")), Pauses(closed_in=2)  # the first wait is the exporter's own delay
    with structlog.testing.capture_logs() as lines:
        export_over(collector, pauses)
    assert len(collector.requests) == 1
    assert [(line["event"], line["problem"]) for line in lines] == [("traces_not_exported", "RetryAfter")]


def test_a_pause_costs_the_spans_beyond_the_queue() -> None:
    released, collector = threading.Event(), Collector((503, "7"), 200)
    pausing = threading.Event()

    def wait(seconds: float) -> bool:
        if seconds:
            pausing.set()
            assert released.wait(60)
        return False

    exporter = OtlpExporter(collector.post, "", str, interval=NEVER, retry_delay=0.0, monotonic=lambda: 0.0, wait=wait)
    make_spans(exporter, 512)
    assert pausing.wait(60)
    make_spans(exporter, MAX_WAITING + 100)
    assert len(collector.requests) == 1
    released.set()
    exporter.close()
    assert len(collector.spans) == 512 + 512 + MAX_WAITING
