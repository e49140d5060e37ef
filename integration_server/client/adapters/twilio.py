"""twilio: a client with an account's API key.

`account.twilio().messages.create(…)`
"""

from typing import Any

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import key_pair
from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource

with needs_extra("twilio"):
    from twilio.http import AsyncHttpClient, HttpClient
    from twilio.http.async_http_client import AsyncTwilioHttpClient
    from twilio.http.http_client import TwilioHttpClient
    from twilio.http.response import Response
    from twilio.rest import Client

_PLACEHOLDER = "replaced-by-the-http-client"  # the library requires a password, and takes one from the environment


def client(
    source: CredentialSource,
    *,
    account_sid: str | None = None,
    http_client: HttpClient | None = None,
    **options: Any,  # noqa: ANN401 — of twilio.rest.Client
) -> Client:
    """Return a client. `account_sid` is required for an API key (`SK…`), which is not its account's SID."""
    sid = _account_sid(account_sid, source.credentials())
    return Client(sid, _PLACEHOLDER, http_client=AccountHttpClient(source, http_client), **options)


async def async_client(
    source: AsyncCredentialSource,
    *,
    account_sid: str | None = None,
    http_client: AsyncHttpClient | None = None,
    **options: Any,  # noqa: ANN401 — of twilio.rest.Client
) -> Client:
    """Return a client for the methods whose names end in `_async`."""
    sid = _account_sid(account_sid, await source.credentials())
    return Client(sid, _PLACEHOLDER, http_client=AsyncAccountHttpClient(source, http_client), **options)


class AccountHttpClient(HttpClient):
    """Sends requests through another HTTP client, with the current credentials."""

    def __init__(self, source: CredentialSource, http_client: HttpClient | None = None) -> None:
        self._http = http_client or TwilioHttpClient()
        super().__init__(self._http.logger, is_async=False, timeout=self._http.timeout)
        self._source = source

    def request(
        self,
        method: str,
        uri: str,
        params: dict[str, object] | None = None,
        data: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        """Send a request, and once more if its credentials are rejected."""
        if auth is not None and auth[1] != _PLACEHOLDER:  # of this call
            return self._http.request(method, uri, params, data, headers, auth, timeout, allow_redirects)

        def send(credentials: Credentials) -> Response:
            authenticated = {**(headers or {}), **credentials.headers}
            return self._http.request(method, uri, params, data, authenticated, None, timeout, allow_redirects)

        used = self._source.credentials()
        response = send(used)
        if response.status_code == 401:
            renewed = self._source.renew(used)
            if not renewed.has_same_secret(used):
                response = send(renewed)
        return response


class AsyncAccountHttpClient(AsyncHttpClient):
    """`AccountHttpClient` for asyncio."""

    def __init__(self, source: AsyncCredentialSource, http_client: AsyncHttpClient | None = None) -> None:
        self._http = http_client or AsyncTwilioHttpClient()
        super().__init__(self._http.logger, is_async=True, timeout=self._http.timeout)
        self._source = source

    async def request(
        self,
        method: str,
        uri: str,
        params: dict[str, object] | None = None,
        data: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        """Send a request, and once more if its credentials are rejected."""
        if auth is not None and auth[1] != _PLACEHOLDER:  # of this call
            return await self._http.request(method, uri, params, data, headers, auth, timeout, allow_redirects)

        async def send(credentials: Credentials) -> Response:
            authenticated = {**(headers or {}), **credentials.headers}
            return await self._http.request(method, uri, params, data, authenticated, None, timeout, allow_redirects)

        used = await self._source.credentials()
        response = await send(used)
        if response.status_code == 401:
            renewed = await self._source.renew(used)
            if not renewed.has_same_secret(used):
                response = await send(renewed)
        return response

    async def close(self) -> None:
        """Close the library's own client."""
        if isinstance(self._http, AsyncTwilioHttpClient):
            await self._http.close()


def _account_sid(configured: str | None, credentials: Credentials) -> str:
    api_key, _ = key_pair(credentials, "twilio")
    if configured is None and not api_key.startswith("AC"):
        raise ValueError("the key is not an account SID (AC…): name the account with account_sid=")
    return configured or str(api_key)  # which is no secret
