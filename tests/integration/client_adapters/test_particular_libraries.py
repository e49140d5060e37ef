"""What single libraries need beyond the rules of all adapters."""

import base64
import importlib
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from azure.core import PipelineClient
from azure.core.credentials import AccessToken, SupportsTokenInfo, TokenCredential
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.core.pipeline.policies import BearerTokenCredentialPolicy
from azure.core.rest import HttpRequest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError
from google.auth.credentials import TokenState, with_scopes_if_required
from google.auth.exceptions import RefreshError
from google.auth.transport.grpc import AuthMetadataPlugin
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from twilio.http import HttpClient
from twilio.http.response import Response as TwilioResponse

from integration_server.client.adapters import azure, botocore, google, slack, stripe, twilio
from integration_server.client.adapters.requests import AccountAuth
from integration_server.client.credentials import Credentials
from integration_server.client.errors import ReauthorizationRequired, Unavailable
from tests.integration.client_adapters.provider import (
    AsyncFakeSource,
    AwsSource,
    FakeSource,
    Provider,
    running_provider,
)

# Several of the libraries leave their connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("connections_are_collected"),
]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


class EndedSource(FakeSource):
    """A source whose grant has ended after the first credentials."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def renew(self, rejected: Credentials) -> Credentials:
        """Raise the error."""
        raise self.error


class GoneSource(FakeSource):
    """A source without credentials."""

    def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """Raise."""
        raise ReauthorizationRequired("the user must connect this account again")


# --- google-auth ----------------------------------------------------------------------------------------------------


def test_google_expiry_is_naive_utc_and_tokens_are_fresh_until_then() -> None:
    source = FakeSource()
    source.lifetime = timedelta(seconds=30)  # google-auth's own margin is 3:45
    source.rotate()
    credentials = google.AccountCredentials(source)
    assert (credentials.token, credentials.valid, credentials.scopes) == (None, False, None)
    credentials.refresh(None)
    assert credentials.expiry is not None
    assert credentials.expiry.tzinfo is None
    assert abs(credentials.expiry - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)
    assert (credentials.valid, credentials.expired, credentials.token_state) == (True, False, TokenState.FRESH)
    assert credentials.scopes == ["read"]
    credentials.expiry = datetime.now(UTC).replace(tzinfo=None)
    assert (credentials.valid, credentials.expired, credentials.token_state) == (False, True, TokenState.INVALID)


def test_google_a_refresh_without_a_rejection_renews_nothing() -> None:
    source = FakeSource()
    credentials = google.AccountCredentials(source)
    for _ in range(3):  # as `if not credentials.valid: credentials.refresh(Request())` does
        credentials.refresh(None)
    assert source.renewals == 0


def test_google_copies_have_another_quota_project_universe_or_scopes() -> None:
    source = FakeSource()
    credentials = google.AccountCredentials(source)
    headers: dict[str, str] = {}
    copies = credentials.with_quota_project("billing").with_universe_domain("example.com").with_scopes(["calendar"])
    copies.before_request(None, "GET", "https://www.googleapis.com/", headers)
    assert headers == {"authorization": "Bearer s3cret-g1", "x-goog-user-project": "billing"}
    assert (copies.universe_domain, credentials.universe_domain) == ("example.com", "googleapis.com")
    assert (copies.scopes, copies.has_scopes(["read"]), copies.has_scopes(["calendar"])) == (["read"], True, False)
    assert with_scopes_if_required(credentials, ["calendar"]) is credentials
    assert credentials.quota_project_id is None


def test_google_grpc_calls_have_the_current_token() -> None:
    source = FakeSource()
    plugin = AuthMetadataPlugin(google.AccountCredentials(source), None)
    received: list[Any] = []

    class Context:
        service_url = "https://pubsub.googleapis.com/google.pubsub.v1.Publisher"
        method_name = "Publish"

    for _ in range(2):
        plugin(Context(), lambda metadata, error: received.append((dict(metadata)["authorization"], error)))
        source.rotate()
    assert received == [("Bearer s3cret-g1", None), ("Bearer s3cret-g2", None)]


@pytest.mark.parametrize(
    ("error", "is_retryable"), [(ReauthorizationRequired("connect again"), False), (Unavailable("later"), True)]
)
def test_google_errors_of_the_client_are_refresh_errors(error: Exception, is_retryable: bool) -> None:
    credentials = google.AccountCredentials(EndedSource(error))
    credentials.before_request(None, "GET", "https://www.googleapis.com/", {})
    with pytest.raises(RefreshError, match=str(error)) as raised:
        credentials.refresh(None)
    assert raised.value.__cause__ is error
    assert raised.value.retryable is is_retryable


# --- requests -------------------------------------------------------------------------------------------------------


def test_requests_a_prepared_request_that_is_sent_again_is_renewed_again(provider: Provider) -> None:
    source = FakeSource()
    with requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", f"{provider.url}/thing", auth=AccountAuth(source)))
        for generation in (2, 3):
            provider.valid = {generation}
            assert session.send(prepared).status_code == 200
    assert provider.secrets == [[1], [2], [2], [3]]


# --- azure-core -----------------------------------------------------------------------------------------------------


async def test_azure_both_kinds_of_credential_have_both_interfaces() -> None:
    credential = azure.AccountCredential(FakeSource())
    assert isinstance(credential, TokenCredential)
    assert isinstance(credential, SupportsTokenInfo)
    with credential as entered:
        token = entered.get_token("https://graph.microsoft.com/.default", tenant_id="t", enable_cae=True)
        info = entered.get_token_info("https://graph.microsoft.com/.default", options={"enable_cae": True})
    assert isinstance(token, AccessToken)
    assert (token.token, info.token, info.token_type) == ("s3cret-g1", "s3cret-g1", "Bearer")
    assert token.expires_on == info.expires_on > datetime.now(UTC).timestamp() + 3000
    assert info.refresh_on is not None
    assert info.refresh_on < info.expires_on
    async_credential = azure.AsyncAccountCredential(AsyncFakeSource())
    assert isinstance(async_credential, AsyncTokenCredential)
    assert isinstance(async_credential, AsyncSupportsTokenInfo)
    async with async_credential as entered_async:
        assert (await entered_async.get_token("scope")).token == "s3cret-g1"
        assert (await entered_async.get_token_info("scope")).token == "s3cret-g1"


def _claims(value: int) -> str:
    return base64.urlsafe_b64encode(f'{{"access_token":{{"nbf":{{"value":"{value}"}}}}}}'.encode()).decode().rstrip("=")


def test_azure_its_own_policy_asks_before_each_request_and_answers_claims_challenges(provider: Provider) -> None:
    source = FakeSource()
    credential = azure.AccountCredential(source)
    policy: BearerTokenCredentialPolicy[Any, Any] = BearerTokenCredentialPolicy(credential, "scope")
    client: PipelineClient[Any, Any] = PipelineClient(provider.url, policies=[policy])

    def send() -> int:
        return int(client.send_request(HttpRequest("GET", f"{provider.url}/thing"), enforce_https=False).status_code)

    assert send() == 200
    source.rotate()
    provider.valid = {2}
    assert send() == 200
    provider.challenge = f'Bearer error="insufficient_claims", claims="{_claims(1)}"'
    provider.valid = {3}
    assert send() == 200
    assert provider.secrets == [[1], [2], [2], [3]]
    assert source.renewals == 1
    provider.valid = set()
    assert send() == 401  # the same claims again: renewing has not helped
    assert source.renewals == 1


def test_azure_no_token_is_sent_without_tls(provider: Provider) -> None:
    policy = azure.RenewingTokenPolicy(azure.AccountCredential(FakeSource()), "scope")
    client: PipelineClient[Any, Any] = PipelineClient(provider.url, policies=[policy])
    with pytest.raises(ServiceRequestError, match="non-TLS"):
        client.send_request(HttpRequest("GET", f"{provider.url}/thing"))
    assert provider.received == []


def test_azure_errors_of_the_client_are_authentication_errors() -> None:
    with pytest.raises(ClientAuthenticationError, match="connect this account again"):
        azure.AccountCredential(GoneSource()).get_token("scope")
    with pytest.raises(ClientAuthenticationError, match="needs an access token"):
        azure.AccountCredential(FakeSource("header")).get_token("scope")


# --- twilio, slack_sdk, stripe, botocore ----------------------------------------------------------------------------


def test_twilio_a_key_that_is_no_account_sid_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC-of-somebody-else")
    assert twilio.client(FakeSource("basic")).account_sid == f"AC{1:032}"
    with pytest.raises(ValueError, match="account_sid="):
        twilio.client(_KeySource())
    assert twilio.client(_KeySource(), account_sid="AC2").account_sid == "AC2"
    with pytest.raises(ValueError, match="needs an API key with a secret"):
        twilio.client(FakeSource())


class _KeySource(FakeSource):
    def _issue(self) -> Credentials:
        return Credentials(
            integration_id=7, api_key="SK1", api_secret="s3cret", headers={"Authorization": "Basic eA=="}
        )


class RecordingHttpClient(HttpClient):  # type: ignore[misc]  # twilio has no types
    """Records what a request is authenticated with."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger(), is_async=False)
        self.received: list[tuple[object, str | None]] = []

    def request(self, method: str, uri: str, *args: Any) -> TwilioResponse:
        """Reject the request."""
        _, _, headers, auth, *_ = args
        self.received.append((auth, headers.get("Authorization")))
        return TwilioResponse(401, "{}")


def test_twilio_a_key_of_the_call_is_used_as_it_is() -> None:
    source, http = FakeSource("basic"), RecordingHttpClient()
    client = twilio.client(source, http_client=http)
    client.request("GET", "https://api.twilio.com/2010-04-01/Accounts.json", auth=("AC2", "another"))
    assert http.received == [(("AC2", "another"), None)]
    assert source.renewals == 0
    client.request("GET", "https://api.twilio.com/2010-04-01/Accounts.json")  # negative control
    assert [auth for auth, _ in http.received[1:]] == [None, None]
    assert source.renewals == 1


def test_slack_further_pages_have_the_current_token(provider: Provider) -> None:
    source = FakeSource()
    provider.next_cursor = "page-2"
    pages = iter(slack.client(source, base_url=f"{provider.url}/slack/").conversations_list())
    next(pages)
    source.rotate()
    provider.valid, provider.next_cursor = {2}, ""
    next(pages)
    assert provider.secrets == [[1], [2]]


def test_slack_a_token_of_the_call_is_not_renewed(provider: Provider) -> None:
    source = FakeSource()
    client = slack.client(source, base_url=f"{provider.url}/slack/")
    with pytest.raises(SlackApiError):
        client.auth_test(token="s3cret-g9")
    assert (provider.secrets, source.renewals) == ([[9]], 0)
    with pytest.raises(ValueError, match="the token of this client"):
        client.token = "another"


def test_negative_control_slack_itself_sends_the_token_to_another_host(provider: Provider) -> None:
    with running_provider() as other:
        provider.redirects["/slack/auth.test"] = (302, f"{other.url}/slack/auth.test")
        WebClient("s3cret-g1", base_url=f"{provider.url}/slack/").auth_test()
        assert other.secrets == [[1]]


def test_stripe_a_key_of_the_call_is_used_as_it_is(provider: Provider) -> None:
    source = FakeSource()
    client = stripe.client(source, base_addresses={"api": provider.url})
    with pytest.raises(Exception, match="rejected"):
        client.v1.balance.retrieve(options={"api_key": "s3cret-g9"})
    assert (provider.secrets, source.renewals) == ([[9]], 0)


def test_botocore_credentials_are_refreshable_and_take_over_a_newer_key() -> None:
    source = AwsSource()
    credentials = botocore.AccountCredentials(source)
    assert isinstance(credentials, RefreshableCredentials)
    first = credentials.get_frozen_credentials()
    assert (first.access_key, first.secret_key, first.token) == ("s3cret-g1", "aws-secret", None)
    source.rotate()
    assert credentials.get_frozen_credentials().access_key == credentials.access_key == "s3cret-g2"
    assert set(credentials.fetch_metadata()) == {"access_key", "secret_key", "token", "expiry_time"}
    assert datetime.fromisoformat(credentials.fetch_metadata()["expiry_time"]) > datetime.now(UTC)


def test_botocore_errors_of_the_client_are_retrieval_errors() -> None:
    with pytest.raises(CredentialRetrievalError, match="connect this account again"):
        botocore.AccountCredentials(GoneSource())


# --- Missing libraries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "library", "extra"),
    [
        ("httpx", "httpx", "httpx"),
        ("google", "google.auth", "google"),
        ("slack_async", "aiohttp", "slack"),
        ("botocore", "botocore.credentials", "botocore"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, adapter: str, library: str, extra: str
) -> None:
    name = f"integration_server.client.adapters.{adapter}"
    for loaded in [
        each for each in sys.modules if each == library or each.startswith((f"{library}.", name, "slack_sdk"))
    ]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'integration-server\[{extra}\]'"):
        importlib.import_module(name)
