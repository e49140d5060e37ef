"""google-auth: credentials for googleapiclient, the Google Cloud libraries and `AuthorizedSession`.

`googleapiclient.discovery.build("calendar", "v3", credentials=account.google())`
"""

from collections.abc import Coroutine, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import access_token
from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource
from integration_server.client.errors import IntegrationsError, Unavailable

with needs_extra("google"):
    from google.auth import credentials as google_credentials
    from google.auth.aio import credentials as google_aio_credentials
    from google.auth.exceptions import RefreshError


@dataclass(slots=True)
class _Sent:
    """A request of one thread or task: what it was sent with, and the number of requests since the last renewal.

    google-auth does not pass to `refresh` what a request was sent with.
    """

    owner: object
    requests: int = 2
    credentials: Credentials | None = None

    def rejected(self, owner: object) -> Credentials | None:
        """Return the credentials to renew; None if there are none, or the request was sent with renewed ones."""
        if self.owner is not owner or self.requests < 2:
            return None
        self.requests = 0
        return self.credentials


_NOTHING = _Sent(owner=None)
_last_sent: ContextVar[_Sent] = ContextVar("last_sent", default=_NOTHING)


def _begin_request(owner: object) -> _Sent:
    last = _last_sent.get()
    sent = _Sent(owner, last.requests + 1 if last.owner is owner else 2)
    _last_sent.set(sent)
    return sent


class AccountCredentials(
    google_credentials.CredentialsWithQuotaProject,
    google_credentials.CredentialsWithUniverseDomain,
    google_credentials.Scoped,
):
    """Credentials that ask their source before each request: they are fresh without a refresh of their own.

    `refresh` is what google-auth calls after a 401. google-auth sends a request up to three times, and calls `refresh`
    in between: the second call for a request renews nothing.
    """

    def __init__(self, source: CredentialSource) -> None:
        super().__init__()
        self._source = source
        self._current: Credentials | None = None

    def before_request(self, request: object, method: str, url: str, headers: MutableMapping[str, str]) -> None:
        """Put the current token on a request."""
        sent = _begin_request(self)
        with _refresh_error():
            sent.credentials = self._source.credentials()
            self._use(sent.credentials)
        self.apply(headers, sent.credentials.access_token)

    def refresh(self, request: object) -> None:
        """Renew the token that the thread's last request was sent with. Without one, get the current token.

        Raises `google.auth.exceptions.RefreshError`.
        """
        with _refresh_error():
            rejected = _last_sent.get().rejected(self)
            self._use(self._source.credentials() if rejected is None else self._source.renew(rejected))

    def _use(self, credentials: Credentials) -> None:
        token, expiry = access_token(credentials, "google-auth"), _naive_utc(credentials.expire_time)
        self._current, self.token, self.expiry = credentials, token, expiry

    @property
    def expired(self) -> bool:
        """Whether the token has expired. google-auth's own margin does not apply: the source keeps one."""
        return self.expiry is not None and datetime.now(UTC).replace(tzinfo=None) >= self.expiry

    @property
    def token_state(self) -> google_credentials.TokenState:
        """FRESH until the token expires."""
        states = google_credentials.TokenState
        return states.FRESH if self.token is not None and not self.expired else states.INVALID

    @property
    def scopes(self) -> Sequence[str] | None:
        """The scopes that the user has granted; None until the first request."""
        return None if self._current is None else list(self._current.scopes)

    @property
    def requires_scopes(self) -> bool:
        """Whether scopes have to be set: the user has granted them already."""
        return False

    def has_scopes(self, scopes: Sequence[str]) -> bool:
        """Whether the user has granted the scopes, as far as is known."""
        return set(scopes) <= set(self.scopes or ())

    def with_scopes(self, scopes: Sequence[str], default_scopes: Sequence[str] | None = None) -> Self:
        """Return a copy. Its scopes are those that the user has granted, whatever a library asks for."""
        return copy(self)

    def with_quota_project(self, quota_project_id: str) -> Self:
        """Return a copy that names a project for quota and billing."""
        changed = copy(self)
        changed._quota_project_id = quota_project_id
        return changed

    def with_universe_domain(self, universe_domain: str) -> Self:
        """Return a copy for another Google Cloud universe."""
        changed = copy(self)
        changed._universe_domain = universe_domain
        return changed


class AsyncAccountCredentials(google_aio_credentials.Credentials):
    """`AccountCredentials` for `google.auth.aio.transport.sessions.AsyncAuthorizedSession`."""

    def __init__(self, source: AsyncCredentialSource) -> None:
        super().__init__()
        self._source = source

    def before_request(
        self, request: object, method: str, url: str, headers: MutableMapping[str, str]
    ) -> Coroutine[Any, Any, None]:
        """Put the current token on a request."""
        # Not in the coroutine: google-auth runs that in a task of its own, whose context nobody sees afterwards.
        return self._authenticate(_begin_request(self), headers)

    async def _authenticate(self, sent: _Sent, headers: MutableMapping[str, str]) -> None:
        with _refresh_error():
            sent.credentials = await self._source.credentials()
            self.token = access_token(sent.credentials, "google-auth")
        await self.apply(headers, sent.credentials.access_token)

    async def refresh(self, request: object) -> None:
        """Renew the token that the last request was sent with. Raises `google.auth.exceptions.RefreshError`."""
        with _refresh_error():
            rejected = _last_sent.get().rejected(self)
            renewed = await (self._source.credentials() if rejected is None else self._source.renew(rejected))
            self.token = access_token(renewed, "google-auth")


@contextmanager
def _refresh_error() -> Iterator[None]:
    """Raise errors of the source as google-auth's own, which its libraries expect."""
    try:
        yield
    except (IntegrationsError, ValueError) as error:
        raise RefreshError(str(error), retryable=isinstance(error, Unavailable)) from error


def _naive_utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)
