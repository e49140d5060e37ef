"""Typed methods for the calendars of a Google account, over the API proxy."""

import re
from collections.abc import Collection
from typing import Protocol

from integration_server.domain.calendar import (
    CalendarEventPage,
    CalendarPage,
    Event,
    EventQuery,
    EventTime,
    InstanceQuery,
    Notify,
)
from integration_server.domain.errors import InvalidField
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.proxy.calls import ApiProxy

INTEGRATION_TYPE = "google_calendar"

WRITABLE = frozenset(
    {
        "summary",
        "description",
        "location",
        "start",
        "end",
        "attendees",
        "recurrence",
        "reminders",
        "status",
        "transparency",
        "visibility",
        "extended_properties",
    }
)
"""Fields of an event that an update may name."""

_NOT_WITH_SYNC_TOKEN = (
    "time_min",
    "time_max",
    "order_by",
    "updated_min",
    "i_cal_uid",
    "private_extended_property",
    "shared_extended_property",
)

_PRIMARY = "primary"

_CALENDAR_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9!#$&'*+=?^_{|}~.@-]{1,255}")  # mostly e-mail addresses
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,1024}")  # ids of instances end with "_" and a time
_OWN_EVENT_ID = re.compile(r"[0-9a-v]{5,1024}")


class CalendarApi(Protocol):
    """Encodes requests to Google's API and decodes its responses. Decoding raises the domain error for an error."""

    def list_calendars(self, page_size: int, page_token: str) -> ApiRequest:
        """A request for a page of calendars."""

    def read_calendars(self, response: ApiResponse) -> CalendarPage:
        """The page in a response."""

    def list_events(self, calendar_id: str, query: EventQuery) -> ApiRequest:
        """A request for a page of events."""

    def read_events(self, response: ApiResponse, query: EventQuery) -> CalendarEventPage:
        """The page in a response to this query."""

    def get_event(self, calendar_id: str, event_id: str) -> ApiRequest:
        """A request for an event."""

    def list_instances(self, calendar_id: str, event_id: str, query: InstanceQuery) -> ApiRequest:
        """A request for a page of instances of a recurring event."""

    def read_instances(self, response: ApiResponse) -> CalendarEventPage:
        """The page in a response."""

    def create_event(self, calendar_id: str, event: Event, notify: Notify | None) -> ApiRequest:
        """A request that creates an event."""

    def update_event(
        self, calendar_id: str, event: Event, fields: Collection[str], notify: Notify | None
    ) -> ApiRequest:
        """A request that changes the given fields of an event, or all fields if none are given."""

    def read_event(self, response: ApiResponse) -> Event:
        """The event in a response."""

    def delete_event(self, calendar_id: str, event_id: str, etag: str, notify: Notify | None) -> ApiRequest:
        """A request that deletes an event."""

    def read_deletion(self, response: ApiResponse) -> None:
        """Return if the event was deleted, else raise."""


class GoogleCalendar:
    """Reads and writes the calendars of integrations of the type `google_calendar`."""

    def __init__(self, credentials: CredentialService, api_proxy: ApiProxy, api: CalendarApi) -> None:
        self._credentials = credentials
        self._api_proxy = api_proxy
        self._api = api

    async def list_calendars(
        self, integration_id: IntegrationId, user_id: UserId, page_size: int, page_token: str
    ) -> CalendarPage:
        """A page of the account's calendars."""
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.list_calendars(page_size, page_token)
        return self._api.read_calendars(await self._api_proxy.send(fresh, request))

    async def list_events(
        self, integration_id: IntegrationId, user_id: UserId, calendar_id: str, query: EventQuery
    ) -> CalendarEventPage:
        """A page of a calendar's events. Raises `SyncTokenExpired`, `ResourceNotFound`."""
        _require_consistent(query)
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.list_events(_calendar(fresh, calendar_id), query)
        return self._api.read_events(await self._api_proxy.send(fresh, request), query)

    async def get_event(self, integration_id: IntegrationId, user_id: UserId, calendar_id: str, event_id: str) -> Event:
        """An event or an instance, also a deleted one. Raises `ResourceNotFound`."""
        _require_event_id("event_id", event_id)
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.get_event(_calendar(fresh, calendar_id), event_id)
        return self._api.read_event(await self._api_proxy.send(fresh, request))

    async def list_instances(
        self, integration_id: IntegrationId, user_id: UserId, calendar_id: str, event_id: str, query: InstanceQuery
    ) -> CalendarEventPage:
        """A page of the instances of a recurring event. Raises `ResourceNotFound`."""
        _require_event_id("event_id", event_id)
        _require_time_range(query)
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.list_instances(_calendar(fresh, calendar_id), event_id, query)
        return self._api.read_instances(await self._api_proxy.send(fresh, request))

    async def create_event(
        self, integration_id: IntegrationId, user_id: UserId, calendar_id: str, event: Event, notify: Notify | None
    ) -> Event:
        """Create an event; returns it. Raises `ResourceAlreadyExists`."""
        if event.event_id and not _OWN_EVENT_ID.fullmatch(event.event_id):
            raise InvalidField("event.event_id", "is not 5 to 1024 of the characters 0-9 and a-v")
        _require_start_and_end(event)
        for index, attendee in enumerate(event.attendees):
            if not attendee.email:
                raise InvalidField(f"event.attendees[{index}].email", "is required")
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.create_event(_calendar(fresh, calendar_id), event, notify)
        return self._api.read_event(await self._api_proxy.send(fresh, request))

    async def update_event(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        calendar_id: str,
        event: Event,
        fields: Collection[str],
        notify: Notify | None,
    ) -> Event:
        """Change the given fields of an event, or all; returns it. Raises `EtagMismatch`, `ResourceNotFound`.

        `event` has no values in other fields than the given ones.
        """
        _require_event_id("event.event_id", event.event_id)
        if not fields:
            _require_start_and_end(event)
        for field in {"start", "end"}.intersection(fields):
            if getattr(event, field) is None:
                raise InvalidField(f"event.{field}", "cannot be cleared; set it, or remove it from update_mask")
        _require_times(event)
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.update_event(_calendar(fresh, calendar_id), event, fields, notify)
        return self._api.read_event(await self._api_proxy.send(fresh, request))

    async def delete_event(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        calendar_id: str,
        event_id: str,
        etag: str,
        notify: Notify | None,
    ) -> None:
        """Delete an event. Raises `EtagMismatch`, `ResourceNotFound`."""
        _require_event_id("event_id", event_id)
        fresh = await self._calendar_credentials(integration_id, user_id)
        request = self._api.delete_event(_calendar(fresh, calendar_id), event_id, etag, notify)
        self._api.read_deletion(await self._api_proxy.send(fresh, request))

    async def _calendar_credentials(self, integration_id: IntegrationId, user_id: UserId) -> RefreshResult:
        fresh = await self._credentials.get_usable(integration_id, user_id)
        if fresh.integration.integration_type != INTEGRATION_TYPE:
            raise InvalidField("integration_id", f"is not of the type {INTEGRATION_TYPE}")
        return fresh


def _calendar(fresh: RefreshResult, calendar_id: str) -> str:
    """The given calendar, or else that of the integration's config, or else the account's primary one."""
    selected_id = calendar_id or fresh.integration.config.get("calendar_id") or _PRIMARY
    if not isinstance(selected_id, str) or not _CALENDAR_ID.fullmatch(selected_id):
        raise InvalidField("calendar_id" if calendar_id else "config.calendar_id", "is not a calendar's identifier")
    return selected_id


def _require_event_id(field: str, event_id: str) -> None:
    if not _EVENT_ID.fullmatch(event_id):
        raise InvalidField(field, "is not an event's identifier" if event_id else "is required")


def _require_start_and_end(event: Event) -> None:
    for field in ("start", "end"):
        if getattr(event, field) is None:
            raise InvalidField(f"event.{field}", "is required")
    _require_times(event)


def _require_times(event: Event) -> None:
    start, end = event.start, event.end
    if start is not None and end is not None:
        if start.is_day != end.is_day:
            raise InvalidField("event.end", "must be a day if the start is a day, and a time if the start is a time")
        if not _is_before(start, end):
            raise InvalidField("event.end", "is not after the start")
    if event.recurrence and start is not None and not start.is_day and not start.time_zone:
        raise InvalidField("event.start.time_zone", "is required for a recurring event")


def _is_before(start: EventTime, end: EventTime) -> bool:
    # An event may have no duration. The end of an all-day event is the day after it.
    return start.when < end.when if start.is_day else start.when <= end.when


def _require_consistent(query: EventQuery) -> None:
    # developers.google.com/calendar/api/v3/reference/events/list, on syncToken and on orderBy
    if query.sync_token:
        for field in _NOT_WITH_SYNC_TOKEN:
            if getattr(query, field):
                raise InvalidField(field, "cannot be combined with sync_token")
    _require_time_range(query)
    if query.order_by == "startTime" and not query.single_events:
        raise InvalidField("order_by", "startTime requires single_events")


def _require_time_range(query: EventQuery | InstanceQuery) -> None:
    if query.time_min is not None and query.time_max is not None and query.time_min >= query.time_max:
        raise InvalidField("time_max", "is not after time_min")
