"""Certificates and keys in PEM: what is wrong with them, before gRPC has to do with them. Imports nothing of ours.

gRPC takes what it is given, and then fails each connection without a word of why.
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


def certificate_problems(path: Path, content: bytes) -> Sequence[str]:
    """What is wrong with a file of one or several certificates."""
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError:
        return [f"{path}: is not a certificate in PEM"]
    return []


def pair_problems(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> Sequence[str]:
    """What is wrong with a certificate and its key. While both are being replaced they may not go together."""
    problems = certificate_problems(certificate_path, certificate)
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError):
        return [*problems, f"{key_path}: is not a private key in PEM without a password"]
    if not problems and _bytes_of(x509.load_pem_x509_certificates(certificate)[0].public_key()) != _bytes_of(public):
        return [f"{key_path}: is not the key of {certificate_path}"]
    return problems


def _bytes_of(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
