"""stripe: a `StripeClient` with the current key or token of an account.

`account.stripe().v1.customers.list()`
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from integration_server.client.adapters import needs_extra
from integration_server.client.credentials import AsyncCredentialSource, CredentialSource

with needs_extra("stripe"):
    import stripe

_PLACEHOLDER = "replaced-by-the-http-client"
Body = TypeVar("Body")
_Response = tuple[Body, int, Mapping[str, str]]


def client(
    source: CredentialSource,
    *,
    http_client: stripe.HTTPClient | None = None,
    **options: Any,  # noqa: ANN401 — of StripeClient
) -> stripe.StripeClient:
    """Return a client. A key that a call names in its options is used for that call."""
    return stripe.StripeClient(_PLACEHOLDER, http_client=AccountHttpClient(source, http_client), **options)


def async_client(
    source: AsyncCredentialSource,
    *,
    http_client: stripe.HTTPClient | None = None,
    **options: Any,  # noqa: ANN401 — of StripeClient
) -> stripe.StripeClient:
    """Return a client for the methods whose names end in `_async`. The default HTTP client needs httpx."""
    return stripe.StripeClient(_PLACEHOLDER, http_client=AsyncAccountHttpClient(source, http_client), **options)


class _HttpClient(stripe.HTTPClient):
    """Sends requests through another HTTP client."""

    name = "integration_server"  # in the header that describes the client to Stripe

    def __init__(self, http: stripe.HTTPClient) -> None:
        super().__init__()
        self._http = http

    def sleep_async(self, secs: float) -> Awaitable[None]:
        """Wait before a retry."""
        return asyncio.sleep(secs)

    def close(self) -> None:
        """Close the other client."""
        self._http.close()

    async def close_async(self) -> None:
        """Close the other client."""
        await self._http.close_async()


class AccountHttpClient(_HttpClient):
    """Sends requests with the current credentials."""

    def __init__(self, source: CredentialSource, http: stripe.HTTPClient | None = None) -> None:
        super().__init__(http or stripe.new_default_http_client())
        self._source = source

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,  # noqa: ANN401 — as the library declares it
        *,
        _usage: list[str] | None = None,
    ) -> _Response[str]:
        """Send a request, and once more if its credentials are rejected."""
        return self._send(lambda sent: self._http.request(method, url, sent, post_data), headers)

    def request_stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,  # noqa: ANN401 — as the library declares it
        *,
        _usage: list[str] | None = None,
    ) -> _Response[Any]:
        """Send a request whose response is a stream."""
        return self._send(lambda sent: self._http.request_stream(method, url, sent, post_data), headers)

    def _send(
        self, send: Callable[[Mapping[str, str]], _Response[Body]], headers: Mapping[str, str] | None
    ) -> _Response[Body]:
        if not _has_placeholder(headers):
            return send(headers or {})
        used = self._source.credentials()
        response = send({**(headers or {}), **used.headers})
        if response[1] == 401:
            renewed = self._source.renew(used)
            if not renewed.has_same_secret(used):
                response = send({**(headers or {}), **renewed.headers})
        return response


class AsyncAccountHttpClient(_HttpClient):
    """`AccountHttpClient` for asyncio."""

    def __init__(self, source: AsyncCredentialSource, http: stripe.HTTPClient | None = None) -> None:
        super().__init__(http or stripe.HTTPXClient())
        self._source = source

    async def request_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any = None,  # noqa: ANN401
    ) -> _Response[bytes]:
        """Send a request, and once more if its credentials are rejected."""
        return await self._send(lambda sent: self._http.request_async(method, url, sent, post_data), headers)

    async def request_stream_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any = None,  # noqa: ANN401
    ) -> _Response[AsyncIterable[bytes]]:
        """Send a request whose response is a stream."""
        return await self._send(lambda sent: self._http.request_stream_async(method, url, sent, post_data), headers)

    async def _send(
        self, send: Callable[[Mapping[str, str]], Awaitable[_Response[Body]]], headers: Mapping[str, str]
    ) -> _Response[Body]:
        if not _has_placeholder(headers):
            return await send(headers)
        used = await self._source.credentials()
        response = await send({**headers, **used.headers})
        if response[1] == 401:
            renewed = await self._source.renew(used)
            if not renewed.has_same_secret(used):
                response = await send({**headers, **renewed.headers})
        return response


def _has_placeholder(headers: Mapping[str, str] | None) -> bool:
    return (headers or {}).get("Authorization") == f"Bearer {_PLACEHOLDER}"
