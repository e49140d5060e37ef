"""Client authentication with a JWT (RFC 7523 §2.2), as OpenID Connect Core §9 names it: by secret or by private key."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import uuid4

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from integration_server.domain.errors import ProviderMisconfigured

_LIFETIME = timedelta(minutes=5)  # long enough for clocks that differ, and short, because a server records the ids
_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_KEYS = ((RSAKey, "RS256"), (ECKey, "ES256"), (OKPKey, "EdDSA"))


def client_assertion(client_id: str, audience: str, key: str, now: datetime, key_id: str = "") -> Mapping[str, str]:
    """The parameters that authenticate our client at a token endpoint.

    `key` is a private key in PEM, in which `\\n` may stand for a line break, or any other text as a shared secret.
    Raises `ProviderMisconfigured` if it is not a usable key.
    """
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "jti": str(uuid4()),
        "iat": int(now.timestamp()),
        "exp": int((now + _LIFETIME).timestamp()),
    }
    try:
        signing_key, algorithm = _signing_key(key.replace("\\n", "\n"))
        header = {"alg": algorithm, "typ": "JWT", **({"kid": key_id} if key_id else {})}
        token = jwt.encode(header, claims, signing_key, algorithms=[algorithm])
    except (JoseError, ValueError, TypeError):
        raise ProviderMisconfigured from None  # the error may quote the key
    return {"client_assertion_type": _TYPE, "client_assertion": token}


def _signing_key(key: str) -> tuple[RSAKey | ECKey | OKPKey | OctKey, str]:
    if not key.startswith("-----BEGIN"):
        return OctKey.import_key(key), "HS256"
    for kind, algorithm in _KEYS:
        try:
            return kind.import_key(key), algorithm
        except (JoseError, ValueError, TypeError):
            continue
    raise ValueError
