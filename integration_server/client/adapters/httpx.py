"""httpx: authentication for `httpx.Client` and `httpx.AsyncClient`.

`httpx.Client(auth=account.httpx()).get(url)`
"""

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Protocol

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import carries, is_same_origin, with_query_params
from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource

with needs_extra("httpx"):
    import httpx
    from anyio.to_thread import run_sync  # of httpx: runs on asyncio and on trio


class AccountAuth(httpx.Auth):
    """Authenticates the requests of both kinds of client.

    With an `httpx.AsyncClient` the source is used in a thread, because it may wait for the server.
    """

    def __init__(self, source: CredentialSource) -> None:
        self._source = source

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the current credentials, and once more if they are rejected."""
        exchange = _Exchange(request, self._source.credentials())
        response = yield exchange.authenticated(request)
        if exchange.has_lost_credentials(response):
            response = yield exchange.authenticated(response.request)
        if exchange.is_rejected(response):
            renewed = self._source.renew(exchange.credentials)
            if exchange.can_repeat(response.request, renewed):
                yield exchange.authenticated(response.request)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request as `sync_auth_flow` does."""
        exchange = _Exchange(request, await run_sync(self._source.credentials))
        response = yield exchange.authenticated(request)
        if exchange.has_lost_credentials(response):
            response = yield exchange.authenticated(response.request)
        if exchange.is_rejected(response):
            renewed = await run_sync(self._source.renew, exchange.credentials)
            if exchange.can_repeat(response.request, renewed):
                yield exchange.authenticated(response.request)


class AsyncAccountAuth(httpx.Auth):
    """Authenticates the requests of an `httpx.AsyncClient`."""

    def __init__(self, source: AsyncCredentialSource) -> None:
        self._source = source

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Refuse: the source needs an event loop."""
        raise RuntimeError("an account of AsyncIntegrations authenticates an httpx.AsyncClient; use Integrations here")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request with the current credentials, and once more if they are rejected."""
        exchange = _Exchange(request, await self._source.credentials())
        response = yield exchange.authenticated(request)
        if exchange.has_lost_credentials(response):
            response = yield exchange.authenticated(response.request)
        if exchange.is_rejected(response):
            renewed = await self._source.renew(exchange.credentials)
            if exchange.can_repeat(response.request, renewed):
                yield exchange.authenticated(response.request)


class _Exchange:
    """One request with its redirects, and the credentials that it was sent with."""

    def __init__(self, request: httpx.Request, credentials: Credentials) -> None:
        self.credentials = credentials
        self._origin = str(request.url)

    def authenticated(self, request: httpx.Request) -> httpx.Request:
        """Put the credentials on the request."""
        # httpx itself removes Authorization, but no other header, from a redirect to another origin; not if that is the
        # same host with https.
        is_removed = request.url.scheme == "https"
        hidden = {
            name: value
            for name, value in self.credentials.headers.items()
            if name.lower() != "authorization" or not is_removed
        }
        plain = httpx.Headers(request.headers)
        for name in hidden:
            plain.pop(name, None)
        plain.update({name: value for name, value in self.credentials.headers.items() if name not in hidden})
        request.headers = _HeadersForOneOrigin(plain, hidden) if hidden else plain
        if self.credentials.query:
            request.url = httpx.URL(with_query_params(str(request.url), self.credentials.query))
        return request

    def has_lost_credentials(self, response: httpx.Response) -> bool:
        """Whether a redirect on the same origin was sent without the credentials."""
        return self.is_rejected(response) and not carries(
            str(response.request.url), response.request.headers, self.credentials
        )

    def is_rejected(self, response: httpx.Response) -> bool:
        """Whether the origin that gets the credentials has rejected them."""
        return response.status_code == httpx.codes.UNAUTHORIZED and is_same_origin(
            str(response.request.url), self._origin
        )

    def can_repeat(self, request: httpx.Request, renewed: Credentials) -> bool:
        """Whether the request can be sent again, with these credentials from now on."""
        rejected, self.credentials = self.credentials, renewed
        return not renewed.has_same_secret(rejected) and _is_replayable(request)


class _HeadersForOneOrigin(httpx.Headers):
    """Headers of which some are sent and can be read, but do not get into a copy.

    httpx copies the headers of a request into the request that follows a redirect.
    """

    def __init__(self, headers: httpx.Headers, hidden: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._hidden = httpx.Headers(hidden)

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """All headers, as they are sent."""
        return [*super().raw, *self._hidden.raw]

    def __getitem__(self, name: str) -> str:
        return self._hidden[name] if name in self._hidden else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return name in self._hidden or super().__contains__(name)


class _Field(Protocol):
    file: object


def _is_replayable(request: httpx.Request) -> bool:
    """Whether the body can be sent twice: bytes, or a form whose files can be read from their start again."""
    if isinstance(request.stream, httpx.ByteStream):
        return True
    fields: list[_Field] | None = getattr(request.stream, "fields", None)  # of a multipart form
    return fields is not None and all(_can_be_read_again(getattr(field, "file", b"")) for field in fields)


def _can_be_read_again(file: object) -> bool:
    seekable = getattr(file, "seekable", None)
    return isinstance(file, str | bytes) or (seekable is not None and bool(seekable()))
