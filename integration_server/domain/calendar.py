"""Calendars and events, as in the API of Google Calendar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum


class EventStatus(StrEnum):
    """Whether an event takes place."""

    CONFIRMED = "confirmed"
    TENTATIVE = "tentative"
    CANCELLED = "cancelled"


class EventTransparency(StrEnum):
    """Whether an event blocks time in the calendar."""

    OPAQUE = "opaque"
    TRANSPARENT = "transparent"


class EventVisibility(StrEnum):
    """Who sees the details of an event."""

    DEFAULT = "default"
    PUBLIC = "public"
    PRIVATE = "private"
    CONFIDENTIAL = "confidential"


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
    """A person with a number of guests, or a resource such as a room. `email` is empty if Google does not reveal it."""

    email: str = ""
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
class Person:
    """The organizer or creator of an event; `email` is empty if Google does not reveal it."""

    email: str = ""
    display_name: str = ""
    is_self: bool = False


@dataclass(frozen=True, slots=True)
class ExtendedProperties:
    """Properties that applications store with an event: in this copy, or in the copies of all attendees."""

    private: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """An event, or an instance of a recurring event.

    A deleted event may have only an id and a status; a cancelled instance also `recurring_event_id` and
    `original_start_time`, which is the start according to the recurrence.
    """

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
    original_start_time: EventTime | None = None
    i_cal_uid: str = ""
    transparency: EventTransparency | None = None
    visibility: EventVisibility | None = None
    organizer: Person | None = None
    creator: Person | None = None
    extended_properties: ExtendedProperties | None = None
    conference_link: str = ""
    event_type: str = ""
    attendees_omitted: bool = False
    sequence: int = 0


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
    show_deleted: bool = False
    updated_min: datetime | None = None
    i_cal_uid: str = ""
    private_extended_property: Sequence[str] = ()
    shared_extended_property: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """Which instances of a recurring event to list."""

    page_size: int
    page_token: str = ""
    time_min: datetime | None = None
    time_max: datetime | None = None
    show_deleted: bool = False
    original_start_time: EventTime | None = None
