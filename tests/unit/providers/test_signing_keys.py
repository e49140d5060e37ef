"""Keys that sign JWTs: every usual form is accepted, and what would hold the event loop is refused."""

import time
from base64 import b64decode, b64encode
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from integration_server.providers.signing_keys import MAX_ITERATIONS, SigningKey, UnusableKey
from tests.loop_hold.meter import shortest_time
from tests.rsa_key import RSA_KEY
from tests.unit.providers.support import NOW

P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
MINUTE = timedelta(minutes=1)


def pem(key: object, form: PrivateFormat = PrivateFormat.PKCS8, passphrase: str = "") -> str:
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption).decode()  # type: ignore[attr-defined, no-any-return]


def patched(text: str, old: bytes, new: bytes) -> str:
    """A PEM file with other bytes in its DER."""
    begin, body, end = text.strip().split("\n", 1)[0], "".join(text.split("\n")[1:-2]), text.strip().split("\n")[-1]
    data = b64decode(body)
    assert old in data
    return f"{begin}\n{b64encode(data.replace(old, new, 1)).decode()}\n{end}\n"


# --- accepted --------------------------------------------------------------------------------------------------------

RSA_PUBLIC = RSAKey.import_key(RSA_KEY.public_key())
SECRET = "s3cret-of-32-characters-or-longer"
ACCEPTED: dict[str, tuple[str, str | None, str, Any]] = {
    "PKCS #8": (pem(RSA_KEY), None, "RS256", RSA_PUBLIC),
    "PKCS #1": (pem(RSA_KEY, PrivateFormat.TraditionalOpenSSL), "RS512", "RS512", RSA_PUBLIC),
    "PSS": (pem(RSA_KEY), "PS256", "PS256", RSA_PUBLIC),
    "Windows lines": (pem(RSA_KEY).replace("\n", "\r\n"), "RS256", "RS256", RSA_PUBLIC),
    "escaped lines": (pem(RSA_KEY).replace("\n", "\\n"), "RS256", "RS256", RSA_PUBLIC),
    "escaped Windows lines": (pem(RSA_KEY).replace("\n", "\\r\\n"), "RS256", "RS256", RSA_PUBLIC),
    "lines lost in a form": (pem(RSA_KEY).replace("\n", " "), "RS256", "RS256", RSA_PUBLIC),
    "no lines at all": (pem(RSA_KEY).replace("\n", ""), "RS256", "RS256", RSA_PUBLIC),
    "text around it": (f"Bag Attributes\n  key: 1\n{pem(RSA_KEY)}\nmore", "RS256", "RS256", RSA_PUBLIC),
    "SEC 1": (pem(P256, PrivateFormat.TraditionalOpenSSL), "ES256", "ES256", ECKey.import_key(P256.public_key())),
    "P-384": (pem(P384), None, "ES384", ECKey.import_key(P384.public_key())),
    "a secret": (SECRET, "HS256", "HS256", OctKey.import_key(SECRET)),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
async def test_every_usual_form_of_a_key_signs(name: str) -> None:
    text, algorithm, expected, public = ACCEPTED[name]
    token = await SigningKey(text, algorithm, key_id="k-1").sign({"iss": "me"}, NOW, MINUTE)
    read = jwt.decode(token, public, algorithms=[expected])
    assert read.header == {"alg": expected, "typ": "JWT", "kid": "k-1"}
    begin = int(NOW.timestamp())
    assert read.claims == {"iss": "me", "iat": begin, "exp": begin + 60}


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
async def test_an_encrypted_key_signs_with_its_passphrase(form: PrivateFormat) -> None:
    text = pem(RSA_KEY, form, "phrase")
    token = await SigningKey(text, "RS512", "phrase").sign({}, NOW, MINUTE)
    assert jwt.decode(token, RSA_PUBLIC, algorithms=["RS512"]).claims["iat"]
    for passphrase in ("", "wrong"):
        with pytest.raises(UnusableKey, match="passphrase"):
            await SigningKey(text, "RS512", passphrase).require_usable()


# --- refused ---------------------------------------------------------------------------------------------------------

HUGE = rsa.RSAPrivateNumbers(
    p=(1 << 4095) + 1, q=(1 << 4095) + 3, d=(1 << 8000) + 1, dmp1=5, dmq1=7, iqmp=9,
    public_numbers=rsa.RSAPublicNumbers(e=65537, n=((1 << 4095) + 1) * ((1 << 4095) + 3)),
).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip
SCRYPT = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHjME4GCSqGSIb3DQEFDTBBMCAGCSsGAQQB2kcECzATBAgxMjM0NTY3OAICIAACAQgC
AQEwHQYJYIZIAWUDBAEqBBAAAAAAAAAAAAAAAAAAAAAABIGQAAAAAAAAAAAAAAAAAAAA
-----END ENCRYPTED PRIVATE KEY-----
"""
REFUSED = {
    "no key": ("hello", "RS256", "is not a private key in PEM"),
    "a certificate": (pem(RSA_KEY).replace("PRIVATE KEY", "CERTIFICATE"), "RS256", "is not a private key in PEM"),
    "a public key": (pem(RSA_KEY).replace("PRIVATE KEY", "PUBLIC KEY"), "RS256", "is not a private key in PEM"),
    "half of it": (pem(RSA_KEY)[:900] + "\n-----END PRIVATE KEY-----", "RS256", "is not a complete private key"),
    "a key without its end": (pem(RSA_KEY)[:900], "RS256", "is not a complete private key"),
    "another alphabet": (pem(RSA_KEY).replace("M", "é"), "RS256", "is not a complete private key"),
    "another kind": (pem(P256), "RS256", "must be an RSA private key for RS256"),
    "another curve": (pem(P384), "ES256", "must be an elliptic curve private key for ES256"),
    "a curve of money": (pem(ec.generate_private_key(ec.SECP256K1())), None, "signs no JWT"),
    "a kind that signs nothing": (pem(x25519.X25519PrivateKey.generate()), None, "signs no JWT"),
    "a key for a secret": (pem(RSA_KEY), "HS256", "must be a shared secret"),
    "nothing": ("", "HS256", "must be a shared secret"),
    "8,192 bits": (pem(HUGE), "RS256", "has 8191 bits; at most 4096"),
    "scrypt": (SCRYPT, "RS256", "takes too long to decrypt"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_unusable_key_is_refused_with_its_reason(name: str) -> None:
    text, algorithm, reason = REFUSED[name]
    with pytest.raises(UnusableKey) as raised:
        await SigningKey(text, algorithm, "phrase").require_usable()
    assert reason in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    body = "".join(text.split("\n")[1:-2])
    assert len(body) < 30 or body[:30] not in str(raised.value)
    assert text[:60] not in repr(SigningKey(text)) or len(text) < 10


async def test_a_damaged_key_signs_nothing_or_nonsense_and_never_fails_otherwise() -> None:
    text = pem(RSA_KEY)
    data = b64decode("".join(text.split("\n")[1:-2]))
    for position in range(30, len(data), 97):
        damaged = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        body = b64encode(damaged).decode()
        key = SigningKey(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----", "RS256")
        try:
            token = await key.sign({}, NOW, MINUTE)
        except UnusableKey:
            continue
        assert token.count(".") == 2


async def test_a_passphrase_that_costs_much_is_refused_before_it_is_tried() -> None:
    text = pem(P256, passphrase="phrase")
    assert MAX_ITERATIONS > 0x0800  # what OpenSSL uses
    usual, costly = b"\x02\x02\x08\x00", b"\x02\x02\x7f\xff"  # 32,767 iterations
    with pytest.raises(UnusableKey, match="takes too long to decrypt"):
        await SigningKey(patched(text, usual, costly), "ES256", "phrase").require_usable()
    # Negative control: the same number of iterations below the limit is tried, and another passphrase results.
    with pytest.raises(UnusableKey, match="cannot be decrypted"):
        await SigningKey(patched(text, usual, b"\x02\x02\x08\x01"), "ES256", "phrase").require_usable()


# --- the event loop --------------------------------------------------------------------------------------------------


_MAX_PART = 0.005  # seconds


@pytest.mark.slow
async def test_the_loop_is_not_held_by_a_key() -> None:
    big = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    text = pem(big)
    key = SigningKey(text, "RS256")
    load_unchecked = partial(load_pem_private_key, unsafe_skip_rsa_key_validation=True)
    shortest = inf
    for _ in range(20):  # as `shortest_time`
        begin = time.thread_time()  # of this thread, which runs the loop
        await key.sign({}, NOW, MINUTE)
        shortest = min(shortest, time.thread_time() - begin)
    assert shortest < _MAX_PART
    # What holds the interpreter for other threads is bounded too: parsing the key.
    assert shortest_time(lambda: load_unchecked(text.encode(), None), _MAX_PART) < _MAX_PART
    # Negative control: with the checks that are left out, parsing alone holds the interpreter for much longer.
    assert shortest_time(lambda: load_pem_private_key(text.encode(), None)) > 4 * _MAX_PART
