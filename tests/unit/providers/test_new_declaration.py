"""`types new`: metadata of an authorization server becomes a valid declaration, whoever wrote the metadata."""

import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.declaration import Declaration
from integration_server.providers.http import ProviderHttp
from integration_server.providers.new_declaration import (
    DiscoveryError,
    declaration_from_metadata,
    discover,
    example_declaration,
)
from integration_server.providers.toml_providers import read_declaration
from tests.unit.providers.support import FakeTransport, clock, json_response

ISSUER = "https://login.acme.example/tenants/one"
METADATA: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": "https://login.acme.example/authorize",
    "token_endpoint": "https://login.acme.example/token",
    "revocation_endpoint": "https://login.acme.example/revoke",
    "userinfo_endpoint": "https://api.acme.example/userinfo",
    "token_endpoint_auth_methods_supported": ["tls_client_auth", "client_secret_post", "private_key_jwt"],
    "scopes_supported": ["openid", "email", "files:read", "offline_access"],
    "code_challenge_methods_supported": ["plain", "S256"],
    "authorization_response_iss_parameter_supported": True,
}


async def discovered(*responses: httpx.Response | Exception, issuer: str = ISSUER) -> tuple[Any, list[str]]:
    network = FakeTransport(*responses)
    async with ProviderHttp(clock, transport=network, body_limit=1 << 18) as http:
        try:
            found: Any = await discover(http, issuer)
        except DiscoveryError as error:
            found = str(error)
    return found, [str(request.url) for request in network.requests]


def declared(directory: Path, text: str) -> Declaration:
    path = directory / "acme.toml"
    path.write_text(text, encoding="utf-8")
    return read_declaration(path, dev_mode=False)


async def test_the_metadata_of_an_issuer_with_a_path_is_found_where_either_standard_has_it() -> None:
    missing = httpx.Response(404)
    found, urls = await discovered(missing, missing, json_response(METADATA))
    assert found == METADATA
    assert urls == [
        "https://login.acme.example/.well-known/oauth-authorization-server/tenants/one",
        "https://login.acme.example/tenants/one/.well-known/openid-configuration",
        "https://login.acme.example/.well-known/openid-configuration/tenants/one",
    ]
    plain = {**METADATA, "issuer": "https://acme.example"}
    _, urls = await discovered(json_response(plain), issuer="https://acme.example")
    assert urls == ["https://acme.example/.well-known/oauth-authorization-server"]
    slash = {**METADATA, "issuer": "https://acme.example/"}
    found, urls = await discovered(missing, json_response(slash), issuer="https://acme.example/")
    assert (found, urls[1]) == (slash, "https://acme.example/.well-known/openid-configuration")


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (json_response({**METADATA, "issuer": ISSUER + "/"}), f'is about the issuer "{ISSUER}/", and not exactly'),
        (json_response({**METADATA, "issuer": "https://login.evil.example"}), "is about the issuer"),
        (json_response({**METADATA, "issuer": ['x"\n\x1b[2J']}), "is about the issuer"),
        (json_response({"token_endpoint": "https://a.example"}), "is about the issuer"),
        (json_response([METADATA]), "is not a JSON object"),
        (httpx.Response(200, text="<html>"), "is not a JSON object"),
        (httpx.Response(200, content=b"[" * 100_000), "is not a JSON object"),
        (httpx.Response(200, content=b"{" + b" " * (1 << 19)), "no complete response"),
        (httpx.Response(302, headers={"Location": "https://169.254.169.254/"}), "status 302"),
        (httpx.Response(500), "status 500"),
        (httpx.ConnectError("x"), "no complete response"),
    ],
)
async def test_metadata_that_is_not_the_issuers_is_refused(response: Any, problem: str) -> None:
    found, urls = await discovered(response, httpx.Response(404), httpx.Response(404))
    assert problem in found
    assert "\x1b" not in found
    assert len(urls) == 3


@pytest.mark.parametrize(
    "issuer",
    ["http://acme.example", "javascript:alert(1)", "acme.example", "https://a.example?x=1", "file:///etc/passwd"],
)
async def test_an_issuer_that_is_no_https_url_is_not_asked(issuer: str) -> None:
    found, urls = await discovered(issuer=issuer)
    assert found.startswith("the issuer ")
    assert urls == []


def test_metadata_becomes_a_declaration(tmp_path: Path) -> None:
    text = declaration_from_metadata("acme", METADATA)
    declaration: Any = declared(tmp_path, text)
    assert declaration.oauth_authorize_url == METADATA["authorization_endpoint"]
    assert declaration.oauth_token_url == METADATA["token_endpoint"]
    assert declaration.revoke_url == METADATA["revocation_endpoint"]
    assert declaration.verify_url == METADATA["userinfo_endpoint"]
    assert declaration.token_auth == "client_secret_post"
    assert declaration.required_scopes == ["openid", "email", "offline_access"]
    assert declaration.issuer == ISSUER
    assert '# other scopes that are announced: "files:read"' in text
    assert '# other ways that are announced: "tls_client_auth", "private_key_jwt"' in text
    assert "pkce" not in text


def test_what_is_not_announced_is_a_comment(tmp_path: Path) -> None:
    needed = {name: METADATA[name] for name in ("issuer", "authorization_endpoint", "token_endpoint")}
    text = declaration_from_metadata("acme", needed)
    declaration: Any = declared(tmp_path, text)
    assert (declaration.token_auth, declaration.required_scopes, declaration.issuer) == (
        "client_secret_basic",
        [],
        None,
    )
    for part in ("# token_auth = ", "# verify_url: ", "# PKCE with S256 is not announced", "# api_base_url = "):
        assert part in text
    assert "# token_url: is required, and token_endpoint is not announced" in declaration_from_metadata("acme", {})


def test_a_server_without_an_authorization_page_has_client_credentials(tmp_path: Path) -> None:
    metadata = {
        "issuer": ISSUER,
        "token_endpoint": "https://a.example/t",
        "grant_types_supported": ["client_credentials"],
    }
    declaration: Any = declared(tmp_path, declaration_from_metadata("acme", metadata))
    assert declaration.grant == "client_credentials"
    assert set(declaration.secret_fields) == {"client_id", "client_secret"}


HOSTILE = [
    "javascript:alert(1)",
    'https://a.example/"\ntoken_auth = "none"\n#',
    'https://a.example/"""',
    "https://a.example/\x00\x1b[2J",
    "https://user:pass@a.example/",
    "https://{shop}.a.example/",
    "http://a.example/",
    "https://a.example/\u2028\u202e",
    "\ud800",
    "x" * 100_000,
    ["https://a.example/"],
    {"a": '"\n[settings]\n'},
    7,
    None,
    True,
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("member", [name for name in METADATA if name != "issuer"])
def test_hostile_metadata_writes_no_other_keys(member: str, value: Any) -> None:
    for given_value in (value, [value], [value] * 500):
        text = declaration_from_metadata("acme", {**METADATA, member: given_value})
        values = tomllib.loads(text)
        original = tomllib.loads(declaration_from_metadata("acme", METADATA))
        assert set(values) <= set(original) | {"token_auth"}
        assert len(text) < 40_000
        assert not any(ord(char) < 32 and char != "\n" for char in text)
        assert all(line.startswith(("#", "[")) or " = " in line for line in text.splitlines())
        assert all(
            values.get(key) in (original[key], None, "client_secret_basic") or key == "scopes" for key in original
        )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=10,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*METADATA, "grant_types_supported", "device_authorization_endpoint"]), values))
def test_any_metadata_gives_toml_with_known_keys(metadata: dict[str, Any]) -> None:
    values = tomllib.loads(declaration_from_metadata("acme", metadata))
    assert values["integration_type"] == "acme"
    assert set(values) <= {
        *("integration_type", "auth_method", "grant", "authorize_url", "token_url", "token_auth", "scopes", "issuer"),
        *("revoke_url", "verify_url", "account_id_field", "account_label_field", "secret_fields"),
    }


@pytest.mark.parametrize("auth_method", AuthMethod)
@pytest.mark.parametrize("name", ["acme", "acme_books_2"])
def test_an_example_is_valid(tmp_path: Path, auth_method: AuthMethod, name: str) -> None:
    declaration = declared(tmp_path, example_declaration(name, auth_method))
    assert (declaration.integration_type, declaration.auth_method) == (name, auth_method)
