"""botocore: refreshable credentials for AWS and for services with its interface, such as S3-compatible stores.

`account.botocore().session().create_client("s3")`
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypedDict

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import key_pair
from integration_server.client.credentials import Credentials, CredentialSource
from integration_server.client.errors import IntegrationsError

with needs_extra("botocore"):
    from botocore.credentials import CredentialProvider, CredentialResolver, ReadOnlyCredentials, RefreshableCredentials
    from botocore.exceptions import CredentialRetrievalError
    from botocore.session import Session

_METHOD = "integration-server"
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)  # botocore's refreshable credentials have an expiry time
_REJECTED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "UnrecognizedClientException"})
"""AWS's errors for a key that is not valid (any longer), with status 400 or 403."""


class Metadata(TypedDict):
    """What botocore's refreshable credentials are refreshed with."""

    access_key: str
    secret_key: str
    token: str | None
    expiry_time: str


class _FrozenCredentials(ReadOnlyCredentials):
    """Credentials that are not printed."""

    def __repr__(self) -> str:
        return f"ReadOnlyCredentials(account_id={self.account_id!r})"


class AccountCredentials(RefreshableCredentials):
    """botocore's `RefreshableCredentials`, which take over a newer key as soon as the source has it."""

    def __init__(self, source: CredentialSource) -> None:
        self._source = source
        self._signed = _SignedByThread()
        self._used = self._current()
        metadata = self._metadata(self._used)
        super().__init__(
            metadata["access_key"],
            metadata["secret_key"],
            metadata["token"],
            self._expiry_datetime(metadata["expiry_time"]),
            refresh_using=self.fetch_metadata,
            method=_METHOD,
        )

    def fetch_metadata(self) -> Metadata:
        """Return the current key. Raises `botocore.exceptions.CredentialRetrievalError`."""
        self._used = self._current()
        return self._metadata(self._used)

    def refresh_needed(self, refresh_in: float | None = None) -> bool:
        """Whether the source has a newer key than the one in use."""
        return not self._current().has_same_secret(self._used)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current key, to sign a request with."""
        frozen: ReadOnlyCredentials = super().get_frozen_credentials()
        self._signed.access_key = frozen.access_key
        return _FrozenCredentials(*frozen)

    def renew(self) -> bool:
        """Renew the key that the thread's last request was signed with. Whether there is a newer one."""
        current = self._current()
        if current.api_key != self._signed.access_key:
            return True
        with _retrieval_error():
            return not self._source.renew(current).has_same_secret(current)

    def session(self) -> Session:
        """Return a botocore session with these credentials, which repeats a request whose key is rejected once."""
        session = Session()
        session.register_component("credential_provider", CredentialResolver([_AccountProvider(self)]))
        session.register("needs-retry", self._repeat_rejected)
        return session

    def _repeat_rejected(
        self, response: tuple[Any, dict[str, Any]] | None, attempts: int, **event: object
    ) -> float | None:
        """Return the delay before the next attempt; None for no further one. Handles botocore's event."""
        if response is None or attempts > 1:
            return None
        http, parsed = response
        rejected = http.status_code == 401 or parsed.get("Error", {}).get("Code") in _REJECTED
        return 0.0 if rejected and self.renew() else None

    def _current(self) -> Credentials:
        with _retrieval_error():
            return self._source.credentials()

    @staticmethod
    def _metadata(credentials: Credentials) -> Metadata:
        access_key, secret_key = key_pair(credentials, "botocore")
        expiry_time = credentials.expire_time or _NEVER
        return Metadata(
            access_key=access_key,
            secret_key=secret_key,
            token=credentials.access_token or None,
            expiry_time=expiry_time.isoformat(),
        )


class _SignedByThread(threading.local):
    """What the last request of each thread was signed with."""

    access_key: str | None = None


@contextmanager
def _retrieval_error() -> Iterator[None]:
    """Raise errors of the source as botocore's own."""
    try:
        yield
    except IntegrationsError as error:
        raise CredentialRetrievalError(provider=_METHOD, error_msg=str(error)) from error


class _AccountProvider(CredentialProvider):
    METHOD = _METHOD
    CANONICAL_NAME = "custom-integration-server"

    def __init__(self, credentials: AccountCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> AccountCredentials:
        return self._credentials
