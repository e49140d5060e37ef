import base64
from collections.abc import Mapping

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
from integration_server.providers.oauth2 import OAuth2Provider, TokenAuth
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


# --- asking for access -------------------------------------------------------------------------------------


def test_asks_for_access_with_state_and_challenge() -> None:
    assert authorization_query(build_provider(Acme, FakeTransport())) == {
        "response_type": "code",
        "client_id": "our-id",
        "redirect_uri": "https://app.example/cb?a=b",
        "scope": "read a/b:c",
        "state": "st",
        "code_challenge": "ch",
        "code_challenge_method": "S256",
    }


def test_adds_what_the_provider_declares() -> None:
    class Fussy(Acme):
        oauth_authorize_url = "https://acme.example/authorize?tenant=1"
        authorize_params: Mapping[str, str] = {"prompt": "consent & more", "uri": "x"}
        scope_separator = ","

    query = authorization_query(build_provider(Fussy, FakeTransport()))
    assert query["tenant"] == "1"
    assert query["prompt"] == "consent & more"
    assert query["uri"] == "x"
    assert query["scope"] == "read,a/b:c"


def test_leaves_the_scope_out_where_there_is_none() -> None:
    url = build_provider(Acme, FakeTransport()).authorization_url(
        redirect_uri="https://app.example/", state="st", scopes=[], code_challenge="ch"
    )
    assert "scope" not in query_of(url)


# --- trading -----------------------------------------------------------------------------------------------


async def test_trades_a_code_with_its_verifier() -> None:
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


async def test_refreshes() -> None:
    network = FakeTransport(json_response({"access_token": "at2"}))
    tokens = await build_provider(PostingAcme, network).refresh_access_token("r/t=")
    assert tokens == OAuthTokens(access_token="at2")
    assert network.form == {
        "grant_type": "refresh_token",
        "refresh_token": "r/t=",
        "client_id": "our-id",
        "client_secret": "our-secret",
    }


async def test_basic_form_encodes_id_and_secret_first() -> None:
    network = FakeTransport(json_response({"access_token": "at"}))
    secret = "p:s %+é/~"
    await build_provider(Acme, network, ACME_CLIENT_ID="a:b c", ACME_CLIENT_SECRET=secret).refresh_access_token("rt")
    scheme, _, pair = network.request.headers["Authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(pair) == b"a%3Ab+c:p%3As+%25%2B%C3%A9%2F~"
    assert network.form == {"grant_type": "refresh_token", "refresh_token": "rt"}


def test_the_library_alone_would_leave_them_as_they_are() -> None:
    auth = ClientAuth("a:b c", "secret", "client_secret_basic")
    _, headers, _ = auth.prepare("POST", "https://acme.example/token", {}, "")  # type: ignore[no-untyped-call]
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"a:b c:secret"


async def test_a_public_client_says_only_who_it_is() -> None:
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


async def test_a_redirecting_token_endpoint_is_unavailable() -> None:
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
        (("READ", "write", "email"), "rt", ["read"]),
        (("offline_access",), None, ["offline_access", "read", "write", "email"]),
    ],
)
def test_compares_what_was_granted_with_what_was_asked(
    granted: tuple[str, ...] | None, refresh_token: str | None, missing: list[str]
) -> None:
    class Aliasing(Acme):
        scope_aliases: Mapping[str, str] = {"email": "https://acme.example/email"}

    asked = ["openid", "offline_access", "read", "write", "email"]
    tokens = OAuthTokens(access_token="at", refresh_token=refresh_token, scopes=granted)
    assert build_provider(Aliasing, FakeTransport()).missing_scopes(asked, tokens) == missing


@pytest.mark.parametrize("scope", ["read,write", "read, write", "write read", ["write", "read"], ["read,write"]])
@pytest.mark.parametrize("separator", [" ", ",", "+"])
async def test_takes_commas_between_scopes_whatever_they_were_asked_with(scope: object, separator: str) -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": scope}))
    provider = build_provider(Acme, network).with_attributes(scope_separator=separator)
    tokens = await provider.refresh_access_token("rt")
    assert set(tokens.scopes or ()) == {"read", "write"}
    assert provider.missing_scopes(["read", "write"], tokens) == []


async def test_takes_a_comma_for_a_part_of_a_scope_where_scopes_have_commas() -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": "read,write admin"}))
    provider = build_provider(Acme, network).with_attributes(required_scopes=("read,write",))
    tokens = await provider.refresh_access_token("rt")
    assert tokens.scopes == ("read,write", "admin")
    assert provider.missing_scopes(["read,write", "read", "admin,read,write"], tokens) == ["read", "admin,read,write"]


async def test_knows_a_callers_own_scope_that_was_split() -> None:
    network = FakeTransport(json_response({"access_token": "at", "scope": "read my,own"}))
    provider = build_provider(Acme, network)
    tokens = await provider.refresh_access_token("rt")
    assert provider.missing_scopes(["read", "my,own", "my,other"], tokens) == ["my,other"]


# --- verifying ---------------------------------------------------------------------------------------------


async def test_asks_whose_the_token_is() -> None:
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
async def test_an_unreported_account_is_unknown(fields: object) -> None:
    assert await build_provider(Acme, FakeTransport(json_response(fields))).verify_connection(TOKENS) == NewAccount(
        None, None
    )


async def test_any_success_verifies_where_no_account_is_declared() -> None:
    class Anonymous(Acme):
        account_id_field = None
        account_label_field = None

    network = FakeTransport(httpx.Response(204))
    assert await build_provider(Anonymous, network).verify_connection(TOKENS) == NewAccount(None, None)


async def test_without_a_verify_url_nothing_is_asked() -> None:
    class Silent(Acme):
        verify_url = None

    network = FakeTransport()
    assert await build_provider(Silent, network).verify_connection(TOKENS) == NewAccount(None, None)
    assert network.requests == []


async def test_an_extra_can_name_the_account() -> None:
    class Extra(Acme):
        account_id_extra = "merchant"

    network = FakeTransport(json_response({"user": {"id": "other", "emails": [0, "label"]}}))
    tokens = OAuthTokens(access_token="at", extras={"merchant": "m1"})
    assert await build_provider(Extra, network).verify_connection(tokens) == NewAccount("m1", "label")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_token_is_reported(status: int) -> None:
    with pytest.raises(ProviderRejected, match="the credentials") as raised:
        await build_provider(Acme, FakeTransport(httpx.Response(status, content=b"s3cret"))).verify_connection(TOKENS)
    assert "s3cret" not in exception_text(raised.value)


@pytest.mark.parametrize("status", [302, 400, 404, 408, 429, 500, 503])
async def test_any_other_answer_says_nothing_about_the_token(status: int) -> None:
    response = httpx.Response(status, headers={"Retry-After": "9"})
    with pytest.raises(ProviderUnavailable) as raised:
        await build_provider(Acme, FakeTransport(response)).verify_connection(TOKENS)
    assert raised.value.retry_after is not None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"id"'])
async def test_an_answer_that_cannot_be_read_verifies_nothing(body: bytes) -> None:
    with pytest.raises(ProviderUnavailable):
        await build_provider(Acme, FakeTransport(httpx.Response(200, content=body))).verify_connection(TOKENS)


async def test_a_key_is_no_token() -> None:
    with pytest.raises(ProviderRejected):
        await build_provider(Acme, FakeTransport()).verify_connection(ApiKey("key"))


# --- revoking ----------------------------------------------------------------------------------------------


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


async def test_revokes_the_access_token_where_there_is_no_other() -> None:
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


async def test_says_so_where_there_is_no_way_to_revoke() -> None:
    class Forever(Acme):
        revoke_url = None

    network = FakeTransport(json_response({"error": "unsupported_token_type"}, 400))
    assert not await build_provider(Acme, network).revoke_credentials(TOKENS)
    network = FakeTransport()
    assert not await build_provider(Forever, network).revoke_credentials(TOKENS)
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
def test_names_the_settings_that_are_missing(
    provider_class: type[Acme], environment: dict[str, str], missing: list[str]
) -> None:
    assert provider_class(context(FakeTransport(), environment)).missing_settings == missing


def test_hides_its_secret() -> None:
    provider = build_provider(Acme, FakeTransport())
    assert provider.client_secret == "our-secret"
    assert "our-secret" not in repr(provider)
    assert "our-secret" not in repr(context(FakeTransport(), {"ACME_CLIENT_SECRET": "our-secret"}))


def test_is_what_the_use_cases_ask_for() -> None:
    provider: Provider = build_provider(Acme, FakeTransport())
    assert (provider.integration_type, provider.display_name, provider.issuer) == ("acme", "Acme", None)
