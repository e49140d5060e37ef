"""Google Business Profile, formerly "My Business".

- The requirements define the scope, and verification by a list of accounts. The API is open only to projects that
  Google has approved [K].
- The first account of the list is assumed to be the user's own, because personal accounts come first [K].
- Each API of the family has a host of its own: developers.google.com/my-business/ref_overview [H 2026-11-29]. Account
  management is the main one; a call names another one by the name in `api_base_urls`. Reviews and posts are in v4.
- 300 requests a minute for our project: developers.google.com/my-business/content/limits [H].
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.google import GoogleProvider


class GoogleMyBusinessProvider(GoogleProvider):
    """A user's business profiles."""

    integration_type = "google_my_business"
    display_name = "Google Business Profile"
    required_scopes = ("https://www.googleapis.com/auth/business.manage",)
    verify_url = "https://mybusinessaccountmanagement.googleapis.com/v1/accounts"
    account_id_field = "accounts.0.name"
    account_label_field = "accounts.0.accountName"
    api_base_url = "https://mybusinessaccountmanagement.googleapis.com/v1"
    api_base_urls = {
        "business_information": "https://mybusinessbusinessinformation.googleapis.com/v1",
        "performance": "https://businessprofileperformance.googleapis.com/v1",
        "notifications": "https://mybusinessnotifications.googleapis.com/v1",
        "place_actions": "https://mybusinessplaceactions.googleapis.com/v1",
        "verifications": "https://mybusinessverifications.googleapis.com/v1",
        "v4": "https://mybusiness.googleapis.com/v4",
    }
    rate_limits = (RateLimit(300, timedelta(minutes=1), LimitScope.APP),)


register = GoogleMyBusinessProvider.register_in
