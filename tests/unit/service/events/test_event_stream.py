"""Event streams over fakes: no stream misses an event, also if it is slow, behind or resumed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import (
    CursorExpired,
    InvalidField,
    QuotaExceeded,
    ServerStopping,
    StoreUnavailable,
    UnknownIntegrationType,
)
from integration_server.domain.events import EventKind
from integration_server.domain.integration import Status, UserId
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.events.event_stream import StreamItem
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.storage.tables import integration_changes, integrations
from tests.contracts.integration_rows import update_settings
from tests.fakes.provider import wait_until
from tests.fakes.stores import count_calls
from tests.fakes.system import ADA, EVE, EVENT_RETENTION, FakeSystem

Stream = AsyncGenerator[StreamItem]


def watch(
    system: FakeSystem,
    cursor: str = "",
    user_id: UserId | None = None,
    integration_type: str = "",
    allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
) -> Stream:
    return system.event_stream.watch(user_id, integration_type, cursor, allowed_types)


async def open_stream(system: FakeSystem, cursor: str = "", user_id: UserId | None = None) -> Stream:
    """Open a stream and read its first item."""
    stream = watch(system, cursor, user_id)
    assert (await anext(stream)).event is None
    await system.change_reader.poll()
    return stream


async def read(system: FakeSystem, stream: Stream, count: int) -> list[StreamItem]:
    """The next items of a stream, while the reader polls."""
    items = []
    for _ in range(count):
        waiting = asyncio.ensure_future(anext(stream))
        for attempt in range(100):
            await asyncio.sleep(0)
            if waiting.done():
                break
            if attempt % 5 == 4:  # not before the stream had its turn: a poll takes a millisecond
                await system.change_reader.poll()
        assert waiting.done(), "the stream sent nothing"
        items.append(waiting.result())
    return items


async def rename(system: FakeSystem, integration_id: int, name: str) -> None:
    row = system.row(integration_id)
    await update_settings(system.integrations, row, IntegrationUpdate(name=name), system.clock())


async def rename_often(system: FakeSystem, integration_id: int, times: int) -> None:
    """Rename in the table itself, whose triggers write the log: thousands of updates by the store take seconds."""
    of_integration = update(integrations).where(integrations.c.integration_id == integration_id)
    async with system.database.write_transaction() as connection:
        for number in range(times):
            await connection.execute(of_integration.values(name=f"name-{number}"))


async def test_a_stream_returns_new_events_with_cursors(system: FakeSystem) -> None:
    integration = await system.connect()
    async with aclosing(await open_stream(system)) as stream:
        await rename(system, integration.integration_id, "new")
        await system.integrations.remove(integration.integration_id, ADA)
        first, second = await read(system, stream, 2)
    assert first.event is not None
    assert (first.event.kind, first.event.integration_id) == (EventKind.UPDATED, integration.integration_id)
    assert second.event is not None
    assert (second.event.kind, second.event.status_before) == (EventKind.DISCONNECTED, Status.ACTIVE)
    assert first.cursor != second.cursor


async def test_a_stream_resumes_from_every_cursor(system: FakeSystem) -> None:
    integration = await system.connect()
    async with aclosing(await open_stream(system)) as stream:
        for batch in range(3):  # several events per range
            await rename_often(system, integration.integration_id, 2 + batch)
            await system.change_reader.poll()
        items = await read(system, stream, 9)
    for index, item in enumerate(items[:-1]):
        async with aclosing(await open_stream(system, item.cursor)) as resumed:
            remaining = await read(system, resumed, len(items) - index - 1)
            assert [item.event for item in remaining] == [item.event for item in items[index + 1 :]]


async def test_events_without_a_subscriber_are_delivered_later(system: FakeSystem) -> None:
    integration = await system.connect()
    stream = watch(system)
    cursor = (await anext(stream)).cursor
    await stream.aclose()
    await rename_often(system, integration.integration_id, 1200)  # several pages
    async with aclosing(await open_stream(system, cursor)) as stream:
        items = await read(system, stream, 1200)
    assert len({item.cursor for item in items}) == 1200


async def test_a_type_can_be_watched_by_its_alias(system: FakeSystem) -> None:
    system.provider.aliases = ("pretend",)
    integration = await system.connect()
    stream = watch(system, integration_type="pretend")
    await anext(stream)
    await system.change_reader.poll()
    async with aclosing(stream):
        await rename(system, integration.integration_id, "new")
        (item,) = await read(system, stream, 1)
    assert item.event is not None
    assert item.event.kind is EventKind.UPDATED


async def test_events_are_filtered_by_user_and_types(system: FakeSystem) -> None:
    streams = {
        "user": watch(system, user_id=ADA),
        "type": watch(system, integration_type="fake_key"),
        "allowed types": watch(system, allowed_types=AllowedTypes(frozenset({"fake_key"}))),
        "user and type": watch(system, user_id=ADA, integration_type="fake_key"),
        "no allowed type": watch(system, allowed_types=AllowedTypes(frozenset())),
        "all": watch(system),
    }
    for stream in streams.values():
        await anext(stream)
    await system.change_reader.poll()
    adas_id = (await system.connect()).integration_id
    adas_key_id = (await system.connect_key()).integration_id
    eves_key_id = (
        await system.api_key_connection.connect_with_api_key(ApiKeyConnectionRequest(EVE, "fake_key", "key"))
    ).integration_id
    expected = {
        "user": {adas_id, adas_key_id},
        "type": {adas_key_id, eves_key_id},
        "allowed types": {adas_key_id, eves_key_id},
        "user and type": {adas_key_id},
        "all": {adas_id, adas_key_id, eves_key_id},
    }
    for name, ids in expected.items():
        count = len(ids) + (adas_id in ids)  # OAuth: CREATED and STATUS_CHANGED
        items = await read(system, streams[name], count)
        assert {item.event.integration_id for item in items if item.event} == ids, name
    for name, stream in streams.items():
        waiting = asyncio.ensure_future(anext(stream))
        await system.change_reader.poll()
        await asyncio.sleep(0)
        assert not waiting.done(), name
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_one_poll_serves_all_streams(system: FakeSystem) -> None:
    integration = await system.connect()
    streams = [await open_stream(system) for _ in range(50)]
    polls, reads = (count_calls(system.change_feed, method) for method in ("poll", "read_events"))
    await rename(system, integration.integration_id, "new")
    await system.change_reader.poll()
    for stream in streams:
        assert (await anext(stream)).event is not None
    assert count_calls(system.change_feed, "poll") == polls + 1
    assert count_calls(system.change_feed, "read_events") == reads
    for stream in streams:
        await stream.aclose()


async def test_a_slow_stream_does_not_delay_others_and_loses_no_event(system: FakeSystem) -> None:
    integration = await system.connect()
    slow, fast = await open_stream(system), await open_stream(system)
    for _ in range(12):  # more than the buffer holds
        await rename_often(system, integration.integration_id, 100)
        await read(system, fast, 100)
    assert count_calls(system.change_feed, "read_events") == 0
    items = await read(system, slow, 1200)
    assert len({item.cursor for item in items}) == 1200
    assert count_calls(system.change_feed, "read_events") == 3  # it was behind and read pages of the log
    await rename(system, integration.integration_id, "last")
    await read(system, slow, 1)
    assert count_calls(system.change_feed, "read_events") == 3


@pytest.mark.slow
async def test_a_burst_is_not_buffered(system: FakeSystem) -> None:
    integration = await system.connect()
    stream = await open_stream(system)
    await rename_often(system, integration.integration_id, 2000)
    await system.change_reader.poll()
    assert not system.change_reader.events._pending
    assert len(await read(system, stream, 2000)) == 2000


async def test_a_quiet_stream_gets_heartbeats_with_fresh_cursors() -> None:
    system = FakeSystem(options={"heartbeat": timedelta(milliseconds=1)})
    stream = watch(system)
    first = await anext(stream)
    system.clock.advance(EVENT_RETENTION)
    await system.change_reader.poll()
    system.clock.advance(EVENT_RETENTION)
    await system.change_reader.poll()
    heartbeat = await anext(stream)
    assert heartbeat.event is None
    with pytest.raises(CursorExpired):
        await open_stream(system, first.cursor)
    await open_stream(system, heartbeat.cursor)


async def test_events_of_other_users_do_not_delay_heartbeats() -> None:
    system = FakeSystem(options={"heartbeat": timedelta(milliseconds=1)})
    integration = await system.connect()
    stream = await open_stream(system, user_id=EVE)
    waiting = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(60):
        while not waiting.done():
            await rename(system, integration.integration_id, "new")
            await system.change_reader.poll()
            await asyncio.sleep(0.0005)
    assert waiting.result().event is None


async def test_an_expired_cursor_is_rejected(system: FakeSystem) -> None:
    integration = await system.connect()
    async with aclosing(await open_stream(system)) as stream:
        await rename(system, integration.integration_id, "new")
        (item,) = await read(system, stream, 1)
    system.clock.advance(EVENT_RETENTION)
    await system.event_stream.prune()
    await open_stream(system, item.cursor)
    system.clock.advance(timedelta(seconds=1))
    with pytest.raises(CursorExpired):
        await open_stream(system, item.cursor)


async def test_events_after_a_valid_cursor_are_not_pruned(system: FakeSystem) -> None:
    integration = await system.connect()
    async with aclosing(watch(system)) as stream:
        cursor = (await anext(stream)).cursor
    await rename(system, integration.integration_id, "new")
    system.clock.advance(EVENT_RETENTION)
    await system.event_stream.prune()
    async with aclosing(await open_stream(system, cursor)) as stream:
        await read(system, stream, 1)
    system.clock.advance(timedelta(hours=2))
    await system.event_stream.prune()
    assert not system.event_rows()


async def test_a_cursor_of_another_database_is_rejected(system: FakeSystem) -> None:
    for _ in range(3):
        await system.connect_key()
    async with aclosing(watch(system)) as stream:
        cursor = (await anext(stream)).cursor
    system.clear(integration_changes)  # as after the restore of an older backup
    with pytest.raises(CursorExpired):
        await open_stream(system, cursor)


@pytest.mark.parametrize("cursor", ["x", "é", "A" * 100])
async def test_an_invalid_cursor_is_rejected(system: FakeSystem, cursor: str) -> None:
    with pytest.raises(InvalidField, match="cursor"):
        await open_stream(system, cursor)


async def test_an_unknown_type_is_rejected(system: FakeSystem) -> None:
    with pytest.raises(UnknownIntegrationType):
        await anext(watch(system, integration_type="unknown"))


async def test_a_stop_ends_every_stream_with_a_cursor(system: FakeSystem) -> None:
    streams = [await open_stream(system) for _ in range(3)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    buffer = system.change_reader.events
    await wait_until(lambda: all(subscription.changed._waiters for subscription in buffer._all()))
    system.event_stream.stop()
    cursors = []
    for stream, pending in zip(streams, waiting, strict=True):
        last = await pending
        assert last.event is None
        cursors.append(last.cursor)
        with pytest.raises(ServerStopping):
            await anext(stream)
    late = await open_stream(system)
    assert (await anext(late)).event is None
    with pytest.raises(ServerStopping):
        await anext(late)

    integration = await system.connect()  # on another server
    system.event_stream = replace(system.event_stream)
    resumed = await open_stream(system, cursors[0])
    event = (await anext(resumed)).event
    assert event is not None
    assert event.integration_id == integration.integration_id


async def test_a_stream_that_is_behind_fails_during_a_database_outage(system: FakeSystem) -> None:
    integration = await system.connect()
    stream = await open_stream(system)
    await rename_often(system, integration.integration_id, 600)
    await system.change_reader.poll()
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await anext(stream)


# --- cost ------------------------------------------------------------------------------------------------------------


async def test_an_event_is_encoded_once_for_all_streams(system: FakeSystem) -> None:
    integration = await system.connect()
    streams = [await open_stream(system) for _ in range(20)]
    await rename(system, integration.integration_id, "new")
    await system.change_reader.poll()
    items = [await anext(stream) for stream in streams]
    assert items[0].event is not None
    assert all(item is items[0] for item in items)
    for stream in streams:
        await stream.aclose()


@pytest.mark.parametrize(("max_turn", "has_new_turn"), [(timedelta(0), True), (timedelta(days=1), False)])
async def test_a_slow_client_waits_for_a_new_turn(system: FakeSystem, max_turn: timedelta, has_new_turn: bool) -> None:
    """The second is the negative control: a turn that lasts allows all events that wait."""
    integration = await system.connect()
    async with aclosing(replace(system.event_stream, max_turn=max_turn).watch(None, "", "")) as stream:
        await anext(stream)
        await system.change_reader.poll()
        await rename_often(system, integration.integration_id, 3)
        await system.change_reader.poll()
        await anext(stream)
        await asyncio.sleep(0.001)  # longer than no time
        second = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert second.done() is not has_new_turn
        await second


async def test_a_client_that_reads_too_slowly_ends_and_resumes_without_loss(system: FakeSystem) -> None:
    integration = await system.connect()
    slow = replace(system.event_stream, max_send=timedelta(0)).watch(None, "", "")
    await anext(slow)
    await system.change_reader.poll()
    await rename_often(system, integration.integration_id, 3)
    await system.change_reader.poll()
    first = await anext(slow)
    await asyncio.sleep(0.001)  # longer than the limit, however fast the machine is
    with pytest.raises(QuotaExceeded, match="resume"):
        await anext(slow)
    async with aclosing(await open_stream(system, first.cursor)) as resumed:
        assert len(await read(system, resumed, 2)) == 2


async def test_negative_control_without_a_limit_a_slow_client_keeps_its_stream(system: FakeSystem) -> None:
    integration = await system.connect()
    slow = await open_stream(system)
    await rename_often(system, integration.integration_id, 2)
    await system.change_reader.poll()
    await anext(slow)
    await asyncio.sleep(0.001)
    assert (await anext(slow)).event is not None


async def test_every_heartbeat_resumes_without_loss() -> None:
    system = FakeSystem(options={"heartbeat": timedelta(0)})
    integration = await system.connect()
    stream = await open_stream(system)
    for number in range(20):
        heartbeat = await anext(stream)
        assert heartbeat.event is None
        await rename(system, integration.integration_id, f"name-{number}")
        await system.change_reader.poll()
        item = await anext(stream)
        assert item.event is not None
        async with aclosing(await open_stream(system, heartbeat.cursor)) as resumed:
            (again,) = await read(system, resumed, 1)
        assert again.event == item.event
