"""Authentication: determines who calls, from a verified client certificate or a verified token.

A call with a token has the identity of the token's subject. A client certificate on the same connection adds nothing
to it and does not replace a bad token. Where callers are not authenticated, a caller is the address of its client.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Protocol
from urllib.parse import unquote

from cachetools import LRUCache

from integration_server.domain.callers import Identity, IdentityKind, current_caller
from integration_server.domain.errors import QuotaExceeded
from integration_server.domain.peers import PeerLimiter, TrustedProxies, peer_key
from integration_server.rpc.certificate_names import CertificateNames
from integration_server.rpc.errors import KeysNotAvailable, TokenExpired, Unauthenticated
from integration_server.rpc.methods import Behavior, CallerLookup, Context, Interceptor, Method
from integration_server.service.common_types import Clock

MAX_TOKEN_LENGTH = 8 * 1024
"""Characters of a bearer token: the usual limit of a header line in proxies. One with hundreds of groups is shorter."""

_VERIFIED_TOKENS = 10_000  # callers and users that call at the same time
_FAILED_CONNECTIONS = 10_000  # more than there can be open ones

_KNOWN_PEERS = 1024  # whose addresses are kept as they were parsed: each makes many calls
_FORWARDED_FOR = "x-forwarded-for"

AuthContext = Mapping[str, Iterable[bytes]]
"""The properties of a peer whose certificate gRPC has verified; empty without a certificate."""


# --- names of callers ------------------------------------------------------------------------------------------------


def caller_name(_context: Context) -> str:
    """Return the name that the policy has for the current call's caller; empty where callers are not authenticated."""
    caller = current_caller()
    return "" if caller is None else caller.name


def quota_key(_context: Context) -> str:
    """Return the key of the current call's quota: each service and each user has its own."""
    caller = current_caller()
    if caller is None:
        return ""
    # No name has a control character: a service with a slash in its name does not share a user's quota.
    return caller.name if caller.user_id is None else f"{caller.name}\0{caller.user_id}"


def caller_or_address(address_of: CallerLookup) -> CallerLookup:
    """Return a lookup of the caller's name; where callers are not authenticated, of the client's address."""
    return lambda context: caller_name(context) or address_of(context)


def quota_key_or_peer(address_of: CallerLookup) -> CallerLookup:
    """Return a lookup of the caller's quota key; where callers are not authenticated, of the client's peer key."""
    key_of = lru_cache(_KNOWN_PEERS)(peer_key)
    return lambda context: quota_key(context) or key_of(address_of(context))


def peer_address(context: Context) -> str:
    """Return the address of a call's peer without its port; for a Unix socket, `unix`."""
    return _address_in(context.peer())


@lru_cache(_KNOWN_PEERS)
def _address_in(peer: str) -> str:
    scheme, _, rest = unquote(peer).partition(":")  # ipv4:10.0.0.1:50000, ipv6:%5B::1%5D:50000 or unix:path
    return rest.rpartition(":")[0].strip("[]") if scheme in {"ipv4", "ipv6"} else scheme


def client_address(proxies: TrustedProxies) -> CallerLookup:
    """Return a lookup of the address of a call's client: the caller, where callers are not authenticated."""

    of_peer = lru_cache(_KNOWN_PEERS)(lambda peer: proxies.client_address(peer, ()))

    def address_of(context: Context) -> str:
        if not proxies.networks:
            return of_peer(peer_address(context))
        entries = context.invocation_metadata() or ()
        forwarded_for = (str(value) for key, value in entries if key == _FORWARDED_FOR)
        return proxies.client_address(peer_address(context), forwarded_for)

    return address_of


# --- authentication --------------------------------------------------------------------------------------------------


class TokenVerifier(Protocol):
    """Verifies bearer tokens."""

    async def resolve_identity(self, token: str) -> Identity:
        """Return the identity of a token's subject. Raises `Unauthenticated`."""

    @property
    def keys(self) -> object:
        """The keys with which tokens are verified now: another object once they have changed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The sender of a call: the address that failures are counted by, and the connection."""

    address: str
    connection: str


class TokenAuthenticator:
    """Verifies each token once, and limits the failures of each peer before any verification.

    An attacker may share the address of good callers (NAT, a mesh). Over the limit, therefore, tokens that were
    verified before are still accepted, and so is any token on a connection without failures; only others are refused.
    An expired token is no failure: a gateway forwards those of its users, and nobody can forge one.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        limiter: PeerLimiter | None,
        clock: Clock,
        *,
        max_token_length: int = MAX_TOKEN_LENGTH,
        cache_size: int = _VERIFIED_TOKENS,
        record_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        self._verifier = verifier
        self._limiter = limiter
        self._clock = clock
        self._max_token_length = max_token_length
        self._record_refusal = record_refusal
        # By digest: a memory dump has no tokens. No identity: the token has expired.
        self._verified: LRUCache[bytes, tuple[Identity | None, object]] = LRUCache(cache_size)
        self._failed_connections: LRUCache[str, bool] = LRUCache(_FAILED_CONNECTIONS)

    async def resolve_identity(self, token: str, peer: Peer) -> Identity:
        """Return the identity of a token's subject. Raises `Unauthenticated`, or `QuotaExceeded` over the limit."""
        if len(token) > self._max_token_length:
            problem = f"a token of more than {self._max_token_length} characters"
            raise Unauthenticated(problem, f"the authorization entry has {problem}")
        digest = sha256(token.encode()).digest()
        if digest not in self._verified:
            self._require_few_failures(peer)
        identity, keys = self._verified.get(digest, (None, None))
        # Once more if they change meanwhile: the key that has verified the token may be the one that was withdrawn.
        while keys != self._verifier.keys:
            keys = self._verifier.keys
            identity = await self._verify(token, digest, peer, keys)
        if identity is None or (identity.expire_time is not None and self._clock() >= identity.expire_time):
            raise TokenExpired("the token has expired")
        return identity

    @property
    def keys(self) -> object:
        """The keys with which tokens are verified now."""
        return self._verifier.keys

    async def _verify(self, token: str, digest: bytes, peer: Peer, keys: object) -> Identity | None:
        """Verify a token and remember the result; None if it has expired. Raises `Unauthenticated`.

        `keys` are those before the verification.
        """
        identity = None
        try:
            identity = await self._verifier.resolve_identity(token)
        except TokenExpired:
            pass
        except KeysNotAvailable:
            raise
        except Unauthenticated:
            self._verified.pop(digest, None)
            self._failed_connections[peer.connection] = True
            if self._limiter is not None:
                self._limiter.record_failure(peer.address)
            raise
        self._verified[digest] = identity, keys
        return identity

    def _require_few_failures(self, peer: Peer) -> None:
        retry_after = None if self._limiter is None else self._limiter.retry_after(peer.address)
        if retry_after is not None and peer.connection in self._failed_connections:
            self._record_refusal()
            raise QuotaExceeded("whose tokens are not valid", retry_after)


class TokenResolver(Protocol):
    """Determines who a token belongs to."""

    async def resolve_identity(self, token: str, peer: Peer) -> Identity:
        """Return the identity of a token's subject. Raises `Unauthenticated` or `QuotaExceeded`."""

    @property
    def keys(self) -> object:
        """The keys with which tokens are verified now: another object once they have changed."""


class SidecarAuthenticator:
    """Recognises the secret of the sidecar that has started with the server; `others` verifies all other tokens."""

    def __init__(self, secret: str, others: TokenResolver | None = None) -> None:
        self._secret = secret.encode()
        self._others = others

    async def resolve_identity(self, token: str, peer: Peer) -> Identity:
        """Return the identity of the sidecar, or of the token's subject. Raises `Unauthenticated`."""
        if compare_digest(token.encode(errors="replace"), self._secret):
            return Identity(IdentityKind.SIDECAR, IdentityKind.SIDECAR)
        if self._others is None:
            raise Unauthenticated("a token, and no keys to verify it with")
        return await self._others.resolve_identity(token, peer)

    @property
    def keys(self) -> object:
        """The keys with which tokens of others are verified now. The secret does not change."""
        return None if self._others is None else self._others.keys


_identity: ContextVar[Identity] = ContextVar("identity")
"""The identity of the current call's caller: gRPC runs each call in its own task."""


def current_identity() -> Identity:
    """Return the identity of the current call's caller. Raises `LookupError` if `authenticate` has not run."""
    return _identity.get()


def authenticate(
    tokens: TokenResolver | None,
    clock: Clock,
    address_of: CallerLookup = peer_address,
) -> Interceptor:
    """Determine the caller's identity before anything of its request is read.

    Raises `Unauthenticated` or `QuotaExceeded`. A stream also ends once the caller's token has expired, or is not valid
    with the keys in force.
    """
    certificate_names = CertificateNames()

    async def verify(tokens: TokenResolver, token: str, peer: Peer) -> None:
        _identity.set(await tokens.resolve_identity(token, peer))

    async def identify(context: Context) -> Callable[[], Awaitable[None]] | None:
        """Set the identity of a call. Returns what verifies its token again; None for a certificate."""
        entries = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not entries:
            _identity.set(certificate_identity(context.auth_context() or {}, certificate_names))
            return None
        token, peer = _bearer_token(entries), Peer(peer_key(address_of(context)), context.peer())
        if tokens is None:
            raise Unauthenticated("a token, and no keys to verify it with")
        verify_token = partial(verify, tokens, token, peer)
        await verify_token()
        return verify_token

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
            await identify(context)
            return await behavior(request, context)

        async def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
            verify_again, keys = await identify(context), tokens and tokens.keys
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    if verify_again is not None and tokens is not None and keys != tokens.keys:
                        keys = tokens.keys
                        await verify_again()
                    expire_time = current_identity().expire_time
                    if expire_time is not None and clock() >= expire_time:
                        raise Unauthenticated("the token has expired since")
                    yield response

        return stream if method.streams_responses else respond

    return wrap


def certificate_identity(auth_context: AuthContext, names: CertificateNames) -> Identity:
    """Return the identity in the peer's certificate. Raises `Unauthenticated`, also without a certificate."""
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise Unauthenticated("neither a token nor a certificate")
    return Identity(IdentityKind.CERTIFICATE, names.name_of(certificates[0]))


def _bearer_token(entries: list[str | bytes]) -> str:
    """Return the token of the only `Authorization: Bearer …` entry (RFC 6750 §2.1)."""
    if len(entries) > 1:
        raise Unauthenticated("several authorization entries")
    scheme, _, token = str(entries[0]).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("an authorization entry that is not a bearer token")
    return token.strip()
