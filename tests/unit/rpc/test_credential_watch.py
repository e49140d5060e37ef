"""The streams of `WatchCredentials`: what they share, what a slow refresh delays, and how they end and resume."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.rpc import error_details_pb2

from integration_server.bootstrap import Service
from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.call_quota import CallRate
from integration_server.domain.callers import Caller, IdentityKind, Permission, Permissions, Policy
from integration_server.domain.errors import CallerNotAllowed, IntegrationNotFound, ProviderUnavailable, ServerStopping
from integration_server.domain.integration import IntegrationId
from integration_server.rpc.authentication import authenticate
from integration_server.rpc.authorization import authorize_method
from integration_server.rpc.credential_results import CredentialResults
from integration_server.rpc.credential_watch import CredentialWatch, DueTimes
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import compose, count_items, enforce_quota
from integration_server.rpc.methods import describe_method
from integration_server.service.credentials.credential_service import CredentialRequest, UsableCredentials
from integration_server.service.credentials.shared_outcomes import SharedOutcomes
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import FakeContext
from tests.fakes.provider import wait_until
from tests.fakes.system import ADA, BUFFER, EVE, FakeSystem
from tests.statements import captured_statements
from tests.unit.rpc.fake_tokens import fake_tokens

HOUR = timedelta(hours=1)
WATCH = describe_method("/integrations.v1.IntegrationService/WatchCredentials")


class Stream:
    """A stream whose responses a task reads at once."""

    def __init__(self, watch: "CredentialWatch | CheckedWatch", request: pb.WatchCredentialsRequest) -> None:
        self.responses: list[pb.WatchCredentialsResponse] = []
        self.error: Exception | None = None
        self._task = asyncio.create_task(self._read(watch, request))

    async def _read(self, watch: "CredentialWatch | CheckedWatch", request: pb.WatchCredentialsRequest) -> None:
        try:
            async for response in watch.watch(request):
                self.responses.append(pb.WatchCredentialsResponse.FromString(response))
        except Exception as error:
            self.error = error

    @property
    def results(self) -> list[tuple[int, str]]:
        """What was sent: tokens, or the reasons of errors."""
        return [
            (result.integration_id, outcome_of(result.result)) for sent in self.responses for result in sent.results
        ]

    @property
    def cursor(self) -> str:
        """The last cursor."""
        return next((sent.cursor for sent in reversed(self.responses) if sent.cursor), "")

    async def close(self) -> None:
        """End the stream as its client does."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def outcome_of(result: pb.CredentialsResult) -> str:
    """The token of a result, or the reason of its error."""
    if result.HasField("credentials"):
        return result.credentials.bearer_token
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in result.error.details)
    return info.reason


class Server:
    """A process whose change feed is read when a test says so."""

    def __init__(self, system: FakeSystem, service: Service | None = None, *, refreshes: int = 16) -> None:
        self.system = system
        self.service = service or system.another_process()
        use_cases = self.service.use_cases
        self.changes = use_cases.watched_changes
        self.watch = CredentialWatch(
            use_cases.credentials,
            self.changes,
            CredentialResults(use_cases.credentials),
            system.clock,
            lambda: 0.5,
            heartbeat=timedelta(milliseconds=1),
            refreshes=refreshes,
        )

    @asynccontextmanager
    async def watching(
        self, *ids: int, cursor: str = "", min_ttl: timedelta | None = None, is_complete: bool = True
    ) -> AsyncIterator[Stream]:
        """A stream that has sent everything once, unless `is_complete` is False."""
        request = pb.WatchCredentialsRequest(integration_ids=ids, user_id=ADA, cursor=cursor)
        if min_ttl is not None:
            request.min_ttl.FromTimedelta(min_ttl)
        stream = Stream(self.watch, request)
        try:
            if is_complete:
                await eventually(lambda: stream.cursor)
            yield stream
        finally:
            await stream.close()

    async def rotate(self, number: int) -> None:
        """Refresh a token in another process, and read the change feed."""
        await self.system.credentials.refresh_token(IntegrationId(number), ADA, force=True)
        self.system.clock.advance(timedelta(seconds=31))  # the interval of forced refreshes
        await self.service.reader.poll()

    async def disconnect(self, number: int) -> None:
        """Disconnect in another process, and read the change feed."""
        await self.system.revocation_service.disconnect_integration(IntegrationId(number), ADA)
        await self.service.reader.poll()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # conditions of many kinds
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let the streams pass some heartbeats."""
    await asyncio.sleep(0.02)


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem(options={"revocation_wait": timedelta()})
    async with system.tasks:
        yield system


async def connect(system: FakeSystem, count: int) -> list[int]:
    """Connect accounts of ada's."""
    return [(await system.connect_account(f"account-{number}")).integration_id for number in range(count)]


# --- responses -------------------------------------------------------------------------------------------------------


async def test_what_is_due_together_is_in_one_response_with_the_cursor(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 3)
    async with server.watching(*ids, 999) as stream:
        (first,) = stream.responses[:1]
        assert sorted(result.integration_id for result in first.results) == [*ids, 999]
        assert first.cursor


async def test_a_change_is_sent_once(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 2)
    async with server.watching(*ids) as stream:
        before = len(stream.results)
        await server.rotate(ids[1])
        await server.service.reader.poll()
        await eventually(lambda: len(stream.results) > before)
        await settle()
        assert stream.results[before:] == [(ids[1], (await system.tokens(ids[1])).access_token)]


# --- slow refreshes --------------------------------------------------------------------------------------------------


async def connect_with_due(system: FakeSystem, count: int) -> tuple[list[int], int]:
    """Integrations whose tokens have to be refreshed, which wait for the gate, and one with a fresh token."""
    due = await connect(system, count)
    system.clock.advance(HOUR - BUFFER + timedelta(seconds=1))
    fresh = (await system.connect_account("fresh")).integration_id
    system.provider.gate = asyncio.Event()
    return due, fresh


def open_gate(system: FakeSystem) -> None:
    assert system.provider.gate is not None
    system.provider.gate.set()


async def test_a_slow_refresh_delays_only_its_own_credentials(system: FakeSystem) -> None:
    server = Server(system)
    (slow,), fresh = await connect_with_due(system, 1)
    async with server.watching(slow, fresh, is_complete=False) as stream:
        await eventually(lambda: stream.results)
        await settle()
        assert [number for number, _ in stream.results] == [fresh]
        assert stream.cursor == "", "a stream that resumes now gets the slow one too"
        await server.disconnect(fresh)
        await eventually(lambda: stream.results[1:] == [(fresh, "INTEGRATION_NOT_FOUND")])
        open_gate(system)
        await eventually(lambda: len(stream.results) == 3 and stream.cursor)
        assert stream.results[2] == (slow, (await system.tokens(slow)).access_token)


async def test_negative_control_a_stream_that_waits_for_each_refresh_sends_nothing(system: FakeSystem) -> None:
    server = Server(system, refreshes=0)
    (slow,), fresh = await connect_with_due(system, 1)
    async with server.watching(slow, fresh, is_complete=False) as stream:
        await wait_until(lambda: system.provider.in_flight)
        await settle()
        assert stream.results == []
        open_gate(system)
        await eventually(lambda: len(stream.results) == 2)


async def test_the_refreshes_of_a_stream_are_bounded(system: FakeSystem) -> None:
    server = Server(system, refreshes=2)
    due, fresh = await connect_with_due(system, 7)
    async with server.watching(*due, fresh, is_complete=False) as stream:
        await eventually(lambda: stream.results)
        await settle()
        assert system.provider.in_flight == 2
        open_gate(system)
        await eventually(lambda: len(stream.results) == 8 and stream.cursor)
    assert system.provider.max_in_flight == 2
    assert len(system.provider.refreshes) == 7


async def test_a_revocation_during_a_slow_refresh_is_sent_at_once_and_is_the_last_word(system: FakeSystem) -> None:
    server = Server(system)
    (slow,), fresh = await connect_with_due(system, 1)
    async with server.watching(slow, fresh, is_complete=False) as stream:
        await eventually(lambda: stream.results and system.provider.in_flight)
        await server.disconnect(slow)
        await eventually(lambda: len(stream.results) == 2)
        open_gate(system)
        await wait_until(lambda: not system.provider.in_flight)
        await server.service.reader.poll()
        await settle()
        assert stream.results[1:] == [(slow, "INTEGRATION_NOT_FOUND")]


async def test_streams_share_a_refresh(system: FakeSystem) -> None:
    server = Server(system)
    (slow,), _ = await connect_with_due(system, 1)
    async with server.watching(slow, is_complete=False) as first, server.watching(slow, is_complete=False) as second:
        await eventually(lambda: system.provider.in_flight)
        await settle()
        open_gate(system)
        await eventually(lambda: first.results and second.results)
        assert first.results == second.results
    assert len(system.provider.refreshes) == 1


# --- early renewal ---------------------------------------------------------------------------------------------------


async def test_credentials_are_renewed_earlier_than_they_have_to_be(system: FakeSystem) -> None:
    """With a lifetime of an hour and a buffer of five minutes: a minute earlier, times the jitter."""
    server, (number,) = Server(system), await connect(system, 1)
    async with server.watching(number) as stream:
        system.clock.advance(HOUR - BUFFER - timedelta(seconds=46))
        await settle()
        assert system.provider.refreshes == []
        system.clock.advance(timedelta(seconds=2))
        await eventually(lambda: system.provider.refreshes)
        await server.service.reader.poll()
        await eventually(lambda: len(stream.results) == 2)
        await settle()
    assert len(system.provider.refreshes) == 1


async def test_a_provider_that_fails_early_is_asked_again_in_time(system: FakeSystem) -> None:
    server, (number,) = Server(system), await connect(system, 1)
    async with server.watching(number) as stream:
        system.provider.refresh_error = ProviderUnavailable("down")
        system.clock.advance(HOUR - BUFFER - timedelta(seconds=44))
        await eventually(lambda: system.provider.refreshes)
        await settle()
        assert (len(system.provider.refreshes), len(stream.results)) == (1, 1)
        system.provider.refresh_error = None
        for _ in range(5):  # minutes that the token still lasts
            system.clock.advance(timedelta(minutes=1))
            await server.service.reader.poll()
            await settle()
        assert (len(system.provider.refreshes), len(stream.results)) == (2, 2)


@pytest.mark.parametrize("min_ttl", [timedelta(0), timedelta(minutes=10), timedelta(days=3650)])
async def test_whatever_lifetime_a_client_asks_for_there_are_few_refreshes(
    system: FakeSystem, min_ttl: timedelta
) -> None:
    server, (number,) = Server(system), await connect(system, 1)
    async with server.watching(number, min_ttl=min_ttl):
        for _ in range(60):
            system.clock.advance(timedelta(seconds=10))
            await server.service.reader.poll()
            await asyncio.sleep(0.003)
        assert len(system.provider.refreshes) <= 20  # one in thirty seconds: the interval of forced refreshes


@pytest.mark.parametrize(("max_entries", "is_bounded"), [(4, True), (10**9, False)], ids=["", "negative control"])
def test_outdated_due_times_do_not_fill_the_memory(max_entries: int, is_bounded: bool) -> None:
    """Tokens that last for weeks, and change every minute."""
    due = DueTimes(max_entries)
    numbers = [IntegrationId(number) for number in range(10)]
    for minute in range(1000):
        for number in numbers:
            due.set(number, 1e6 + minute)
    assert (len(due) <= 4 * len(numbers)) is is_bounded
    due.set(numbers[0], None)
    assert due.next_time is not None
    assert due.take(due.next_time - 1) is None
    taken = [due.take(2e6) for _ in range(10)]
    assert (taken[-1], {one for one in taken if one is not None}) == (None, set(numbers[1:]))


def test_due_times_are_taken_in_their_order_and_once() -> None:
    due = DueTimes()
    for number, time in ((1, 30.0), (2, 20.0), (3, 10.0), (2, 40.0), (3, None), (4, 30.0), (4, 30.0)):
        due.set(IntegrationId(number), time)
    assert [due.take(50.0) for _ in range(4)] == [1, 4, 2, None]


# --- sharing ---------------------------------------------------------------------------------------------------------


async def test_streams_of_one_integration_share_its_reading_and_encoding(system: FakeSystem) -> None:
    server, (number, other) = Server(system), await connect(system, 2)
    async with (
        server.watching(number) as first,
        server.watching(number, other) as second,
        server.watching(number, min_ttl=timedelta(minutes=7)) as third,
    ):
        streams = first, second, third
        before = [len(stream.results) for stream in streams]
        await system.credentials.refresh_token(IntegrationId(number), ADA, force=True)
        with captured_statements() as statements:
            await server.service.reader.poll()
            await eventually(lambda: all(len(one.results) > old for one, old in zip(streams, before, strict=True)))
        reads = [one for one in statements if "encrypted_credentials" in one]
        assert len(reads) <= 1
        assert len({stream.results[-1] for stream in streams}) == 1


async def test_a_stream_shares_nothing_with_one_that_may_read_less(system: FakeSystem) -> None:
    (number,) = await connect(system, 1)
    outcomes, request = SharedOutcomes(system.credentials), CredentialRequest(IntegrationId(number), ADA)
    (allowed,), (again,), (denied,), (stranger,) = await asyncio.gather(
        outcomes.read([request], ALL_INTEGRATION_TYPES),
        outcomes.read([request], ALL_INTEGRATION_TYPES),
        outcomes.read([request], NO_INTEGRATION_TYPES),
        outcomes.read([CredentialRequest(IntegrationId(number), EVE)], ALL_INTEGRATION_TYPES),
    )
    assert isinstance(allowed.outcome, UsableCredentials)
    assert again is allowed
    assert isinstance(denied.outcome, IntegrationNotFound)
    assert isinstance(stranger.outcome, IntegrationNotFound)


async def test_rows_that_do_not_fit_into_one_statement_are_read_by_the_next(system: FakeSystem) -> None:
    ids = await connect(system, 5)
    system.credentials.max_batch_bytes = 1
    outcomes = SharedOutcomes(system.credentials)
    found = await outcomes.read([CredentialRequest(IntegrationId(one), ADA) for one in ids], ALL_INTEGRATION_TYPES)
    assert all(isinstance(one.outcome, UsableCredentials) for one in found)


async def test_a_stream_that_ends_does_not_end_the_read_of_another(system: FakeSystem) -> None:
    (number,) = await connect(system, 1)
    outcomes, request = SharedOutcomes(system.credentials), CredentialRequest(IntegrationId(number), ADA)
    first = asyncio.create_task(outcomes.read([request], ALL_INTEGRATION_TYPES))
    second = asyncio.create_task(outcomes.read([request], ALL_INTEGRATION_TYPES))
    await asyncio.sleep(0)
    first.cancel()
    (found,) = await second
    assert isinstance(found.outcome, UsableCredentials)


# --- the end, and resumption -----------------------------------------------------------------------------------------


async def test_a_stopping_server_sends_a_last_cursor_and_another_server_resumes_there(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 3)
    async with server.watching(*ids) as stream:
        await server.rotate(ids[0])
        await eventually(lambda: len(stream.results) == 4)
        server.changes.stop()
        await eventually(lambda: stream.error)
        assert isinstance(stream.error, ServerStopping)
        last = stream.responses[-1]
    assert last.cursor
    other = Server(system)
    await other.rotate(ids[1])
    async with other.watching(*ids, cursor=last.cursor) as resumed:
        await eventually(lambda: resumed.results)
        await settle()
        assert [number for number, _ in resumed.results] == [ids[1]]
        await other.rotate(ids[2])
        await eventually(lambda: len(resumed.results) == 2)
        assert resumed.results[1][0] == ids[2]
    async with server.watching(*ids, is_complete=False) as refused:
        await eventually(lambda: refused.error)
        assert isinstance(refused.error, ServerStopping)


async def test_a_stream_that_stops_early_has_no_cursor_and_is_sent_everything_again(system: FakeSystem) -> None:
    server = Server(system)
    due, fresh = await connect_with_due(system, 1)
    async with server.watching(*due, fresh, is_complete=False) as stream:
        await eventually(lambda: stream.results)
        server.changes.stop()
        await eventually(lambda: stream.error)
        assert stream.cursor == ""
    open_gate(system)


async def test_a_resumed_stream_reports_errors_again(system: FakeSystem) -> None:
    server, (number,) = Server(system), await connect(system, 1)
    async with server.watching(number, 999) as stream:
        cursor = stream.cursor
    async with server.watching(number, 999, cursor=cursor) as resumed:
        await settle()
        assert resumed.results == [(999, "INTEGRATION_NOT_FOUND")]


@pytest.mark.parametrize("names_failed", [True, False], ids=["", "negative control"])
@pytest.mark.parametrize("others", [0, 200], ids=["one", "more than a cursor names"])
async def test_a_resumed_stream_sends_what_has_recovered_without_a_change(
    system: FakeSystem, names_failed: bool, others: int
) -> None:
    """The client's policy did not allow the type, and allows it now; it has an error, and nothing has changed since."""
    server, (number,) = Server(system), await connect(system, 1)
    ids = [number, *range(number + 1, number + 1 + others)]
    narrow = CheckedWatch(system, server=server)
    narrow.caller = Caller("all", replace(CALLER.permissions, allowed_types=NO_INTEGRATION_TYPES))
    stream = Stream(narrow, pb.WatchCredentialsRequest(integration_ids=ids, user_id=ADA))
    await eventually(lambda: stream.cursor)
    assert {outcome for _, outcome in stream.results} == {"INTEGRATION_NOT_FOUND"}
    cursor = stream.cursor if names_failed else stream.cursor.partition("~")[0]
    await stream.close()
    assert len(cursor) < 8192
    async with server.watching(*ids, cursor=cursor) as resumed:
        await eventually(lambda: len(resumed.results) >= others + names_failed)
        await settle()
        sent = dict(resumed.results)
        assert (sent.get(number, "INTEGRATION_NOT_FOUND") != "INTEGRATION_NOT_FOUND") is names_failed
        assert len(sent) == others + names_failed
        assert ("~" in resumed.cursor) is bool(others)


async def test_what_has_not_recovered_yet_stays_named_in_the_cursor_of_the_next_stream(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 2)
    gone = ids[1] + 1000
    async with server.watching(*ids, gone) as stream:
        assert stream.cursor.endswith(f"~{gone:x}")
        cursor = stream.cursor
    async with server.watching(*ids, gone, cursor=cursor) as resumed:
        assert resumed.cursor.endswith(f"~{gone:x}")
        assert [number for number, _ in resumed.results] == [gone]


@pytest.mark.parametrize("names", ["~", "~,", "~-1", "~7fffffffffffffff", "~" + ",".join(["0"] * 3000)])
async def test_altered_names_in_a_cursor_change_only_what_is_sent_again(system: FakeSystem, names: str) -> None:
    server, ids = Server(system), await connect(system, 2)
    async with server.watching(*ids) as stream:
        cursor = stream.cursor
    async with server.watching(*ids, cursor=cursor + names) as resumed:
        assert resumed.results == []


@pytest.mark.parametrize("cursor", ["not one of ours", "A" * 40, "~", "~1", "~*", "A~zz~"])
async def test_a_cursor_that_is_not_valid_has_the_effect_of_none(system: FakeSystem, cursor: str) -> None:
    server, ids = Server(system), await connect(system, 2)
    async with server.watching(*ids, cursor=cursor) as stream:
        assert sorted(number for number, _ in stream.results) == ids


async def test_an_old_cursor_has_the_effect_of_none(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 2)
    async with server.watching(*ids) as stream:
        cursor = stream.cursor
    system.clock.advance(timedelta(days=8))
    async with server.watching(*ids, cursor=cursor) as stream:
        assert len(stream.results) == 2


@pytest.mark.parametrize(
    ("altered", "counted"),
    [
        ("{cursor}", 1),
        ("{cursor}~{other:x}", 2),
        ("", 4),
        ("A{cursor}", 4),
        ("{cursor}~*", 4),
    ],
    ids=["valid", "claims another error", "none", "forged", "claims errors of all"],
)
async def test_a_resumed_stream_counts_what_it_is_sent_as_calls(system: FakeSystem, altered: str, counted: int) -> None:
    server, ids = Server(system), await connect(system, 3)
    async with server.watching(*ids, 999) as stream:
        cursor = stream.cursor.partition("~")[0]
    await server.rotate(ids[0])
    system.clock.advance(timedelta(seconds=1))
    rate = CallRate(1000, monotonic=lambda: 0.0, max_resumed=1000)
    wrappers = [enforce_quota(lambda _: "ada", rate, concurrency=1), count_items(lambda _: "ada", rate)]
    behavior: Any = compose(WATCH, lambda request, _: server.watch.watch(request), wrappers)
    text = altered.format(cursor=cursor, other=ids[1])
    request = pb.WatchCredentialsRequest(integration_ids=[*ids, 999], user_id=ADA, cursor=text)
    async with aclosing(behavior(request, FakeContext())) as responses:
        await anext(responses)
        assert rate.counts.add_to_rate("ada", 0, 0) == counted


async def test_changes_before_the_first_response_are_not_missed(system: FakeSystem) -> None:
    server, (number,) = Server(system), await connect(system, 1)
    async with server.watching(number, is_complete=False) as stream:
        await system.credentials.refresh_token(IntegrationId(number), ADA, force=True)
        await server.service.reader.poll()
        await eventually(lambda: stream.results and stream.cursor)
        await settle()
        assert stream.results[-1] == (number, (await system.tokens(number)).access_token)


async def test_streams_that_have_ended_leave_nothing_behind(system: FakeSystem) -> None:
    server, ids = Server(system), await connect(system, 2)
    async with server.watching(*ids), server.watching(ids[0]):
        assert sum(map(len, server.changes._streams.values())) == 3
    assert not server.changes._streams


# --- the caller ------------------------------------------------------------------------------------------------------

CALLER = Caller("all", Permissions(frozenset({Permission.CREDENTIALS}), ALL_INTEGRATION_TYPES))


class CheckedWatch:
    """A server whose streams have a caller with a token and a policy, which a test replaces."""

    def __init__(self, system: FakeSystem, lifetime: timedelta = HOUR, server: Server | None = None) -> None:
        self.caller: Caller = CALLER
        interceptors = [
            authenticate(fake_tokens(system.clock() + lifetime), system.clock),
            authorize_method(lambda: Policy({(IdentityKind.TOKEN, "all"): self.caller}, Permissions())),
        ]
        watch = (server or Server(system)).watch
        self._behavior = compose(WATCH, lambda request, _: watch.watch(request), interceptors)

    def watch(self, request: pb.WatchCredentialsRequest) -> AsyncGenerator[bytes]:
        """Begin a stream."""
        stream: AsyncGenerator[bytes] = self._behavior(request, FakeContext(token="token all"))
        return stream


@pytest.mark.parametrize(
    ("later", "error"),
    [
        (CALLER, None),  # negative control
        (Caller("all", Permissions()), CallerNotAllowed),
        (Caller("all", replace(CALLER.permissions, allowed_types=AllowedTypes(frozenset({"x"})))), CallerNotAllowed),
        (None, Unauthenticated),
    ],
    ids=["same", "no permission", "fewer types", "token expired"],
)
async def test_a_quiet_stream_ends_when_its_caller_may_no_longer_read(
    system: FakeSystem, later: Caller | None, error: type[Exception] | None
) -> None:
    (number,) = await connect(system, 1)
    checked = CheckedWatch(system, timedelta(minutes=1))
    stream = Stream(checked, pb.WatchCredentialsRequest(integration_ids=[number], user_id=ADA))
    await eventually(lambda: stream.cursor)
    if later is None:
        system.clock.advance(timedelta(minutes=2))
    else:
        checked.caller = later
    if error is None:
        await settle()
        assert stream.error is None
    else:
        await eventually(lambda: stream.error)
        assert isinstance(stream.error, error)
    await stream.close()
