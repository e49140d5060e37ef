"""Gmail.

- Scopes: developers.google.com/gmail/api/auth/scopes [H]. Reading and sending are asked for; others cover less.
- Verified by the mailbox's profile: developers.google.com/gmail/api/reference/rest/v1/users/getProfile [H].
- A change of the user's password ends refresh tokens with Gmail scopes:
  developers.google.com/identity/protocols/oauth2 [H].
- Limits count units, of which a request takes 1 to 100: developers.google.com/gmail/api/reference/quota [H]. So none is
  declared, and what answers tell is kept to.
"""

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.google import GoogleProvider


class GmailProvider(GoogleProvider):
    """A user's mailbox."""

    integration_type = "gmail"
    display_name = "Gmail"
    required_scopes = (
        "https://www.googleapis.com/auth/gmail.readonly",
        "https://www.googleapis.com/auth/gmail.send",
    )
    verify_url = "https://gmail.googleapis.com/gmail/v1/users/me/profile"
    account_id_field = "emailAddress"
    account_label_field = "emailAddress"
    api_base_url = "https://gmail.googleapis.com/gmail/v1"


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(GmailProvider.integration_type, GmailProvider)
