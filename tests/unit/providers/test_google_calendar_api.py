"""Errors and extreme values of Google's API. tests/end_to_end/test_google_calendar.py tests the complete path."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from integration_server.domain.calendar import (
    Attendee,
    Event,
    EventQuery,
    EventTime,
    EventVisibility,
    ExtendedProperties,
    Person,
)
from integration_server.domain.errors import (
    EtagMismatch,
    IntegrationServerError,
    InvalidField,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    ResourceNotFound,
    SyncTokenExpired,
)
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.providers.google_calendar_api import GoogleCalendarApi

LAST_YEAR = datetime(2025, 3, 28, tzinfo=UTC)


def error_response(status: int, *reasons: str, retry_after: timedelta | None = None) -> ApiResponse:
    content = {"error": {"code": status, "errors": [{"domain": "calendar", "reason": reason} for reason in reasons]}}
    return ApiResponse(status, (), json.dumps(content).encode(), retry_after=retry_after)


def read(**fields: Any) -> Event:
    return GoogleCalendarApi().read_event(ApiResponse(200, (), json.dumps(fields).encode()))


def content_of(request: ApiRequest) -> Any:
    return json.loads(request.body)


@pytest.mark.parametrize("status", [204, 404, 410])
def test_gone_after_a_retry_means_deleted(status: int) -> None:
    response = ApiResponse(status, (), b"", was_retried=True)
    assert GoogleCalendarApi().read_deletion(response) is None  # type: ignore[func-returns-value]  # it raises otherwise


@pytest.mark.parametrize(
    ("status", "was_retried", "error"),
    [(404, False, ResourceNotFound), (410, False, ResourceNotFound), (412, True, EtagMismatch)],
)
def test_deleting_a_missing_event_is_an_error(status: int, was_retried: bool, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        GoogleCalendarApi().read_deletion(ApiResponse(status, (), b"", was_retried=was_retried))


@pytest.mark.parametrize(("sent", "read"), [(-1, 0), (10, 10), (2**40, 2**31 - 1)])
def test_a_number_of_an_event_fits_into_32_bits(sent: int, read: int) -> None:
    content = {
        "attendees": [{"email": "joe@example.com", "additionalGuests": sent}],
        "reminders": {"overrides": [{"method": "popup", "minutes": sent}]},
    }
    event = GoogleCalendarApi().read_event(ApiResponse(200, (), json.dumps(content).encode()))
    assert event.attendees[0].additional_guests == read
    assert event.reminders is not None
    assert event.reminders.overrides[0].minutes == read


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "reasons", "error"),
    [
        (EventQuery(50, sync_token="token"), ["fullSyncRequired"], SyncTokenExpired),
        (EventQuery(50, sync_token="token", page_token="page"), [], SyncTokenExpired),
        (EventQuery(50, sync_token="token", show_deleted=True), ["gone"], SyncTokenExpired),
        (EventQuery(50), ["fullSyncRequired"], ResourceNotFound),
        (EventQuery(50, page_token="page"), [], ResourceNotFound),
        (EventQuery(50, time_min=LAST_YEAR), ["deleted"], ResourceNotFound),
        (EventQuery(50, updated_min=LAST_YEAR), ["deleted"], ResourceNotFound),
        (EventQuery(50, updated_min=LAST_YEAR), ["updatedMinTooLongAgo"], InvalidField),
        (EventQuery(50, updated_min=LAST_YEAR, page_token="page"), ["other", "updatedMinTooLongAgo"], InvalidField),
    ],
)
def test_a_410_is_an_expired_sync_token_only_if_the_request_has_one(
    query: EventQuery, reasons: list[str], error: type[IntegrationServerError]
) -> None:
    with pytest.raises(error):
        GoogleCalendarApi().read_events(error_response(410, *reasons), query)


def test_a_410_for_instances_is_a_missing_event() -> None:
    with pytest.raises(ResourceNotFound):
        GoogleCalendarApi().read_instances(error_response(410, "deleted"))


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (429, []),
        (429, ["rateLimitExceeded"]),
        (403, ["rateLimitExceeded"]),
        (403, ["userRateLimitExceeded"]),
        (403, ["somethingElse", "userRateLimitExceeded"]),
        (403, ["quotaExceeded"]),
    ],
)
def test_every_rate_limit_is_a_request_to_wait(status: int, reasons: list[str]) -> None:
    with pytest.raises(ProviderUnavailable) as refused:
        GoogleCalendarApi().read_event(error_response(status, *reasons, retry_after=timedelta(seconds=9)))
    assert refused.value.retry_after == timedelta(seconds=9)


def test_a_rate_limit_in_the_newer_form_of_errors_is_a_request_to_wait() -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"}
    content = {"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [detail]}}
    with pytest.raises(ProviderUnavailable):
        GoogleCalendarApi().read_calendars(ApiResponse(403, (), json.dumps(content).encode()))


@pytest.mark.parametrize("reason", ["forbidden", "forbiddenForNonOrganizer", "insufficientPermissions"])
def test_a_403_for_another_reason_is_a_rejection(reason: str) -> None:
    """The negative control: the status alone does not ask to wait."""
    with pytest.raises(ProviderRejected):
        GoogleCalendarApi().read_event(error_response(403, reason))


# --- events as Google sends them -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        (
            {"dateTime": "2026-03-28T10:00:00+01:00", "timeZone": "Europe/Zurich"},
            EventTime(datetime(2026, 3, 28, 9, tzinfo=UTC), "Europe/Zurich"),
        ),
        ({"dateTime": "2026-10-25T00:30:00Z"}, EventTime(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))),
        ({"date": "2026-03-28"}, EventTime(date(2026, 3, 28))),
    ],
)
def test_a_cancelled_instance_has_its_original_start_and_no_times(original: Any, expected: EventTime) -> None:
    event = read(id="series_1", status="cancelled", recurringEventId="series", originalStartTime=original)
    assert (event.original_start_time, event.recurring_event_id) == (expected, "series")
    assert (event.start, event.end) == (None, None)


@pytest.mark.parametrize(
    ("attendee", "expected"),
    [
        ({"displayName": "Grace", "responseStatus": "accepted"}, "Grace"),
        ({"id": "1234", "self": True}, ""),
        ({"email": None, "displayName": "Hidden"}, "Hidden"),
    ],
)
def test_an_attendee_without_an_address_is_read_and_written_without_one(attendee: Any, expected: str) -> None:
    event = read(id="e", attendees=[attendee], attendeesOmitted=True, organizer={"displayName": "Hidden"})
    assert (event.attendees[0].email, event.attendees[0].display_name) == ("", expected)
    assert (event.attendees_omitted, event.organizer) == (True, Person(display_name="Hidden"))
    written = content_of(GoogleCalendarApi().update_event("primary", event, {"attendees"}, None))
    assert "email" not in written["attendees"][0]
    assert written["attendeesOmitted"] is True


@pytest.mark.parametrize(
    ("fields", "link"),
    [
        ({"hangoutLink": "https://meet.example/a"}, "https://meet.example/a"),
        (
            {
                "hangoutLink": "https://meet.example/a",
                "conferenceData": {
                    "entryPoints": [
                        {"entryPointType": "phone", "uri": "tel:+41"},
                        {"entryPointType": "video", "uri": "https://zoom.example/j/1"},
                    ]
                },
            },
            "https://zoom.example/j/1",
        ),
        ({"conferenceData": {"entryPoints": [{"entryPointType": "more", "uri": "https://pin.example"}]}}, ""),
        ({"conferenceData": {"createRequest": {"status": {"statusCode": "pending"}}}}, ""),
        ({"conferenceData": {"entryPoints": [{"entryPointType": "video"}, "?"]}, "hangoutLink": 7}, ""),
        ({}, ""),
    ],
)
def test_the_conference_link_is_that_of_the_video_conference(fields: Any, link: str) -> None:
    assert read(id="e", **fields).conference_link == link


@pytest.mark.parametrize(
    "fields",
    [
        {"organizer": "ada", "creator": [], "extendedProperties": {"private": []}},
        {"originalStartTime": {"date": "2026-02-30"}, "sequence": "1", "eventType": None},
        {"visibility": "secret", "transparency": 1, "iCalUID": {}, "extendedProperties": {"shared": {"a": 1}}},
    ],
)
def test_values_that_google_does_not_document_are_left_out(fields: Any) -> None:
    event = read(id="e", **fields)
    assert event.extended_properties in [None, ExtendedProperties()]
    found = (event.organizer, event.creator, event.original_start_time, event.visibility, event.transparency)
    assert found == (None, None, None, None, None)
    assert (event.sequence, event.event_type, event.i_cal_uid) == (0, "", "")


# --- updates ---------------------------------------------------------------------------------------------------------

FULL = Event(
    event_id="e",
    summary="Cut",
    start=EventTime(date(2026, 3, 28)),
    end=EventTime(date(2026, 3, 29)),
    attendees=[Attendee("ada@example.com")],
    visibility=EventVisibility.PRIVATE,
    extended_properties=ExtendedProperties(private={"crm": "42", "old": ""}),
)


@pytest.mark.parametrize(
    ("mask", "sent"),
    [
        ({"summary"}, {"summary": "Cut"}),
        ({"location", "transparency"}, {"location": "", "transparency": "opaque"}),
        ({"visibility"}, {"visibility": "private"}),
        ({"extended_properties"}, {"extendedProperties": {"private": {"crm": "42", "old": None}}}),
        ({"end"}, {"end": {"date": "2026-03-29", "dateTime": None}}),
    ],
)
def test_an_update_sends_only_the_fields_of_its_mask(mask: set[str], sent: Any) -> None:
    assert content_of(GoogleCalendarApi().update_event("primary", FULL, mask, None)) == sent


def test_an_update_clears_named_fields_and_without_a_mask_keeps_what_older_clients_do_not_know() -> None:
    newer = {"transparency", "visibility", "extended_properties"}
    bare = Event(event_id="e", start=FULL.start, end=FULL.end)
    cleared = content_of(GoogleCalendarApi().update_event("primary", bare, newer, None))
    assert cleared == {"transparency": "opaque", "visibility": "default", "extendedProperties": None}
    whole = content_of(GoogleCalendarApi().update_event("primary", bare, (), None))
    assert whole.keys().isdisjoint({"transparency", "visibility", "extendedProperties"})
    assert whole["summary"] == ""
    given = content_of(GoogleCalendarApi().update_event("primary", FULL, (), None))
    assert (given["visibility"], given["extendedProperties"]["private"]["crm"]) == ("private", "42")
