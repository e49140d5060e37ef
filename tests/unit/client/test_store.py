"""Which credentials in memory are fresh, with injected time; what streams report; hooks and cursor stores."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.rpc import code_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from integration_server.client.connection import UseGuard
from integration_server.client.credentials import Credentials
from integration_server.client.errors import QuotaExceeded, ServerStopping, Unimplemented
from integration_server.client.hooks import Metadata, OpenTelemetryHook
from integration_server.client.store import CredentialStore, Entry, Key, StreamState
from integration_server.client.values import FileCursorStore
from integrations.v1 import credentials_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.integration_servicer import status

Store = CredentialStore[threading.Lock]
KEY = Key("ada", 7)


class Clock:
    """Both clocks of a store."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        """The time."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        """The seconds."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return CredentialStore(threading.Lock, now=clock.now, monotonic=clock.monotonic, jitter=lambda: 1.0)


def credentials(clock: Clock, seconds: float | None = 3600, token: str = "first") -> Credentials:
    expire_time = None if seconds is None else clock.now() + timedelta(seconds=seconds)
    return Credentials(integration_id=7, access_token=token, expire_time=expire_time)


def read(store: Store, value: Credentials) -> Entry[threading.Lock]:
    """An account that was read."""
    entry = store.entry(KEY, "")
    fetch = store.begin_fetch(entry)
    store.record(entry, fetch, value)
    store.watch(entry, fetch)
    return entry


def live(store: Store) -> StreamState:
    """The first stream, running."""
    stream = store.streams[0]
    assert store.request(stream) is not None
    store.receive(stream, pb.WatchCredentialsResponse(cursor="c"))
    return stream


def revoked(number: int = 7) -> pb.WatchCredentialsResponse:
    error = status(code_pb2.FAILED_PRECONDITION, "REAUTHORIZATION_REQUIRED")
    return pb.WatchCredentialsResponse(
        results=[pb.WatchedCredentials(integration_id=number, result=pb.CredentialsResult(error=error))], cursor="d"
    )


@pytest.mark.parametrize(
    ("lifetime", "passed", "min_ttl", "is_fresh"),
    [
        (3600, 3500, None, True),
        (3600, 3545, None, False),  # less than a minute left
        (100, 85, None, True),  # a tenth of a short lifetime
        (100, 91, None, False),
        (3600, 3000, 700, False),
        (3600, 2800, 700, True),
        (None, 10**6, 700, True),
    ],
)
def test_watched_credentials_are_fresh_until_shortly_before_they_expire(
    store: Store, clock: Clock, lifetime: float | None, passed: float, min_ttl: float | None, is_fresh: bool
) -> None:
    entry = read(store, credentials(clock, lifetime))
    live(store)
    clock.seconds += passed
    found = store.fresh(entry, None if min_ttl is None else timedelta(seconds=min_ttl))
    assert (found is not None) is is_fresh


def test_credentials_that_no_stream_reports_on_are_fresh_for_five_minutes(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    clock.seconds += 299
    assert store.fresh(entry, None) is not None
    clock.seconds += 2
    assert store.fresh(entry, None) is None


def test_a_revocation_during_a_read_wins(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    stream = live(store)
    fetch = store.begin_fetch(entry)
    store.receive(stream, revoked())
    assert store.record(entry, fetch, credentials(clock)) is None
    assert store.fresh(entry, None) is None


def test_negative_control_a_read_after_the_revocation_counts(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    store.receive(live(store), revoked())
    assert store.record(entry, store.begin_fetch(entry), credentials(clock, token="new")) is not None


def test_an_unavailable_provider_does_not_end_credentials(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    result = pb.CredentialsResult(error=status(code_pb2.UNAVAILABLE, "PROVIDER_UNAVAILABLE"))
    store.receive(
        live(store),
        pb.WatchCredentialsResponse(results=[pb.WatchedCredentials(integration_id=7, result=result)], cursor="d"),
    )
    assert store.fresh(entry, None) is not None


def test_a_stream_that_takes_accounts_restarts_from_before_the_oldest_was_read(store: Store, clock: Clock) -> None:
    read(store, credentials(clock))
    stream = live(store)
    slow, quick = store.entry(Key("ada", 8), ""), store.entry(Key("ada", 9), "")
    slow_fetch = store.begin_fetch(slow)  # at "c"
    store.receive(stream, pb.WatchCredentialsResponse(cursor="e"))
    quick_fetch = store.begin_fetch(quick)
    for entry, fetch in ((quick, quick_fetch), (slow, slow_fetch)):
        store.record(entry, fetch, replace(credentials(clock), integration_id=entry.key.integration_id))
        store.watch(entry, fetch)
    request = store.request(stream)
    assert request is not None
    assert (list(request.integration_ids), request.cursor) == ([7, 8, 9], "c")
    again = store.request(stream)  # no response has come
    assert again is not None
    assert again.cursor == "c"


@pytest.mark.parametrize("is_reported", [True, False], ids=["", "negative control"])
def test_an_account_that_comes_back_misses_no_report_of_the_running_stream(
    store: Store, clock: Clock, is_reported: bool
) -> None:
    """What a stream reports while the account is read is for an account that it does not have."""
    read(store, credentials(clock))
    stream = live(store)
    clock.seconds += 3601
    store.entry(Key("ada", 8), "")
    assert stream.ids == {}
    entry = store.entry(KEY, "")
    fetch = store.begin_fetch(entry)
    if is_reported:
        store.receive(stream, revoked())
    store.record(entry, fetch, credentials(clock))
    assert store.watch(entry, fetch) is (stream if is_reported else None)
    assert store.needs_restart(stream) is is_reported
    if is_reported:
        request = store.request(stream)
        assert request is not None
        assert request.cursor == "c"
    clock.seconds += 301  # no stream that runs has it
    assert (store.fresh(entry, None) is None) is is_reported


def test_a_forked_process_does_not_use_what_no_stream_keeps_fresh(clock: Clock) -> None:
    process = 1
    guard = UseGuard(lambda: process)
    store: Store = CredentialStore(threading.Lock, now=clock.now, monotonic=clock.monotonic, use_guard=guard)
    unused: Store = CredentialStore(threading.Lock, now=clock.now, monotonic=clock.monotonic)
    assert store.fresh(read(store, credentials(clock, None)), None)
    store.set_resolved("ada", "fake", 7)
    assert live(store).is_live
    process = 2
    for use in (lambda: store.entry(KEY, ""), lambda: store.resolved("ada", "fake")):
        with pytest.raises(RuntimeError, match="forked"):
            use()
    assert unused.resolved("ada", "fake") is None
    process = 1  # negative control: the process that has opened the stream
    assert store.resolved("ada", "fake") == 7
    assert store.fresh(store.entry(KEY, ""), None)


def test_while_the_server_is_away_it_is_asked_once_in_ten_seconds(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    clock.seconds += 400
    assert store.fresh(entry, None) is None
    assert store.record_failure(entry, ServerStopping("stops"), None) is not None
    assert store.fresh(entry, None) is not None
    clock.seconds += 11
    assert store.fresh(entry, None) is None
    assert store.record_failure(entry, QuotaExceeded("quota"), timedelta(hours=1)) is None  # they last for less


def test_only_a_read_that_memory_can_replace_has_a_short_deadline(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    unread = store.entry(Key("ada", 99), "")
    assert store.read_timeout([entry], None) is not None
    assert store.read_timeout([entry], timedelta(hours=2)) is None
    assert store.read_timeout([entry, unread], None) is None
    clock.seconds += 3601
    assert store.read_timeout([entry], None) is None


def test_unused_accounts_are_dropped(store: Store, clock: Clock) -> None:
    read(store, credentials(clock))
    clock.seconds += 3601
    store.entry(Key("ada", 8), "")
    assert len(store) == 1
    assert store.streams[0].ids == {}


def test_pauses_between_streams_grow_and_end(store: Store) -> None:
    stream = StreamState()
    delays = [store.ended(stream, ServerStopping("stops")) for _ in range(12)]
    assert delays[:3] == [0.4, 0.8, 1.6]
    assert delays[-1] == 30.0
    assert store.ended(stream, Unimplemented("older")) == 600.0


def test_a_new_token_of_a_stream_replaces_the_old_one(store: Store, clock: Clock) -> None:
    entry = read(store, credentials(clock))
    result = pb.CredentialsResult(credentials=credentials_pb2.Credentials(bearer_token="second"))
    store.receive(
        live(store),
        pb.WatchCredentialsResponse(results=[pb.WatchedCredentials(integration_id=7, result=result)], cursor="d"),
    )
    found = store.fresh(entry, None)
    assert found is not None
    assert found.access_token == "second"


def test_spans_have_the_method_and_the_reason_and_send_their_context() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metadata: Metadata = []
    OpenTelemetryHook(provider).begin("GetCredentials", metadata)(QuotaExceeded("wait"))
    (span,) = exporter.get_finished_spans()
    attributes: Mapping[str, object] = span.attributes or {}
    assert span.name == "integrations.v1.IntegrationService/GetCredentials"
    assert (attributes["rpc.grpc.status_code"], attributes["error.type"]) == (8, "QUOTA_EXCEEDED")
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" in dict(metadata)["traceparent"]


def test_a_cursor_survives_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "cursor"
    assert FileCursorStore(file).load() == ""
    FileCursorStore(file).save("one")
    FileCursorStore(file).save("two")
    assert FileCursorStore(file).load() == "two"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist_is_noticed_before_the_first_event(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileCursorStore(tmp_path / "missing" / "cursor").load()


def test_a_cursor_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "cursor"
    file.mkdir()  # which no file replaces
    with pytest.raises(OSError, match="cursor"):
        FileCursorStore(file).save("one")
    assert list(tmp_path.iterdir()) == [file]
