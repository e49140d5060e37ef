"""Events of calendars as messages, in both directions. Every refusal names its field."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.domain import calendar as domain
from integration_server.domain.errors import InvalidField
from integration_server.rpc import decoding
from integration_server.rpc.encoding import timestamp
from integration_server.service.calendar.google_calendar import WRITABLE
from integrations.v1 import google_calendar_pb2 as pb

MAX_PAGE_SIZE = 250
MAX_DESCRIPTION_LENGTH = 8192
MAX_LINE_LENGTH = 1000
MAX_ETAG_LENGTH = 255
MAX_ATTENDEES, MAX_RECURRENCE_LINES, MAX_REMINDERS = 200, 50, 5
MAX_REMINDER_MINUTES = 4 * 7 * 24 * 60  # minutes

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}")
_LINE = re.compile(r"(?:RRULE|EXRULE|RDATE|EXDATE)[;:][\x21-\x7e]+")  # RFC 5545 §3.8.5
_ETAG = re.compile(r"[\x21-\x7e]*")
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")

E = TypeVar("E", bound=StrEnum)
V = TypeVar("V", bound=int)

_NOTIFY = {
    pb.NOTIFY_UNSPECIFIED: None,
    pb.NOTIFY_ALL: domain.Notify.ALL,
    pb.NOTIFY_EXTERNAL_ONLY: domain.Notify.EXTERNAL_ONLY,
    pb.NOTIFY_NONE: domain.Notify.NONE,
}
_ORDERS = {
    pb.EVENT_ORDER_UNSPECIFIED: None,
    pb.EVENT_ORDER_START_TIME: domain.EventOrder.START_TIME,
    pb.EVENT_ORDER_UPDATE_TIME: domain.EventOrder.UPDATE_TIME,
}
_STATUSES = {
    pb.EVENT_STATUS_UNSPECIFIED: None,
    pb.EVENT_STATUS_CONFIRMED: domain.EventStatus.CONFIRMED,
    pb.EVENT_STATUS_TENTATIVE: domain.EventStatus.TENTATIVE,
    pb.EVENT_STATUS_CANCELLED: domain.EventStatus.CANCELLED,
}
_RESPONSES = {
    pb.RESPONSE_STATUS_UNSPECIFIED: None,
    pb.RESPONSE_STATUS_NEEDS_ACTION: domain.ResponseStatus.NEEDS_ACTION,
    pb.RESPONSE_STATUS_DECLINED: domain.ResponseStatus.DECLINED,
    pb.RESPONSE_STATUS_TENTATIVE: domain.ResponseStatus.TENTATIVE,
    pb.RESPONSE_STATUS_ACCEPTED: domain.ResponseStatus.ACCEPTED,
}
_METHODS = {
    pb.REMINDER_METHOD_UNSPECIFIED: None,
    pb.REMINDER_METHOD_POPUP: domain.ReminderMethod.POPUP,
    pb.REMINDER_METHOD_EMAIL: domain.ReminderMethod.EMAIL,
}


# --- in --------------------------------------------------------------------------------------------------------------


def page_size(value: int) -> int:
    """How many to list: 0 means the usual number, and more than the most means the most."""
    if value < 0:
        raise InvalidField("page_size", "is negative")
    return min(value or decoding.DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def calendar_id(value: str) -> str:
    """A calendar, or none."""
    return decoding.text("calendar_id", value, decoding.MAX_NAME_LENGTH)


def etag(field: str, value: str) -> str:
    """What a change depends on, or nothing. It goes into a header."""
    if not _ETAG.fullmatch(decoding.text(field, value, MAX_ETAG_LENGTH)):
        raise InvalidField(field, "has characters that an etag cannot have")
    return value


def notify(value: pb.Notify) -> domain.Notify | None:
    """Who gets a mail."""
    return _decode_enum("notify", _NOTIFY, value)


def query(request: pb.ListEventsRequest) -> domain.EventQuery:
    """Which events to list."""
    return domain.EventQuery(
        page_size=page_size(request.page_size),
        page_token=decoding.text("page_token", request.page_token, decoding.MAX_PARAMETER_LENGTH),
        sync_token=decoding.text("sync_token", request.sync_token, decoding.MAX_PARAMETER_LENGTH),
        time_min=_moment("time_min", request.time_min) if request.HasField("time_min") else None,
        time_max=_moment("time_max", request.time_max) if request.HasField("time_max") else None,
        single_events=request.single_events,
        order_by=_decode_enum("order_by", _ORDERS, request.order_by),
    )


def update_mask(paths: Sequence[str]) -> frozenset[str]:
    """The fields to set; none means all of them."""
    for path in paths:
        if path not in WRITABLE:
            raise InvalidField("update_mask", f"can name {', '.join(sorted(WRITABLE))}; not {path[:64]!r}")
    return frozenset(paths)


def event(value: pb.Event) -> domain.Event:
    """An event, as it is to be written: what only goes out is left aside."""
    return domain.Event(
        event_id=decoding.text("event.event_id", value.event_id, 1024),
        summary=decoding.text("event.summary", value.summary, 1024),
        description=decoding.text("event.description", value.description, MAX_DESCRIPTION_LENGTH),
        location=decoding.text("event.location", value.location, 1024),
        start=_time("event.start", value.start) if value.HasField("start") else None,
        end=_time("event.end", value.end) if value.HasField("end") else None,
        attendees=[
            _attendee(f"event.attendees[{index}]", attendee)
            for index, attendee in enumerate(_require_at_most("event.attendees", value.attendees, MAX_ATTENDEES))
        ],
        recurrence=[
            _line(f"event.recurrence[{index}]", line)
            for index, line in enumerate(_require_at_most("event.recurrence", value.recurrence, MAX_RECURRENCE_LINES))
        ],
        reminders=_reminders(value.reminders) if value.HasField("reminders") else None,
        status=_decode_enum("event.status", _STATUSES, value.status),
        etag=etag("event.etag", value.etag),
    )


def _time(field: str, value: pb.EventTime) -> domain.EventTime:
    zone = decoding.text(f"{field}.time_zone", value.time_zone, decoding.MAX_NAME_LENGTH)
    if zone and not _ZONE.fullmatch(zone):
        raise InvalidField(f"{field}.time_zone", "is not a time zone's IANA name, such as Europe/Zurich")
    match value.WhichOneof("when"):
        case "date":
            return domain.EventTime(_day(f"{field}.date", value.date), zone)
        case "date_time":
            return domain.EventTime(_moment(f"{field}.date_time", value.date_time), zone)
        case _:
            raise InvalidField(field, "has neither date nor date_time")


def _day(field: str, value: str) -> date:
    try:
        if _DAY.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise InvalidField(field, "is not a day, such as 2026-03-28")


def _moment(field: str, value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField(field, "is not a moment between the years 1 and 9999") from None


def _attendee(field: str, value: pb.Attendee) -> domain.Attendee:
    if not _EMAIL.fullmatch(decoding.required_text(f"{field}.email", value.email, decoding.MAX_NAME_LENGTH)):
        raise InvalidField(f"{field}.email", "is not an e-mail address")
    if value.additional_guests < 0:
        raise InvalidField(f"{field}.additional_guests", "is less than 0")
    return domain.Attendee(
        email=value.email,
        display_name=decoding.text(f"{field}.display_name", value.display_name, decoding.MAX_NAME_LENGTH),
        optional=value.optional,
        response_status=_decode_enum(f"{field}.response_status", _RESPONSES, value.response_status),
        comment=decoding.text(f"{field}.comment", value.comment, MAX_LINE_LENGTH),
        additional_guests=value.additional_guests,
        resource=value.resource,
    )


def _line(field: str, value: str) -> str:
    if not _LINE.fullmatch(decoding.text(field, value, MAX_LINE_LENGTH)):
        raise InvalidField(field, "is not an RRULE, EXRULE, RDATE or EXDATE line (RFC 5545 section 3.8.5)")
    return value


def _reminders(value: pb.Reminders) -> domain.Reminders:
    field = "event.reminders.overrides"
    overrides = []
    for index, reminder in enumerate(_require_at_most(field, value.overrides, MAX_REMINDERS)):
        method = _decode_enum(f"{field}[{index}].method", _METHODS, reminder.method)
        if method is None:
            raise InvalidField(f"{field}[{index}].method", "is required")
        if not 0 <= reminder.minutes <= MAX_REMINDER_MINUTES:
            raise InvalidField(f"{field}[{index}].minutes", f"is not between 0 and {MAX_REMINDER_MINUTES}")
        overrides.append(domain.Reminder(method, reminder.minutes))
    if value.use_default and overrides:
        raise InvalidField("event.reminders.use_default", "does not go together with overrides")
    return domain.Reminders(value.use_default, overrides)


T = TypeVar("T")


def _require_at_most(field: str, values: Sequence[T], max_count: int) -> Sequence[T]:
    if len(values) > max_count:
        raise InvalidField(field, f"has {len(values)} entries; {max_count} is the most")
    return values


def _decode_enum(field: str, meanings: Mapping[V, E | None], value: V) -> E | None:
    if value not in meanings:
        raise InvalidField(field, "is not known")
    return meanings[value]


# --- out -------------------------------------------------------------------------------------------------------------

_TO_STATUS = {meaning: value for value, meaning in _STATUSES.items()}
_TO_RESPONSE = {meaning: value for value, meaning in _RESPONSES.items()}
_TO_METHOD = {meaning: value for value, meaning in _METHODS.items()}


def calendar(value: domain.Calendar) -> pb.Calendar:
    """A calendar."""
    return pb.Calendar(
        calendar_id=value.calendar_id,
        summary=value.summary,
        description=value.description,
        time_zone=value.time_zone,
        primary=value.primary,
        access_role=value.access_role,
    )


def encode_event(value: domain.Event) -> pb.Event:
    """An event."""
    return pb.Event(
        event_id=value.event_id,
        summary=value.summary,
        description=value.description,
        location=value.location,
        start=None if value.start is None else _encode_time(value.start),
        end=None if value.end is None else _encode_time(value.end),
        attendees=map(_encode_attendee, value.attendees),
        recurrence=value.recurrence,
        reminders=None if value.reminders is None else _encode_reminders(value.reminders),
        status=_TO_STATUS[value.status],
        etag=value.etag,
        recurring_event_id=value.recurring_event_id,
        html_link=value.html_link,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def _encode_time(value: domain.EventTime) -> pb.EventTime:
    if isinstance(value.when, datetime):
        return pb.EventTime(date_time=timestamp(value.when), time_zone=value.time_zone)
    return pb.EventTime(date=value.when.isoformat(), time_zone=value.time_zone)


def _encode_attendee(value: domain.Attendee) -> pb.Attendee:
    return pb.Attendee(
        email=value.email,
        display_name=value.display_name,
        optional=value.optional,
        response_status=_TO_RESPONSE[value.response_status],
        organizer=value.organizer,
        is_self=value.is_self,
        comment=value.comment,
        additional_guests=value.additional_guests,
        resource=value.resource,
    )


def _encode_reminders(value: domain.Reminders) -> pb.Reminders:
    overrides = [
        pb.Reminder(method=_TO_METHOD[reminder.method], minutes=max(0, min(reminder.minutes, 2**31 - 1)))
        for reminder in value.overrides
    ]
    return pb.Reminders(use_default=value.use_default, overrides=overrides)
