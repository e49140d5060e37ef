"""slack_sdk: a `WebClient` with the current token of an account.

`account.slack().chat_postMessage(channel="#general", text="…")`
"""

import io
from collections.abc import Mapping
from typing import Any
from urllib.request import Request

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import access_token
from integration_server.client.configuration import SecretText
from integration_server.client.credentials import CredentialSource

with needs_extra("slack"):
    from slack_sdk import WebClient
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web import SlackResponse

_REJECTED = frozenset({"invalid_auth", "token_expired", "token_revoked"})
"""Slack's errors for a token that is not valid (any longer). They come with HTTP 200."""


class AccountWebClient(WebClient):
    """A client whose token is always the current one.

    slack_sdk's retry handlers cannot change the token of the request that they repeat; this client repeats the call.
    """

    def __init__(self, source: CredentialSource, **options: Any) -> None:  # noqa: ANN401 — of WebClient
        self._source = source
        super().__init__(**options)

    @property
    def token(self) -> str | None:
        """The current token."""
        return access_token(self._source.credentials(), "slack_sdk")

    @token.setter
    def token(self, value: str | None) -> None:
        if value is not None:
            raise ValueError("the token of this client is that of its account")

    def api_call(self, api_method: str, **options: Any) -> SlackResponse:  # noqa: ANN401 — of WebClient
        """Call a method of Slack's API, and once more if the token is rejected."""
        call = Call(options)
        used = self._source.credentials()
        try:
            return super().api_call(api_method, **call.options())
        except SlackApiError as error:
            if call.has_own_token() or not is_rejected(error):
                raise
            if self._source.renew(used).has_same_secret(used) or not call.rewind():
                raise
        return super().api_call(api_method, **call.options())

    def _request_for_pagination(self, api_url: str, req_args: dict[str, Any]) -> dict[str, Any]:
        # The following pages have the arguments of the first request, with the token of that time.
        req_args["headers"]["Authorization"] = SecretText(f"Bearer {self.token}")
        return super()._request_for_pagination(api_url, req_args)

    def _perform_urllib_http_request_internal(self, url: str, req: Request) -> dict[str, Any]:
        # urllib sends all other headers to the target of a redirect too, whatever its host.
        if "Authorization" in req.headers:
            req.add_unredirected_header("Authorization", req.headers.pop("Authorization"))
        return super()._perform_urllib_http_request_internal(url, req)


def client(source: CredentialSource, **options: Any) -> AccountWebClient:  # noqa: ANN401 — of WebClient
    """Return a client. The options are those of `slack_sdk.WebClient`, without the token."""
    return AccountWebClient(source, **options)


def is_rejected(error: SlackApiError) -> bool:
    """Whether Slack has rejected the token."""
    return error.response["error"] in _REJECTED or error.response.status_code == 401


class Call:
    """The arguments of a call of Slack's API, to call it twice."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._positions = {name: _position(file) for name, file in (options.get("files") or {}).items()}

    def options(self) -> dict[str, Any]:
        """Return a copy of the arguments: slack_sdk takes the token out of the dictionaries."""
        return {name: dict(value) if type(value) is dict else value for name, value in self._options.items()}

    def has_own_token(self) -> bool:
        """Whether the caller has given a token for this call."""
        parameters = (self._options.get(name) or {} for name in ("params", "json", "data"))
        return any("token" in values for values in parameters) or self._options.get("auth") is not None

    def rewind(self) -> bool:
        """Whether the files can be sent again; they are set back to where they began."""
        if None in self._positions.values():
            return False
        for name, position in self._positions.items():
            file = self._options["files"][name]
            if not isinstance(file, str | bytes | bytearray):
                file.seek(position)
        return True


def _position(file: Any) -> int | None:  # noqa: ANN401 — a path, bytes or a file
    """Return where a file begins; None if it cannot be read twice."""
    if isinstance(file, str | bytes | bytearray):
        return 0
    return int(file.tell()) if isinstance(file, io.IOBase) and file.seekable() else None
