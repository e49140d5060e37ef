"""azure-core: credentials for the Azure and Microsoft Graph libraries, and a policy that renews a rejected token.

`GraphServiceClient(credentials=account.azure())`
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import access_token
from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource
from integration_server.client.errors import IntegrationsError

with needs_extra("azure"):
    from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
    from azure.core.exceptions import ClientAuthenticationError
    from azure.core.pipeline import PipelineRequest, PipelineResponse
    from azure.core.pipeline.policies import AsyncBearerTokenCredentialPolicy, BearerTokenCredentialPolicy

Source = TypeVar("Source", CredentialSource, AsyncCredentialSource)
_FAR_FUTURE = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())  # azure-core knows no token without an expiry time
_MAX_JITTER = 60  # seconds that azure-core adds to `refresh_on`


class _Token(AccessToken):
    """A token that is not printed."""

    def __repr__(self) -> str:
        return f"AccessToken(expires_on={self.expires_on})"


class _TokenInfo(AccessTokenInfo):
    """A token that is not printed."""

    def __repr__(self) -> str:
        return f"AccessTokenInfo(expires_on={self.expires_on}, refresh_on={self.refresh_on})"


class _Issued(Generic[Source]):
    """What a credential has issued."""

    def __init__(self, source: Source) -> None:
        self._source: Source = source
        self._last: Credentials | None = None
        self._answered_claims: str | None = None

    def _rejected(self, claims: str | None) -> Credentials | None:
        """Return the credentials that a claims challenge rejects; None if a renewal has answered it already."""
        if claims is None or self._last is None or claims == self._answered_claims:
            return None
        self._answered_claims = claims
        return self._last

    def _issue(self, credentials: Credentials) -> AccessTokenInfo:
        token = access_token(credentials, "azure-core")
        self._last = credentials
        return _TokenInfo(token, _expires_on(credentials), refresh_on=_refresh_on(credentials))


class AccountCredential(_Issued[CredentialSource]):
    """A `TokenCredential` and `SupportsTokenInfo`.

    The scopes are those that the user has granted, whatever a library asks for. A claims challenge renews the token.
    For all other 401 responses, azure-core's own policy only drops the token; `RenewingTokenPolicy` renews it. Clients
    take it as `authentication_policy`.
    """

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **options: Any,  # noqa: ANN401 — as azure-core declares it
    ) -> AccessToken:
        """Return the current token. Raises `ClientAuthenticationError`."""
        token = self._token(claims)
        return _Token(token.token, token.expires_on)

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return the current token, and when to ask again. Raises `ClientAuthenticationError`."""
        return self._token((options or {}).get("claims"))

    def renew(self, token: str) -> AccessTokenInfo:
        """Return a newer token than the rejected one; the same if there is none."""
        with _authentication_error():
            current = self._source.credentials()
            return self._issue(self._source.renew(current) if current.access_token == token else current)

    def _token(self, claims: str | None) -> AccessTokenInfo:
        with _authentication_error():
            rejected = self._rejected(claims)
            return self._issue(self._source.credentials() if rejected is None else self._source.renew(rejected))

    def close(self) -> None:
        """Do nothing: the source belongs to the client of the Integration Server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncAccountCredential(_Issued[AsyncCredentialSource]):
    """An `AsyncTokenCredential` and `AsyncSupportsTokenInfo`, as `AccountCredential`."""

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **options: Any,  # noqa: ANN401 — as azure-core declares it
    ) -> AccessToken:
        """Return the current token. Raises `ClientAuthenticationError`."""
        token = await self._token(claims)
        return _Token(token.token, token.expires_on)

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return the current token, and when to ask again. Raises `ClientAuthenticationError`."""
        return await self._token((options or {}).get("claims"))

    async def renew(self, token: str) -> AccessTokenInfo:
        """Return a newer token than the rejected one; the same if there is none."""
        with _authentication_error():
            current = await self._source.credentials()
            return self._issue(await self._source.renew(current) if current.access_token == token else current)

    async def _token(self, claims: str | None) -> AccessTokenInfo:
        with _authentication_error():
            rejected = self._rejected(claims)
            return self._issue(await (self._source.credentials() if rejected is None else self._source.renew(rejected)))

    async def close(self) -> None:
        """Do nothing: the source belongs to the client of the Integration Server."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


class RenewingTokenPolicy(BearerTokenCredentialPolicy[Any, Any]):
    """azure-core's policy, which also renews the token once after a 401 without a claims challenge."""

    def __init__(self, credential: AccountCredential, *scopes: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(credential, *scopes, **options)
        self._account = credential

    def on_challenge(self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]) -> bool:
        """Authorize the request with a renewed token, if there is one and the body can be sent again."""
        rejected = _token_of(request)
        if super().on_challenge(request, response):
            return _is_other(rejected, request) and _rewind(request)
        self._token = self._account.renew(rejected)
        self._update_headers(request.http_request.headers, self._token.token)
        return _is_other(rejected, request) and _rewind(request)


class AsyncRenewingTokenPolicy(AsyncBearerTokenCredentialPolicy[Any, Any]):
    """`RenewingTokenPolicy` for asyncio."""

    def __init__(self, credential: AsyncAccountCredential, *scopes: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(credential, *scopes, **options)
        self._account = credential

    async def on_challenge(self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]) -> bool:
        """Authorize the request with a renewed token, if there is one and the body can be sent again."""
        rejected = _token_of(request)
        if await super().on_challenge(request, response):
            return _is_other(rejected, request) and _rewind(request)
        self._token = await self._account.renew(rejected)
        request.http_request.headers["Authorization"] = f"Bearer {self._token.token}"
        return _is_other(rejected, request) and _rewind(request)


@contextmanager
def _authentication_error() -> Iterator[None]:
    """Raise errors of the source as azure-core's own, which its libraries expect."""
    try:
        yield
    except (IntegrationsError, ValueError) as error:
        raise ClientAuthenticationError(message=str(error)) from error


def _expires_on(credentials: Credentials) -> int:
    return _FAR_FUTURE if credentials.expire_time is None else int(credentials.expire_time.timestamp())


def _refresh_on(credentials: Credentials) -> int:
    """Return when a policy asks again: at each request, because the source is the first to know of a newer token."""
    return min(int(datetime.now(UTC).timestamp()), _expires_on(credentials)) - _MAX_JITTER


def _token_of(request: PipelineRequest[Any]) -> str:
    header: str = request.http_request.headers.get("Authorization", "")
    return header.removeprefix("Bearer ")


def _is_other(rejected: str, request: PipelineRequest[Any]) -> bool:
    return _token_of(request) != rejected


def _rewind(request: PipelineRequest[Any]) -> bool:
    """Whether the body can be sent again; a file is set back to its start."""
    message = request.http_request
    body = getattr(message, "_data", None) if hasattr(message, "_data") else getattr(message, "data", None)
    if body is None or isinstance(body, str | bytes | dict):
        return True
    seekable = getattr(body, "seekable", None)
    if seekable is None or not seekable():
        return False
    body.seek(0)
    return True
