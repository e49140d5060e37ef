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
from joserfc.jwk import JWKRegistry, Key, KeySet
from joserfc.jws import JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry

from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile
from integration_server.rpc.peer_identity import Identity, IdentityKind, Unauthenticated

Clock = Callable[[], datetime]
Fetch = Callable[[], Awaitable[bytes]]
"""Gets the body of a published key set. Any exception means that there is none to be had now."""

MAX_SUBJECT_LENGTH = 128  # what a user_id may be

_MAX_AGE = timedelta(minutes=5)  # of keys from a URL: one that is withdrawn there is believed no longer than this
_MIN_INTERVAL = timedelta(seconds=10)  # between fetches, however many tokens name keys that nobody has heard of


class Jwks(Protocol):
    """The keys that an issuer signs with."""

    async def get_keys(self, kid: str | None) -> KeySet:
        """The keys, asked for again first if `kid` is not among them and that may help."""

    async def poll(self) -> None:
        """Bring them up to date, where it is time to."""


def parse_jwks(body: bytes) -> KeySet:
    """The public signature keys of a JWK set, without those that are not understood. Raises `InvalidFile`."""
    try:
        published = list(json.loads(body)["keys"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidFile(f"is not a JWK set ({type(error).__name__})") from None
    keys, skipped = [], []
    for number, jwk in enumerate(published, start=1):
        try:
            if _is_signature_key(jwk):
                keys.append(_import_key(jwk))
        except Exception as error:  # RFC 7517 §5: one that is not understood does not take the others along
            skipped.append(f"{number}: {type(error).__name__}")
    if skipped:
        structlog.get_logger(__name__).warning("jwks_keys_skipped", skipped=skipped, total=len(published))
    if not keys:
        raise InvalidFile("has no public key for signatures that is understood")
    return KeySet(keys)


def _is_signature_key(jwk: dict[str, Any]) -> bool:
    return jwk.get("kty") in {"RSA", "EC", "OKP"} and jwk.get("use", "sig") == "sig"


def _import_key(jwk: dict[str, Any]) -> Key:
    key = JWKRegistry.import_key(jwk)
    key.ensure_kid()  # which a set would ask for, and which reads the key
    return key


class FileJwks:
    """A key set in a file. Raises `InvalidFile`."""

    def __init__(self, file: ReloadedFile[KeySet]) -> None:
        self._file = file

    async def get_keys(self, kid: str | None) -> KeySet:
        """The keys in the file, as they were at the last look."""
        return self._file.value

    async def poll(self) -> None:
        """Read the file again."""
        await self._file.poll()


def parse_jwks_file(contents: Contents) -> KeySet:
    """The keys in the one file."""
    ((path, content),) = contents.items()
    try:
        return parse_jwks(content)
    except InvalidFile as error:
        raise InvalidFile(*(f"{path}: {problem}" for problem in error.problems)) from None


class RemoteJwks:
    """A key set that is fetched: again after a while, and when a token names a key that is not in it.

    A fetch that fails leaves the keys as they were. Until one has succeeded nobody is known.
    """

    def __init__(self, fetch: Fetch, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys = KeySet([])
        self._last_fetch_time: datetime | None = None
        self._last_attempt_time: datetime | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._log = structlog.get_logger(__name__)

    async def get_keys(self, kid: str | None) -> KeySet:
        """The keys, fetched anew if none of them is called `kid`."""
        if not any(kid in {None, key.kid} for key in self._keys):
            await self._refresh()
        return self._keys

    async def poll(self) -> None:
        """Fetch the keys if they are old."""
        if self._last_fetch_time is None or self._clock() - self._last_fetch_time >= _MAX_AGE:
            await self._refresh()

    async def _refresh(self) -> None:
        """Fetch, unless that was tried a moment ago. Whoever comes meanwhile waits for the same end, and no longer.

        An attempt goes on without who began it: callers that leave at once would else keep new keys out.
        """
        if self._attempt is None or self._attempt.done():
            if self._last_attempt_time is not None and self._clock() - self._last_attempt_time < _MIN_INTERVAL:
                return
            self._attempt = asyncio.create_task(self._fetch_once())
        await asyncio.shield(self._attempt)

    async def _fetch_once(self) -> None:
        began = self._clock()
        try:
            self._keys = parse_jwks(await self._fetch())
        except Exception as error:  # whatever it is, the keys that are here are better than none
            problem = str(error) if isinstance(error, InvalidFile) else type(error).__name__
            self._log.error("jwks_fetch_failed", problem=problem, key_count=len(self._keys.keys))
        else:
            self._last_fetch_time = began  # by its end a key may have been withdrawn
        finally:
            self._last_attempt_time = (
                self._clock()
            )  # the end: one that has waited as long as the interval is not to be the next


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are taken, and as what: `audience` is how it names this service in them."""

    kind: IdentityKind
    issuer: str
    audience: str
    keys: Jwks


class JwtVerifier:
    """Verifies tokens of several issuers. Fulfils `callers.Tokens`."""

    def __init__(self, issuers: Sequence[Issuer], algorithms: Collection[str], leeway: timedelta, clock: Clock) -> None:
        # Unknown header parameters are ignored (RFC 7515 §4), unless `crit` names them: then joserfc refuses.
        self._registry = JWSRegistry(algorithms=sorted(algorithms), strict_check_header=False)
        self._issuers = issuers
        self._leeway = leeway
        self._clock = clock

    async def resolve_identity(self, token: str) -> Identity:
        """Whose token it is. Raises `Unauthenticated`."""
        found, problems = [], []
        for issuer in self._issuers:
            try:
                found.append(await self._verify(token, issuer))
            except Exception as error:  # what a forged token breaks in a parser is as good a reason as any
                problems.append(f"{issuer.kind}: {type(error).__name__}")
        if len(found) != 1:
            # One that is good as both a service's and a user's would let the sender choose.
            raise Unauthenticated("; ".join(problems) or "a token that is both a service's and a user's")
        return found[0]

    async def _verify(self, token: str, issuer: Issuer) -> Identity:
        signed = extract_compact(token.encode(), registry=self._registry)
        claims = json.loads(signed.payload or b"")
        if claims["iss"] != issuer.issuer:
            raise Unauthenticated("of another issuer")  # whose keys are not to be fetched for it
        kid = signed.headers().get("kid")
        keys = await issuer.keys.get_keys(kid if isinstance(kid, str) else None)
        if not validate_compact(signed, keys, registry=self._registry):
            raise Unauthenticated("signed with another key")
        self._claims_registry(issuer).validate(claims)
        subject, expire_time = claims["sub"], datetime.fromtimestamp(claims["exp"], UTC)
        if len(subject) > MAX_SUBJECT_LENGTH or "\0" in subject:
            raise Unauthenticated("a subject that cannot be a user_id")
        return Identity(issuer.kind, (subject,), expire_time + self._leeway)

    def _claims_registry(self, issuer: Issuer) -> JWTClaimsRegistry:
        return JWTClaimsRegistry(
            now=int(self._clock().timestamp()),
            leeway=int(self._leeway.total_seconds()),
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "value": issuer.audience},
            sub={"essential": True},
            exp={"essential": True},
        )
