"""Google Calendar.

- The requirements define the scopes.
- Verification is the user's own calendar, with the keyword "primary":
  developers.google.com/calendar/api/v3/reference/calendarList/get [H]. The calendar's `id` is the account's e-mail
  address, its `summary` the name that the user gave it [K].
- 600 requests a minute per user, and 10,000 for our project: developers.google.com/workspace/calendar/api/guides/quota
  [H]. Projects from before May 2026 keep their limits [H].
"""

from datetime import timedelta

from pydantic import Field

from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.google import GoogleProvider
from integration_server.providers.webhooks.google_channel import GOOGLE_CHANNEL


class GoogleCalendarConfig(ProviderConfig):
    """The calendar of calls that name none."""

    calendar_id: str = Field("primary", min_length=1, max_length=254)


class GoogleCalendarProvider(GoogleProvider):
    """A user's calendars."""

    integration_type = "google_calendar"
    required_scopes = ("https://www.googleapis.com/auth/calendar", "https://www.googleapis.com/auth/calendar.events")
    verify_url = "https://www.googleapis.com/calendar/v3/users/me/calendarList/primary"
    account_id_field = "id"
    account_naming = "email"
    account_label_field = "summary"
    api_base_url = "https://www.googleapis.com/calendar/v3"
    rate_limits = (RateLimit(600, timedelta(minutes=1)), RateLimit(10_000, timedelta(minutes=1), LimitScope.APP))
    webhook_scheme = GOOGLE_CHANNEL
    config_model = GoogleCalendarConfig


register = GoogleCalendarProvider.register_in
