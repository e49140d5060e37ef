"""Bearer tokens (RFC 6750): JWTs (RFC 7519) of configured issuers, verified with their published keys (RFC 7517).

Only public-key algorithms are allowed: with a symmetric one, anybody who has the issuer's public key could sign tokens
with it (RFC 8725 §2.1).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from joserfc.errors import ExpiredTokenError
from joserfc.jwk import JWKRegistry, KeySet
from joserfc.jws import JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry

from integration_server.domain.callers import Identity, IdentityKind
from integration_server.domain.text import has_control_characters
from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile
from integration_server.rpc.errors import KeysNotAvailable, TokenExpired, Unauthenticated
from integration_server.service.common_types import Clock

Fetch = Callable[[], Awaitable[bytes]]
"""Fetches the body of a published key set. Any exception means that it is not available."""

MAX_SUBJECT_LENGTH = 128  # characters: the maximum length of a user_id

_MAX_AGE = timedelta(minutes=5)  # of fetched keys: a withdrawn key is accepted no longer than this
_MIN_INTERVAL = timedelta(seconds=10)  # between fetches, however many tokens name unknown keys


class Jwks(Protocol):
    """The public keys of an issuer."""

    @property
    def value(self) -> KeySet:
        """The keys as of the last update; the same object until they change."""

    async def get_keys(self, kid: str | None) -> KeySet:
        """Return the keys, after an update if none has the id `kid`."""

    async def poll(self) -> None:
        """Update the keys if they are due."""


def parse_jwks(body: bytes) -> KeySet:
    """Return the public signature keys of a JWK set that are supported. Raises `InvalidFile` if there are none."""
    try:
        published = list(json.loads(body)["keys"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidFile(f"is not a JWK set ({type(error).__name__})") from None
    keys, skipped = [], []
    for number, jwk in enumerate(published, start=1):
        try:
            if jwk.get("kty") in {"RSA", "EC", "OKP"} and jwk.get("use", "sig") == "sig":
                key = JWKRegistry.import_key(jwk)
                key.ensure_kid()  # computes a missing id now, so that a bad key fails here and not in the set
                keys.append(key)
        except Exception as error:  # RFC 7517 §5: ignore keys that are not supported
            skipped.append(f"{number}: {type(error).__name__}")
    if skipped:
        structlog.get_logger(__name__).warning("jwks_keys_skipped", skipped=skipped, total=len(published))
    if not keys:
        raise InvalidFile("has no public key for signatures that is supported")
    return KeySet(keys)


def _parse_jwks_file(contents: Contents) -> KeySet:
    ((path, content),) = contents.items()
    try:
        return parse_jwks(content)
    except InvalidFile as error:
        raise InvalidFile(*(f"{path}: {problem}" for problem in error.problems)) from None


class FileJwks(ReloadedFile[KeySet]):
    """A key set in a file. The constructor raises `InvalidFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__("keys", [path], _parse_jwks_file)

    async def get_keys(self, kid: str | None) -> KeySet:
        """Return the keys as of the last poll."""
        return self.value


class RemoteJwks:
    """A key set at a URL. It is fetched every five minutes, and when a token names an unknown key.

    A failed fetch keeps the current keys. Until the first fetch succeeds, no token is accepted.
    """

    def __init__(self, fetch: Fetch, clock: Clock, *, min_interval: timedelta = _MIN_INTERVAL) -> None:
        self._fetch = fetch
        self._clock = clock
        self._min_interval = min_interval
        self._body: bytes | None = None
        self.value = KeySet([])
        self._last_fetch_time: datetime | None = None
        self._last_attempt_time: datetime | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._log = structlog.get_logger(__name__)

    async def get_keys(self, kid: str | None) -> KeySet:
        """Return the keys, after a fetch if none has the id `kid`."""
        if not any(kid in {None, key.kid} for key in self.value):
            await self._refresh()
        return self.value

    async def poll(self) -> None:
        """Fetch the keys if they are older than five minutes."""
        if self._last_fetch_time is None or self._clock() - self._last_fetch_time >= _MAX_AGE:
            await self._refresh()

    async def _refresh(self) -> None:
        """Fetch the keys, at most once in ten seconds; concurrent callers share one fetch.

        The fetch is shielded: otherwise callers that disconnect at once could prevent every update.
        """
        if self._attempt is None or self._attempt.done():
            if self._last_attempt_time is not None and self._clock() - self._last_attempt_time < self._min_interval:
                return
            self._attempt = asyncio.create_task(self._fetch_once())
        await asyncio.shield(self._attempt)

    async def _fetch_once(self) -> None:
        fetch_time = self._clock()
        try:
            body = await self._fetch()
            if body != self._body:  # otherwise the tokens that these keys have verified stay verified
                self.value, self._body = parse_jwks(body), body
        except Exception as error:  # any failure keeps the current keys
            problem = str(error) if isinstance(error, InvalidFile) else type(error).__name__
            self._log.error("jwks_fetch_failed", problem=problem, key_count=len(self.value.keys))
        else:
            self._last_fetch_time = fetch_time  # a key may be withdrawn during the fetch
        finally:
            # The end, not the start: a fetch may take longer than the interval.
            self._last_attempt_time = self._clock()


@dataclass(frozen=True, slots=True)
class Issuer:
    """A trusted token issuer. Its tokens name this server as `audience`, and identify callers of `kind`."""

    kind: IdentityKind
    issuer: str
    audience: str
    keys: Jwks


class JwtVerifier:
    """Verifies the tokens of several issuers. Implements `authentication.TokenVerifier`."""

    def __init__(self, issuers: Sequence[Issuer], algorithms: Collection[str], leeway: timedelta, clock: Clock) -> None:
        # joserfc ignores unknown header parameters (RFC 7515 §4), and rejects tokens whose `crit` names one.
        self._registry = JWSRegistry(algorithms=sorted(algorithms), strict_check_header=False)
        self._issuers = issuers
        self._leeway = leeway
        self._clock = clock

    @property
    def keys(self) -> tuple[KeySet, ...]:
        """The keys of all issuers as of their last updates."""
        return tuple(issuer.keys.value for issuer in self._issuers)

    async def resolve_identity(self, token: str) -> Identity:
        """Return the identity of the token's subject. Raises `Unauthenticated`."""
        found, errors = [], dict[IdentityKind, Exception]()
        for issuer in self._issuers:
            try:
                found.append(await self._verify(token, issuer))
            except Exception as error:  # a forged token may break a parser in any way
                errors[issuer.kind] = error
        if len(found) != 1:
            # A token that is valid for both kinds would let its sender choose the kind.
            problem = "; ".join(f"{kind}: {type(error).__name__}" for kind, error in errors.items())
            harmless = (type(error) for error in errors.values() if isinstance(error, (TokenExpired, KeysNotAvailable)))
            raise next(harmless, Unauthenticated)(problem or "a token that is both a service's and a user's")
        return found[0]

    async def _verify(self, token: str, issuer: Issuer) -> Identity:
        signed = extract_compact(token.encode(), registry=self._registry)
        claims = json.loads(signed.payload or b"")
        if claims["iss"] != issuer.issuer:
            raise Unauthenticated("of another issuer")  # before a fetch of this issuer's keys
        kid = signed.headers().get("kid")
        keys = await issuer.keys.get_keys(kid if isinstance(kid, str) else None)
        if not keys.keys:
            raise KeysNotAvailable("the issuer's keys are not available")
        if not validate_compact(signed, keys, registry=self._registry):
            raise Unauthenticated("signed with another key")
        registry = JWTClaimsRegistry(
            now=int(self._clock().timestamp()),
            leeway=int(self._leeway.total_seconds()),
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "value": issuer.audience},
            sub={"essential": True},
            exp={"essential": True},
        )
        try:
            registry.validate(claims)
        except ExpiredTokenError:
            raise TokenExpired("the token has expired") from None
        subject, expire_time = claims["sub"], datetime.fromtimestamp(claims["exp"], UTC)
        if len(subject) > MAX_SUBJECT_LENGTH or has_control_characters(subject):
            raise Unauthenticated("a subject that cannot be a user_id")
        return Identity(issuer.kind, subject, expire_time + self._leeway)
