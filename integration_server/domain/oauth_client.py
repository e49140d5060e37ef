"""An OAuth client: our app at a provider, with the secrets by which the provider recognizes it.

The operator's own client of a type has an empty name and comes from the environment. Others are rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

OWN_CLIENT = ""
"""The name of the operator's own client."""

OAUTH_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The names of other clients. They are part of webhook addresses, log lines and metrics."""


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """A client as it authenticates at its provider.

    `secrets` are the client secrets that may be valid, the newest first: two while one replaces the other. For a type
    that authenticates with `private_key_jwt` they are private keys, if the client has a name. `webhook_secrets` verify
    the webhooks of the app, and so do client secrets where the provider signs with them.
    """

    client_id: str
    secrets: Sequence[str] = field(default=(), repr=False)
    name: str = OWN_CLIENT
    webhook_secrets: Sequence[str] = field(default=(), repr=False)
    webhook_verify_token: str = field(default="", repr=False)

    @property
    def secret(self) -> str:
        """The secret to authenticate with; empty if there is none."""
        return self.secrets[0] if self.secrets else ""

    def using(self, secret: str) -> "OAuthClient":
        """The client, which authenticates with this one of its secrets."""
        others = [other for other in self.secrets if other != secret]
        return replace(self, secrets=(secret, *others))


def client_key(integration_type: str, oauth_client: str) -> str:
    """The key of all that is counted or scheduled for each client: the type, and the client's name if it has one."""
    return f"{integration_type}/{oauth_client}" if oauth_client else integration_type


def type_of_key(key: str) -> str:
    """The integration type in a client's key. No type contains a slash."""
    return key.partition("/")[0]
