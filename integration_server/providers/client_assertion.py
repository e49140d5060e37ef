"""Client authentication with a JWT (RFC 7523 §2.2), as OpenID Connect Core §9 names it: by secret or by private key."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import uuid4

from integration_server.domain.errors import ProviderMisconfigured
from integration_server.providers.signing_keys import SigningKey, UnusableKey

_LIFETIME = timedelta(minutes=5)  # long enough for clocks that differ, and short, because a server records the ids
_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


async def client_assertion(
    client_id: str, audience: str, key: str, now: datetime, key_id: str = ""
) -> Mapping[str, str]:
    """The parameters that authenticate our client at a token endpoint.

    `key` is a private key in PEM, in which `\\n` may stand for a line break, or any other text as a shared secret.
    Raises `ProviderMisconfigured` if it is not a usable key.
    """
    claims = {"iss": client_id, "sub": client_id, "aud": audience, "jti": str(uuid4())}
    try:
        token = await SigningKey(key, key_id=key_id).sign(claims, now, _LIFETIME)
    except UnusableKey:
        raise ProviderMisconfigured from None
    return {"client_assertion_type": _TYPE, "client_assertion": token}
