"""Validation of certificates and keys in PEM. Imports no other module of this package.

gRPC accepts invalid files, and then fails every connection without a reason.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def validity_period(content: bytes) -> tuple[datetime, datetime]:
    """Begin and end of the validity of a certificate in PEM; of several, of the one that ends first."""
    first = min(_certificates(content), key=lambda certificate: certificate.not_valid_after_utc)
    return first.not_valid_before_utc, first.not_valid_after_utc


def certificate_problems(path: Path, content: bytes) -> Sequence[str]:
    """The problems of a file with one or several certificates."""
    try:
        _certificates(content)
    except ValueError:
        return [f"{path}: is not a certificate in PEM; correct the path, or replace the file"]
    return []


def pair_problems(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> Sequence[str]:
    """The problems of a certificate and its private key. They do not match while both are being replaced."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - only TLS needs it

    problems = certificate_problems(certificate_path, certificate)
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError):
        remedy = "correct the path, or remove the password: openssl pkey"
        return [*problems, f"{key_path}: is not a private key in PEM without a password; {remedy}"]
    if not problems and _certificates(certificate)[0].public_key() != public:
        return [f"{key_path}: is not the key of {certificate_path}; replace both by a pair"]
    return problems


def _certificates(content: bytes) -> "Sequence[Certificate]":
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - 20 ms that only TLS needs

    return load_pem_x509_certificates(content)
