"""Bearer tokens (RFC 6750): JWTs (RFC 7519) of configured issuers, verified with their published keys (RFC 7517).

Only algorithms of public keys are known: with one that signs and verifies by the same secret, whoever reads the
issuer's public key could sign with it (RFC 8725 §2.1).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet
from joserfc.jws import JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry

from integration_server.reloading import Contents, Reloaded, Unusable
from integration_server.rpc.callers import CallerUnknown, Identity, Kind

Clock = Callable[[], datetime]
Fetch = Callable[[], Awaitable[bytes]]
"""Gets the body of a published key set. Any exception means that there is none to be had now."""

LONGEST_SUBJECT = 128  # what a user_id may be

_MAX_AGE = timedelta(minutes=5)  # of keys from a URL: one that is withdrawn there is believed no longer than this
_MIN_INTERVAL = timedelta(seconds=10)  # between fetches, however many tokens name keys that nobody has heard of


class Keys(Protocol):
    """The keys that an issuer signs with."""

    async def known(self, kid: str | None) -> KeySet:
        """The keys, asked for again first if `kid` is not among them and that may help."""

    async def look(self) -> None:
        """Bring them up to date, where it is time to."""


def read_keys(body: bytes) -> KeySet:
    """The public signature keys of a JWK set. Raises `Unusable`."""
    try:
        keys = [JWKRegistry.import_key(key) for key in json.loads(body)["keys"] if _is_for_signatures(key)]
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unusable(f"is not a JWK set ({type(error).__name__})") from None
    if not keys:
        raise Unusable("has no public key for signatures")
    return KeySet(keys)


def _is_for_signatures(key: dict[str, Any]) -> bool:
    return key.get("kty") in {"RSA", "EC", "OKP"} and key.get("use", "sig") == "sig"


class KeysInFile:
    """A key set in a file. Raises `Unusable`."""

    def __init__(self, file: Reloaded[KeySet]) -> None:
        self._file = file

    async def known(self, kid: str | None) -> KeySet:
        """The keys in the file, as they were at the last look."""
        return self._file.value

    async def look(self) -> None:
        """Read the file again."""
        await self._file.look()


def read_key_file(contents: Contents) -> KeySet:
    """The keys in the one file."""
    ((path, content),) = contents.items()
    try:
        return read_keys(content)
    except Unusable as error:
        raise Unusable(*(f"{path}: {problem}" for problem in error.problems)) from None


class KeysAtUrl:
    """A key set that is fetched: again after a while, and when a token names a key that is not in it.

    A fetch that fails leaves the keys as they were. Until one has succeeded nobody is known.
    """

    def __init__(self, fetch: Fetch, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys = KeySet([])
        self._fetched: datetime | None = None
        self._tried: datetime | None = None
        self._one_at_a_time = asyncio.Lock()
        self._log = structlog.get_logger(__name__)

    async def known(self, kid: str | None) -> KeySet:
        """The keys, fetched anew if none of them is called `kid`."""
        if not self._has(kid):
            async with self._one_at_a_time:
                if not self._has(kid):
                    await self._try()
        return self._keys

    async def look(self) -> None:
        """Fetch the keys if they are old."""
        if self._fetched is None or self._clock() - self._fetched >= _MAX_AGE:
            async with self._one_at_a_time:
                await self._try()

    def _has(self, kid: str | None) -> bool:
        return any(kid in {None, key.kid} for key in self._keys)

    async def _try(self) -> None:
        now = self._clock()
        if self._tried is not None and now - self._tried < _MIN_INTERVAL:
            return
        self._tried = now
        try:
            self._keys = read_keys(await self._fetch())
        except Exception as error:  # whatever it is, the keys that are here are better than none
            problem = str(error) if isinstance(error, Unusable) else type(error).__name__
            self._log.error("keys_not_fetched", problem=problem, kept=len(self._keys.keys))
        else:
            self._fetched = now


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are taken, and as what: `audience` is how it names this service in them."""

    kind: Kind
    issuer: str
    audience: str
    keys: Keys


class IssuedTokens:
    """Verifies tokens of several issuers. Fulfils `callers.Tokens`."""

    def __init__(self, issuers: Sequence[Issuer], algorithms: Collection[str], leeway: timedelta, clock: Clock) -> None:
        # Unknown header parameters are ignored (RFC 7515 §4), unless `crit` names them: then joserfc refuses.
        self._registry = JWSRegistry(algorithms=sorted(algorithms), strict_check_header=False)
        self._issuers = issuers
        self._leeway = leeway
        self._clock = clock

    async def identity_of(self, token: str) -> Identity:
        """Whose token it is. Raises `CallerUnknown`."""
        found, problems = [], []
        for issuer in self._issuers:
            try:
                found.append(await self._verified(token, issuer))
            except Exception as error:  # what a forged token breaks in a parser is as good a reason as any
                problems.append(f"{issuer.kind}: {type(error).__name__}")
        if len(found) != 1:
            # One that is good as both a service's and a user's would let the sender choose.
            raise CallerUnknown("; ".join(problems) or "a token that is both a service's and a user's")
        return found[0]

    async def _verified(self, token: str, issuer: Issuer) -> Identity:
        signed = extract_compact(token.encode(), registry=self._registry)
        claims = json.loads(signed.payload or b"")
        if claims["iss"] != issuer.issuer:
            raise CallerUnknown("of another issuer")  # whose keys are not to be fetched for it
        kid = signed.headers().get("kid")
        keys = await issuer.keys.known(kid if isinstance(kid, str) else None)
        if not validate_compact(signed, keys, registry=self._registry):
            raise CallerUnknown("signed with another key")
        self._rules(issuer).validate(claims)
        subject, expire_time = claims["sub"], datetime.fromtimestamp(claims["exp"], UTC)
        if len(subject) > LONGEST_SUBJECT or "\0" in subject:
            raise CallerUnknown("a subject that cannot be a user_id")
        return Identity(issuer.kind, (subject,), expire_time + self._leeway)

    def _rules(self, issuer: Issuer) -> JWTClaimsRegistry:
        return JWTClaimsRegistry(
            now=int(self._clock().timestamp()),
            leeway=int(self._leeway.total_seconds()),
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "value": issuer.audience},
            sub={"essential": True},
            exp={"essential": True},
        )
