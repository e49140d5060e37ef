"""Maps between Google Calendar's messages and domain values. Each `InvalidField` names the field."""

import re
from datetime import UTC, date, datetime

from google.protobuf.message import Message

from integration_server.domain import calendar as domain
from integration_server.domain.errors import InvalidField
from integration_server.rpc import mapping
from integration_server.rpc.mapping import (
    decode_enum,
    decode_matching,
    decode_required_text,
    decode_text,
    encode,
    require_at_most,
)
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
_ZONE = re.compile(r"(?:[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2})?")
_LINE = re.compile(r"(?:RRULE|EXRULE|RDATE|EXDATE)[;:][\x21-\x7e]+")  # RFC 5545 §3.8.5
_ETAG = re.compile(r"[\x21-\x7e]*")
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")


# --- requests --------------------------------------------------------------------------------------------------------


def decode_etag(field: str, value: str) -> str:
    """Return an etag that fits into an HTTP header; empty without one."""
    return decode_matching(field, value, _ETAG, "has characters that an etag cannot have", MAX_ETAG_LENGTH)


def decode_event_query(request: pb.ListEventsRequest) -> domain.EventQuery:
    """Return which events to list."""
    return domain.EventQuery(
        *mapping.decode_page(request, MAX_PAGE_SIZE),
        sync_token=decode_text("sync_token", request.sync_token, mapping.MAX_PARAMETER_LENGTH),
        time_min=_decode_timestamp(request, "time_min"),
        time_max=_decode_timestamp(request, "time_max"),
        single_events=request.single_events,
        order_by=decode_enum(domain.EventOrder, request, "order_by"),
    )


def decode_event(value: pb.Event) -> domain.Event:
    """Return an event to write, without its output-only fields."""
    line_problem = "is not an RRULE, EXRULE, RDATE or EXDATE line (RFC 5545 section 3.8.5)"
    return domain.Event(
        event_id=decode_text("event.event_id", value.event_id, MAX_TEXT_LENGTH),
        summary=decode_text("event.summary", value.summary, MAX_TEXT_LENGTH),
        description=decode_text("event.description", value.description, MAX_DESCRIPTION_LENGTH),
        location=decode_text("event.location", value.location, MAX_TEXT_LENGTH),
        start=_decode_time("event.start", value.start) if value.HasField("start") else None,
        end=_decode_time("event.end", value.end) if value.HasField("end") else None,
        attendees=[
            _decode_attendee(f"event.attendees[{index}].", attendee)
            for index, attendee in enumerate(require_at_most("event.attendees", value.attendees, MAX_ATTENDEES))
        ],
        recurrence=[
            decode_matching(f"event.recurrence[{index}]", line, _LINE, line_problem, MAX_LINE_LENGTH)
            for index, line in enumerate(require_at_most("event.recurrence", value.recurrence, MAX_RECURRENCE_LINES))
        ],
        reminders=_decode_reminders(value.reminders) if value.HasField("reminders") else None,
        status=decode_enum(domain.EventStatus, value, "status", "event."),
        etag=decode_etag("event.etag", value.etag),
    )


def _decode_time(field: str, value: pb.EventTime) -> domain.EventTime:
    zone_problem = "is not an IANA time zone name, such as Europe/Zurich"
    zone = decode_matching(f"{field}.time_zone", value.time_zone, _ZONE, zone_problem)
    if value.WhichOneof("when") == "date":
        return domain.EventTime(_decode_day(f"{field}.date", value.date), zone)
    moment = _decode_timestamp(value, "date_time", f"{field}.")
    if moment is None:
        raise InvalidField(field, "has neither date nor date_time")
    return domain.EventTime(moment, zone)


def _decode_day(field: str, value: str) -> date:
    try:
        if _DAY.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise InvalidField(field, "is not a day, such as 2026-03-28")


def _decode_timestamp(message: Message, name: str, parent: str = "") -> datetime | None:
    if not message.HasField(name):
        return None
    try:
        moment: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField(f"{parent}{name}", "is not a time between the years 1 and 9999") from None
    return moment


def _decode_attendee(parent: str, value: pb.Attendee) -> domain.Attendee:
    email = decode_required_text(f"{parent}email", value.email)
    if value.additional_guests < 0:
        raise InvalidField(f"{parent}additional_guests", "is negative")
    return domain.Attendee(
        email=decode_matching(f"{parent}email", email, _EMAIL, "is not an e-mail address"),
        display_name=decode_text(f"{parent}display_name", value.display_name),
        optional=value.optional,
        response_status=decode_enum(domain.ResponseStatus, value, "response_status", parent),
        comment=decode_text(f"{parent}comment", value.comment, MAX_LINE_LENGTH),
        additional_guests=value.additional_guests,
        resource=value.resource,
    )


def _decode_reminders(value: pb.Reminders) -> domain.Reminders:
    field = "event.reminders.overrides"
    overrides = []
    for index, reminder in enumerate(require_at_most(field, value.overrides, MAX_REMINDERS)):
        parent = f"{field}[{index}]."
        method = decode_enum(domain.ReminderMethod, reminder, "method", parent)
        if method is None:
            raise InvalidField(f"{parent}method", "is required")
        if not 0 <= reminder.minutes <= MAX_REMINDER_MINUTES:
            raise InvalidField(f"{parent}minutes", f"is not between 0 and {MAX_REMINDER_MINUTES}")
        overrides.append(domain.Reminder(method, reminder.minutes))
    if value.use_default and overrides:
        raise InvalidField("event.reminders.use_default", "cannot be combined with overrides")
    return domain.Reminders(value.use_default, overrides)


# --- responses -------------------------------------------------------------------------------------------------------


def encode_event(event: domain.Event) -> pb.Event:
    """Convert an event."""
    return encode(pb.Event, event, start=_encode_time(event.start), end=_encode_time(event.end))


def _encode_time(time: domain.EventTime | None) -> pb.EventTime | None:
    if time is None:
        return None
    when = {"date_time": time.when} if isinstance(time.when, datetime) else {"date": time.when.isoformat()}
    return pb.EventTime(**when, time_zone=time.time_zone)
