"""Maps between Google Calendar's messages and domain values. Each `InvalidField` names the field."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from google.protobuf.message import Message

from integration_server.domain import calendar as domain
from integration_server.domain.errors import InvalidField
from integration_server.rpc import mapping
from integration_server.rpc.mapping import (
    decode_content,
    decode_enum,
    decode_matching,
    decode_required_text,
    decode_text,
    decode_time,
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
MAX_PROPERTIES, MAX_PROPERTY_NAME_LENGTH, MAX_PROPERTY_LENGTH = 300, 44, 1024  # Google cuts longer ones silently
MAX_CONSTRAINTS = 10  # more than a search needs; each adds to the URL
MAX_REMINDER_MINUTES = 4 * 7 * 24 * 60

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ZONE = re.compile(r"(?:[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2})?")
_LINE = re.compile(r"(?:RRULE|EXRULE|RDATE|EXDATE)[;:][\x21-\x7e]+")  # RFC 5545 §3.8.5
_ETAG = re.compile(r"[\x21-\x7e]*")
_EMAIL = re.compile(r"(?:[^\s@]+@[^\s@]+)?")
_CONSTRAINT = re.compile(r"[^=]+=.*", re.DOTALL)


# --- requests --------------------------------------------------------------------------------------------------------


def decode_etag(field: str, value: str) -> str:
    """Return an etag that fits into an HTTP header; empty without one."""
    return decode_matching(field, value, _ETAG, "has characters that an etag cannot have", MAX_ETAG_LENGTH)


def decode_event_query(request: pb.ListEventsRequest) -> domain.EventQuery:
    """Return which events to list."""
    return domain.EventQuery(
        *mapping.decode_page(request, MAX_PAGE_SIZE),
        sync_token=decode_text("sync_token", request.sync_token, mapping.MAX_PARAMETER_LENGTH),
        time_min=decode_time(request, "time_min"),
        time_max=decode_time(request, "time_max"),
        single_events=request.single_events,
        order_by=decode_enum(domain.EventOrder, request, "order_by"),
        show_deleted=request.show_deleted,
        updated_min=decode_time(request, "updated_min"),
        i_cal_uid=decode_text("i_cal_uid", request.i_cal_uid, MAX_TEXT_LENGTH),
        private_extended_property=_decode_constraints("private_extended_property", request.private_extended_property),
        shared_extended_property=_decode_constraints("shared_extended_property", request.shared_extended_property),
    )


def decode_instance_query(request: pb.ListEventInstancesRequest) -> domain.InstanceQuery:
    """Return which instances of a recurring event to list."""
    return domain.InstanceQuery(
        *mapping.decode_page(request, MAX_PAGE_SIZE),
        time_min=decode_time(request, "time_min"),
        time_max=decode_time(request, "time_max"),
        show_deleted=request.show_deleted,
        original_start_time=_decode_time(request, "original_start_time"),
    )


def _decode_constraints(field: str, values: Sequence[str]) -> Sequence[str]:
    max_length = MAX_PROPERTY_NAME_LENGTH + len("=") + MAX_PROPERTY_LENGTH
    return [
        decode_matching(f"{field}[{index}]", value, _CONSTRAINT, "is not name=value", max_length)
        for index, value in enumerate(require_at_most(field, values, MAX_CONSTRAINTS))
    ]


def decode_event_id(request: pb.GetEventRequest | pb.ListEventInstancesRequest | pb.DeleteEventRequest) -> str:
    """Return the event that a request names; the use case checks its syntax."""
    return decode_text("event_id", request.event_id, MAX_TEXT_LENGTH)


def decode_event(value: pb.Event, fields: Collection[str]) -> domain.Event:
    """Return an event to write, with its id, its etag and the given writable fields; no other field is checked."""
    return domain.Event(
        event_id=decode_text("event.event_id", value.event_id, MAX_TEXT_LENGTH),
        etag=decode_etag("event.etag", value.etag),
        attendees_omitted="attendees" in fields and value.attendees_omitted,
        **{name: decode(value) for name, decode in _FIELD_DECODERS.items() if name in fields},
    )


def _decode_time(message: Message, name: str, parent: str = "") -> domain.EventTime | None:
    if not message.HasField(name):
        return None
    field, value = f"{parent}{name}", getattr(message, name)
    zone_problem = "is not an IANA time zone name, such as Europe/Zurich"
    zone = decode_matching(f"{field}.time_zone", value.time_zone, _ZONE, zone_problem)
    if value.WhichOneof("when") == "date":
        return domain.EventTime(_decode_day(f"{field}.date", value.date), zone)
    moment = decode_time(value, "date_time", f"{field}.")
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


def _decode_attendees(event: pb.Event) -> Sequence[domain.Attendee]:
    attendees = require_at_most("event.attendees", event.attendees, MAX_ATTENDEES)
    return [_decode_attendee(f"event.attendees[{index}].", attendee) for index, attendee in enumerate(attendees)]


def _decode_attendee(parent: str, value: pb.Attendee) -> domain.Attendee:
    if value.additional_guests < 0:
        raise InvalidField(f"{parent}additional_guests", "is negative")
    return domain.Attendee(
        email=decode_matching(f"{parent}email", value.email, _EMAIL, "is not an e-mail address"),
        display_name=decode_text(f"{parent}display_name", value.display_name),
        optional=value.optional,
        response_status=decode_enum(domain.ResponseStatus, value, "response_status", parent),
        comment=decode_content(f"{parent}comment", value.comment, MAX_LINE_LENGTH),
        additional_guests=value.additional_guests,
        resource=value.resource,
    )


def _decode_recurrence(event: pb.Event) -> Sequence[str]:
    problem = "is not an RRULE, EXRULE, RDATE or EXDATE line (RFC 5545 section 3.8.5)"
    lines = require_at_most("event.recurrence", event.recurrence, MAX_RECURRENCE_LINES)
    return [
        decode_matching(f"event.recurrence[{index}]", line, _LINE, problem, MAX_LINE_LENGTH)
        for index, line in enumerate(lines)
    ]


def _decode_reminders(event: pb.Event) -> domain.Reminders | None:
    if not event.HasField("reminders"):
        return None
    field, value = "event.reminders.overrides", event.reminders
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


def _decode_extended_properties(event: pb.Event) -> domain.ExtendedProperties | None:
    if not event.HasField("extended_properties"):
        return None
    field, value = "event.extended_properties", event.extended_properties
    require_at_most(field, [*value.private, *value.shared], MAX_PROPERTIES)
    for kind, properties in (("private", value.private), ("shared", value.shared)):
        for name, text in properties.items():
            decode_required_text(f"{field}.{kind}", name, MAX_PROPERTY_NAME_LENGTH)
            decode_content(f"{field}.{kind}", text, MAX_PROPERTY_LENGTH)
    return domain.ExtendedProperties(dict(value.private), dict(value.shared))


_FIELD_DECODERS: Mapping[str, Callable[[pb.Event], Any]] = {
    "summary": lambda event: decode_content("event.summary", event.summary, MAX_TEXT_LENGTH),
    "description": lambda event: decode_content("event.description", event.description, MAX_DESCRIPTION_LENGTH),
    "location": lambda event: decode_content("event.location", event.location, MAX_TEXT_LENGTH),
    "start": lambda event: _decode_time(event, "start", "event."),
    "end": lambda event: _decode_time(event, "end", "event."),
    "attendees": _decode_attendees,
    "recurrence": _decode_recurrence,
    "reminders": _decode_reminders,
    "status": lambda event: decode_enum(domain.EventStatus, event, "status", "event."),
    "transparency": lambda event: decode_enum(domain.EventTransparency, event, "transparency", "event."),
    "visibility": lambda event: decode_enum(domain.EventVisibility, event, "visibility", "event."),
    "extended_properties": _decode_extended_properties,
}
"""How each writable field of an event is checked and converted."""


# --- responses -------------------------------------------------------------------------------------------------------


def encode_event(event: domain.Event) -> pb.Event:
    """Convert an event."""
    times = {name: _encode_time(getattr(event, name)) for name in ("start", "end", "original_start_time")}
    return encode(pb.Event, event, **times)


def _encode_time(time: domain.EventTime | None) -> pb.EventTime | None:
    if time is None:
        return None
    when = {"date_time": time.when} if isinstance(time.when, datetime) else {"date": time.when.isoformat()}
    return pb.EventTime(**when, time_zone=time.time_zone)
