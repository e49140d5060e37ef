"""PyGithub: authentication for `github.Github`.

`github.Github(auth=account.github())`
"""

import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import access_token
from integration_server.client.credentials import Credentials, CredentialSource

with needs_extra("github"):
    from github.Auth import Auth
    from github.Requester import Requester, WithRequester

P = ParamSpec("P")
Response = TypeVar("Response", bound=tuple[Any, ...])


class AccountAuth(Auth, WithRequester["AccountAuth"]):
    """Authenticates each request with the current token.

    PyGithub has no hook for a rejected token. It hands its requester to an Auth like this one, which makes it a
    requester that renews.
    """

    def __init__(self, source: CredentialSource) -> None:
        super().__init__()
        self._source = source
        self._sent = _SentByThread()

    @property
    def token_type(self) -> str:
        """The scheme of the Authorization header."""
        return "Bearer"

    @property
    def token(self) -> str:
        """The current token."""
        return access_token(self._source.credentials(), "PyGithub")

    def authentication(self, headers: dict[str, Any]) -> None:
        """Put the current token on a request."""
        credentials = self._source.credentials()
        headers["Authorization"] = f"{self.token_type} {access_token(credentials, 'PyGithub')}"
        self._sent.credentials = credentials

    def withRequester(self, requester: Requester) -> "AccountAuth":  # noqa: N802 — PyGithub's name
        """Make the requester renew a rejected token."""
        super().withRequester(requester)
        if type(requester) is Requester:
            requester.__class__ = _RenewingRequester
        return self

    def is_renewed(self) -> bool:
        """Renew what the thread's last request was sent with. Whether there is something newer."""
        sent = self._sent.credentials
        return sent is not None and not self._source.renew(sent).has_same_secret(sent)


class _SentByThread(threading.local):
    """What the last request of each thread was sent with."""

    credentials: Credentials | None = None


class _RenewingRequester(Requester):
    """Sends a request once more if its token is rejected and there is a newer one."""

    def requestJson(self, *args: Any, **options: Any) -> tuple[int, dict[str, Any], str]:  # noqa: ANN401, N802
        """Send a request with a body in JSON."""
        return _renewing(self, super().requestJson)(*args, **options)

    def requestMultipart(self, *args: Any, **options: Any) -> tuple[int, dict[str, Any], str]:  # noqa: ANN401, N802
        """Send a form."""
        return _renewing(self, super().requestMultipart)(*args, **options)

    def requestBlob(self, *args: Any, **options: Any) -> tuple[int, dict[str, Any], str]:  # noqa: ANN401, N802
        """Send a file, which PyGithub opens anew for each request."""
        return _renewing(self, super().requestBlob)(*args, **options)

    def getStream(self, *args: Any, **options: Any) -> tuple[int, dict[str, Any], Any]:  # noqa: ANN401, N802
        """Receive a stream."""
        return _renewing(self, super().getStream)(*args, **options)

    # requestMemoryBlob is not here: PyGithub closes the file that it was given.


def _renewing(requester: Requester, send: Callable[P, Response]) -> Callable[P, Response]:
    def send_twice(*args: P.args, **options: P.kwargs) -> Response:
        response = send(*args, **options)
        if response[0] == 401 and isinstance(requester.auth, AccountAuth) and requester.auth.is_renewed():
            return send(*args, **options)
        return response

    return send_twice
