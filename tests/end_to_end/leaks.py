"""Looks for secrets, in whatever form somebody could have written them."""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

# Hexadecimal runs long enough to be a value: in a PostgreSQL dump each `bytea` is one.
_HEX_RUN = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}")
_SHORTEST = 12


def forms(secret: str) -> Iterator[tuple[str, bytes]]:
    """The secret as it is, in base64 wherever it may begin in what is encoded, percent-encoded, and in hexadecimal."""
    raw = secret.encode()
    assert len(raw) >= _SHORTEST, "too short to tell from chance"
    yield "plain", raw
    yield "reversed", raw[::-1]
    yield "UTF-16", secret.encode("utf-16-le")
    yield "url", quote(secret, safe="").encode()
    yield "every byte percent-encoded", b"".join(b"%%%02X" % byte for byte in raw)
    yield "hex", binascii.hexlify(raw)
    yield "HEX", binascii.hexlify(raw).upper()
    for offset in range(3):
        # Only what the secret alone decides: characters at either end also hold bits of its neighbours.
        encoded = base64.b64encode(b"\0" * offset + raw)
        certain = encoded[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]
        yield f"base64, offset {offset}", certain
        yield f"base64url, offset {offset}", certain.translate(bytes.maketrans(b"+/", b"-_"))


def decoded(text: bytes) -> Iterator[bytes]:
    """A dump with each of its hexadecimal runs also as the bytes that it stands for."""
    yield text
    for run in _HEX_RUN.findall(text):
        yield binascii.unhexlify(run)


def found(secrets: Mapping[str, Iterable[str]], places: Mapping[str, bytes]) -> set[tuple[str, str, str]]:
    """Which kind of secret is where, and in which form. Names only, so that a failing test shows none of them."""
    texts = {place: list(decoded(content)) for place, content in places.items()}
    return {
        (kind, place, form)
        for kind, values in secrets.items()
        for value in values
        for form, needle in forms(value)
        for place, contents in texts.items()
        if any(needle in content for content in contents)
    }
