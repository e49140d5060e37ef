"""Signed JWTs, and the keys that sign them: PEM files and shared secrets that users and operators paste.

Everything here is bounded, because keys are input: measured, the worst accepted key is parsed in 4 ms and signs in 2 ms
of CPU time, of which only the first holds the interpreter. Callers sign in a thread, which also imports the libraries:
few providers need them, and they take 40 ms.
"""

import asyncio
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

MAX_RSA_BITS = 4096  # 2,048 are usual. One signature takes 1.5 ms, and 30 ms with 8,192 bits
MAX_ITERATIONS = (
    10_000  # of a passphrase; OpenSSL and Box use 2,048. More than these hold the interpreter for over 4 ms
)
_MAX_EXPONENT = 1 << 32  # 65,537 is usual; OpenSSL verifies each of its signatures with it

_BEGIN = re.compile(r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY)-----")
_LINE = 64  # RFC 7468 §2

_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # RFC 7518 §3.4
_KINDS = {"RS": "an RSA", "PS": "an RSA", "ES": "an elliptic curve"}


class UnusableKey(ValueError):
    """A key cannot be used. `str()` is the reason, as the end of a sentence, without any text of the key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key as it is stored, with what is necessary to use it."""

    text: str = field(repr=False)
    algorithm: str | None = None
    """The algorithm of RFC 7518 §3.1; None chooses RS256, ES256, EdDSA or HS256 by the kind of the key."""

    passphrase: str = field(default="", repr=False)
    key_id: str = ""

    async def sign(self, claims: Mapping[str, Any], now: datetime, lifetime: timedelta) -> str:
        """A JWT (RFC 7519) with `iat`, `exp` and these claims. Raises `UnusableKey`."""
        times = {"iat": int(now.timestamp()), "exp": int((now + lifetime).timestamp())}
        return await asyncio.to_thread(self._sign, {**times, **claims})

    async def require_usable(self) -> None:
        """Raise `UnusableKey` if the key cannot sign."""
        await asyncio.to_thread(self._sign, {})

    def _sign(self, claims: Mapping[str, Any]) -> str:
        from joserfc import jwt  # noqa: PLC0415 - in the thread
        from joserfc.errors import JoseError  # noqa: PLC0415

        key, algorithm = _load(self.text, self.algorithm, self.passphrase)
        header = {"alg": algorithm, "typ": "JWT", **({"kid": self.key_id} if self.key_id else {})}
        try:
            return jwt.encode(header, dict(claims), key, algorithms=[algorithm])
        except (JoseError, ValueError, TypeError):
            raise UnusableKey("cannot sign: it is damaged") from None  # the error may quote the key


_Key: TypeAlias = "RSAKey | ECKey | OKPKey | OctKey"


def _load(text: str, algorithm: str | None, passphrase: str) -> tuple[_Key, str]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415 - in the thread
    from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey  # noqa: PLC0415

    is_pem = "-----BEGIN" in text
    if algorithm is None:
        algorithm = None if is_pem else "HS256"
    if algorithm is not None and algorithm.startswith("HS"):
        if is_pem or not text:
            raise UnusableKey("must be a shared secret, not a PEM file")
        return OctKey.import_key(text), algorithm
    private = _load_pem(text, passphrase)
    if isinstance(private, rsa.RSAPrivateKey):
        _require_bounded(private)
        key: _Key = RSAKey.import_key(private)
        fits, own = algorithm is None or algorithm[:2] in {"RS", "PS"}, "RS256"
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        key, own = ECKey.import_key(private), _algorithm_of(private)
        fits = algorithm in {None, own}
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        key, own = OKPKey.import_key(private), "EdDSA"
        fits = algorithm in {None, own}
    else:
        raise UnusableKey("is a private key of a kind that signs no JWT")
    if not fits:
        raise UnusableKey(f"must be {_KINDS[str(algorithm)[:2]]} private key for {algorithm}")
    return key, algorithm or own


def _load_pem(text: str, passphrase: str) -> object:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - in the thread

    text = text.replace("\\n", "\n").replace("\\r", "")
    begin = _BEGIN.search(text)
    if begin is None:
        raise UnusableKey("is not a private key in PEM: it begins with -----BEGIN PRIVATE KEY-----")
    label = begin[1]
    content = text[begin.end() :].partition(f"-----END {label}-----")[0]
    body = "".join(content.split())  # the line breaks of a pasted file may be lost
    is_old = "DEK-Info" in content  # RFC 1421 §4.6: its headers need their lines
    lines = content.strip() if is_old else "\n".join(body[i : i + _LINE] for i in range(0, len(body), _LINE))
    pem = f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()
    is_encrypted = is_old or label.startswith("ENCRYPTED")
    if is_encrypted and not passphrase:
        raise UnusableKey("is encrypted, and there is no passphrase")
    if is_encrypted and not is_old:
        _require_few_iterations(body)
    try:
        # The checks of an RSA key hold the interpreter for 36 ms (2,048 bits) to 250 ms (4,096): OpenSSL tests whether
        # its factors are primes. A key that is none makes wrong signatures, which harms only the account that has it.
        return load_pem_private_key(
            pem, passphrase.encode() if is_encrypted else None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "cannot be decrypted with the passphrase" if is_encrypted else "is not a complete private key"
        raise UnusableKey(reason) from None  # the error may quote the key


def _require_bounded(key: "rsa.RSAPrivateKey") -> None:
    if key.key_size > MAX_RSA_BITS:
        raise UnusableKey(f"has {key.key_size} bits; at most {MAX_RSA_BITS} are allowed")
    if key.public_key().public_numbers().e > _MAX_EXPONENT:
        raise UnusableKey("has an unusual public exponent")


def _algorithm_of(key: "ec.EllipticCurvePrivateKey") -> str:
    found = [algorithm for algorithm, curve in _CURVES.items() if curve == key.curve.name]
    if not found:
        raise UnusableKey("is on a curve that signs no JWT; P-256, P-384 and P-521 do")
    return found[0]


def _require_few_iterations(body: str) -> None:
    """Raise `UnusableKey` if the passphrase of a PKCS #8 file (RFC 5958 §3) costs more than `MAX_ITERATIONS`.

    All numbers before the encrypted data are of the key derivation: iterations and length of PBKDF2 (RFC 8018 §A.2), or
    the three costs of scrypt (RFC 7914 §7), whose usual ones take 50 ms.
    """
    try:
        outer = next(_elements(b64decode(body, validate=True)))[1]
        numbers = list(_integers(next(_elements(outer))[1]))
    except (ValueError, StopIteration, IndexError):
        raise UnusableKey("is not a complete private key") from None
    if len(numbers) > 2 or any(number > MAX_ITERATIONS for number in numbers):
        advice = f"encrypt it with PBKDF2 and at most {MAX_ITERATIONS:,} iterations, as openssl pkcs8 -topk8 does"
        raise UnusableKey(f"is encrypted in a way that takes too long to decrypt; {advice}")


_INTEGER, _CONSTRUCTED = 2, 0x20  # ITU-T X.690 §8.1.2
_MAX_DEPTH = 8  # of the algorithm of an encrypted key there are five


def _integers(data: bytes, depth: int = _MAX_DEPTH) -> Iterator[int]:
    for tag, content in _elements(data):
        if tag == _INTEGER:
            yield int.from_bytes(content)
        elif tag & _CONSTRUCTED and depth:
            yield from _integers(content, depth - 1)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of the DER elements in a text (ITU-T X.690 §8.1, definite lengths)."""
    while data:
        length, begin = data[1], 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(data[2:begin])
        yield data[0], data[begin : begin + length]
        data = data[begin + length :]
