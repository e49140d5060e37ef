"""Maps between Google Calendar's messages and domain values. Each `InvalidField` names the field."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.domain import calendar as domain
from integration_server.domain.errors import InvalidField
from integration_server.rpc import mapping
from integration_server.rpc.mapping import decode_required_text, decode_text, encode_timestamp
from integration_server.service.calendar.google_calendar import WRITABLE
from integrations.v1 import google_calendar_pb2 as pb

# Lengths are in characters.
MAX_PAGE_SIZE = 250
MAX_TEXT_LENGTH = 1024
MAX_DESCRIPTION_LENGTH = 8192
MAX_LINE_LENGTH = 1000
MAX_ETAG_LENGTH = 255
MAX_ATTENDEES, MAX_RECURRENCE_LINES, MAX_REMINDERS = 200, 50, 5
MAX_REMINDER_MINUTES = 4 * 7 * 24 * 60

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}")
_LINE = re.compile(r"(?:RRULE|EXRULE|RDATE|EXDATE)[;:][\x21-\x7e]+")  # RFC 5545 §3.8.5
_ETAG = re.compile(r"[\x21-\x7e]*")
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


# --- requests --------------------------------------------------------------------------------------------------------


def decode_etag(field: str, value: str) -> str:
    """Return an etag that fits into an HTTP header; empty without one."""
    if not _ETAG.fullmatch(decode_text(field, value, MAX_ETAG_LENGTH)):
        raise InvalidField(field, "has characters that an etag cannot have")
    return value


def decode_notify(value: pb.Notify) -> domain.Notify | None:
    """Return which attendees Google notifies; None for its default."""
    return _decode_enum("notify", pb.Notify, "NOTIFY_", domain.Notify, value)


def decode_event_query(request: pb.ListEventsRequest) -> domain.EventQuery:
    """Return which events to list."""
    return domain.EventQuery(
        page_size=mapping.decode_page_size(request.page_size, MAX_PAGE_SIZE),
        page_token=decode_text("page_token", request.page_token, mapping.MAX_PARAMETER_LENGTH),
        sync_token=decode_text("sync_token", request.sync_token, mapping.MAX_PARAMETER_LENGTH),
        time_min=_decode_timestamp("time_min", request.time_min) if request.HasField("time_min") else None,
        time_max=_decode_timestamp("time_max", request.time_max) if request.HasField("time_max") else None,
        single_events=request.single_events,
        order_by=_decode_enum("order_by", pb.EventOrder, "EVENT_ORDER_", domain.EventOrder, request.order_by),
    )


def decode_update_mask(paths: Sequence[str]) -> frozenset[str]:
    """Return the names of the fields to set; none means all."""
    for path in paths:
        if path not in WRITABLE:
            raise InvalidField("update_mask", f"can name {', '.join(sorted(WRITABLE))}; not {path[:64]!r}")
    return frozenset(paths)


def decode_event(value: pb.Event) -> domain.Event:
    """Return an event to write, without its output-only fields."""
    return domain.Event(
        event_id=decode_text("event.event_id", value.event_id, MAX_TEXT_LENGTH),
        summary=decode_text("event.summary", value.summary, MAX_TEXT_LENGTH),
        description=decode_text("event.description", value.description, MAX_DESCRIPTION_LENGTH),
        location=decode_text("event.location", value.location, MAX_TEXT_LENGTH),
        start=_decode_time("event.start", value.start) if value.HasField("start") else None,
        end=_decode_time("event.end", value.end) if value.HasField("end") else None,
        attendees=[
            _decode_attendee(f"event.attendees[{index}]", attendee)
            for index, attendee in enumerate(_require_at_most("event.attendees", value.attendees, MAX_ATTENDEES))
        ],
        recurrence=[
            _decode_line(f"event.recurrence[{index}]", line)
            for index, line in enumerate(_require_at_most("event.recurrence", value.recurrence, MAX_RECURRENCE_LINES))
        ],
        reminders=_decode_reminders(value.reminders) if value.HasField("reminders") else None,
        status=_decode_enum("event.status", pb.EventStatus, "EVENT_STATUS_", domain.EventStatus, value.status),
        etag=decode_etag("event.etag", value.etag),
    )


def _decode_time(field: str, value: pb.EventTime) -> domain.EventTime:
    zone = decode_text(f"{field}.time_zone", value.time_zone)
    if zone and not _ZONE.fullmatch(zone):
        raise InvalidField(f"{field}.time_zone", "is not an IANA time zone name, such as Europe/Zurich")
    match value.WhichOneof("when"):
        case "date":
            return domain.EventTime(_decode_day(f"{field}.date", value.date), zone)
        case "date_time":
            return domain.EventTime(_decode_timestamp(f"{field}.date_time", value.date_time), zone)
        case _:
            raise InvalidField(field, "has neither date nor date_time")


def _decode_day(field: str, value: str) -> date:
    try:
        if _DAY.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise InvalidField(field, "is not a day, such as 2026-03-28")


def _decode_timestamp(field: str, value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField(field, "is not a time between the years 1 and 9999") from None


def _decode_attendee(field: str, value: pb.Attendee) -> domain.Attendee:
    if not _EMAIL.fullmatch(decode_required_text(f"{field}.email", value.email)):
        raise InvalidField(f"{field}.email", "is not an e-mail address")
    if value.additional_guests < 0:
        raise InvalidField(f"{field}.additional_guests", "is negative")
    status_field = f"{field}.response_status"
    return domain.Attendee(
        email=value.email,
        display_name=decode_text(f"{field}.display_name", value.display_name),
        optional=value.optional,
        response_status=_decode_enum(
            status_field, pb.ResponseStatus, "RESPONSE_STATUS_", domain.ResponseStatus, value.response_status
        ),
        comment=decode_text(f"{field}.comment", value.comment, MAX_LINE_LENGTH),
        additional_guests=value.additional_guests,
        resource=value.resource,
    )


def _decode_line(field: str, value: str) -> str:
    if not _LINE.fullmatch(decode_text(field, value, MAX_LINE_LENGTH)):
        raise InvalidField(field, "is not an RRULE, EXRULE, RDATE or EXDATE line (RFC 5545 section 3.8.5)")
    return value


def _decode_reminders(value: pb.Reminders) -> domain.Reminders:
    field = "event.reminders.overrides"
    overrides = []
    for index, reminder in enumerate(_require_at_most(field, value.overrides, MAX_REMINDERS)):
        method_field = f"{field}[{index}].method"
        method = _decode_enum(
            method_field, pb.ReminderMethod, "REMINDER_METHOD_", domain.ReminderMethod, reminder.method
        )
        if method is None:
            raise InvalidField(method_field, "is required")
        if not 0 <= reminder.minutes <= MAX_REMINDER_MINUTES:
            raise InvalidField(f"{field}[{index}].minutes", f"is not between 0 and {MAX_REMINDER_MINUTES}")
        overrides.append(domain.Reminder(method, reminder.minutes))
    if value.use_default and overrides:
        raise InvalidField("event.reminders.use_default", "cannot be combined with overrides")
    return domain.Reminders(value.use_default, overrides)


def _require_at_most(field: str, values: Sequence[T], max_count: int) -> Sequence[T]:
    if len(values) > max_count:
        raise InvalidField(field, f"has {len(values)} entries; the maximum is {max_count}")
    return values


def _decode_enum(field: str, source: Any, prefix: str, target: type[E], value: int) -> E | None:  # noqa: ANN401
    """Return the member of `target` with the name that `value` has in the protobuf enum `source`; None for 0."""
    if value == 0:
        return None
    try:
        return target[source.Name(value).removeprefix(prefix)]
    except ValueError:
        raise InvalidField(field, "is not a known value") from None


# --- responses -------------------------------------------------------------------------------------------------------


def encode_calendar(calendar: domain.Calendar) -> pb.Calendar:
    """Convert a calendar."""
    return pb.Calendar(
        calendar_id=calendar.calendar_id,
        summary=calendar.summary,
        description=calendar.description,
        time_zone=calendar.time_zone,
        primary=calendar.primary,
        access_role=calendar.access_role,
    )


def encode_event(event: domain.Event) -> pb.Event:
    """Convert an event."""
    return pb.Event(
        event_id=event.event_id,
        summary=event.summary,
        description=event.description,
        location=event.location,
        start=None if event.start is None else _encode_time(event.start),
        end=None if event.end is None else _encode_time(event.end),
        attendees=map(_encode_attendee, event.attendees),
        recurrence=event.recurrence,
        reminders=None if event.reminders is None else _encode_reminders(event.reminders),
        status=_encode_enum("EVENT_STATUS_", event.status),
        etag=event.etag,
        recurring_event_id=event.recurring_event_id,
        html_link=event.html_link,
        create_time=encode_timestamp(event.create_time),
        update_time=encode_timestamp(event.update_time),
    )


def _encode_time(time: domain.EventTime) -> pb.EventTime:
    if isinstance(time.when, datetime):
        return pb.EventTime(date_time=encode_timestamp(time.when), time_zone=time.time_zone)
    return pb.EventTime(date=time.when.isoformat(), time_zone=time.time_zone)


def _encode_attendee(attendee: domain.Attendee) -> pb.Attendee:
    return pb.Attendee(
        email=attendee.email,
        display_name=attendee.display_name,
        optional=attendee.optional,
        response_status=_encode_enum("RESPONSE_STATUS_", attendee.response_status),
        organizer=attendee.organizer,
        is_self=attendee.is_self,
        comment=attendee.comment,
        additional_guests=attendee.additional_guests,
        resource=attendee.resource,
    )


def _encode_reminders(reminders: domain.Reminders) -> pb.Reminders:
    overrides = [
        pb.Reminder(
            method=_encode_enum("REMINDER_METHOD_", reminder.method),
            minutes=max(0, min(reminder.minutes, 2**31 - 1)),
        )
        for reminder in reminders.overrides
    ]
    return pb.Reminders(use_default=reminders.use_default, overrides=overrides)


def _encode_enum(prefix: str, member: StrEnum | None) -> str:
    """Return the name of the protobuf enum's value, which messages accept in place of the value."""
    return f"{prefix}{'UNSPECIFIED' if member is None else member.name}"
