"""The Google Calendar service on a whole system; the sandbox behaves as Google documents."""

import json
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.dev import replace_google_calendar
from integration_server.sandbox.behaviour import Fault
from integration_server.sandbox.calendar import QUOTA_BODY
from integrations.v1 import google_calendar_pb2 as pb
from integrations.v1 import integration_service_pb2
from tests.end_to_end.rpc_errors import FAILED_PRECONDITION, RpcError, expect_rpc_error, invalid
from tests.end_to_end.system import System, run_system

NO_EVENT = RpcError(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


def event_time(text: str, zone: str = "") -> pb.EventTime:
    moment = Timestamp()
    moment.FromJsonString(text)
    return pb.EventTime(date_time=moment, time_zone=zone)


def event(**fields: Any) -> pb.Event:
    given = {"start": event_time("2026-03-28T10:00:00Z"), "end": event_time("2026-03-28T11:00:00Z"), **fields}
    return pb.Event(**given)


@dataclass(frozen=True, slots=True)
class CalendarClient:
    """A client of Ada's calendar."""

    system: System
    which: dict[str, Any]

    async def create(self, **fields: Any) -> pb.Event:
        """Create an event."""
        request = pb.CreateEventRequest(**self.which, event=event(**fields))
        return (await self.system.calendars.CreateEvent(request)).event

    async def update(self, changed: pb.Event, *mask: str) -> pb.Event:
        """Update an event."""
        request = pb.UpdateEventRequest(**self.which, event=changed, update_mask=FieldMask(paths=mask))
        return (await self.system.calendars.UpdateEvent(request)).event

    async def delete(self, event_id: str, **fields: Any) -> None:
        """Delete an event."""
        await self.system.calendars.DeleteEvent(pb.DeleteEventRequest(**self.which, event_id=event_id, **fields))

    async def get(self, event_id: str) -> pb.Event:
        """Get an event."""
        return (await self.system.calendars.GetEvent(pb.GetEventRequest(**self.which, event_id=event_id))).event

    async def instances(self, event_id: str, **fields: Any) -> pb.ListEventInstancesResponse:
        """List a page of the instances of a recurring event."""
        request = pb.ListEventInstancesRequest(**self.which, event_id=event_id, **fields)
        return await self.system.calendars.ListEventInstances(request)

    async def list(self, **fields: Any) -> pb.ListEventsResponse:
        """List a page of events."""
        return await self.system.calendars.ListEvents(pb.ListEventsRequest(**{**self.which, **fields}))


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_calendars(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    path = tmp_path_factory.mktemp("calendars") / "integrations.db"
    shutil.copy(_sqlite_template, path)
    async with run_system(f"sqlite:///{path}", extra_providers=[replace_google_calendar]) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def calendar_client(shared_calendars: System) -> CalendarClient:
    """A client of a new user, whose calendars are empty again."""
    shared_calendars.reset()
    return await new_client(shared_calendars)


async def new_client(system: System) -> CalendarClient:
    user_id = f"user-{secrets.token_hex(8)}"
    integration_id = await system.connect(user_id, "google_calendar")
    return CalendarClient(system, {"user_id": user_id, "integration_id": integration_id})


async def test_the_account_id_is_the_id_of_the_primary_calendar(calendar_client: CalendarClient) -> None:
    found = await calendar_client.system.get(calendar_client.which["integration_id"], calendar_client.which["user_id"])
    assert (found.account_id, found.account_label) == ("ada@example.com", "Ada Lovelace")
    listed = await calendar_client.system.calendars.ListCalendars(
        pb.ListCalendarsRequest(**calendar_client.which, page_size=1)
    )
    (own,) = listed.calendars
    assert (own.calendar_id, own.primary, own.access_role) == ("ada@example.com", True, "owner")
    assert own.time_zone == "Europe/London"
    request = pb.ListCalendarsRequest(**calendar_client.which, page_token=listed.next_page_token)
    rest = await calendar_client.system.calendars.ListCalendars(request)
    assert ([calendar.calendar_id for calendar in rest.calendars], rest.next_page_token) == (["team@example.com"], "")


async def test_an_event_is_read_as_it_was_created(calendar_client: CalendarClient) -> None:
    written = event(
        event_id="appointment1",
        summary="Cut \U0001f9a6",
        description="<b>short</b>",
        location="Shop",
        start=event_time("2026-03-28T10:00:00Z", "Europe/Zurich"),
        end=event_time("2026-03-28T11:00:00Z", "Europe/Zurich"),
        attendees=[
            pb.Attendee(email="grace@example.com", display_name="Grace", optional=True),
            pb.Attendee(email="linus@example.com", response_status=pb.RESPONSE_STATUS_ACCEPTED),
            pb.Attendee(email="joe@example.com", comment="May be late", additional_guests=2),
            pb.Attendee(email="room-1@resource.example.com", resource=True),
        ],
        recurrence=["RRULE:FREQ=WEEKLY;COUNT=3", "EXDATE;TZID=Europe/Zurich:20260404T110000"],
        reminders=pb.Reminders(overrides=[pb.Reminder(method=pb.REMINDER_METHOD_EMAIL, minutes=60)]),
        status=pb.EVENT_STATUS_TENTATIVE,
        transparency=pb.EVENT_TRANSPARENCY_TRANSPARENT,
        visibility=pb.EVENT_VISIBILITY_CONFIDENTIAL,
        extended_properties=pb.ExtendedProperties(private={"crm": "42"}, shared={"room": "b=1"}),
    )
    created = (
        await calendar_client.system.calendars.CreateEvent(
            pb.CreateEventRequest(**calendar_client.which, event=written)
        )
    ).event
    assert created.etag
    assert created.html_link
    assert created.HasField("create_time")
    (listed,) = (await calendar_client.list()).events
    assert listed == created
    assert await calendar_client.get("appointment1") == created
    own = pb.Person(email="ada@example.com", is_self=True)
    assert (created.organizer, created.creator, created.event_type) == (own, own, "default")
    assert created.i_cal_uid
    for made in ("etag", "html_link", "create_time", "update_time", "i_cal_uid", "organizer", "creator", "event_type"):
        created.ClearField(made)
    assert created == written


async def test_an_all_day_event_has_dates(calendar_client: CalendarClient) -> None:
    days = {"start": pb.EventTime(date="2026-03-28"), "end": pb.EventTime(date="2026-03-30")}
    created = await calendar_client.create(**days)
    assert (created.start.date, created.end.date) == ("2026-03-28", "2026-03-30")
    moved = event(event_id=created.event_id)
    timed = await calendar_client.update(moved, "start", "end")  # an all-day event becomes a timed one
    assert timed.start.WhichOneof("when") == "date_time"


async def test_an_update_changes_only_the_fields_of_its_mask(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(summary="Cut", location="Shop", description="Short")
    changed = await calendar_client.update(pb.Event(event_id=created.event_id, summary="Shave"), "summary", "location")
    assert (changed.summary, changed.location, changed.description) == ("Shave", "", "Short")
    assert changed.start == created.start
    whole = await calendar_client.update(event(event_id=created.event_id, location="Home"))
    assert (whole.summary, whole.location, whole.description) == ("", "Home", "")


async def test_an_update_keeps_event_fields_that_the_api_does_not_know(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(summary="Cut")

    async def call(method: str, path: str, body: bytes = b"") -> Any:
        request = integration_service_pb2.CallProviderRequest(
            **calendar_client.which, method=method, path=path, body=body
        )
        response = await calendar_client.system.service.CallProvider(request)
        assert response.status_code == 200
        return json.loads(response.body)

    events = "/calendars/primary/events"
    await call("PATCH", f"{events}/{created.event_id}", b'{"visibility": "private"}')
    await calendar_client.update(event(event_id=created.event_id, summary="Shave"))
    (left,) = (await call("GET", events))["items"]
    assert (left["summary"], left["visibility"]) == ("Shave", "private")


async def test_an_update_with_an_old_etag_is_rejected(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(summary="Cut")
    await calendar_client.update(event(event_id=created.event_id, summary="Shave", etag=created.etag))
    conflict = RpcError(grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    stale = event(event_id=created.event_id, summary="Wash", etag=created.etag)
    assert await expect_rpc_error(calendar_client.update(stale)) == conflict
    assert await expect_rpc_error(calendar_client.update(stale, "summary")) == conflict
    assert await expect_rpc_error(calendar_client.delete(created.event_id, etag=created.etag)) == conflict
    stale.ClearField("etag")
    assert (await calendar_client.update(stale)).summary == "Wash"  # negative control


async def test_an_event_id_can_be_used_once(calendar_client: CalendarClient) -> None:
    await calendar_client.create(event_id="appointment1")
    taken = RpcError(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_ALREADY_EXISTS")
    assert await expect_rpc_error(calendar_client.create(event_id="appointment1")) == taken
    await calendar_client.delete("appointment1")
    assert await expect_rpc_error(calendar_client.create(event_id="appointment1")) == taken


async def test_a_missing_event_or_calendar_is_not_found(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create()
    await calendar_client.delete(created.event_id)
    for call in (
        calendar_client.delete(created.event_id),
        calendar_client.delete("neverwas"),
        calendar_client.get("neverwas"),
        calendar_client.instances("neverwas"),
        calendar_client.update(event(event_id=created.event_id)),
        calendar_client.list(calendar_id="nobody@example.com"),
    ):
        assert await expect_rpc_error(call) == NO_EVENT


async def test_event_lists_are_paged_bounded_and_ordered(calendar_client: CalendarClient) -> None:
    for day in (3, 1, 2):
        start, end = event_time(f"2026-05-0{day}T10:00:00Z"), event_time(f"2026-05-0{day}T11:00:00Z")
        await calendar_client.create(summary=str(day), start=start, end=end)
    asked: dict[str, Any] = {"single_events": True, "order_by": pb.EVENT_ORDER_START_TIME, "page_size": 2}
    first = await calendar_client.list(**asked)
    assert ([listed.summary for listed in first.events], first.next_sync_token) == (["1", "2"], "")
    second = await calendar_client.list(**asked, page_token=first.next_page_token)
    assert ([listed.summary for listed in second.events], second.next_page_token) == (["3"], "")
    assert second.next_sync_token
    lower, upper = event_time("2026-05-02T00:00:00Z").date_time, event_time("2026-05-03T00:00:00Z").date_time
    assert [one.summary for one in (await calendar_client.list(time_min=lower, time_max=upper)).events] == ["2"]


async def test_a_sync_token_lists_changes_and_an_expired_one_is_rejected(calendar_client: CalendarClient) -> None:
    kept, gone = await calendar_client.create(summary="kept"), await calendar_client.create(summary="gone")
    token = (await calendar_client.list()).next_sync_token
    assert not (await calendar_client.list(sync_token=token)).events
    await calendar_client.delete(gone.event_id)
    await calendar_client.create(summary="new")
    changed = await calendar_client.list(sync_token=token)
    assert {(one.summary, one.status) for one in changed.events} == {
        ("", pb.EVENT_STATUS_CANCELLED),
        ("new", pb.EVENT_STATUS_CONFIRMED),
    }
    assert kept.event_id not in {one.event_id for one in changed.events}

    calendar_client.system.sandbox.calendars.expire_sync_tokens()
    void = RpcError(FAILED_PRECONDITION, "SYNC_TOKEN_EXPIRED")
    for old in (token, changed.next_sync_token, "made-up"):
        assert await expect_rpc_error(calendar_client.list(sync_token=old)) == void
    assert len((await calendar_client.list()).events) == 2


def starts(events: Any) -> list[str]:
    return [one.start.date_time.ToJsonString() for one in events]


async def test_moved_and_cancelled_instances_have_their_original_start(calendar_client: CalendarClient) -> None:
    start, end = (event_time(f"2026-03-27T{hour}:00:00Z", "Europe/Zurich") for hour in ("09", "10"))
    series = await calendar_client.create(start=start, end=end, recurrence=["RRULE:FREQ=DAILY;COUNT=4"])
    token = (await calendar_client.list()).next_sync_token
    instances = (await calendar_client.instances(series.event_id)).events
    # Clocks go forward on 29 March: the local time stays the same.
    assert starts(instances) == [f"2026-03-{day}:00:00Z" for day in ("27T09", "28T09", "29T08", "30T08")]
    _, moved, cancelled, _ = instances
    shift = timedelta(hours=3)
    later: dict[str, Any] = {name: pb.EventTime() for name in ("start", "end")}
    for name, time in later.items():
        time.date_time.FromDatetime(getattr(moved, name).date_time.ToDatetime(tzinfo=UTC) + shift)
    await calendar_client.update(pb.Event(event_id=moved.event_id, **later), "start", "end")
    await calendar_client.delete(cancelled.event_id)

    changed = {one.event_id: one for one in (await calendar_client.list(sync_token=token)).events}
    for before in (moved, cancelled):
        after = changed[before.event_id]
        assert (after.recurring_event_id, after.original_start_time) == (series.event_id, before.start)
        assert await calendar_client.get(before.event_id) == after
    assert changed[moved.event_id].start.date_time.ToJsonString() == "2026-03-28T12:00:00Z"
    assert changed[cancelled.event_id].status == pb.EVENT_STATUS_CANCELLED
    assert not changed[cancelled.event_id].HasField("start")

    left = await calendar_client.instances(series.event_id)
    assert starts(left.events) == ["2026-03-27T09:00:00Z", "2026-03-28T12:00:00Z", "2026-03-30T08:00:00Z"]
    assert len((await calendar_client.instances(series.event_id, show_deleted=True)).events) == 4
    (found,) = (await calendar_client.instances(series.event_id, original_start_time=moved.start)).events
    assert found == changed[moved.event_id]
    single = (await calendar_client.list(single_events=True)).events
    assert starts(single) == starts(left.events)
    page = await calendar_client.instances(series.event_id, page_size=2)
    rest = await calendar_client.instances(series.event_id, page_size=2, page_token=page.next_page_token)
    assert [*page.events, *rest.events] == [*left.events]


async def test_events_are_filtered(calendar_client: CalendarClient) -> None:
    async def found(**filters: Any) -> set[str]:
        return {one.event_id for one in (await calendar_client.list(**filters)).events}

    plain, gone, other = "plain1", "gone1", "other1"
    both = pb.ExtendedProperties(private={"crm": "42", "kind": "a=b"}, shared={"room": "1"})
    for event_id, properties in ((plain, both), (gone, pb.ExtendedProperties()), (other, None)):
        await calendar_client.create(event_id=event_id, extended_properties=properties)
    await calendar_client.delete(gone)
    assert await found() == {plain, other}
    assert await found(show_deleted=True) == {plain, gone, other}
    assert await found(i_cal_uid=(await calendar_client.get(other)).i_cal_uid) == {other}
    assert await found(private_extended_property=["crm=42", "kind=a=b"], shared_extended_property=["room=1"]) == {plain}
    assert await found(private_extended_property=["crm=42", "kind=other"]) == set()
    assert await found(shared_extended_property=["crm=42"]) == set()  # it is private
    now = (await calendar_client.get(other)).update_time
    assert await found(updated_min=now) >= {gone, other}
    later = Timestamp(seconds=now.seconds + 3600)
    assert await found(updated_min=later) == set()
    long_ago = calendar_client.list(updated_min=event_time("2020-01-01T00:00:00Z").date_time)
    assert await expect_rpc_error(long_ago) == invalid("updated_min")


async def test_an_event_is_updated_although_its_other_fields_are_not_valid(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(
        summary="Cut", description="Short", attendees=[pb.Attendee(email="g@x.example")]
    )
    created.summary = "Shave"
    created.description = "d" * 8193
    created.attendees.add(display_name="Hidden", email="not an address")
    created.recurrence.append("X-GOOGLE:1")
    created.end.date = "2026-03-29"  # and the start is a time
    changed = await calendar_client.update(created, "summary")
    assert (changed.summary, changed.description, len(changed.attendees)) == ("Shave", "Short", 1)
    assert changed.end.HasField("date_time")
    refused = await expect_rpc_error(calendar_client.update(created))  # the negative control: all fields
    assert refused == invalid("event.description")


async def test_extended_properties_are_merged_removed_and_cleared(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(extended_properties=pb.ExtendedProperties(private={"a": "1", "b": "2"}))

    async def update(*mask: str, **private: str) -> dict[str, str]:
        changed = event(event_id=created.event_id, extended_properties=pb.ExtendedProperties(private=private))
        return dict((await calendar_client.update(changed, *mask)).extended_properties.private)

    assert await update("extended_properties", b="3", c="4") == {"a": "1", "b": "3", "c": "4"}
    assert await update("extended_properties", b="") == {"a": "1", "c": "4"}
    assert await update("summary", a="9") == {"a": "1", "c": "4"}
    assert await update() == {"a": "1", "c": "4"}
    assert await update("extended_properties") == {}


async def test_attendees_without_an_address_are_kept_by_an_update(calendar_client: CalendarClient) -> None:
    created = await calendar_client.create(attendees=[pb.Attendee(email=f"{name}@x.example") for name in "ab"])
    changed = pb.Event(event_id=created.event_id, attendees=[pb.Attendee(display_name="Hidden"), *created.attendees])
    changed = await calendar_client.update(changed, "attendees")
    assert (changed.attendees[0].email, changed.attendees[0].display_name) == ("", "Hidden")
    own = pb.Attendee(email="b@x.example", response_status=pb.RESPONSE_STATUS_DECLINED)
    partial = pb.Event(event_id=created.event_id, attendees=[own], attendees_omitted=True)
    assert len((await calendar_client.update(partial, "attendees")).attendees) == 3
    partial.attendees_omitted = False  # the negative control: a complete list
    assert len((await calendar_client.update(partial, "attendees")).attendees) == 1


async def test_the_calendar_is_that_of_the_request_or_of_the_config_or_the_primary_one(
    calendar_client: CalendarClient,
) -> None:
    await calendar_client.create(summary="own")
    await calendar_client.system.calendars.CreateEvent(
        pb.CreateEventRequest(**calendar_client.which, calendar_id="team@example.com", event=event(summary="team"))
    )
    assert [one.summary for one in (await calendar_client.list()).events] == ["own"]
    update = integration_service_pb2.UpdateIntegrationRequest(**calendar_client.which)
    update.config.update({"calendar_id": "team@example.com"})
    await calendar_client.system.service.UpdateIntegration(update)
    assert [one.summary for one in (await calendar_client.list()).events] == ["team"]
    assert [one.summary for one in (await calendar_client.list(calendar_id="primary")).events] == ["own"]
    update.config.update({"calendar_id": "../../secrets"})
    await calendar_client.system.service.UpdateIntegration(update)
    assert await expect_rpc_error(calendar_client.list()) == invalid("config.calendar_id")


async def test_an_exhausted_quota_with_status_403_is_reported_as_unavailable(sqlite_url: str) -> None:
    spent = Fault(status=403, headers={"Content-Type": "application/json", "Retry-After": "30"}, body=QUOTA_BODY)
    async with run_system(sqlite_url, extra_providers=[replace_google_calendar]) as system:
        client = await new_client(system)
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"calendar": spent})
        refused = await expect_rpc_error(system.calendars.ListEvents(pb.ListEventsRequest(**client.which), timeout=20))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
        assert refused.retry_delay is not None
        assert system.sandbox.calls["calendar"] == 2  # one of them was sent by the connection


async def test_a_token_that_google_rejects_is_refreshed(calendar_client: CalendarClient) -> None:
    calendar_client.system.sandbox.expire_access_tokens()
    assert (await calendar_client.create(summary="Cut")).summary == "Cut"
    assert [call.grant_type for call in calendar_client.system.sandbox.token_calls] == [
        "authorization_code",
        "refresh_token",
    ]


async def test_other_types_have_no_events(calendar_client: CalendarClient) -> None:
    other: dict[str, Any] = {"user_id": "ada", "integration_id": await calendar_client.system.connect()}
    for call in (
        calendar_client.system.calendars.ListCalendars(pb.ListCalendarsRequest(**other)),
        calendar_client.system.calendars.ListEvents(pb.ListEventsRequest(**other)),
        calendar_client.system.calendars.GetEvent(pb.GetEventRequest(**other, event_id="abcde")),
        calendar_client.system.calendars.ListEventInstances(pb.ListEventInstancesRequest(**other, event_id="abcde")),
        calendar_client.system.calendars.CreateEvent(pb.CreateEventRequest(**other, event=event())),
        calendar_client.system.calendars.UpdateEvent(pb.UpdateEventRequest(**other, event=event(event_id="abcde"))),
        calendar_client.system.calendars.DeleteEvent(pb.DeleteEventRequest(**other, event_id="abcde")),
    ):
        assert await expect_rpc_error(call) == invalid("integration_id")


async def test_an_invalid_request_is_rejected_with_its_field_and_changes_nothing(
    calendar_client: CalendarClient,
) -> None:
    moment, day = event_time("2026-03-28T10:00:00Z"), pb.EventTime(date="2026-03-28")
    attendees = [pb.Attendee(email=f"{number}@example.com") for number in range(201)]
    wrong: dict[str, pb.Event] = {
        "event.event_id": event(event_id="No!"),
        "event.summary": event(summary="a\0b"),
        "event.start": pb.Event(end=moment),
        "event.end": event(start=day),
        "event.start.date": event(start=pb.EventTime(date="2026-02-30"), end=day),
        "event.start.date_time": event(start=pb.EventTime(date_time=Timestamp(seconds=-(2**62)))),
        "event.start.time_zone": event(start=event_time("2026-03-28T10:00:00Z", "../etc")),
        "event.attendees": event(attendees=attendees),
        "event.attendees[0].email": event(attendees=[pb.Attendee(email="nobody")]),
        "event.attendees[0].additional_guests": event(
            attendees=[pb.Attendee(email="joe@example.com", additional_guests=-1)]
        ),
        "event.recurrence[1]": event(recurrence=["RRULE:FREQ=DAILY", "DTSTART:20260101"]),
        "event.reminders.overrides[0].method": event(reminders=pb.Reminders(overrides=[pb.Reminder(minutes=1)])),
        "event.etag": event(etag='"a"\r\nX-Evil: 1'),
    }
    for field, given in wrong.items():
        request = pb.CreateEventRequest(**calendar_client.which, event=given)
        assert await expect_rpc_error(calendar_client.system.calendars.CreateEvent(request)) == invalid(field), field
    recurring = event(recurrence=["RRULE:FREQ=DAILY"])
    request = pb.CreateEventRequest(**calendar_client.which, event=recurring)
    assert await expect_rpc_error(calendar_client.system.calendars.CreateEvent(request)) == invalid(
        "event.start.time_zone"
    )
    late, early = event_time("2026-05-03T00:00:00Z").date_time, event_time("2026-05-02T00:00:00Z").date_time
    lists: dict[str, dict[str, Any]] = {
        "page_size": {"page_size": -1},
        "calendar_id": {"calendar_id": ".."},
        "time_min": {"sync_token": "sync-1", "time_min": early},
        "updated_min": {"sync_token": "sync-1", "updated_min": early},
        "i_cal_uid": {"sync_token": "sync-1", "i_cal_uid": "a@b"},
        "private_extended_property": {"sync_token": "sync-1", "private_extended_property": ["a=b"]},
        "shared_extended_property": {"sync_token": "sync-1", "shared_extended_property": ["a=b"]},
        "shared_extended_property[0]": {"shared_extended_property": ["a"]},
        "time_max": {"time_min": late, "time_max": early},
        "order_by": {"order_by": pb.EVENT_ORDER_START_TIME},
    }
    for field, fields in lists.items():
        assert await expect_rpc_error(calendar_client.list(**fields)) == invalid(field), field
    assert await expect_rpc_error(calendar_client.list(order_by=77)) == invalid("order_by")
    assert await expect_rpc_error(calendar_client.update(event(event_id="abcde"), "etag")) == invalid("update_mask")
    assert await expect_rpc_error(calendar_client.update(pb.Event(event_id="abcde"), "start")) == invalid("event.start")
    assert await expect_rpc_error(calendar_client.delete("a/b")) == invalid("event_id")
    assert await expect_rpc_error(calendar_client.get("a/b")) == invalid("event_id")
    assert await expect_rpc_error(calendar_client.instances("")) == invalid("event_id")
    reversed_range = calendar_client.instances("abcde", time_min=late, time_max=early)
    assert await expect_rpc_error(reversed_range) == invalid("time_max")
    unnamed = calendar_client.create(attendees=[pb.Attendee(display_name="Grace")])
    assert await expect_rpc_error(unnamed) == invalid("event.attendees[0].email")
    assert await expect_rpc_error(calendar_client.delete("")) == invalid("event_id")
    assert calendar_client.system.sandbox.calendars.writes == 0
