import base64
from collections.abc import Mapping, Sequence

import httpx
import pytest
from authlib.oauth2.auth import ClientAuth

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.providers.declaration_tables import TokenAuth
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.provider_port import Provider
from tests.unit.providers.support import FakeTransport, build_provider, context, exception_text, json_response

TOKENS = OAuthTokens(access_token="at", refresh_token="rt")


class Acme(OAuth2Provider):
    integration_type = "acme"
    oauth_authorize_url = "https://acme.example/authorize"
    oauth_token_url = "https://acme.example/token"
    revoke_url: str | None = "https://acme.example/revoke"
    verify_url: str | None = "https://api.acme.example/me"
    account_id_field: str | None = "user.id"
    account_label_field: str | None = "user.emails.1"
    required_scopes = ("read",)


class PostingAcme(Acme):
    token_auth: TokenAuth = "client_secret_post"


class PublicAcme(Acme):
    token_auth: TokenAuth = "none"


def query_of(url: str) -> dict[str, str]:
    return dict(httpx.URL(url).params)


def authorization_query(provider: OAuth2Provider) -> dict[str, str]:
    return query_of(
        provider.authorization_url(
            redirect_uri="https://app.example/cb?a=b", state="st", scopes=["read", "a/b:c"], code_challenge="ch"
        )
    )


# --- authorization URL -------------------------------------------------------------------------------------


def test_the_authorization_url_has_state_and_challenge() -> None:
    assert authorization_query(build_provider(Acme, FakeTransport())) == {
        "response_type": "code",
        "client_id": "our-id",
        "redirect_uri": "https://app.example/cb?a=b",
        "scope": "read a/b:c",
        "state": "st",
        "code_challenge": "ch",
        "code_challenge_method": "S256",
    }


def test_the_authorization_url_has_the_declared_parameters() -> None:
    class WithParameters(Acme):
        oauth_authorize_url = "https://acme.example/authorize?tenant=1"
        authorize_params: Mapping[str, str] = {"prompt": "consent & more", "uri": "x"}
        scope_separator = ","

    query = authorization_query(build_provider(WithParameters, FakeTransport()))
    assert query["tenant"] == "1"
    assert query["prompt"] == "consent & more"
    assert query["uri"] == "x"
    assert query["scope"] == "read,a/b:c"


def test_the_authorization_url_has_no_empty_scope() -> None:
    url = build_provider(Acme, FakeTransport()).authorization_url(
        redirect_uri="https://app.example/", state="st", scopes=[], code_challenge="ch"
    )
    assert "scope" not in query_of(url)


# --- token requests -----------------------------------------------------------------------------------------------


async def test_exchanges_a_code_with_its_verifier() -> None:
    network = FakeTransport(json_response({"access_token": "at", "refresh_token": "rt"}))
    tokens = await build_provider(PostingAcme, network).exchange_code_for_tokens(
        "the code+", "https://app.example/cb", "ver"
    )
    assert tokens == TOKENS
    assert str(network.request.url) == "https://acme.example/token"
    assert network.request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert network.form == {
        "grant_type": "authorization_code",
        "code": "the code+",
        "redirect_uri": "https://app.example/cb",
        "code_verifier": "ver",
        "client_id": "our-id",
        "client_secret": "our-secret",
    }


async def test_sends_the_refresh_token() -> None:
    network = FakeTransport(json_response({"access_token": "at2"}))
    tokens = await build_provider(PostingAcme, network).refresh_access_token("r/t=")
    assert tokens == OAuthTokens(access_token="at2")
    assert network.form == {
        "grant_type": "refresh_token",
        "refresh_token": "r/t=",
        "client_id": "our-id",
        "client_secret": "our-secret",
    }


async def test_basic_authentication_form_encodes_id_and_secret() -> None:
    network = FakeTransport(json_response({"access_token": "at"}))
    secret = "p:s %+é/~"
    await build_provider(Acme, network, ACME_CLIENT_ID="a:b c", ACME_CLIENT_SECRET=secret).refresh_access_token("rt")
    scheme, _, pair = network.request.headers["Authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(pair) == b"a%3Ab+c:p%3As+%25%2B%C3%A9%2F~"
    assert network.form == {"grant_type": "refresh_token", "refresh_token": "rt"}


def test_negative_control_authlib_does_not_form_encode_them() -> None:
    auth = ClientAuth("a:b c", "secret", "client_secret_basic")
    _, headers, _ = auth.prepare("POST", "https://acme.example/token", {}, "")  # type: ignore[no-untyped-call]
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"a:b c:secret"


async def test_a_public_client_sends_its_id_only() -> None:
    network = FakeTransport(json_response({"access_token": "at"}))
    await build_provider(PublicAcme, network, ACME_CLIENT_SECRET="").refresh_access_token("rt")
    assert "Authorization" not in network.request.headers
    assert network.form == {"grant_type": "refresh_token", "refresh_token": "rt", "client_id": "our-id"}


async def test_an_invalid_grant_is_distinguished_from_an_invalid_code() -> None:
    refusal = {"error": "invalid_grant"}
    provider = build_provider(Acme, FakeTransport(json_response(refusal, 400), json_response(refusal, 400)))
    with pytest.raises(ProviderRejected, match="the code"):
        await provider.exchange_code_for_tokens("c", "https://app.example/cb", "v")
    with pytest.raises(ProviderRejected, match="the grant"):
        await provider.refresh_access_token("rt")


async def test_a_redirect_of_the_token_endpoint_is_provider_unavailable() -> None:
    network = FakeTransport(httpx.Response(307, headers={"Location": "https://acme.example/elsewhere"}))
    with pytest.raises(ProviderUnavailable):
        await build_provider(Acme, network).refresh_access_token("rt")
    assert len(network.requests) == 1


# --- scopes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granted", "refresh_token", "missing"),
    [
        (None, None, ["offline_access"]),
        (None, "rt", []),
        (("read",), "rt", ["write", "email"]),
        (("read", "write", "https://acme.example/email"), "rt", []),
        (("READ", "write", "email"), "rt", []),
        (("offline_access",), None, ["offline_access", "read", "write", "email"]),
    ],
)
def test_finds_the_scopes_that_were_not_granted(
    granted: tuple[str, ...] | None, refresh_token: str | None, missing: list[str]
) -> None:
    class WithAnotherName(Acme):
        scope_equivalents: Mapping[str, Sequence[str]] = {"https://acme.example/email": ("email",)}

    requested = ["openid", "offline_access", "read", "write", "email"]
    tokens = OAuthTokens(access_token="at", refresh_token=refresh_token, scopes=granted)
    assert build_provider(WithAnotherName, FakeTransport()).missing_scopes(requested, tokens) == missing


@pytest.mark.parametrize("scope", ["read,write", "read, write", "write read", ["write", "read"], ["read,write"]])
@pytest.mark.parametrize("separator", [" ", ",", "+"])
async def test_commas_separate_scopes_in_responses(scope: object, separator: str) -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": scope}))
    provider = build_provider(Acme, network).with_attributes(scope_separator=separator)
    tokens = await provider.refresh_access_token("rt")
    assert set(tokens.scopes or ()) == {"read", "write"}
    assert provider.missing_scopes(["read", "write"], tokens) == []


async def test_commas_are_part_of_scopes_if_a_required_scope_has_one() -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": "read,write admin"}))
    provider = build_provider(Acme, network).with_attributes(required_scopes=("read,write",))
    tokens = await provider.refresh_access_token("rt")
    assert tokens.scopes == ("read,write", "admin")
    assert provider.missing_scopes(["read,write", "read", "admin,read,write"], tokens) == ["read", "admin,read,write"]


async def test_a_requested_scope_with_a_comma_is_found_in_split_scopes() -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": "read my,own"}))
    provider = build_provider(Acme, network)
    tokens = await provider.refresh_access_token("rt")
    assert provider.missing_scopes(["read", "my,own", "my,other"], tokens) == ["my,other"]


# --- verification ---------------------------------------------------------------------------------------------


async def test_verification_returns_the_account() -> None:
    network = FakeTransport(json_response({"user": {"id": 7, "emails": ["a@x", "b@x"]}}))
    account = await build_provider(Acme, network).verify_connection(TOKENS)
    assert account == NewAccount("7", "b@x")
    assert network.request.method == "GET"
    assert network.request.headers["Authorization"] == "Bearer at"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"user": None},
        {"user": [1]},
        {"user": {"id": None}},
        {"user": {"id": ["x"], "emails": {"1": 2.5}}},
        {"user": {"id": "a\0b"}},
        {"user": {"id": "x" * 256}},
        {"user": {"id": True}},
        {"user": {"id": 10**4299}},
    ],
)
async def test_an_account_missing_in_the_response_is_none(fields: object) -> None:
    assert await build_provider(Acme, FakeTransport(json_response(fields))).verify_connection(TOKENS) == NewAccount(
        None, None
    )


async def test_any_success_verifies_if_no_account_field_is_declared() -> None:
    class WithoutAccountFields(Acme):
        account_id_field = None
        account_label_field = None

    network = FakeTransport(httpx.Response(204))
    assert await build_provider(WithoutAccountFields, network).verify_connection(TOKENS) == NewAccount(None, None)


async def test_without_a_verify_url_nothing_is_sent() -> None:
    class WithoutVerifyUrl(Acme):
        verify_url = None

    network = FakeTransport()
    assert await build_provider(WithoutVerifyUrl, network).verify_connection(TOKENS) == NewAccount(None, None)
    assert network.requests == []


async def test_a_stored_value_can_identify_the_account() -> None:
    class WithAccountExtra(Acme):
        account_id_field = "merchant"

    network = FakeTransport(json_response({"user": {"id": "other", "emails": [0, "label"]}}))
    tokens = OAuthTokens(access_token="at", extras={"merchant": "m1"})
    assert await build_provider(WithAccountExtra, network).verify_connection(tokens) == NewAccount("m1", "label")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_token_is_reported(status: int) -> None:
    with pytest.raises(ProviderRejected, match="the credentials") as raised:
        await build_provider(Acme, FakeTransport(httpx.Response(status, content=b"s3cret"))).verify_connection(TOKENS)
    assert "s3cret" not in exception_text(raised.value)


@pytest.mark.parametrize("status", [302, 400, 404, 408, 429, 500, 503])
async def test_any_other_status_is_provider_unavailable(status: int) -> None:
    response = httpx.Response(status, headers={"Retry-After": "9"})
    with pytest.raises(ProviderUnavailable) as raised:
        await build_provider(Acme, FakeTransport(response)).verify_connection(TOKENS)
    assert raised.value.retry_after is not None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"id"'])
async def test_an_unreadable_response_is_provider_unavailable(body: bytes) -> None:
    with pytest.raises(ProviderUnavailable):
        await build_provider(Acme, FakeTransport(httpx.Response(200, content=body))).verify_connection(TOKENS)


async def test_an_api_key_is_rejected() -> None:
    with pytest.raises(ProviderRejected):
        await build_provider(Acme, FakeTransport()).verify_connection(ApiKey("key"))


# --- revocation ----------------------------------------------------------------------------------------------


async def test_revokes_the_refresh_token() -> None:
    network = FakeTransport(httpx.Response(200))
    assert await build_provider(PostingAcme, network).revoke_credentials(TOKENS)
    assert str(network.request.url) == "https://acme.example/revoke"
    assert network.form == {
        "token": "rt",
        "token_type_hint": "refresh_token",
        "client_id": "our-id",
        "client_secret": "our-secret",
    }


async def test_revokes_the_access_token_if_there_is_no_refresh_token() -> None:
    network = FakeTransport(httpx.Response(200))
    assert await build_provider(Acme, network).revoke_credentials(OAuthTokens(access_token="at"))
    assert network.form == {"token": "at", "token_type_hint": "access_token"}
    assert network.request.headers["Authorization"].startswith("Basic ")


async def test_an_already_invalid_token_counts_as_revoked() -> None:
    network = FakeTransport(json_response({"error": "invalid_token"}, 400))
    assert await build_provider(Acme, network).revoke_credentials(TOKENS)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(503), ProviderUnavailable),
        (httpx.Response(404), ProviderUnavailable),
        (json_response({"error": "invalid_request"}, 400), ProviderRejected),
        (json_response({"error": "invalid_client"}, 401), ProviderMisconfigured),
        (json_response({"error": "not_allowed_token_type"}, 200), ProviderRejected),
    ],
)
async def test_a_failed_revocation_is_reported(response: httpx.Response, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        await build_provider(Acme, FakeTransport(response)).revoke_credentials(TOKENS)


async def test_reports_that_revocation_is_not_supported() -> None:
    class WithoutRevokeUrl(Acme):
        revoke_url = None

    network = FakeTransport(json_response({"error": "unsupported_token_type"}, 400))
    assert not await build_provider(Acme, network).revoke_credentials(TOKENS)
    network = FakeTransport()
    assert not await build_provider(WithoutRevokeUrl, network).revoke_credentials(TOKENS)
    assert not await build_provider(Acme, network).revoke_credentials(ApiKey("key"))
    assert network.requests == []


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider_class", "environment", "missing"),
    [
        (Acme, {}, ["ACME_CLIENT_ID", "ACME_CLIENT_SECRET"]),
        (Acme, {"ACME_CLIENT_ID": "id", "ACME_CLIENT_SECRET": " "}, ["ACME_CLIENT_SECRET"]),
        (Acme, {"ACME_CLIENT_ID": "id", "ACME_CLIENT_SECRET": "s"}, []),
        (PublicAcme, {"ACME_CLIENT_ID": "id"}, []),
    ],
)
def test_lists_the_missing_settings(
    provider_class: type[Acme], environment: dict[str, str], missing: list[str]
) -> None:
    assert provider_class(context(FakeTransport(), environment)).missing_settings == missing


def test_the_repr_hides_the_client_secret() -> None:
    provider = build_provider(Acme, FakeTransport())
    assert provider.client_secret == "our-secret"
    assert "our-secret" not in repr(provider)
    assert "our-secret" not in repr(context(FakeTransport(), {"ACME_CLIENT_SECRET": "our-secret"}))


def test_implements_the_provider_port() -> None:
    provider: Provider = build_provider(Acme, FakeTransport())
    assert (provider.integration_type, provider.display_name, provider.issuer) == ("acme", "Acme", None)
