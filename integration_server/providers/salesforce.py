"""Salesforce.

- Endpoints below /services/oauth2 of a login host; client id and secret are sent in the form:
  developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/intro_understanding_refresh_token_oauth.htm [H].
  `login_host` of the config is login.salesforce.com (the default), test.salesforce.com for sandboxes, or a My Domain.
- Token responses have the organisation's own host in `instance_url`; the token is valid there only [H]. The host must
  be below my.salesforce.com, one label deeper for sandboxes and similar organisations [M]. Free ones are below
  free.my.salesforce.com [H 2026-11-29].
- There is no `expires_in` [H]: the organisation's session settings define the lifetime, two hours by default and
  fifteen minutes at least [K]. One hour is assumed; where it is shorter, a caller receives 401 and refreshes.
- `refresh_token` is the scope that requests a refresh token [H]. Refresh tokens are single-use if the organisation
  enables rotation [H]; without rotation the response to a refresh has none, and the old one stays valid.
- A revocation goes to the organisation's own host [H]. `instance` is stored with the tokens for this.
- Verification is the user info there, which `openid` allows [K].
- A session that has ended is answered with 401, or by the user info with 403 and the text `Bad_OAuth_Token`
  [M 2026-11-29].
- `inactive_user` and `inactive_org` end the grant [K].
- PKCE is supported, and can be required [M].
"""

from datetime import timedelta

from pydantic import Field

from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import Errors, TokenResponse
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider

_KINDS = ("sandbox", "develop", "scratch", "trailblaze", "demo", "patch", "free")
_HOST = r"^(?:login|test|[a-z0-9-]+(?:\.[a-z]+)?\.my)\.salesforce\.com$"


class SalesforceConfig(ProviderConfig):
    """The host where the organisation's users sign in."""

    login_host: str = Field("login.salesforce.com", pattern=_HOST)


class SalesforceProvider(OAuth2Provider):
    """An organisation at Salesforce."""

    integration_type = "salesforce"
    oauth_authorize_url = "https://{login_host}/services/oauth2/authorize"
    oauth_token_url = "https://{login_host}/services/oauth2/token"
    revoke_url = "https://{instance}/services/oauth2/revoke"
    verify_url = "https://{instance}/services/oauth2/userinfo"
    api_base_url = "https://{instance}"
    allowed_request_headers = (
        "Sforce-Auto-Assign",
        "Sforce-Call-Options",
        "Sforce-Duplicate-Rule-Header",
        "Sforce-Query-Options",
    )
    url_params = {"login_host": "login.salesforce.com"}
    host_patterns = (
        "*.salesforce.com",
        "*.my.salesforce.com",
        *(f"*.{kind}.my.salesforce.com" for kind in _KINDS),
    )
    required_scopes = ("api", "openid", "refresh_token")
    token_auth = "client_secret_post"
    token_response = TokenResponse(keep={"instance": "instance_url"})
    lifetime = timedelta(hours=1)
    errors = Errors(dead=["inactive_user", "inactive_org"], client=["invalid_client_id"])
    account_id_field = "user_id"
    account_label_field = "preferred_username"
    config_model = SalesforceConfig

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Also 403 with Salesforce's own text."""
        is_dead = response.status == 403 and response.body.strip() == b"Bad_OAuth_Token"
        return super().rejects_access_token(response) or is_dead


register = SalesforceProvider.register_in
