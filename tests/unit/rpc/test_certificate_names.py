"""The name in a client certificate: which certificates identify a caller, and which nobody."""

import gc
from contextlib import nullcontext
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from integration_server.rpc.certificate_names import CertificateNames, parse_name
from integration_server.rpc.errors import Unauthenticated
from tests.loop_hold.meter import MAX_HOLD, shortest_time
from tools.certificates import Authority

SPIFFE_ID = "spiffe://example.org/ns/a/sa/sync"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        pytest.param([uri(SPIFFE_ID)], SPIFFE_ID, id="SPIFFE ID"),
        pytest.param([uri("SPIFFE://example.org/a")], "spiffe://example.org/a", id="scheme in capitals"),
        pytest.param([uri("sPiFfE://example.org/A")], "spiffe://example.org/A", id="path keeps its case"),
        pytest.param([uri(SPIFFE_ID), dns("a.example"), dns("b.example")], SPIFFE_ID, id="DNS names beside it"),
        pytest.param([uri(SPIFFE_ID), dns("*.example")], SPIFFE_ID, id="a wildcard beside it"),
        pytest.param([uri(SPIFFE_ID), x509.IPAddress(ip_address("10.0.0.1"))], SPIFFE_ID, id="an address beside it"),
        pytest.param([dns("Sync.Example.org")], "sync.example.org", id="DNS name in capitals"),
        pytest.param([dns("sync_a.internal")], "sync_a.internal", id="underscore"),
        pytest.param(
            [dns("sync.example"), x509.IPAddress(ip_address("10.0.0.1"))], "sync.example", id="and an address"
        ),
        pytest.param([dns("sync.example"), x509.RFC822Name("a@example.org")], "sync.example", id="and a mailbox"),
    ],
)
def test_a_certificate_has_one_name(authority: Authority, names: list[x509.GeneralName], name: str) -> None:
    assert CertificateNames().name_of(authority.issue(names, common_name="root").certificate) == name


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="none"),
        pytest.param([uri(SPIFFE_ID), uri(f"{SPIFFE_ID}2")], id="two SPIFFE IDs"),
        pytest.param([uri(SPIFFE_ID)] * 2, id="the same twice"),
        pytest.param([uri(SPIFFE_ID), uri("https://example.org")], id="a second URI"),
        pytest.param([uri("urn:x"), uri(SPIFFE_ID)], id="a first URI"),
        pytest.param([uri(SPIFFE_ID), uri("SPIFFE://example.org/b")], id="two, one in capitals"),
        pytest.param([uri("https://example.org")], id="another scheme"),
        pytest.param([uri("https://example.org"), dns("sync.example")], id="another scheme beside a DNS name"),
        pytest.param([uri("spiffe:example.org/a")], id="no authority"),
        pytest.param([uri("spiffe://example.org")], id="no path"),
        pytest.param([uri("spiffe://example.org/")], id="empty path"),
        pytest.param([uri(f"{SPIFFE_ID}/")], id="trailing slash"),
        pytest.param([uri("spiffe://example.org//a")], id="empty segment"),
        pytest.param([uri("spiffe://example.org/a/../b")], id="parent segment"),
        pytest.param([uri("spiffe://example.org/./b")], id="dot segment"),
        pytest.param([uri("spiffe://example.org/a/..")], id="last segment is the parent"),
        pytest.param([uri("spiffe://example.org/a%2fb")], id="percent"),
        pytest.param([uri("spiffe://EXAMPLE.org/a")], id="trust domain in capitals"),
        pytest.param([uri("spiffe://example.org:8080/a")], id="port"),
        pytest.param([uri("spiffe://user@example.org/a")], id="user"),
        pytest.param([uri("spiffe://example.org/a?b")], id="query"),
        pytest.param([uri("spiffe://example.org/a#b")], id="fragment"),
        pytest.param([uri("spiffe:///a")], id="no trust domain"),
        pytest.param([uri("spiffe://example.org/" + "a" * 2048)], id="long"),
        pytest.param([uri("spiffe://example.org/a\0.evil")], id="NUL in the URI"),
        pytest.param([uri("spiffe://example.org/a\n")], id="newline at the end"),
        pytest.param([uri("spiffe://example.org/a b")], id="space"),
        pytest.param([dns("sync.example\0.evil.example")], id="NUL in the DNS name"),
        pytest.param([dns("sync.example\r\n")], id="newline in the DNS name"),
        pytest.param([dns("sync.example\x1b[2J")], id="escape sequence"),
        pytest.param([dns("sync.example.")], id="final dot"),
        pytest.param([dns("*.example")], id="wildcard"),
        pytest.param([dns("")], id="empty DNS name"),
        pytest.param([dns(".example")], id="empty label"),
        pytest.param([dns("-a.example")], id="leading hyphen"),
        pytest.param([dns("a" * 64 + ".example")], id="long label"),
        pytest.param([dns(".".join(["a" * 60] * 5))], id="long DNS name"),
        pytest.param([dns("a.example"), dns("b.example")], id="two DNS names"),
        pytest.param([dns(SPIFFE_ID)], id="SPIFFE ID as a DNS name"),
        pytest.param([x509.IPAddress(ip_address("10.0.0.1"))], id="an address only"),
        pytest.param([x509.RFC822Name("a@example.org")], id="a mailbox only"),
        pytest.param([x509.OtherName(ObjectIdentifier("1.2.3"), b"\x05\x00")], id="another kind of name"),
    ],
)
def test_a_certificate_without_one_clear_name_identifies_nobody(
    authority: Authority, names: list[x509.GeneralName]
) -> None:
    certificate = authority.issue(names, common_name="sync.example").certificate
    with pytest.raises(Unauthenticated):
        CertificateNames().name_of(certificate)


def test_negative_control_a_name_that_ends_at_a_nul_is_another_name(authority: Authority) -> None:
    """What gRPC shows of the certificate with a NUL is accepted as a name."""
    certificate = authority.issue([dns("sync.example\0.evil.example")]).certificate
    (name,) = x509.load_pem_x509_certificate(certificate).extensions[-1].value.get_values_for_type(x509.DNSName)
    assert parse_name(name.partition("\0")[0]) == "sync.example"


@pytest.mark.parametrize(
    "pem",
    [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\0" * 100],
)
def test_a_certificate_that_cannot_be_parsed_identifies_nobody(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        CertificateNames().name_of(pem)


def test_names_that_cannot_be_parsed_identify_nobody(authority: Authority) -> None:
    broken = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x05\x82\x10ab")
    certificate = authority.issue([], extension=broken).certificate
    with pytest.raises(Unauthenticated):
        CertificateNames().name_of(certificate)


@pytest.mark.parametrize("is_valid", [True, False])
def test_many_names_hold_the_loop_only_shortly_and_once(authority: Authority, is_valid: bool) -> None:
    others = [dns(f"host-{number}.example") for number in range(2_300)]
    certificate = authority.issue([uri(SPIFFE_ID), *others] if is_valid else others).certificate
    assert 50_000 < len(certificate) < 64 * 1024
    known = CertificateNames()

    def read(reader: CertificateNames) -> None:
        with nullcontext() if is_valid else pytest.raises(Unauthenticated, match="several names"):
            assert reader.name_of(certificate) == SPIFFE_ID

    def read_again() -> None:
        for _ in range(100):
            read(known)

    gc.disable()  # a collection looks through all objects of the tests
    try:
        assert shortest_time(lambda: read(CertificateNames())) < MAX_HOLD
        read(known)
        assert shortest_time(read_again) < MAX_HOLD
    finally:
        gc.enable()


def test_a_certificate_is_measured_before_it_is_parsed(authority: Authority) -> None:
    certificate = authority.issue([uri(SPIFFE_ID), *(dns(f"h{number}.example") for number in range(4_000))]).certificate
    with pytest.raises(Unauthenticated, match="bytes"):
        CertificateNames().name_of(certificate)
