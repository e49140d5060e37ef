"""Makes a certificate authority for development, with certificates for the server, the sidecar and a client.

    python tools/certificates.py [FOLDER]      data/certs by default; what is there and good for a week is kept

Names are SPIFFE IDs (https://spiffe.io) for callers, and the addresses of this machine for the server. Never for
production. The authority's key is not kept: new certificates come with a new authority.
"""

import ipaddress
import os
import secrets
import sys
from collections.abc import Sequence
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
    """Signs certificates, with a key that is never written down."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own: where two authorities are believed that are called the same, TLS looks at one of them.
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
    ) -> Pair:
        """A certificate with these names. A negative lifetime makes one that has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _certificate(_name(common_name), self._name, key.public_key(), lifetime).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
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


def write(folder: Path) -> bool:
    """Make the certificates, unless those that are there will do; whether any were made."""
    if _is_current(folder):
        return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority()
    pairs = {
        name: authority.issue([x509.UniformResourceIdentifier(uri)], common_name=name) for name, uri in CALLERS.items()
    } | {"server": authority.issue(SERVER, common_name="Integration Server")}
    # What the others are judged by goes first and comes last: however far this gets, they are from one authority.
    (folder / SENTINEL_FILE).unlink(missing_ok=True)
    replace(folder / "ca.pem", authority.certificate)
    for name, pair in pairs.items():
        replace(folder / f"{name}-key.pem", pair.key)
        replace(folder / f"{name}.pem", pair.certificate)
    return True


def replace(path: Path, content: bytes) -> None:
    """Put the content in place whole, and for this user's eyes only."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)


def _is_current(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in FILES):
        return False
    certificate = x509.load_pem_x509_certificate((folder / SENTINEL_FILE).read_bytes())
    return certificate.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE


def main() -> None:
    """Make them where the argument says."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    made = write(folder)
    print(f"{folder} has ca.pem, and server, sidecar and client (.pem and -key.pem){'' if made else ', as before'}")


if __name__ == "__main__":
    main()
