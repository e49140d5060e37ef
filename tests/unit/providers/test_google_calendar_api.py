"""Errors and extreme values of Google's API. tests/end_to_end/test_google_calendar.py tests the complete path."""

import json

import pytest

from integration_server.domain.errors import EtagMismatch, ProviderError, ResourceNotFound
from integration_server.domain.proxy_messages import ApiResponse
from integration_server.providers.google_calendar_api import GoogleCalendarApi


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
