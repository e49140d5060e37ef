import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration_server.providers.http import DeclaredOrigins, origin_of, url_problem
from integration_server.providers.url_templates import host_pattern_problem


@pytest.mark.parametrize(
    "url",
    [
        "https://acme.example",
        "https://acme.example/",
        "https://ACME.example:8443/a/b%20c?d=e&f=g",
        "https://acme.example?tenant=1",
        "https://[2001:db8::1]/token",
        "https://xn--bcher-kva.example/token",
    ],
)
def test_accepts_https(url: str) -> None:
    assert url_problem(url, dev_mode=False) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme.example/token",
        "/token",
        "ftp://acme.example/",
        "HTTPS://acme.example/",
        "https://",
        "https:///token",
        "https://user@acme.example/",
        "https://user:secret@acme.example/",
        "https://acme.example/#fragment",
        "https://acme.example\\@evil.example/",
        "https://acme.example /",
        "https://acme.example/\n",
        "https://acme.example/%zz",
        "https://acme.example:99999/",
        "https://acme.example:0/",
        "https://0:0",
        "https://acme.example:/",
        "https://acme..example/",
        "https://" + "a" * 64 + ".example/",
        "https://büchner.example/",
        "https://acme%2eexample/",
    ],
)
def test_rejects_other_urls(url: str) -> None:
    assert url_problem(url, dev_mode=True) == "is not an absolute http(s) URL without user name and fragment"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.0.0.1:8090"])
def test_plain_http_is_allowed_for_loopback_in_dev_mode_only(host: str) -> None:
    assert url_problem(f"http://{host}/token", dev_mode=True) is None
    assert url_problem(f"http://{host}/token", dev_mode=False) is not None


@pytest.mark.parametrize("host", ["acme.example", "127.0.0.1.acme.example", "localhost.acme.example", "10.0.0.1"])
def test_plain_http_to_other_hosts_is_rejected_in_dev_mode_too(host: str) -> None:
    assert url_problem(f"http://{host}/", dev_mode=True) == "must be https; plain http is for loopback in dev mode only"


def test_an_origin_has_its_port_and_a_lower_case_host() -> None:
    assert origin_of("https://ACME.example/a") == origin_of("https://acme.example:443?b") == "https://acme.example:443"
    assert origin_of("http://localhost/") == "http://localhost:80"


@given(
    st.from_regex(
        r"https://[a-zA-Z0-9_.:@\\\[\]%#/-]{1,30}([/?#][ -~]{0,20})?",
        fullmatch=True,
    )
)
def test_httpx_agrees_on_the_origin(url: str) -> None:
    if url_problem(url, dev_mode=False) is not None:
        return
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return  # httpx sends nothing then
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    assert origin_of(url) == f"https://{host}:{parsed.port or 443}"


# --- host patterns


@pytest.mark.parametrize("pattern", ["*.shops.example", "*.eu.shops.example", "*.xn--bcher-kva.example"])
def test_accepts_a_host_pattern(pattern: str) -> None:
    assert host_pattern_problem(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "*.com",
        "shops.example",
        "shop*.shops.example",
        "*.*.shops.example",
        "*.shops.*",
        "*.Shops.example",
        "*.shops.example.",
        "*.shops.example:8443",
        "*.shops.example/path",
        "https://*.shops.example",
        "*.0.0.1",
        "*.shops.example\n",
        "*.-shops.example",
        "*.(a|b).example",
    ],
)
def test_rejects_a_host_pattern_that_matches_too_much_or_nothing(pattern: str) -> None:
    problem = host_pattern_problem(pattern)
    assert problem is not None
    assert problem.startswith("is not '*.' and a domain")


def test_a_pattern_matches_one_label_with_https() -> None:
    origins = DeclaredOrigins(["https://acme.example:8443/token"], ["*.shops.example"])
    assert origin_of("https://ada-1.shops.example/admin") in origins
    assert origin_of("https://ADA.Shops.example") in origins
    assert origin_of("https://acme.example:8443/") in origins


@pytest.mark.parametrize(
    "url",
    [
        "http://ada.shops.example/",
        "https://ada.shops.example:8443/",
        "https://shops.example/",
        "https://evil.ada.shops.example/",
        "https://ada.shops.example.evil.example/",
        "https://adashops.example/",
        "https://ada.shopsXexample/",
        "https://a_b.shops.example/",
        "https://acme.example/",
        "https://127.0.0.1/",
    ],
)
def test_a_pattern_matches_nothing_else(url: str) -> None:
    assert origin_of(url) not in DeclaredOrigins(["https://acme.example:8443/token"], ["*.shops.example"])
