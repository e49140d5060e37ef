"""Twilio, with account SID and auth token.

- HTTP Basic with the SID as user name [H]. The requirements define `api_key` as the SID, `api_secret` as the auth
  token.
- Verification is the account's own resource [H]. An SID is "AC" and 32 hexadecimal digits [K]; nothing else is put into
  a URL.
- Nothing is revoked: the user changes the auth token at Twilio.
"""

import re
from typing import Self

from integration_server.domain.credentials import ApiKey, Credentials
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.api_key import BasicAuthProvider
from integration_server.providers.webhooks.twilio import TWILIO

_ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}")


class TwilioProvider(BasicAuthProvider):
    """A Twilio account."""

    integration_type = "twilio"
    aliases = ("sms_marketing",)
    verify_url = "https://api.twilio.com/2010-04-01/Accounts/{account_sid}.json"
    account_id_field = "sid"
    account_label_field = "friendly_name"
    api_base_url = "https://api.twilio.com"
    allowed_request_headers = ("I-Twilio-Idempotency-Token",)
    webhook_scheme = TWILIO

    def for_credentials(self, credentials: Credentials) -> Self:
        """The provider with the SID in its URLs."""
        if not isinstance(credentials, ApiKey) or not _ACCOUNT_SID.fullmatch(credentials.api_key):
            raise ProviderRejected("credentials")
        return super().for_credentials(credentials).with_url_params(account_sid=credentials.api_key)


register = TwilioProvider.register_in
