"""The server's certificate and the authority of its clients, exchanged while it runs.

gRPC asks for them at each new connection. Connections that are there go on: who came with a certificate that was
good then is known until the connection ends, which the server sees to (`lifecycle`).
"""

from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from integration_server.reloading import Contents, Reloaded, Unusable


class ServerCertificates:
    """Server credentials that follow their files with each `look`. Raises `Unusable`.

    With `client_authorities` every client must show a certificate that one of them has signed.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        self._certificate, self._key, self._authorities = certificate, key, client_authorities
        paths = [certificate, key] if client_authorities is None else [certificate, key, client_authorities]
        self._files = Reloaded("certificates", paths, self._read)

    async def look(self) -> None:
        """Read the files again."""
        await self._files.look()

    def credentials(self) -> grpc.ServerCredentials:
        """What a secure port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._files.value, lambda: self._files.value, require_client_authentication=self._authorities is not None
        )

    def _read(self, contents: Contents) -> grpc.ServerCertificateConfiguration:
        """The configuration, if certificate and key go together: gRPC itself would fail each handshake."""
        problems = [
            *_pair_problems(self._certificate, contents[self._certificate], self._key, contents[self._key]),
            *([] if self._authorities is None else _problems(self._authorities, contents[self._authorities])),
        ]
        if problems:
            raise Unusable(*problems)
        return grpc.ssl_server_certificate_configuration(
            [(contents[self._key], contents[self._certificate])],
            root_certificates=None if self._authorities is None else contents[self._authorities],
        )


def _problems(path: Path, content: bytes) -> list[str]:
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError:
        return [f"{path}: is not a certificate in PEM"]
    return []


def _pair_problems(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> list[str]:
    problems = _problems(certificate_path, certificate)
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError):
        return [*problems, f"{key_path}: is not an unencrypted private key in PEM"]
    if not problems:
        certified = x509.load_pem_x509_certificates(certificate)[0].public_key()
        if _bytes_of(certified) != _bytes_of(public):
            problems.append(f"{key_path}: is not the key of {certificate_path}")
    return problems


def _bytes_of(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
