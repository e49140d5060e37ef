"""Google's calendars over the whole system, with the sandbox playing Google by its documentation."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.dev import replace_google_calendar
from integration_server.sandbox import QUOTA_BODY, Fault
from integrations.v1 import google_calendar_pb2 as pb
from integrations.v1 import integration_service_pb2
from tests.end_to_end.refusals import FAILED_PRECONDITION, Refusal, invalid, refusal_of
from tests.end_to_end.system import System, running_system

NO_EVENT = Refusal(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


def at(text: str, zone: str = "") -> pb.EventTime:
    moment = Timestamp()
    moment.FromJsonString(text)
    return pb.EventTime(date_time=moment, time_zone=zone)


def event(**fields: Any) -> pb.Event:
    given = {"start": at("2026-03-28T10:00:00Z"), "end": at("2026-03-28T11:00:00Z"), **fields}
    return pb.Event(**given)


@dataclass(frozen=True, slots=True)
class Desk:
    """Ada's calendar, and the system."""

    system: System
    which: dict[str, Any]

    async def create(self, **fields: Any) -> pb.Event:
        """A new event."""
        request = pb.CreateEventRequest(**self.which, event=event(**fields))
        return (await self.system.calendars.CreateEvent(request)).event

    async def update(self, changed: pb.Event, *mask: str) -> pb.Event:
        """An event after its change."""
        request = pb.UpdateEventRequest(**self.which, event=changed, update_mask=FieldMask(paths=mask))
        return (await self.system.calendars.UpdateEvent(request)).event

    async def delete(self, event_id: str, **fields: Any) -> None:
        """Delete one."""
        await self.system.calendars.DeleteEvent(pb.DeleteEventRequest(**self.which, event_id=event_id, **fields))

    async def list(self, **fields: Any) -> pb.ListEventsResponse:
        """A page of events."""
        return await self.system.calendars.ListEvents(pb.ListEventsRequest(**{**self.which, **fields}))


@pytest.fixture
async def desk(sqlite_url: str) -> AsyncIterator[Desk]:
    async with running_system(sqlite_url, further_providers=[replace_google_calendar]) as system:
        integration_id = await system.connect(integration_type="google_calendar")
        yield Desk(system, {"user_id": "ada", "integration_id": integration_id})


async def test_the_account_is_that_of_its_own_calendar(desk: Desk) -> None:
    found = await desk.system.get(desk.which["integration_id"])
    assert (found.account_id, found.account_label) == ("ada@example.com", "Ada Lovelace")
    listed = await desk.system.calendars.ListCalendars(pb.ListCalendarsRequest(**desk.which, page_size=1))
    (own,) = listed.calendars
    assert (own.calendar_id, own.primary, own.access_role) == ("ada@example.com", True, "owner")
    assert own.time_zone == "Europe/London"
    request = pb.ListCalendarsRequest(**desk.which, page_token=listed.next_page_token)
    rest = await desk.system.calendars.ListCalendars(request)
    assert ([calendar.calendar_id for calendar in rest.calendars], rest.next_page_token) == (["team@example.com"], "")


async def test_an_event_is_as_it_was_written(desk: Desk) -> None:
    written = event(
        event_id="appointment1",
        summary="Cut \U0001f9a6",
        description="<b>short</b>",
        location="Shop",
        start=at("2026-03-28T10:00:00Z", "Europe/Zurich"),
        end=at("2026-03-28T11:00:00Z", "Europe/Zurich"),
        attendees=[
            pb.Attendee(email="grace@example.com", display_name="Grace", optional=True),
            pb.Attendee(email="linus@example.com", response_status=pb.RESPONSE_STATUS_ACCEPTED),
            pb.Attendee(email="joe@example.com", comment="May be late", additional_guests=2),
            pb.Attendee(email="room-1@resource.example.com", resource=True),
        ],
        recurrence=["RRULE:FREQ=WEEKLY;COUNT=3", "EXDATE;TZID=Europe/Zurich:20260404T110000"],
        reminders=pb.Reminders(overrides=[pb.Reminder(method=pb.REMINDER_METHOD_EMAIL, minutes=60)]),
        status=pb.EVENT_STATUS_TENTATIVE,
    )
    created = (await desk.system.calendars.CreateEvent(pb.CreateEventRequest(**desk.which, event=written))).event
    assert created.etag
    assert created.html_link
    assert created.HasField("create_time")
    (listed,) = (await desk.list()).events
    assert listed == created
    for made in ("etag", "html_link", "create_time", "update_time"):
        created.ClearField(made)
    assert created == written


async def test_whole_days_are_days(desk: Desk) -> None:
    days = {"start": pb.EventTime(date="2026-03-28"), "end": pb.EventTime(date="2026-03-30")}
    created = await desk.create(**days)
    assert (created.start.date, created.end.date) == ("2026-03-28", "2026-03-30")
    moved = event(event_id=created.event_id)
    timed = await desk.update(moved, "start", "end")  # a day that becomes a moment
    assert timed.start.WhichOneof("when") == "date_time"


async def test_a_mask_changes_its_fields_and_no_others(desk: Desk) -> None:
    created = await desk.create(summary="Cut", location="Shop", description="Short")
    changed = await desk.update(pb.Event(event_id=created.event_id, summary="Shave"), "summary", "location")
    assert (changed.summary, changed.location, changed.description) == ("Shave", "", "Short")
    assert changed.start == created.start
    whole = await desk.update(event(event_id=created.event_id, location="Home"))
    assert (whole.summary, whole.location, whole.description) == ("", "Home", "")


async def test_what_an_event_has_at_google_alone_stays(desk: Desk) -> None:
    created = await desk.create(summary="Cut")

    async def call(method: str, path: str, body: bytes = b"") -> Any:
        request = integration_service_pb2.CallProviderRequest(**desk.which, method=method, path=path, body=body)
        answer = await desk.system.service.CallProvider(request)
        assert answer.status_code == 200
        return json.loads(answer.body)

    events = "/calendars/primary/events"
    await call("PATCH", f"{events}/{created.event_id}", b'{"visibility": "private"}')
    await desk.update(event(event_id=created.event_id, summary="Shave"))
    (left,) = (await call("GET", events))["items"]
    assert (left["summary"], left["visibility"]) == ("Shave", "private")


async def test_an_etag_keeps_two_from_undoing_each_other(desk: Desk) -> None:
    created = await desk.create(summary="Cut")
    await desk.update(event(event_id=created.event_id, summary="Shave", etag=created.etag))
    conflict = Refusal(grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    stale = event(event_id=created.event_id, summary="Wash", etag=created.etag)
    assert await refusal_of(desk.update(stale)) == conflict
    assert await refusal_of(desk.update(stale, "summary")) == conflict
    assert await refusal_of(desk.delete(created.event_id, etag=created.etag)) == conflict
    stale.ClearField("etag")
    assert (await desk.update(stale)).summary == "Wash"  # the twin


async def test_an_identifier_is_used_once(desk: Desk) -> None:
    await desk.create(event_id="appointment1")
    taken = Refusal(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_ALREADY_EXISTS")
    assert await refusal_of(desk.create(event_id="appointment1")) == taken
    await desk.delete("appointment1")
    assert await refusal_of(desk.create(event_id="appointment1")) == taken


async def test_what_is_not_there_is_not_found(desk: Desk) -> None:
    created = await desk.create()
    await desk.delete(created.event_id)
    for call in (
        desk.delete(created.event_id),
        desk.delete("neverwas"),
        desk.update(event(event_id=created.event_id)),
        desk.list(calendar_id="nobody@example.com"),
    ):
        assert await refusal_of(call) == NO_EVENT


async def test_lists_have_pages_bounds_and_an_order(desk: Desk) -> None:
    for day in (3, 1, 2):
        start, end = at(f"2026-05-0{day}T10:00:00Z"), at(f"2026-05-0{day}T11:00:00Z")
        await desk.create(summary=str(day), start=start, end=end)
    asked: dict[str, Any] = {"single_events": True, "order_by": pb.EVENT_ORDER_START_TIME, "page_size": 2}
    first = await desk.list(**asked)
    assert ([listed.summary for listed in first.events], first.next_sync_token) == (["1", "2"], "")
    second = await desk.list(**asked, page_token=first.next_page_token)
    assert ([listed.summary for listed in second.events], second.next_page_token) == (["3"], "")
    assert second.next_sync_token
    lower, upper = at("2026-05-02T00:00:00Z").date_time, at("2026-05-03T00:00:00Z").date_time
    assert [one.summary for one in (await desk.list(time_min=lower, time_max=upper)).events] == ["2"]


async def test_a_sync_token_tells_what_changed_and_one_that_is_void_is_told(desk: Desk) -> None:
    kept, gone = await desk.create(summary="kept"), await desk.create(summary="gone")
    token = (await desk.list()).next_sync_token
    assert not (await desk.list(sync_token=token)).events
    await desk.delete(gone.event_id)
    await desk.create(summary="new")
    changed = await desk.list(sync_token=token)
    assert {(one.summary, one.status) for one in changed.events} == {
        ("", pb.EVENT_STATUS_CANCELLED),
        ("new", pb.EVENT_STATUS_CONFIRMED),
    }
    assert kept.event_id not in {one.event_id for one in changed.events}

    desk.system.sandbox.calendars.forget_sync_tokens()
    void = Refusal(FAILED_PRECONDITION, "SYNC_TOKEN_EXPIRED")
    for old in (token, changed.next_sync_token, "made-up"):
        assert await refusal_of(desk.list(sync_token=old)) == void
    assert len((await desk.list()).events) == 2


async def test_the_calendar_is_the_named_one_or_the_configs_or_the_own(desk: Desk) -> None:
    await desk.create(summary="own")
    await desk.system.calendars.CreateEvent(
        pb.CreateEventRequest(**desk.which, calendar_id="team@example.com", event=event(summary="team"))
    )
    assert [one.summary for one in (await desk.list()).events] == ["own"]
    update = integration_service_pb2.UpdateIntegrationRequest(**desk.which)
    update.config.update({"calendar_id": "team@example.com"})
    await desk.system.service.UpdateIntegration(update)
    assert [one.summary for one in (await desk.list()).events] == ["team"]
    assert [one.summary for one in (await desk.list(calendar_id="primary")).events] == ["own"]
    update.config.update({"calendar_id": "../../secrets"})
    await desk.system.service.UpdateIntegration(update)
    assert await refusal_of(desk.list()) == invalid("config.calendar_id")


async def test_a_spent_quota_is_waited_for_and_one_of_403_is_no_refusal(desk: Desk) -> None:
    spent = Fault(status=403, headers={"Content-Type": "application/json", "Retry-After": "30"}, body=QUOTA_BODY)
    desk.system.sandbox.behaviour = replace(desk.system.sandbox.behaviour, faults={"calendar": spent})
    refused = await refusal_of(desk.system.calendars.ListEvents(pb.ListEventsRequest(**desk.which), timeout=5))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert refused.retry_delay is not None
    assert desk.system.sandbox.calls["calendar"] == 2  # one of them when it was connected


async def test_a_token_that_google_refuses_is_renewed(desk: Desk) -> None:
    desk.system.sandbox.expire_access_tokens()
    assert (await desk.create(summary="Cut")).summary == "Cut"
    assert [call.grant_type for call in desk.system.sandbox.token_calls] == ["authorization_code", "refresh_token"]


async def test_only_calendars_have_events(desk: Desk) -> None:
    other: dict[str, Any] = {"user_id": "ada", "integration_id": await desk.system.connect()}
    for call in (
        desk.system.calendars.ListCalendars(pb.ListCalendarsRequest(**other)),
        desk.system.calendars.ListEvents(pb.ListEventsRequest(**other)),
        desk.system.calendars.CreateEvent(pb.CreateEventRequest(**other, event=event())),
        desk.system.calendars.UpdateEvent(pb.UpdateEventRequest(**other, event=event(event_id="abcde"))),
        desk.system.calendars.DeleteEvent(pb.DeleteEventRequest(**other, event_id="abcde")),
    ):
        assert await refusal_of(call) == invalid("integration_id")


async def test_what_is_wrong_is_told_by_its_field_and_changes_nothing(desk: Desk) -> None:
    moment, day = at("2026-03-28T10:00:00Z"), pb.EventTime(date="2026-03-28")
    attendees = [pb.Attendee(email=f"{number}@example.com") for number in range(201)]
    wrong: dict[str, pb.Event] = {
        "event.event_id": event(event_id="No!"),
        "event.summary": event(summary="a\0b"),
        "event.start": pb.Event(end=moment),
        "event.end": event(start=day),
        "event.start.date": event(start=pb.EventTime(date="2026-02-30"), end=day),
        "event.start.date_time": event(start=pb.EventTime(date_time=Timestamp(seconds=-(2**62)))),
        "event.start.time_zone": event(start=at("2026-03-28T10:00:00Z", "../etc")),
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
        request = pb.CreateEventRequest(**desk.which, event=given)
        assert await refusal_of(desk.system.calendars.CreateEvent(request)) == invalid(field), field
    recurring = event(recurrence=["RRULE:FREQ=DAILY"])
    request = pb.CreateEventRequest(**desk.which, event=recurring)
    assert await refusal_of(desk.system.calendars.CreateEvent(request)) == invalid("event.start.time_zone")
    late, early = at("2026-05-03T00:00:00Z").date_time, at("2026-05-02T00:00:00Z").date_time
    lists: dict[str, dict[str, Any]] = {
        "page_size": {"page_size": -1},
        "calendar_id": {"calendar_id": ".."},
        "time_min": {"sync_token": "sync-1", "time_min": early},
        "time_max": {"time_min": late, "time_max": early},
        "order_by": {"order_by": pb.EVENT_ORDER_START_TIME},
    }
    for field, fields in lists.items():
        assert await refusal_of(desk.list(**fields)) == invalid(field), field
    assert await refusal_of(desk.list(order_by=77)) == invalid("order_by")
    assert await refusal_of(desk.update(event(event_id="abcde"), "etag")) == invalid("update_mask")
    assert await refusal_of(desk.update(pb.Event(event_id="abcde"), "start")) == invalid("event.start")
    assert await refusal_of(desk.delete("a/b")) == invalid("event_id")
    assert await refusal_of(desk.delete("")) == invalid("event_id")
    assert desk.system.sandbox.calendars.writes == 0
