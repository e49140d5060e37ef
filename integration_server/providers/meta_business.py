"""Meta Business: Facebook Pages, ads and their insights.

- Endpoints have the version in the path; client id and secret are sent in the form:
  developers.facebook.com/docs/facebook-login/guides/advanced/manual-flow [H]. The setting `META_BUSINESS_API_VERSION`
  names another version.
- A version of the Graph API works for two years and more, but its Marketing API for about one: v24.0 until 10 November
  2026, v25.0 until 23 February 2027, v26.0 with no end yet:
  developers.facebook.com/docs/marketing-api/marketing-api-changelog/versions [H 2026-11-29].
- Facebook Login for Business takes `config_id`, a configuration of the app, in place of `scope`:
  developers.facebook.com/docs/facebook-login/facebook-login-for-business [M 2026-11-29]. It is sent if the setting
  `META_BUSINESS_LOGIN_CONFIG_ID` has a value.
- The token of a code lasts an hour or two [M]. `grant_type=fb_exchange_token` exchanges it for one of 60 days [H]; the
  server does so at once.
- Token responses have no scopes, so the requested ones count as granted; a user can decline some [K].
- Most endpoints of a Page need the Page's own token, the field `access_token` of the Page for a user who may use it:
  developers.facebook.com/docs/pages-api/getting-started [H 2026-11-29]. A call with `sub_account` uses that token.
- Verification is GET /me [K]; `debug_token` would also verify a token, but its response has no name [H].
- DELETE /me/permissions ends everything that the user has granted to the app [H].
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.providers.declaration import ExpiringFact, api_version_setting
from integration_server.providers.lenient_values import field_at, read_object
from integration_server.providers.meta import MetaProvider

_PAGE_ID = re.compile("[0-9]{1,64}")
_MAX_PAGE_RESPONSE = 64 * 1024  # bytes; an id and a token, or an error
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


class MetaBusinessProvider(MetaProvider):
    """A user's Facebook Pages and ad accounts."""

    integration_type = "meta_business"
    settings = {"api_version": api_version_setting("v26.0")}
    expiring_facts = (
        ExpiringFact("Marketing API v24.0", date(2026, 11, 10), "v24.0"),
        ExpiringFact("Marketing API v25.0", date(2027, 2, 23), "v25.0"),
    )
    oauth_authorize_url = "https://www.facebook.com/{api_version}/dialog/oauth"
    oauth_token_url = "https://graph.facebook.com/{api_version}/oauth/access_token"
    revoke_url = "https://graph.facebook.com/{api_version}/me/permissions"
    revoke_method = "DELETE"
    revoke_token = "bearer"
    revocation_ends = "grant"
    required_scopes = ("business_management", "pages_show_list", "pages_read_engagement")
    verify_url = "https://graph.facebook.com/{api_version}/me?fields=id,name"
    account_id_field = "id"
    account_label_field = "name"
    api_base_url = "https://graph.facebook.com/{api_version}"

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL, with the configuration of the login in place of the scopes if there is one."""
        login = self._setting("LOGIN_CONFIG_ID")
        provider = self.with_attributes(authorize_params={"config_id": login}) if login else self
        return super(MetaBusinessProvider, provider).authorization_url(
            redirect_uri=redirect_uri, state=state, scopes=() if login else scopes, code_challenge=code_challenge
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


register = MetaBusinessProvider.register_in
