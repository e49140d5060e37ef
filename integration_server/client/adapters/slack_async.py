"""slack_sdk for asyncio: an `AsyncWebClient` with the current token of an account. It needs aiohttp."""

from typing import Any

from integration_server.client.adapters import needs_extra
from integration_server.client.adapters.request_credentials import access_token
from integration_server.client.adapters.slack import Call, is_rejected
from integration_server.client.credentials import AsyncCredentialSource

with needs_extra("slack"):
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient
    from slack_sdk.web.async_slack_response import AsyncSlackResponse


class AsyncAccountWebClient(AsyncWebClient):
    """A client that gets the current token before each call."""

    def __init__(self, source: AsyncCredentialSource, **options: Any) -> None:  # noqa: ANN401 — of AsyncWebClient
        super().__init__(**options)
        self._source = source

    async def api_call(self, api_method: str, **options: Any) -> AsyncSlackResponse:  # noqa: ANN401 — of AsyncWebClient
        """Call a method of Slack's API, and once more if the token is rejected."""
        call = Call(options)
        used = await self._source.credentials()
        self.token = access_token(used, "slack_sdk")
        try:
            return await super().api_call(api_method, **call.options())
        except SlackApiError as error:
            if call.has_own_token() or not is_rejected(error):
                raise
            renewed = await self._source.renew(used)
            if renewed.has_same_secret(used) or not call.rewind():
                raise
        self.token = access_token(renewed, "slack_sdk")
        return await super().api_call(api_method, **call.options())


def client(source: AsyncCredentialSource, **options: Any) -> AsyncAccountWebClient:  # noqa: ANN401 — of AsyncWebClient
    """Return a client. The options are those of `AsyncWebClient`, without the token."""
    return AsyncAccountWebClient(source, **options)
