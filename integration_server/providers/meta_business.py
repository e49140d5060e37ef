"""Meta Business: tokens are exchanged, a login may have a configuration in place of scopes, Pages have own tokens."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.domain.lenient_values import field_at, read_object
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.providers.meta import MetaProvider

_PAGE_ID = re.compile("[0-9]{1,64}")
_MAX_PAGE_RESPONSE = 64 * 1024  # bytes; an id and a token, or an error
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


class MetaBusinessProvider(MetaProvider):
    """A user's Facebook Pages and ad accounts."""

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL, with the configuration of the login in place of the scopes if there is one."""
        scopes = () if "login_config_id" in self.setting_values else scopes
        return super().authorization_url(
            redirect_uri=redirect_uri, state=state, scopes=scopes, code_challenge=code_challenge
        )

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Exchange the short-lived token."""
        return tokens.updated_with(await self.refresh_access_token(tokens.access_token), self._context.clock())

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Exchange a token for a new long-lived one."""
        params = {"grant_type": "fb_exchange_token", "fb_exchange_token": refresh_token}
        return await self.request_tokens(params, "grant")

    async def credentials_for(
        self, credentials: Credentials, request: ApiRequest, deadline: timedelta
    ) -> Credentials | ApiResponse:
        """The user's token, or that of the Page that `sub_account` names.

        If the Page's token cannot be had, the response is the one that says so.
        """
        if not request.sub_account or not isinstance(credentials, OAuthTokens):
            return credentials
        if not _PAGE_ID.fullmatch(request.sub_account):
            raise InvalidField("sub_account", "is not the id of a Page, which consists of digits")
        question = ApiRequest("GET", f"/{request.sub_account}", query=[("fields", "access_token")])
        response = await self.call_api(credentials, question, deadline=deadline, body_limit=_MAX_PAGE_RESPONSE)
        if not 200 <= response.status < 300:
            return response
        token = field_at(read_object(response.body), "access_token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise InvalidField("sub_account", "is not a Page whose token the user may use")
        return replace(credentials, access_token=token)
