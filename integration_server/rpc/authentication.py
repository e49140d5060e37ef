"""Authentication: determines who calls, from a verified client certificate or a verified token.

A call with a token has the identity of the token's subject. A client certificate on the same connection adds nothing
to it and does not replace a bad token.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hmac import compare_digest
from typing import Any, Protocol

from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import Behavior, Context, Interceptor, wrap_in_context_manager
from integration_server.rpc.methods import Method
from integration_server.service.common_types import Clock

AuthContext = Mapping[str, Iterable[bytes]]
"""The properties of a peer whose certificate gRPC has verified; empty without a certificate."""

Metadata = Iterable[tuple[str, str | bytes]]


class IdentityKind(StrEnum):
    """How a caller authenticates."""

    CERTIFICATE = "certificate"
    TOKEN = "token"
    USER = "user"
    SIDECAR = "sidecar"  # the secret of the sidecar that the server has started with


@dataclass(frozen=True, slots=True)
class Identity:
    """The authenticated names of a caller, and when they expire."""

    kind: IdentityKind
    names: tuple[str, ...]
    expire_time: datetime | None = None


class TokenVerifier(Protocol):
    """Verifies bearer tokens."""

    async def resolve_identity(self, token: str) -> Identity:
        """Return the identity of a token's subject. Raises `Unauthenticated`."""


class SidecarVerifier:
    """Recognises the secret of the sidecar that has started with the server; `others` verifies all other tokens."""

    def __init__(self, secret: str, others: TokenVerifier | None = None) -> None:
        self._secret = secret.encode()
        self._others = others

    async def resolve_identity(self, token: str) -> Identity:
        """Return the identity of the sidecar, or of the token's subject. Raises `Unauthenticated`."""
        if compare_digest(token.encode(errors="replace"), self._secret):
            return Identity(IdentityKind.SIDECAR, (IdentityKind.SIDECAR,))
        if self._others is None:
            raise Unauthenticated("a token, and no keys to verify it with")
        return await self._others.resolve_identity(token)


_identity: ContextVar[Identity] = ContextVar("identity")
"""The identity of the current call's caller: gRPC runs each call in its own task."""


def is_over_sidecar_socket(context: Context) -> bool:
    """Whether a call came over the Unix socket, on which the server listens for its sidecar only."""
    return context.peer().startswith("unix:")


def current_identity() -> Identity:
    """Return the identity of the current call's caller. Raises `LookupError` if `authenticate` has not run."""
    return _identity.get()


def authenticate(token_verifier: TokenVerifier | None, clock: Clock) -> Interceptor:
    """Determine the caller's identity before anything of its request is read. Raises `Unauthenticated`.

    A stream also ends once the caller's token has expired.
    """

    @asynccontextmanager
    async def identify(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401  # a message or a stream
        metadata, auth_context = context.invocation_metadata() or (), context.auth_context() or {}
        _identity.set(await resolve_identity(metadata, auth_context, token_verifier))
        yield request

    def require_valid_token() -> None:
        expire_time = current_identity().expire_time
        if expire_time is not None and clock() >= expire_time:
            raise Unauthenticated("the token has expired since")

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        return wrap_in_context_manager(method, behavior, identify, require_valid_token)

    return wrap


async def resolve_identity(
    metadata: Metadata, auth_context: AuthContext, token_verifier: TokenVerifier | None
) -> Identity:
    """Return the identity of a call's caller. Raises `Unauthenticated`, also for a token without a verifier."""
    entries = [value for key, value in metadata if key == "authorization"]
    if not entries:
        return certificate_identity(auth_context)
    if token_verifier is None:
        raise Unauthenticated("a token, and no keys to verify it with")
    return await token_verifier.resolve_identity(_bearer_token(entries))


def certificate_identity(auth_context: AuthContext) -> Identity:
    """Return the SPIFFE ID of the peer's certificate, or its DNS names without one. Raises `Unauthenticated`.

    The common name is never used: RFC 6125 §6.4.4 leaves it to people, and authorities need not verify it.
    """
    uris = _decode_names(auth_context.get("peer_uri", ()))
    spiffe_ids = [uri for uri in uris if uri.startswith("spiffe://")]
    if len(spiffe_ids) > 1:
        # X.509-SVID §2: a certificate with more than one URI must be rejected.
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


def _bearer_token(entries: list[str | bytes]) -> str:
    """Return the token of the only `Authorization: Bearer …` entry (RFC 6750 §2.1)."""
    if len(entries) > 1:
        raise Unauthenticated("several authorization entries")
    scheme, _, token = str(entries[0]).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("an authorization entry that is not a bearer token")
    return token.strip()
