"""Errors of Google's API. tests/end_to_end/test_google_calendar.py tests the complete path."""

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
