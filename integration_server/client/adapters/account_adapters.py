"""The methods of accounts that return an adapter. A library is imported when its method is called."""

from typing import TYPE_CHECKING, Any

from integration_server.client.credentials import AsyncCredentialSource, CredentialSource

if TYPE_CHECKING:
    import stripe as stripe_sdk
    from twilio.rest import Client as TwilioClient

    from integration_server.client.adapters import azure, botocore, github, google, httpx, requests, slack, slack_async

# ruff: noqa: ANN401, PLC0415 - options are those of the library's own client; libraries are extras


class AccountAdapters(CredentialSource):
    """The account's credentials in the libraries of providers: docs/client-adapters.md."""

    __slots__ = ()

    def httpx(self) -> "httpx.AccountAuth":
        """Return what `httpx.Client` and `httpx.AsyncClient` take as `auth`."""
        from integration_server.client.adapters.httpx import AccountAuth

        return AccountAuth(self)

    def requests(self) -> "requests.AccountAuth":
        """Return what requests takes as `auth`, of a request or of a session."""
        from integration_server.client.adapters.requests import AccountAuth

        return AccountAuth(self)

    def google(self) -> "google.AccountCredentials":
        """Return `google.auth.credentials.Credentials`."""
        from integration_server.client.adapters.google import AccountCredentials

        return AccountCredentials(self)

    def azure(self) -> "azure.AccountCredential":
        """Return a `TokenCredential` and `SupportsTokenInfo` of azure-core."""
        from integration_server.client.adapters.azure import AccountCredential

        return AccountCredential(self)

    def github(self) -> "github.AccountAuth":
        """Return what `github.Github` takes as `auth`."""
        from integration_server.client.adapters.github import AccountAuth

        return AccountAuth(self)

    def twilio(self, **options: Any) -> "TwilioClient":
        """Return a `twilio.rest.Client`. An API key (`SK…`) needs `account_sid`; other options are the client's own."""
        from integration_server.client.adapters.twilio import client

        return client(self, **options)

    def slack(self, **options: Any) -> "slack.AccountWebClient":
        """Return a `slack_sdk.WebClient` with its options."""
        from integration_server.client.adapters.slack import client

        return client(self, **options)

    def stripe(self, **options: Any) -> "stripe_sdk.StripeClient":
        """Return a `stripe.StripeClient` with its options."""
        from integration_server.client.adapters.stripe import client

        return client(self, **options)

    def botocore(self) -> "botocore.AccountCredentials":
        """Return `RefreshableCredentials` of botocore."""
        from integration_server.client.adapters.botocore import AccountCredentials

        return AccountCredentials(self)


class AsyncAccountAdapters(AsyncCredentialSource):
    """The account's credentials in the libraries of providers that have a client for asyncio."""

    __slots__ = ()

    def httpx(self) -> "httpx.AsyncAccountAuth":
        """Return what `httpx.AsyncClient` takes as `auth`."""
        from integration_server.client.adapters.httpx import AsyncAccountAuth

        return AsyncAccountAuth(self)

    def google(self) -> "google.AsyncAccountCredentials":
        """Return `google.auth.aio.credentials.Credentials`."""
        from integration_server.client.adapters.google import AsyncAccountCredentials

        return AsyncAccountCredentials(self)

    def azure(self) -> "azure.AsyncAccountCredential":
        """Return an `AsyncTokenCredential` and `AsyncSupportsTokenInfo` of azure-core."""
        from integration_server.client.adapters.azure import AsyncAccountCredential

        return AsyncAccountCredential(self)

    async def twilio(self, **options: Any) -> "TwilioClient":
        """Return a `twilio.rest.Client` for methods that end in `_async`; options as for accounts without asyncio."""
        from integration_server.client.adapters.twilio import async_client

        return await async_client(self, **options)

    def slack(self, **options: Any) -> "slack_async.AsyncAccountWebClient":
        """Return an `AsyncWebClient` of slack_sdk with its options."""
        from integration_server.client.adapters.slack_async import client

        return client(self, **options)

    def stripe(self, **options: Any) -> "stripe_sdk.StripeClient":
        """Return a `stripe.StripeClient`, for methods that end in `_async`, with its options."""
        from integration_server.client.adapters.stripe import async_client

        return async_client(self, **options)
