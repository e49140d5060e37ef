"""Creates a certificate authority for development, with certificates for the server, the sidecar and a client.

    python tools/certificates.py [FOLDER]      default: data/certs; files that stay valid for a week are kept

Callers are named by SPIFFE IDs (https://spiffe.io), the server by the addresses of this machine. Do not use them in
production. The authority's private key is not stored: new certificates have a new authority.
"""

import ipaddress
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOLDER = Path("data/certs")
LIFETIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=7)

SERVER: Sequence[x509.GeneralName] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)
CALLERS = {
    "sidecar": "spiffe://integrations.example/sidecar",
    "client": "spiffe://integrations.example/calendar-sync",
}
SENTINEL_FILE = "server.pem"
FILES = ("ca.pem", *(f"{name}{end}.pem" for name in (*CALLERS, "server") for end in ("-key", "")))


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


class Authority:
    """A certificate authority whose private key is never stored."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        # A unique name, because TLS considers only one of several trusted authorities with the same name.
        self._name = _name(f"Integration Server development CA {secrets.token_hex(4)}")
        self.certificate = (
            _certificate(self._name, self._name, self._key.public_key(), LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def issue(
        self,
        names: Sequence[x509.GeneralName],
        *,
        common_name: str = "development",
        lifetime: timedelta = LIFETIME,
        extension: x509.ExtensionType | None = None,
    ) -> Pair:
        """A certificate with these names, and a further extension. A negative lifetime makes an expired one."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _certificate(_name(common_name), self._name, key.public_key(), lifetime).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Pair(certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + lifetime)
    )


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write the file atomically, by default readable only by this user."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode), "wb") as file:
        file.write(content)
    new.chmod(mode)
    new.replace(path)


def write(
    folder: Path,
    *,
    server_names: Sequence[x509.GeneralName] = SERVER,
    renew_before: timedelta = RENEW_BEFORE,
    replace_file: Callable[[Path, bytes], None] = replace,
) -> bool:
    """Create the certificates, unless valid ones exist. Returns whether it created them."""
    if _is_current(folder, renew_before):
        return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority()
    pairs = {
        name: authority.issue([x509.UniformResourceIdentifier(uri)], common_name=name) for name, uri in CALLERS.items()
    } | {"server": authority.issue(server_names, common_name="Integration Server")}
    # `_is_current` needs the sentinel file. It is removed first and written last, so that an interrupted run is
    # repeated.
    (folder / SENTINEL_FILE).unlink(missing_ok=True)
    replace_file(folder / "ca.pem", authority.certificate)
    for name, pair in pairs.items():
        replace_file(folder / f"{name}-key.pem", pair.key)
        replace_file(folder / f"{name}.pem", pair.certificate)
    return True


def _is_current(folder: Path, renew_before: timedelta) -> bool:
    if not all((folder / name).is_file() for name in FILES):
        return False
    certificate = x509.load_pem_x509_certificate((folder / SENTINEL_FILE).read_bytes())
    return certificate.not_valid_after_utc > datetime.now(UTC) + renew_before


def main() -> None:
    """Create the certificates in the folder of the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    created = "created" if write(folder) else "unchanged"
    print(f"{folder}: ca.pem, and server, sidecar and client (.pem and -key.pem) are {created}")


if __name__ == "__main__":
    main()
