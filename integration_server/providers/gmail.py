"""Gmail.

- Scopes: developers.google.com/gmail/api/auth/scopes [H]. The required ones are for reading and sending.
- Verification is the mailbox's profile: developers.google.com/gmail/api/reference/rest/v1/users/getProfile [H].
- Refresh tokens with Gmail scopes end when the user changes the password:
  developers.google.com/identity/protocols/oauth2 [H].
- Rate limits count units; a request costs 1 to 100: developers.google.com/gmail/api/reference/quota [H]. No limit is
  declared; the limits in response headers apply.
"""

from integration_server.providers.google import GoogleProvider


class GmailProvider(GoogleProvider):
    """A user's mailbox."""

    integration_type = "gmail"
    required_scopes = ("https://www.googleapis.com/auth/gmail.readonly", "https://www.googleapis.com/auth/gmail.send")
    verify_url = "https://gmail.googleapis.com/gmail/v1/users/me/profile"
    account_id_field = "emailAddress"
    account_naming = "email"
    account_label_field = "emailAddress"
    api_base_url = "https://gmail.googleapis.com/gmail/v1"


register = GmailProvider.register_in
