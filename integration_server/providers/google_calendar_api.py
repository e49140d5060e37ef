"""Google Calendar, version 3: typed calls, whose requests are encoded and responses decoded here (`CalendarApi`).

- Resources, parameters and limits: developers.google.com/calendar/api/v3/reference/{calendarList,events} [H].
- A list's last page has `nextSyncToken`; 410 means that a sync token has expired: …/calendar/api/guides/sync [H].
- 410 also means that `updatedMin` is too long ago (`updatedMinTooLongAgo`), or that a resource was deleted:
  …/calendar/api/guides/errors [H].
- A cancelled instance has only `id`, `status`, `recurringEventId` and `originalStartTime`; `attendees[].email` may be
  missing and is required for a new attendee: …/calendar/api/v3/reference/events [H].
- Extended properties are merged by a patch, and null removes one: …/calendar/api/guides/extended-properties [H].
  Null for all of them removes all [K]. Longer names are dropped and longer values cut without an error [K].
- `If-Match` with an etag; 412 if the event has another one: …/calendar/api/guides/version-resources [H].
- Errors and their reasons: …/calendar/api/guides/errors [H]. 409 is `duplicate`, also for an id that was deleted [K].
  Deleting a deleted event returns 410 [K]; after a retry of a lost request, that means success.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote

from integration_server.domain import calendar as domain
from integration_server.domain.errors import (
    EtagMismatch,
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ResourceAlreadyExists,
    ResourceNotFound,
    SyncTokenExpired,
)
from integration_server.domain.lenient_values import field_at, read_object
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse

_UPDATED_MIN_TOO_OLD = "updatedMinTooLongAgo"

E = TypeVar("E", bound=StrEnum)


_QUOTA_REASONS = frozenset(
    {
        *("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"),
        *("quotaExceeded", "dailyLimitExceeded", "RESOURCE_EXHAUSTED"),
    }
)


class GoogleCalendarApi:
    """Converts between events and Google's JSON. It does no I/O."""

    # --- requests

    def list_calendars(self, page_size: int, page_token: str) -> ApiRequest:
        """A request for a page of calendars."""
        return ApiRequest("GET", "/users/me/calendarList", _non_empty(maxResults=page_size, pageToken=page_token))

    def list_events(self, calendar_id: str, query: domain.EventQuery) -> ApiRequest:
        """A request for a page of events."""
        parameters = _non_empty(
            maxResults=query.page_size,
            pageToken=query.page_token,
            syncToken=query.sync_token,
            timeMin=query.time_min and _format_timestamp(query.time_min),
            timeMax=query.time_max and _format_timestamp(query.time_max),
            singleEvents="true" if query.single_events else None,
            orderBy=query.order_by,
            showDeleted="true" if query.show_deleted else None,
            updatedMin=query.updated_min and _format_timestamp(query.updated_min),
            iCalUID=query.i_cal_uid,
        )
        private = [("privateExtendedProperty", constraint) for constraint in query.private_extended_property]
        shared = [("sharedExtendedProperty", constraint) for constraint in query.shared_extended_property]
        return ApiRequest("GET", _path(calendar_id), (*parameters, *private, *shared))

    def get_event(self, calendar_id: str, event_id: str) -> ApiRequest:
        """A request for an event."""
        return ApiRequest("GET", _path(calendar_id, event_id))

    def list_instances(self, calendar_id: str, event_id: str, query: domain.InstanceQuery) -> ApiRequest:
        """A request for a page of instances of a recurring event."""
        parameters = _non_empty(
            maxResults=query.page_size,
            pageToken=query.page_token,
            timeMin=query.time_min and _format_timestamp(query.time_min),
            timeMax=query.time_max and _format_timestamp(query.time_max),
            showDeleted="true" if query.show_deleted else None,
            originalStart=query.original_start_time and _format_when(query.original_start_time),
        )
        return ApiRequest("GET", f"{_path(calendar_id, event_id)}/instances", parameters)

    def create_event(self, calendar_id: str, event: domain.Event, notify: domain.Notify | None) -> ApiRequest:
        """A request that creates an event."""
        fields = {name: value for name, value in _event_fields(event).items() if value}
        own_id = {"id": event.event_id} if event.event_id else {}
        return _write_request("POST", _path(calendar_id), {**_to_json(fields), **own_id}, "", notify)

    def update_event(
        self, calendar_id: str, event: domain.Event, fields: Collection[str], notify: domain.Notify | None
    ) -> ApiRequest:
        """A request that changes the given fields of an event, or all fields of `Event` if none are given.

        It is a patch and never a replacement: fields that `Event` does not have (colour, attachments) are kept, and
        so are `_KEPT_FIELDS` without a value if no fields are given.
        """
        event_fields = _event_fields(event)
        wanted = fields or {name for name, value in event_fields.items() if value or name not in _KEPT_FIELDS}
        changed = {name: value or _EMPTY_VALUES[name] for name, value in event_fields.items() if name in wanted}
        for name in {"start", "end"} & changed.keys():
            # A patch is merged into the event: if a day becomes a time, the day must be cleared.
            changed[name] = {"date": None, "dateTime": None, **changed[name]}
        omitted = {"attendeesOmitted": True} if "attendees" in wanted and event.attendees_omitted else {}
        content = {**_to_json(changed), **omitted}
        return _write_request("PATCH", _path(calendar_id, event.event_id), content, event.etag, notify)

    def delete_event(self, calendar_id: str, event_id: str, etag: str, notify: domain.Notify | None) -> ApiRequest:
        """A request that deletes an event."""
        return _write_request("DELETE", _path(calendar_id, event_id), None, etag, notify)

    # --- responses

    def read_calendars(self, response: ApiResponse) -> domain.CalendarPage:
        """The page of calendars in a response."""
        fields = _read(response, "calendar")
        calendars = [_calendar(item) for item in _objects(fields.get("items"))]
        return domain.CalendarPage(calendars, _text(fields, "nextPageToken"))

    def read_events(self, response: ApiResponse, query: domain.EventQuery) -> domain.CalendarEventPage:
        """The page of events in a response to this query."""
        if response.status == 410:
            if query.sync_token:
                raise SyncTokenExpired
            if query.updated_min is not None and _UPDATED_MIN_TOO_OLD in _reasons(response):
                raise InvalidField("updated_min", "is too long ago: Google no longer has all changes since then")
        return _event_page(response, "calendar")

    def read_instances(self, response: ApiResponse) -> domain.CalendarEventPage:
        """The page of instances in a response."""
        return _event_page(response, "event")

    def read_event(self, response: ApiResponse) -> domain.Event:
        """The event in a response."""
        return _event(_read(response, "event"))

    def read_deletion(self, response: ApiResponse) -> None:
        """Return if the event was deleted, else raise."""
        if not (response.was_retried and response.status in {404, 410}):
            _require_success(response, "event")


# --- events to JSON --------------------------------------------------------------------------------------------------

_EMPTY_VALUES: Mapping[str, Any] = {
    "summary": "",
    "description": "",
    "location": "",
    "attendees": [],
    "recurrence": [],
    "reminders": {"useDefault": True, "overrides": []},
    "status": "confirmed",
    "transparency": "opaque",
    "visibility": "default",
    "extended_properties": None,
}
"""The JSON values of empty fields."""

_KEPT_FIELDS = frozenset({"start", "end", "transparency", "visibility", "extended_properties"})
"""Fields that an update without a mask sends only with a value: clients that do not know them keep what is stored."""

_JSON_NAMES: Mapping[str, str] = {"extended_properties": "extendedProperties"}
"""The names of fields that are not the same in JSON."""


def _to_json(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {_JSON_NAMES.get(name, name): value for name, value in fields.items()}


def _event_fields(event: domain.Event) -> dict[str, Any]:
    """All writable fields; None or empty if the event has no value."""
    return {
        "summary": event.summary,
        "description": event.description,
        "location": event.location,
        "start": event.start and _time(event.start),
        "end": event.end and _time(event.end),
        "attendees": [_attendee(attendee) for attendee in event.attendees],
        "recurrence": list(event.recurrence),
        "reminders": event.reminders and _reminders(event.reminders),
        "status": event.status and event.status.value,
        "transparency": event.transparency and event.transparency.value,
        "visibility": event.visibility and event.visibility.value,
        "extended_properties": event.extended_properties and _extended_properties(event.extended_properties),
    }


def _time(time: domain.EventTime) -> Mapping[str, str]:
    zone = {"timeZone": time.time_zone} if time.time_zone else {}
    return {"date" if time.is_day else "dateTime": _format_when(time), **zone}


def _format_when(time: domain.EventTime) -> str:
    return _format_timestamp(time.when) if isinstance(time.when, datetime) else time.when.isoformat()


def _format_timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _attendee(attendee: domain.Attendee) -> Mapping[str, Any]:
    members = {
        "email": attendee.email,
        "displayName": attendee.display_name,
        "responseStatus": attendee.response_status and attendee.response_status.value,
        "comment": attendee.comment,
        "additionalGuests": attendee.additional_guests,
        "resource": attendee.resource,
    }
    non_empty = {name: value for name, value in members.items() if value}
    return {"optional": attendee.optional, **non_empty}


def _extended_properties(properties: domain.ExtendedProperties) -> Mapping[str, Mapping[str, str | None]]:
    kinds = {"private": properties.private, "shared": properties.shared}
    return {kind: {name: value or None for name, value in values.items()} for kind, values in kinds.items() if values}


def _reminders(reminders: domain.Reminders) -> Mapping[str, Any]:
    overrides = [{"method": reminder.method.value, "minutes": reminder.minutes} for reminder in reminders.overrides]
    return {"useDefault": reminders.use_default, "overrides": overrides}


def _write_request(
    method: str, path: str, fields: Mapping[str, Any] | None, etag: str, notify: domain.Notify | None
) -> ApiRequest:
    body = b"" if fields is None else json.dumps(fields).encode()
    headers = {"Content-Type": body and "application/json", "If-Match": etag}
    return ApiRequest(method, path, _non_empty(sendUpdates=notify), _non_empty(**headers), body)


def _path(calendar_id: str, event_id: str | None = None) -> str:
    events = f"/calendars/{quote(calendar_id, safe='')}/events"
    return events if event_id is None else f"{events}/{quote(event_id, safe='')}"


def _non_empty(**parameters: object) -> Sequence[tuple[str, str]]:
    return tuple((name, str(value)) for name, value in parameters.items() if value)


# --- JSON to events --------------------------------------------------------------------------------------------------


def _read(response: ApiResponse, resource: str) -> Mapping[str, Any]:
    _require_success(response, resource)
    fields = read_object(response.body)
    if fields is None:
        raise ProviderUnavailable
    return fields


def _event_page(response: ApiResponse, resource: str) -> domain.CalendarEventPage:
    fields = _read(response, resource)
    return domain.CalendarEventPage(
        [_event(item) for item in _objects(fields.get("items"))],
        _text(fields, "nextPageToken"),
        _text(fields, "nextSyncToken"),
        _text(fields, "timeZone"),
    )


def _reasons(response: ApiResponse) -> Collection[str]:
    """The reasons in an error of either form that Google's APIs have; most errors have one."""
    content = read_object(response.body)
    errors = [*_objects(field_at(content, "error.errors")), *_objects(field_at(content, "error.details"))]
    return [_text(error, "reason") for error in errors]


def _require_success(response: ApiResponse, resource: str) -> None:
    try:
        _raise_for_status(response, resource)
    except ProviderError as error:
        error.provider_reason = response.reason
        raise


def _raise_for_status(response: ApiResponse, resource: str) -> None:
    match response.status:
        case status if 200 <= status < 300:
            return
        case _ if response.is_client_fault:
            raise ProviderMisconfigured("the API is not enabled for this server's app at the provider")
        case 401:
            raise ProviderRejected("credentials")
        case 429:
            raise ProviderUnavailable("the provider asks for a later retry", retry_after=response.retry_after)
        case 403 if not _QUOTA_REASONS.isdisjoint(_reasons(response)):
            raise ProviderUnavailable("the quota of the account or app is exhausted", retry_after=response.retry_after)
        case 404 | 410:
            raise ResourceNotFound(resource)
        case 409:
            raise ResourceAlreadyExists(resource)
        case 412:
            raise EtagMismatch(resource)
        case status if 400 <= status < 500:
            raise ProviderRejected("request")
    raise ProviderUnavailable(retry_after=response.retry_after)


def _objects(value: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _calendar(fields: Mapping[str, Any]) -> domain.Calendar:
    return domain.Calendar(
        calendar_id=_text(fields, "id"),
        summary=_text(fields, "summaryOverride") or _text(fields, "summary"),
        description=_text(fields, "description"),
        time_zone=_text(fields, "timeZone"),
        primary=fields.get("primary") is True,
        access_role=_text(fields, "accessRole"),
    )


def _event(fields: Mapping[str, Any]) -> domain.Event:
    recurrence = fields.get("recurrence")
    return domain.Event(
        event_id=_text(fields, "id"),
        summary=_text(fields, "summary"),
        description=_text(fields, "description"),
        location=_text(fields, "location"),
        start=_parse_time(fields.get("start")),
        end=_parse_time(fields.get("end")),
        attendees=[_parse_attendee(item) for item in _objects(fields.get("attendees"))],
        recurrence=[line for line in recurrence if isinstance(line, str)] if isinstance(recurrence, list) else (),
        reminders=_parse_reminders(fields.get("reminders")),
        status=_parse_enum(domain.EventStatus, fields.get("status")),
        etag=_text(fields, "etag"),
        recurring_event_id=_text(fields, "recurringEventId"),
        html_link=_text(fields, "htmlLink"),
        create_time=_parse_timestamp(fields.get("created")),
        update_time=_parse_timestamp(fields.get("updated")),
        original_start_time=_parse_time(fields.get("originalStartTime")),
        i_cal_uid=_text(fields, "iCalUID"),
        transparency=_parse_enum(domain.EventTransparency, fields.get("transparency")),
        visibility=_parse_enum(domain.EventVisibility, fields.get("visibility")),
        organizer=_parse_person(fields.get("organizer")),
        creator=_parse_person(fields.get("creator")),
        extended_properties=_parse_extended_properties(fields.get("extendedProperties")),
        conference_link=_conference_link(fields),
        event_type=_text(fields, "eventType"),
        attendees_omitted=fields.get("attendeesOmitted") is True,
        sequence=_number(fields.get("sequence")),
    )


def _parse_person(value: object) -> domain.Person | None:
    if not isinstance(value, dict):
        return None
    return domain.Person(_text(value, "email"), _text(value, "displayName"), value.get("self") is True)


def _parse_extended_properties(value: object) -> domain.ExtendedProperties | None:
    if not isinstance(value, dict):
        return None
    return domain.ExtendedProperties(_parse_texts(value.get("private")), _parse_texts(value.get("shared")))


def _parse_texts(value: object) -> Mapping[str, str]:
    texts = value if isinstance(value, dict) else {}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _conference_link(fields: Mapping[str, Any]) -> str:
    """The URL of the video conference: of any product, or else the older field, which only Google Meet has."""
    entry_points = _objects(field_at(fields, "conferenceData.entryPoints"))
    links = (_text(entry, "uri") for entry in entry_points if entry.get("entryPointType") == "video")
    return next(filter(None, links), _text(fields, "hangoutLink"))


def _parse_time(value: object) -> domain.EventTime | None:
    if not isinstance(value, dict):
        return None
    zone, moment = _text(value, "timeZone"), _parse_timestamp(value.get("dateTime"))
    if moment is not None:
        return domain.EventTime(moment, zone)
    try:
        return domain.EventTime(date.fromisoformat(_text(value, "date")), zone)
    except ValueError:
        return None


def _parse_timestamp(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _parse_attendee(fields: Mapping[str, Any]) -> domain.Attendee:
    return domain.Attendee(
        email=_text(fields, "email"),
        display_name=_text(fields, "displayName"),
        optional=fields.get("optional") is True,
        response_status=_parse_enum(domain.ResponseStatus, fields.get("responseStatus")),
        organizer=fields.get("organizer") is True,
        is_self=fields.get("self") is True,
        comment=_text(fields, "comment"),
        additional_guests=_number(fields.get("additionalGuests")),
        resource=fields.get("resource") is True,
    )


def _parse_reminders(value: object) -> domain.Reminders | None:
    if not isinstance(value, dict):
        return None
    overrides = [
        domain.Reminder(method, _number(item["minutes"]))
        for item in _objects(value.get("overrides"))
        if (method := _parse_enum(domain.ReminderMethod, item.get("method"))) and isinstance(item.get("minutes"), int)
    ]
    return domain.Reminders(value.get("useDefault") is True, overrides)


def _number(value: object) -> int:
    return max(0, min(value, 2**31 - 1)) if isinstance(value, int) else 0


def _parse_enum(kind: type[E], value: object) -> E | None:
    return kind(value) if isinstance(value, str) and value in list(kind) else None
