"""Certificates for development, and what is said of files that will not do."""

import stat
from pathlib import Path

import pytest
from cryptography import x509

from integration_server.pem import certificate_problems, pair_problems
from integration_server.reloading import Unusable
from integration_server.rpc.certificates import ServerCertificates
from integration_server.sidecar.connection import Connection, Papers
from tools.certificates import SERVER, Authority, write

CERTIFICATE, KEY = Path("a.pem"), Path("a-key.pem")


def test_files_are_for_their_owner_only_and_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    assert write(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"ca.pem"} | {
        f"{name}{end}.pem" for name in ("server", "sidecar", "client") for end in ("", "-key")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    authority = x509.load_pem_x509_certificate(files["ca.pem"])
    for name in ("server", "sidecar", "client"):
        x509.load_pem_x509_certificate(files[f"{name}.pem"]).verify_directly_issued_by(authority)
        assert not pair_problems(CERTIFICATE, files[f"{name}.pem"], KEY, files[f"{name}-key.pem"])
    assert not write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_what_does_not_go_together_is_told_by_name() -> None:
    one, other = Authority().issue(SERVER), Authority().issue(SERVER)
    assert pair_problems(CERTIFICATE, one.certificate, KEY, other.key) == ["a-key.pem: is not the key of a.pem"]
    assert pair_problems(CERTIFICATE, one.key, KEY, one.certificate) == [
        "a.pem: is not a certificate in PEM",
        "a-key.pem: is not a private key in PEM without a password",
    ]
    assert certificate_problems(CERTIFICATE, b"") == ["a.pem: is not a certificate in PEM"]


def test_a_server_or_sidecar_does_not_begin_with_files_that_will_not_do(tmp_path: Path) -> None:
    pair, authority = Authority().issue(SERVER), tmp_path / "ca.pem"
    certificate, key = tmp_path / "a.pem", tmp_path / "a-key.pem"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(Authority().issue(SERVER).key)
    authority.write_bytes(b"no")
    told = {f"{key}: is not the key of {certificate}", f"{authority}: is not a certificate in PEM"}
    with pytest.raises(Unusable) as server:
        ServerCertificates(certificate, key, authority)
    assert set(server.value.problems) == told
    with pytest.raises(Unusable) as sidecar:
        Connection("127.0.0.1:0", Papers(authority, certificate, key))
    assert set(sidecar.value.problems) == told


@pytest.mark.parametrize("token", [b"", b"\n", b"a\nb", b"\xff"])
def test_a_token_is_one_line(tmp_path: Path, token: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(token)
    with pytest.raises(Unusable, match="is not a token"):
        Connection("127.0.0.1:0", Papers(token=path))
