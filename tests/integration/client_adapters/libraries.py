"""Each library with its adapter, as a function that makes one request and returns the status of the response."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import requests
from azure.core import AsyncPipelineClient, PipelineClient
from azure.core.rest import HttpRequest
from botocore.exceptions import ClientError
from github import Github, GithubException
from google.auth.aio.transport.sessions import AsyncAuthorizedSession
from google.auth.transport.requests import AuthorizedSession
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from slack_sdk.errors import SlackApiError
from stripe import StripeError
from twilio.base.exceptions import TwilioRestException

from integration_server.client.adapters.azure import AsyncRenewingTokenPolicy, RenewingTokenPolicy
from integration_server.client.adapters.stripe import AsyncAccountHttpClient
from tests.integration.client_adapters.accounts import AsyncFakeAccount, FakeAccount
from tests.integration.client_adapters.provider import AsyncFakeSource, AwsSource, FakeSource

Call = Callable[[], int]
AsyncCall = Callable[[], Awaitable[int]]


def _httpx(source: FakeSource, url: str) -> Call:
    client = httpx.Client(auth=FakeAccount(source).httpx(), trust_env=False)
    return lambda: client.get(f"{url}/thing").status_code


def _requests(source: FakeSource, url: str) -> Call:
    session = requests.Session()
    session.auth = FakeAccount(source).requests()
    return lambda: session.get(f"{url}/thing").status_code


def _google(source: FakeSource, url: str) -> Call:
    session = AuthorizedSession(FakeAccount(source).google())
    return lambda: int(session.get(f"{url}/thing").status_code)


def _googleapiclient(source: FakeSource, url: str) -> Call:
    credentials = FakeAccount(source).google()

    def call() -> int:
        # httplib2 is not thread-safe: a service for each thread is what its documentation asks for.
        service = build("calendar", "v3", credentials=credentials, client_options={"api_endpoint": url})
        try:
            with service:
                service.calendarList().list().execute()
        except HttpError as error:
            return int(error.resp.status)
        return 200

    return call


def _azure(source: FakeSource, url: str) -> Call:
    policy = RenewingTokenPolicy(FakeAccount(source).azure(), "https://graph/.default")
    client: PipelineClient[Any, Any] = PipelineClient(url, policies=[policy])
    return lambda: int(client.send_request(HttpRequest("GET", f"{url}/thing"), enforce_https=False).status_code)


def _github(source: FakeSource, url: str) -> Call:
    github = Github(auth=FakeAccount(source).github(), base_url=url, retry=None)

    def call() -> int:
        try:
            return 200 if github.get_user("ada").login == "ada" else 500
        except GithubException as error:
            return error.status

    return call


def _twilio(source: FakeSource, url: str) -> Call:
    client = FakeAccount(source).twilio()
    client.api.base_url = url

    def call() -> int:
        try:
            client.api.account.fetch()
        except TwilioRestException as error:
            return int(error.status)
        return 200

    return call


def _slack(source: FakeSource, url: str) -> Call:
    client = FakeAccount(source).slack(base_url=f"{url}/slack/")

    def call() -> int:
        try:
            return 200 if client.auth_test()["ok"] else 500
        except SlackApiError as error:
            return 401 if error.response["error"] == "token_expired" else 500

    return call


def _stripe(source: FakeSource, url: str) -> Call:
    client = FakeAccount(source).stripe(base_addresses={"api": url})

    def call() -> int:
        try:
            client.v1.balance.retrieve()
        except StripeError as error:
            return error.http_status or 500
        return 200

    return call


def _botocore(source: FakeSource, url: str) -> Call:
    session = FakeAccount(source).botocore().session()
    client = session.create_client("s3", region_name="us-east-1", endpoint_url=url)

    def call() -> int:
        try:
            client.list_buckets()
        except ClientError as error:
            return 401 if error.response["Error"]["Code"] == "ExpiredToken" else 500
        return 200

    return call


SYNC: dict[str, Callable[[FakeSource, str], Call]] = {
    "httpx": _httpx,
    "requests": _requests,
    "google": _google,
    "googleapiclient": _googleapiclient,
    "azure": _azure,
    "github": _github,
    "twilio": _twilio,
    "slack": _slack,
    "stripe": _stripe,
    "botocore": _botocore,
}


def source_for(library: str) -> FakeSource:
    """A source of the kind of secret that the library takes."""
    if library == "botocore":
        return AwsSource()
    return FakeSource("basic" if library == "twilio" else "bearer")


def _httpx_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    async def call() -> int:
        async with httpx.AsyncClient(auth=AsyncFakeAccount(source).httpx(), trust_env=False) as client:
            return (await client.get(f"{url}/thing")).status_code

    return call


def _google_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    credentials = AsyncFakeAccount(source).google()

    async def call() -> int:
        session = AsyncAuthorizedSession(credentials)
        try:
            response = await session.request("GET", f"{url}/thing")
            await response.read()
            return int(response.status_code)
        finally:
            await session.close()

    return call


def _azure_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    credential = AsyncFakeAccount(source).azure()

    async def call() -> int:
        policy = AsyncRenewingTokenPolicy(credential, "https://graph/.default")
        client: AsyncPipelineClient[Any, Any] = AsyncPipelineClient(url, policies=[policy])
        async with client:
            return int((await client.send_request(HttpRequest("GET", f"{url}/thing"), enforce_https=False)).status_code)

    return call


def _twilio_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    async def call() -> int:
        client = await AsyncFakeAccount(source).twilio()
        client.api.base_url = url
        try:
            await client.api.account.fetch_async()
        except TwilioRestException as error:
            return int(error.status)
        finally:
            await client.http_client.close()
        return 200

    return call


def _slack_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    client = AsyncFakeAccount(source).slack(base_url=f"{url}/slack/")

    async def call() -> int:
        try:
            return 200 if (await client.auth_test())["ok"] else 500
        except SlackApiError as error:
            return 401 if error.response["error"] == "token_expired" else 500

    return call


def _stripe_async(source: AsyncFakeSource, url: str) -> AsyncCall:
    async def call() -> int:
        http_client = AsyncAccountHttpClient(source)
        client = AsyncFakeAccount(source).stripe(http_client=http_client, base_addresses={"api": url})
        try:
            await client.v1.balance.retrieve_async()
        except StripeError as error:
            return error.http_status or 500
        finally:
            await http_client.close_async()
        return 200

    return call


ASYNC: dict[str, Callable[[AsyncFakeSource, str], AsyncCall]] = {
    "httpx": _httpx_async,
    "google": _google_async,
    "azure": _azure_async,
    "twilio": _twilio_async,
    "slack": _slack_async,
    "stripe": _stripe_async,
}


def async_source_for(library: str) -> AsyncFakeSource:
    """A source of the kind of secret that the library takes."""
    return AsyncFakeSource("basic" if library == "twilio" else "bearer")


def secret_holders(source: FakeSource) -> list[object]:
    """What the adapters return for an account, to be printed."""
    return [
        FakeAccount(source).httpx(),
        FakeAccount(source).requests(),
        FakeAccount(source).google(),
        FakeAccount(source).azure(),
        FakeAccount(source).github(),
        FakeAccount(source).slack(),
        FakeAccount(source).stripe(),
        source.credentials(),
        FakeAccount(source).azure().get_token("scope"),
        FakeAccount(source).azure().get_token_info("scope"),
        FakeAccount(AwsSource()).botocore(),
        FakeAccount(AwsSource()).botocore().get_frozen_credentials(),
        FakeAccount(FakeSource("basic")).twilio(),
    ]
