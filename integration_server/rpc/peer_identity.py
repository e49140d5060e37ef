"""Who is asking: the name in a verified client certificate, or the subject of a verified token.

A call that carries a token is its subject's alone: no certificate beside it adds anything, nor helps a bad one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC says of a peer whose certificate it has verified; empty without one."""

Metadata = Iterable[tuple[str, str | bytes]]


class Unauthenticated(Exception):
    """Nobody that can be believed. `str()` is for our log, not for the caller, and quotes nothing that was sent."""


class IdentityKind(StrEnum):
    """How a caller has shown who it is."""

    CERTIFICATE = "certificate"
    TOKEN = "token"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller's names, of which a policy may know one; and until when it may be believed, where that ends."""

    kind: IdentityKind
    names: tuple[str, ...]
    expire_time: datetime | None = None


class TokenVerifier(Protocol):
    """Verifies bearer tokens."""

    async def resolve_identity(self, token: str) -> Identity:
        """Whose token it is. Raises `Unauthenticated`."""


async def resolve_identity(
    metadata: Metadata, auth_context: AuthContext, token_verifier: TokenVerifier | None
) -> Identity:
    """Who makes a call. Raises `Unauthenticated`, also for a token where none can be verified."""
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        return certificate_identity(auth_context)
    if token_verifier is None:
        raise Unauthenticated("a token, and no keys to verify it with")
    return await token_verifier.resolve_identity(_bearer_token(given))


def certificate_identity(auth_context: AuthContext) -> Identity:
    """The name in the peer's certificate: its SPIFFE ID, else its DNS names. Never the common name.

    RFC 6125 §6.4.4: a common name is for people, and any authority that signs it may not have looked.
    """
    uris = _decode_names(auth_context.get("peer_uri", ()))
    spiffe_ids = [uri for uri in uris if uri.startswith("spiffe://")]
    if len(spiffe_ids) > 1:
        # X.509-SVID §2: a certificate with more than one URI is to be rejected.
        raise Unauthenticated("the certificate has several SPIFFE IDs")
    names = spiffe_ids or [name.lower() for name in _decode_names(auth_context.get("peer_dns", ()))]
    if not names:
        raise Unauthenticated("neither a token nor a certificate with a name")
    return Identity(IdentityKind.CERTIFICATE, tuple(names))


def _decode_names(values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode("ascii") for value in values]
    except UnicodeDecodeError:
        raise Unauthenticated("the certificate has a name that is not ASCII") from None


def _bearer_token(given: list[str | bytes]) -> str:
    """The token of `Authorization: Bearer …` (RFC 6750 §2.1), of which there must be one."""
    if len(given) > 1:
        raise Unauthenticated("several authorization entries")
    scheme, _, token = str(given[0]).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("an authorization entry that is not a bearer token")
    return token.strip()
