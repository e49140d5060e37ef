"""The scopes that a reconnection requests: also those that the integration has, by the names that can be requested."""

import pytest

from integration_server.providers.built_in import built_in_class
from integration_server.providers.oauth2 import OAuth2Provider
from tests.unit.providers.support import FakeTransport, build_provider

GitHubProvider = built_in_class("github")
GoogleCalendarProvider = built_in_class("google_calendar")
MicrosoftOutlookProvider = built_in_class("microsoft_outlook")
SlackProvider = built_in_class("slack")
XeroProvider = built_in_class("xero")
ZoomProvider = built_in_class("zoom")

GRAPH = "https://graph.microsoft.com/"
CALENDAR = "https://www.googleapis.com/auth/calendar"


@pytest.mark.parametrize(
    ("provider_class", "requested", "granted", "further"),
    [
        (GitHubProvider, (), ("gist", "read:user"), {"gist"}),
        (GitHubProvider, ("repo",), ("repo:status", "public_repo", "GIST"), {"repo", "GIST"}),
        (GitHubProvider, ("gist",), ("repo",), {"gist", "repo"}),
        (MicrosoftOutlookProvider, (), (f"{GRAPH}user.read", f"{GRAPH}tasks.read", "Tasks.Read"), {"Tasks.Read"}),
        (MicrosoftOutlookProvider, ("tasks.read",), (f"{GRAPH}Tasks.Read",), {"tasks.read"}),
        (GoogleCalendarProvider, (), (CALENDAR, f"{CALENDAR}.readonly"), {f"{CALENDAR}.readonly"}),
        (XeroProvider, (), ("accounting.transactions", "accounting.settings"), {"accounting.settings"}),
        (XeroProvider, ("accounting.transactions",), ("accounting.transactions",), {"accounting.transactions"}),
        (SlackProvider, (), ("identify", "users:read"), {"users:read"}),
        (ZoomProvider, (), ("meeting:read", "meeting:read:admin", "user:read:email"), {"user:read:email"}),
    ],
)
def test_granted_scopes_are_requested_again(
    provider_class: type[OAuth2Provider], requested: tuple[str, ...], granted: tuple[str, ...], further: set[str]
) -> None:
    provider = build_provider(provider_class, FakeTransport())
    scopes = list(provider.scopes_to_request(requested, granted))
    assert scopes[: len(provider.required_scopes)] == list(provider.required_scopes)
    assert set(scopes) - set(provider.required_scopes) == further
    assert len(scopes) == len(set(scopes))


def test_classic_scopes_of_zoom_are_requested_by_a_classic_app() -> None:
    provider = build_provider(ZoomProvider, FakeTransport(), ZOOM_SCOPES="user:read meeting:read")
    granted = ("meeting:write", "meeting:read:meeting")
    assert list(provider.scopes_to_request((), granted)) == ["user:read", "meeting:read", "meeting:write"]


def test_a_new_connection_requests_the_required_and_the_requested_scopes() -> None:
    provider = build_provider(GitHubProvider, FakeTransport())
    assert list(provider.scopes_to_request(("repo", "read:user"), ())) == ["read:user", "repo"]
