"""Calendars and events, as in the API of Google Calendar."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum


class EventStatus(StrEnum):
    """Whether an event takes place."""

    CONFIRMED = "confirmed"
    TENTATIVE = "tentative"
    CANCELLED = "cancelled"


class ResponseStatus(StrEnum):
    """The response of an attendee to an invitation."""

    NEEDS_ACTION = "needsAction"
    DECLINED = "declined"
    TENTATIVE = "tentative"
    ACCEPTED = "accepted"


class ReminderMethod(StrEnum):
    """How a reminder is delivered."""

    POPUP = "popup"
    EMAIL = "email"


class Notify(StrEnum):
    """Which attendees get an e-mail about a change."""

    ALL = "all"
    EXTERNAL_ONLY = "externalOnly"
    NONE = "none"


class EventOrder(StrEnum):
    """The order of a list of events."""

    START_TIME = "startTime"
    UPDATE_TIME = "updated"


@dataclass(frozen=True, slots=True)
class EventTime:
    """A day, or a point in time. `time_zone` is an IANA name; empty if unknown."""

    when: date | datetime
    time_zone: str = ""

    @property
    def is_day(self) -> bool:
        """Whether it is a day without a time."""
        return not isinstance(self.when, datetime)


@dataclass(frozen=True, slots=True)
class Attendee:
    """A person with a number of guests, or a resource such as a room."""

    email: str
    display_name: str = ""
    optional: bool = False
    response_status: ResponseStatus | None = None
    comment: str = ""
    additional_guests: int = 0
    resource: bool = False
    organizer: bool = False
    is_self: bool = False


@dataclass(frozen=True, slots=True)
class Reminder:
    """A reminder `minutes` before the start."""

    method: ReminderMethod
    minutes: int


@dataclass(frozen=True, slots=True)
class Reminders:
    """The calendar's default reminders, or others."""

    use_default: bool
    overrides: Sequence[Reminder] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An event. A deleted one may have only an id and a status."""

    event_id: str = ""
    summary: str = ""
    description: str = ""
    location: str = ""
    start: EventTime | None = None
    end: EventTime | None = None
    attendees: Sequence[Attendee] = ()
    recurrence: Sequence[str] = ()
    reminders: Reminders | None = None
    status: EventStatus | None = None
    etag: str = ""
    recurring_event_id: str = ""
    html_link: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Calendar:
    """A calendar in the calendar list of an account."""

    calendar_id: str
    summary: str = ""
    description: str = ""
    time_zone: str = ""
    primary: bool = False
    access_role: str = ""


@dataclass(frozen=True, slots=True)
class CalendarPage:
    """A page of calendars; `next_page_token` is empty on the last page."""

    calendars: Sequence[Calendar]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class CalendarEventPage:
    """A page of events; the last page has a `next_sync_token` instead of a `next_page_token`."""

    events: Sequence[Event]
    next_page_token: str = ""
    next_sync_token: str = ""
    time_zone: str = ""


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events to list."""

    page_size: int
    page_token: str = ""
    sync_token: str = ""
    time_min: datetime | None = None
    time_max: datetime | None = None
    single_events: bool = False
    order_by: EventOrder | None = None
