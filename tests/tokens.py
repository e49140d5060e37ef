"""Issuers of JWTs for tests."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, KeySet

AUDIENCE = "integrations"


class TokenIssuer:
    """Signs tokens with its own key."""

    def __init__(self, issuer: str, kid: str = "one") -> None:
        self.issuer = issuer
        self.key = ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})

    @property
    def jwks(self) -> bytes:
        """Its published JWK set."""
        return json.dumps(KeySet([self.key]).as_dict(private=False)).encode()

    def token(
        self,
        subject: str,
        now: datetime,
        *,
        lifetime: timedelta = timedelta(hours=1),
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A signed token. Claims with the value None are left out."""
        default_claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": subject,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
        }
        payload = {name: value for name, value in {**default_claims, **claims}.items() if value is not None}
        protected = {"typ": "JWT", "alg": "ES256", "kid": self.key.kid, **(header or {})}
        # Not by `jwt.encode`, which cannot escape a lone surrogate as other issuers' JSON does.
        return jws.serialize_compact(protected, json.dumps(payload).encode(), self.key)
