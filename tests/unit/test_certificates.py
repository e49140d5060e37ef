"""Certificates for development, and the validation of certificate and token files."""

import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from integration_server.hot_reload import InvalidFile
from integration_server.pem_validation import certificate_problems, pair_problems, validity_period
from integration_server.rpc.tls import ReloadingServerCredentials
from integration_server.sidecar.grpc_client import ServerClient, TlsFiles
from tools.certificates import FILES, LIFETIME, SERVER, Authority, replace, write

CERTIFICATE, KEY = Path("a.pem"), Path("a-key.pem")


def test_files_are_private_and_created_once(tmp_path: Path) -> None:
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_causes_new_ones(missing: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / missing).unlink()
    before = contents(tmp_path)
    assert write(tmp_path)
    assert set(contents(tmp_path)) == set(FILES)
    assert not set(before.values()) & set(contents(tmp_path).values())


@pytest.mark.parametrize("written", range(len(FILES)))
def test_an_interrupted_renewal_is_repeated(written: int, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, renew_before=LIFETIME, replace_file=interrupted_after(written))
    assert write(tmp_path)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    for name in ("server", "sidecar", "client"):
        x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes()).verify_directly_issued_by(authority)


def interrupted_after(times: int) -> Callable[[Path, bytes], None]:
    left = iter(range(times))

    def replace_some(path: Path, content: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(path, content)

    return replace_some


NO_KEY = (
    "a-key.pem: is not a private key in PEM without a password; correct the path, or remove the password: openssl pkey"
)
NO_CERTIFICATE = "a.pem: is not a certificate in PEM; correct the path, or replace the file"


def test_a_mismatched_pair_is_reported_with_its_paths() -> None:
    one, other = Authority().issue(SERVER), Authority().issue(SERVER)
    assert pair_problems(CERTIFICATE, one.certificate, KEY, other.key) == [
        "a-key.pem: is not the key of a.pem; replace both by a pair"
    ]
    assert pair_problems(CERTIFICATE, one.key, KEY, one.certificate) == [
        NO_CERTIFICATE,
        NO_KEY,
    ]
    assert certificate_problems(CERTIFICATE, b"") == [NO_CERTIFICATE]


@pytest.mark.parametrize(
    ("age", "is_logged"),
    [(timedelta(hours=-2), True), (timedelta(hours=1), False), (timedelta(days=4), True)],
    ids=["not-yet", "valid", "expired"],
)
def test_a_certificate_that_is_not_valid_now_is_logged_at_the_start(
    age: timedelta, is_logged: bool, tmp_path: Path
) -> None:
    """Without the line, the server starts as if all were well, and every client refuses it."""
    pair = Authority().issue(SERVER, lifetime=timedelta(days=3))
    certificate, key = tmp_path / "a.pem", tmp_path / "a-key.pem"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    begin, _ = validity_period(pair.certificate)
    with capture_logs() as logs:
        ReloadingServerCredentials(certificate, key, None, lambda: begin + age)
    assert [(line["event"], line["role"]) for line in logs] == [("certificate_not_valid", "server")] * is_logged


def test_server_and_sidecar_reject_invalid_files_at_the_start(tmp_path: Path) -> None:
    pair, authority = Authority().issue(SERVER), tmp_path / "ca.pem"
    certificate, key = tmp_path / "a.pem", tmp_path / "a-key.pem"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(Authority().issue(SERVER).key)
    authority.write_bytes(b"no")
    problems = {
        f"{key}: is not the key of {certificate}; replace both by a pair",
        NO_CERTIFICATE.replace("a.pem", str(authority)),
    }
    with pytest.raises(InvalidFile) as server:
        ReloadingServerCredentials(certificate, key, authority)
    assert set(server.value.problems) == problems
    with pytest.raises(InvalidFile) as sidecar:
        ServerClient("127.0.0.1:0", tls_files=TlsFiles(authority, certificate, key))
    assert set(sidecar.value.problems) == problems


@pytest.mark.parametrize("token", [b"", b"\n", b"a\nb", b"\xff"])
def test_a_token_file_has_one_line(tmp_path: Path, token: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(token)
    with pytest.raises(InvalidFile, match="is not a token"):
        ServerClient("127.0.0.1:0", tls_files=TlsFiles(token=path))


async def test_the_validity_is_that_of_the_certificates_in_use(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    certificate, key, authorities = tmp_path / "a.pem", tmp_path / "a-key.pem", tmp_path / "ca.pem"
    expiring, renewed = (authority.issue(SERVER, lifetime=timedelta(days=days)) for days in (5, 60))
    certificate.write_bytes(expiring.certificate)
    key.write_bytes(expiring.key)
    authorities.write_bytes(authority.certificate + other.certificate)
    server = ReloadingServerCredentials(certificate, key, authorities)

    def days_left() -> Mapping[str, int]:
        periods = server.validity_periods()
        return {name: (end - begin).days - 1 for name, (begin, end) in periods.items()}  # it begins a day earlier

    assert days_left() == {"server": 5, "client_ca": LIFETIME.days}
    # A renewal that is not complete is not used: what counts is not what the file has.
    certificate.write_bytes(renewed.certificate)
    await server.poll()
    assert days_left()["server"] == 5
    begin, end = validity_period(certificate.read_bytes())
    assert (end - begin).days - 1 == 60  # the negative control: who reads the file is told that all is well
    key.write_bytes(renewed.key)
    await server.poll()
    assert days_left()["server"] == 60


def test_of_several_certificates_the_first_to_end_counts() -> None:
    authority = Authority()
    bundle = b"".join(authority.issue(SERVER, lifetime=timedelta(days=days)).certificate for days in (9, -1, 30))
    _, end = validity_period(bundle)
    assert end < datetime.now(UTC)
