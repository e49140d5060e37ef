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


class CallerUnknown(Exception):
    """Nobody that can be believed. `str()` is for our log, not for the caller, and quotes nothing that was sent."""


class Kind(StrEnum):
    """How a caller has shown who it is."""

    CERTIFICATE = "certificate"
    TOKEN = "token"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller's names, of which a policy may know one; and until when it may be believed, where that ends."""

    kind: Kind
    names: tuple[str, ...]
    expire_time: datetime | None = None


class Tokens(Protocol):
    """Verifies bearer tokens."""

    async def identity_of(self, token: str) -> Identity:
        """Whose token it is. Raises `CallerUnknown`."""


async def identity_of(metadata: Metadata, auth_context: AuthContext, tokens: Tokens | None) -> Identity:
    """Who makes a call. Raises `CallerUnknown`, also for a token where none can be verified."""
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        return certificate_identity(auth_context)
    if tokens is None:
        raise CallerUnknown("a token, and no keys to verify it with")
    return await tokens.identity_of(_bearer(given))


def certificate_identity(auth_context: AuthContext) -> Identity:
    """The name in the peer's certificate: its SPIFFE ID, else its DNS names. Never the common name.

    RFC 6125 §6.4.4: a common name is for people, and any authority that signs it may not have looked.
    """
    uris = _texts(auth_context.get("peer_uri", ()))
    spiffe_ids = [uri for uri in uris if uri.startswith("spiffe://")]
    if len(spiffe_ids) > 1:
        # X.509-SVID §2: a certificate with more than one URI is to be rejected.
        raise CallerUnknown("the certificate has several SPIFFE IDs")
    names = spiffe_ids or [name.lower() for name in _texts(auth_context.get("peer_dns", ()))]
    if not names:
        raise CallerUnknown("neither a token nor a certificate with a name")
    return Identity(Kind.CERTIFICATE, tuple(names))


def _texts(values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode("ascii") for value in values]
    except UnicodeDecodeError:
        raise CallerUnknown("the certificate has a name that is not ASCII") from None


def _bearer(given: list[str | bytes]) -> str:
    """The token of `Authorization: Bearer …` (RFC 6750 §2.1), of which there must be one."""
    if len(given) > 1:
        raise CallerUnknown("several authorization entries")
    scheme, _, token = str(given[0]).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise CallerUnknown("an authorization entry that is not a bearer token")
    return token.strip()
