"""The name in a client certificate, read from the certificate itself.

gRPC's own list of names cuts each at its first NUL, so that `a.example\\0.evil.example` would be `a.example`.
"""

import re
from hashlib import sha256

from cachetools import LRUCache

from integration_server.rpc.errors import Unauthenticated

_MAX_CERTIFICATE_BYTES = 64 * 1024  # of PEM, measured before it is parsed: thousands of names
_CACHE_SIZE = 1_000  # certificates; a fleet of callers has hundreds

# SPIFFE-ID §2: the trust domain is in lower case, the path has no empty or relative segment and no trailing slash.
# X509-SVID §2: the identity of a workload has a path.
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}((?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+)", re.ASCII)
_SPIFFE_SCHEME = "spiffe:"
_MAX_SPIFFE_ID_LENGTH = 2048  # bytes, SPIFFE-ID §2.3
# RFC 5280 §4.2.1.6: a host name in the preferred syntax, without a final dot. Underscores occur inside clusters.
# A wildcard is the name of no single caller.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_MAX_DNS_NAME_LENGTH = 253


def parse_name(text: str) -> str:
    """Return a SPIFFE ID or DNS name in the spelling in which names are compared. Raises `ValueError`."""
    if is_spiffe_id(text):
        name = _SPIFFE_SCHEME + text[len(_SPIFFE_SCHEME) :]  # RFC 3986 §3.1: the scheme ignores case
        is_valid = len(name) <= _MAX_SPIFFE_ID_LENGTH and _SPIFFE_ID.fullmatch(name)
    else:
        name = text.lower()  # RFC 4343: host names ignore case
        is_valid = len(name) <= _MAX_DNS_NAME_LENGTH and _DNS_NAME.fullmatch(name)
    if not is_valid:
        raise ValueError("is neither a SPIFFE ID with a path nor the name of one host")
    return name


def is_spiffe_id(text: str) -> bool:
    """Whether the URI has the scheme of SPIFFE IDs, valid or not."""
    return text[: len(_SPIFFE_SCHEME)].lower() == _SPIFFE_SCHEME


class CertificateNames:
    """Reads the names of certificates, each once: a connection presents the same one with every call."""

    def __init__(self) -> None:
        # The name, or the problem of a certificate without a usable one: thousands of names take 7 ms to read.
        self._names: LRUCache[bytes, tuple[str, str]] = LRUCache(_CACHE_SIZE)

    def name_of(self, certificate: bytes) -> str:
        """Return the name in a certificate in PEM, which gRPC has verified. Raises `Unauthenticated`."""
        if len(certificate) > _MAX_CERTIFICATE_BYTES:
            raise Unauthenticated(f"a certificate of more than {_MAX_CERTIFICATE_BYTES} bytes")
        digest = sha256(certificate).digest()
        if digest not in self._names:
            try:
                self._names[digest] = _read_name(certificate), ""
            except Unauthenticated as error:
                self._names[digest] = "", str(error)
        name, problem = self._names[digest]
        if problem:
            raise Unauthenticated(problem)
        return name


def _read_name(pem: bytes) -> str:
    """Return the only URI, which is a SPIFFE ID, or the only DNS name of a certificate without URIs.

    The common name is never used: RFC 6125 §6.4.4 leaves it to people, and authorities need not verify it.
    """
    from cryptography import x509  # noqa: PLC0415 - 20 ms that only TLS needs, whose files are read with it at the start

    try:
        extensions = x509.load_pem_x509_certificate(pem).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        # X509-SVID §2: exactly one URI, whatever its scheme; DNS names beside it are for servers.
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        candidates = uris or names.get_values_for_type(x509.DNSName)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Unauthenticated("a certificate whose names cannot be read") from None
    except x509.ExtensionNotFound:
        raise Unauthenticated("a certificate without a name") from None
    if len(candidates) != 1:
        raise Unauthenticated("a certificate with several names" if candidates else "a certificate without a name")
    (candidate,) = candidates
    try:
        if is_spiffe_id(candidate) != bool(uris):
            raise ValueError
        return parse_name(candidate)
    except ValueError:
        raise Unauthenticated("a certificate whose name is not valid") from None
