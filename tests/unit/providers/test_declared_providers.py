"""The generic providers interpret every key: the declarations of tests/declarations/, each with a fake network."""

import base64
import json
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from pydantic import BaseModel

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import (
    AccountNotChosen,
    InvalidField,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.providers.base import BaseProvider
from integration_server.providers.client_assertion import client_assertion
from integration_server.providers.declaration import MODELS
from integration_server.providers.declaration_tables import Lookup, SchemeName
from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.toml_providers import keys_of, load_toml_providers, read_declaration, table_of
from integration_server.providers.webhooks.named_schemes import SCHEMES
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.oauth_clients.oauth_client_directory import require_oauth
from tests.declarations import DECLARATIONS, declared_types
from tests.rsa_key import RSA_KEY
from tests.unit.providers.support import NOW, FakeTransport, context, json_response

REDIRECT = "https://app.example/callback"
TOKENS = {"access_token": "at", "refresh_token": "rt", "expires_in": 3600}


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def provider(name: str, network: FakeTransport, **settings: str) -> Any:
    prefix = name.upper()
    own = {f"{prefix}_CLIENT_ID": "our id", f"{prefix}_CLIENT_SECRET": "our:secret", f"{prefix}_PRIVATE_KEY": "k"}
    return declared_types().build(context(network, {**own, **settings}), only=name)[name]


def declared(name: str, *responses: httpx.Response, **settings: str) -> tuple[Any, FakeTransport]:
    network = FakeTransport(*responses)
    return provider(name, network, **settings), network


def form_of(request: httpx.Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.content.decode(), keep_blank_values=True).items()}


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def exchange(provider: OAuth2Provider) -> OAuthTokens:
    return await provider.exchange_code_for_tokens("c0de", REDIRECT, "v" * 43)


def authorization_url(provider: BaseProvider) -> str:
    return require_oauth(provider).authorization_url(
        redirect_uri=REDIRECT, state="st", scopes=provider.required_scopes, code_challenge="ch"
    )


def test_the_declarations_use_every_key() -> None:
    used: set[tuple[type[BaseModel], str]] = set()
    for file in DECLARATIONS.glob("*.toml"):
        values = tomllib.loads(file.read_text())
        used |= set(keys_in(values, MODELS[values["auth_method"]]))
    known = {(model, key) for model in models_of(*MODELS.values()) for key in keys_of(model)}
    assert {f"{model.__name__}.{key}" for model, key in known - used} == set()


def keys_in(value: object, model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """The keys that a value uses, each with its model; a common key of two kinds of declarations counts for both."""
    if isinstance(value, list):
        for part in value:
            yield from keys_in(part, model)
    elif isinstance(value, dict):
        fields = keys_of(model)
        for name, part in value.items():
            if name not in fields:  # a name that the author chose: the value is the table
                yield from keys_in(part, model)
                continue
            yield from ((kind, name) for kind in {model, *MODELS.values()} if fields[name].annotation is not None)
            if (table := table_of(fields[name].annotation)) is not None:
                yield from keys_in(part, table)


def models_of(*models: type[BaseModel]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    pending = list(models)
    while pending:
        model = pending.pop()
        found.add(model)
        tables = {table_of(field.annotation) for field in model.model_fields.values()} - {None, *found}
        pending += [table for table in tables if table is not None]
    return found


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_may_be_a_segment_of_the_path() -> None:
    answer = json_response({"ok": True, "result": {"id": 7, "username": "ada_bot"}})
    bot, network = declared("key_in_path", answer, httpx.Response(200, text="{}"))
    key = ApiKey("123:AbC-_")
    assert await bot.verify_connection(key) == NewAccount("7", "ada_bot")
    assert str(network.requests[0].url) == "https://api.bots.example/bot123:AbC-_/getMe"
    assert "Authorization" not in network.requests[0].headers
    limits: dict[str, Any] = {"deadline": timedelta(seconds=1), "body_limit": 100}
    assert (await bot.call_api(key, ApiRequest("GET", "/getUpdates"), **limits)).status == 200
    assert network.requests[1].url.path == "/bot123:AbC-_/getUpdates"


@pytest.mark.parametrize("wrong", ["..", ".", "a/b", "a\\b", "a\nb"])
async def test_a_key_cannot_leave_its_segment(wrong: str) -> None:
    bot, network = declared("key_in_path")
    with pytest.raises((ProviderUnavailable, ProviderRejected)):
        await bot.verify_connection(ApiKey(wrong))
    assert network.requests == []


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (json_response({"ok": False, "error_code": 404}, 404), ProviderRejected),
        (json_response({"ok": False}), ProviderUnavailable),
        (httpx.Response(420), ProviderUnavailable),
        (httpx.Response(401), ProviderRejected),
    ],
)
async def test_a_good_response_is_declared(response: httpx.Response, error: type[Exception]) -> None:
    bot, _ = declared("key_in_path", response)
    with pytest.raises(error):
        await bot.verify_connection(ApiKey("123:abc"))


async def test_basic_authentication_is_made_from_templates() -> None:
    desk, network = declared("email_and_token", json_response({"user": {"id": 5, "email": "ada@desk.example"}}))
    desk = desk.for_config({"subdomain": "acme", "email": "ada@acme.example", "other": {"kept": 1}})
    key = await desk.credentials_of(ApiKey("t0ken"))
    assert key.extras == {"subdomain": "acme", "email": "ada@acme.example"}
    assert await desk.verify_connection(key) == NewAccount("5", "ada@desk.example")
    assert network.request.url.host == "acme.desk.example"
    expected = base64.b64encode(b"ada@acme.example/token:t0ken").decode()
    assert network.request.headers["Authorization"] == f"Basic {expected}"
    # What is stored with the key suffices; a config that changes later does not send the key elsewhere.
    stored, network = declared("email_and_token")
    assert stored.request_auth(key).headers == {"Authorization": f"Basic {expected}"}
    assert stored.for_config({"subdomain": "evil", "email": "a@b.example"}).api_url(key).startswith("https://acme.desk")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "config.subdomain"),
        ({"subdomain": "acme"}, "config.email"),
        ({"subdomain": "a.b", "email": "a@b.c"}, "config.subdomain"),
        ({"subdomain": "evil.example/", "email": "a@b.c"}, "config.subdomain"),
        ({"subdomain": ["acme"], "email": "a@b.c"}, "config.subdomain"),
        ({"subdomain": "acme", "email": "a:b@c"}, "config.email"),
    ],
)
def test_a_config_field_is_validated(config: dict[str, Any], field: str) -> None:
    desk, _ = declared("email_and_token")
    with pytest.raises(InvalidField) as raised:
        desk.for_config(config)
    assert raised.value.field == field


def test_a_value_in_the_host_stays_in_the_declared_hosts() -> None:
    desk, _ = declared("email_and_token")
    open_desk = desk.with_attributes(config_fields={"subdomain": desk.config_fields["email"]}, host_patterns=())
    values = {"subdomain": "evil@x", "email": "a@b.c"}
    with pytest.raises(InvalidField, match=r"config\.subdomain"):
        open_desk.for_config(values)
    anything = {
        name: config_field.model_copy(update={"pattern": None}) for name, config_field in desk.config_fields.items()
    }
    loose = desk.with_attributes(config_fields=anything)
    for host in ("a.b", "evil.example", "x.desk.example.evil.example"):
        with pytest.raises(InvalidField, match=r"config\.subdomain"):
            loose.for_config({"subdomain": host, "email": "a@b.c"})
    # Negative control: with a pattern that allows it, the same value reaches another host.
    wide = loose.with_attributes(host_patterns=("*.b.desk.example",))
    assert wide.for_config({"subdomain": "a.b", "email": "a@b.c"}).unusable_param() is None


async def test_a_key_may_have_a_second_secret_and_fixed_headers() -> None:
    monitor, network = declared("two_headers", json_response({}))
    monitor = monitor.for_config({"region": "eu", "team": 12.0})
    key = await monitor.credentials_of(ApiKey("k1", secret_fields={"application_key": "0a1b2c3d"}))
    await monitor.verify_connection(key)
    sent = network.request
    assert sent.url == "https://eu.monitor.example/validate"
    assert json.loads(sent.content) == {"scope": "12", "deep": ["eu", 1]}
    expected = {
        "X-Api-Key": "k1",
        "X-Application-Key": "0a1b2c3d",
        "X-Version": "2026-01",
        "X-Team": "12",
        "X-Check": "yes",
    }
    assert {name: sent.headers[name] for name in expected} == expected
    assert "Authorization" not in sent.headers


async def test_a_header_without_a_value_is_not_sent() -> None:
    monitor, network = declared("two_headers", json_response({}), TWO_HEADERS_API_VERSION="2027-01")
    await monitor.for_config({}).verify_connection(ApiKey("k1"))
    assert "X-Team" not in network.request.headers
    assert network.request.headers["X-Version"] == "2027-01"
    assert network.request.url.host == "us.monitor.example"
    assert json.loads(network.request.content) == {"deep": ["us", 1]}


async def test_our_client_id_may_be_in_every_request() -> None:
    tracker, network = declared("choice_of_sites", json_response({"sites": [{"id": "s1"}]}), json_response({}))
    tracker = tracker.with_attributes(request_headers={"Client-Id": "{client_id}"})
    tokens = OAuthTokens("at", extras=await tracker.look_up(OAuthTokens("at")))
    await tracker.verify_connection(tokens)
    assert [request.headers["Client-Id"] for request in network.requests] == ["our id", "our id"]
    assert network.requests[0].headers["X-Lookup"] == "our id"
    assert tracker.request_auth(tokens).headers["Client-Id"] == "our id"


async def test_a_secret_that_no_header_can_contain_is_rejected() -> None:
    monitor, network = declared("two_headers")
    with pytest.raises(ProviderRejected):
        await monitor.for_config({}).verify_connection(ApiKey("k1", secret_fields={"application_key": "a\r\nX: y"}))
    assert network.requests == []


async def test_a_key_may_have_a_prefix_and_a_restricted_key_is_good() -> None:
    mail, network = declared("token_prefix", json_response({"data": {"me": {"id": "m1"}}}, 403), json_response({}, 401))
    assert await mail.verify_connection(ApiKey("k")) == NewAccount("m1", None)
    assert network.requests[0].headers["Authorization"] == "Token k"
    assert json.loads(network.requests[0].content) == {"query": "{ me { id } }"}
    with pytest.raises(ProviderRejected):
        await mail.verify_connection(ApiKey("k"))
    auth = mail.for_config({"account": "a&b"}).request_auth(ApiKey("k"))
    assert auth.query_params == {"account": "a&b"}


async def test_the_short_forms_mean_the_same() -> None:
    keyed, network = declared("short_forms")
    assert keyed.request_auth(ApiKey("k y")).query_params == {"key": "k y"}
    assert keyed.request_auth(ApiKey("k y")).headers == {}
    assert await keyed.verify_connection(ApiKey("k")) == NewAccount(None, None)
    assert network.requests == []
    assert provider("header_form", network).request_auth(ApiKey("k")).headers == {"X-Key": "k"}


@pytest.mark.parametrize("found", ["evil.example", "a.b", "", None, "x.mail.example@evil.example"])
async def test_a_lookup_of_a_key_leads_to_no_undeclared_host(found: str | None) -> None:
    mail, network = declared("token_prefix", json_response({"host": found}))
    mail = mail.with_attributes(
        lookup=Lookup(url="https://api.mail.example/whoami", keep={"region": "host"}),
        api_base_url="https://{region}.mail.example",
        host_patterns=("*.mail.example",),
    )
    with pytest.raises(ProviderUnavailable):
        await mail.credentials_of(ApiKey("k"))
    assert network.request.url.host == "api.mail.example"


async def test_negative_control_a_lookup_that_names_a_region_leads_there() -> None:
    mail, _ = declared("token_prefix", json_response({"host": "https://eu"}))
    mail = mail.with_attributes(
        lookup=Lookup(url="https://api.mail.example/whoami", keep={"region": "host"}),
        api_base_url="https://{region}.mail.example",
        host_patterns=("*.mail.example",),
    )
    assert mail.api_url(await mail.credentials_of(ApiKey("k"))) == "https://eu.mail.example"


# --- OAuth: requests -------------------------------------------------------------------------------------------------


async def test_token_requests_may_be_json_without_pkce_and_scopes() -> None:
    answer = {"access_token": "at", "expires_in": 5, "workspace": {"id": "w1", "name": "Acme"}}
    notes, network = declared(
        "json_tokens", json_response(answer), json_response({"object": "user"}), json_response({})
    )
    query = query_of(authorization_url(notes))
    assert query == {
        "owner": "user",
        "response_type": "code",
        "client_id": "our id",
        "redirect_uri": REDIRECT,
        "state": "st",
    }
    tokens = await exchange(notes)
    sent = network.requests[0]
    assert json.loads(sent.content) == {"grant_type": "authorization_code", "code": "c0de", "redirect_uri": REDIRECT}
    assert sent.headers["Authorization"] == f"Basic {base64.b64encode(b'our+id:our%3Asecret').decode()}"
    assert sent.headers["Notes-Version"] == "2026-06-01"
    assert tokens.expire_time is None
    assert await notes.verify_connection(tokens) == NewAccount("w1", "Acme")
    auth = notes.request_auth(tokens)
    assert auth.headers == {"Authorization": "Bearer at", "Notes-Version": "2026-06-01"}
    assert await notes.revoke_credentials(tokens) is True
    assert json.loads(network.requests[2].content) == {"token": "at"}
    assert network.requests[2].headers["Authorization"].startswith("Basic ")


async def test_parameters_and_members_may_have_other_names() -> None:
    issued = {"token": "at", "renewal": "rt", "valid_for": 600, "renewal_valid_for": 86400, "granted": "user.info,x"}
    answer = json_response({"data": {**issued, "open_id": "o1"}, "message": "success"})
    renewed = json_response({"data": {"token": "at2", "renewal": "rt2"}})
    video, network = declared("other_names", answer, renewed)
    query = query_of(authorization_url(video))
    assert (query["client_key"], query["scopes"]) == ("our id", "user.info,video.list")
    assert "scope" not in query
    tokens = await exchange(video)
    sent = network.requests[0]
    assert form_of(sent) == {
        "grant_type": "authorization_code",
        "redirect_uri": REDIRECT,
        "client_key": "our id",
        "auth_code": "c0de",
        "verifier": "v" * 43,
    }
    assert sent.headers["Authorization"] == f"Client {base64.b64encode(b'our id:our:secret').decode()}"
    assert tokens == OAuthTokens(
        "at",
        "rt",
        NOW + timedelta(minutes=10),
        timedelta(minutes=10),
        NOW + timedelta(days=1),
        ("user.info", "x"),
        {"open_id": "o1"},
    )
    assert list(video.missing_scopes(["user.info.basic", "video.list"], tokens)) == ["video.list"]
    again = await video.refresh(tokens)
    assert str(network.requests[1].url) == "https://open.video.example/v2/oauth/refresh/"
    assert form_of(network.requests[1]) == {"grant_type": "renew", "token": "rt", "scope": "user.info,x"}
    assert (again.access_token, again.refresh_token, again.lifetime) == ("at2", "rt2", timedelta(days=1))
    assert (video.refresh_token_grace, video.renew_after) == (timedelta(minutes=1), timedelta(hours=12))


@pytest.mark.parametrize(
    ("code", "error"),
    [("10010", ProviderRejected), ("10003", ProviderMisconfigured), ("10020", ProviderUnavailable)],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_error_codes_have_the_declared_meaning(code: str, error: type[Exception], status: int) -> None:
    video, _ = declared("other_names", json_response({"data": {"error_code": int(code)}}, status))
    with pytest.raises(error):
        await video.refresh(OAuthTokens("at", "rt"))


async def test_declared_codes_count_in_responses_of_the_api_too() -> None:
    video, _ = declared("other_names", *(json_response({"data": {"error_code": code}}, 400) for code in (10010, 10020)))
    video = video.with_attributes(api_base_url="https://open.video.example")
    limits: dict[str, Any] = {"deadline": timedelta(seconds=1), "body_limit": 1000}
    dead = await video.call_api(OAuthTokens("at"), ApiRequest("GET", "/x"), **limits)
    wait = await video.call_api(OAuthTokens("at"), ApiRequest("GET", "/x"), **limits)
    assert (dead.is_unauthorized, dead.is_rate_limited) == (True, False)
    assert (wait.is_unauthorized, wait.is_rate_limited) == (False, True)


async def test_the_callback_may_say_where_the_account_is() -> None:
    answer = json_response({**TOKENS, "api_domain": "https://www.suite.example"})
    org, revoked = json_response({"org": [{"id": "9"}]}), json_response({})
    suite, network = declared("region_of_callback", answer, org, json_response(TOKENS), revoked)
    suite = suite.for_callback({"code": "c", "state": "st", "accounts-server": "https://accounts-eu.suite.example"})
    tokens = await exchange(suite)
    assert network.requests[0].url.host == "accounts-eu.suite.example"
    own, _ = declared("region_of_callback")
    own = suite.with_attributes(url_params={})  # as for a stored integration: only the tokens say where
    assert (await own.verify_connection(tokens)).account_id == "9"
    assert network.requests[1].url == "https://www.suite.example/crm/v8/org"
    assert network.requests[1].headers["Authorization"] == "Suite-oauthtoken at"
    await own.refresh(tokens)
    assert network.requests[2].url.host == "accounts-eu.suite.example"
    assert await own.revoke_credentials(tokens) is True
    assert network.requests[3].method == "DELETE"
    assert str(network.requests[3].url) == "https://accounts-eu.suite.example/oauth/v2/token/revoke?token=rt"
    assert own.revocation_ends == "grant"


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"accounts-server": ""},
        {"accounts-server": "https://evil.example"},
        {"accounts-server": "https://a.suite.example@evil.example"},
        {"accounts-server": "accounts.suite.example/x"},
        {"accounts-server": "a.b.suite.example"},
    ],
)
def test_a_callback_leads_to_no_undeclared_host(query: dict[str, str]) -> None:
    suite, _ = declared("region_of_callback")
    with pytest.raises(InvalidField, match="query"):
        suite.for_callback(query)


@pytest.mark.parametrize("domain", [None, "https://evil.example", "https://api.suite.example.evil.example", 7])
async def test_a_token_response_leads_to_no_undeclared_host(domain: object) -> None:
    suite, network = declared("region_of_callback", json_response({**TOKENS, "api_domain": domain}), json_response({}))
    suite = suite.for_callback({"accounts-server": "https://accounts.suite.example"})
    with pytest.raises(ProviderUnavailable):
        await exchange(suite)
    assert {request.url.host for request in network.requests} <= {"accounts.suite.example"}


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        ({"Authorization": "Basic {basic}"}, 401, ProviderMisconfigured),
        ({"Authorization": "Client {client_secret}"}, 401, ProviderMisconfigured),
        ({"Authorization": "Bearer {access_token}"}, 401, None),
        ({"Authorization": "Bearer {access_token}"}, 500, ProviderUnavailable),
        ({"Authorization": "Basic {basic}"}, 503, ProviderUnavailable),
        ({"Authorization": "Basic {basic}"}, 200, None),
    ],
)
async def test_a_refused_revocation_concerns_what_authenticated_it(
    headers: dict[str, str], status: int, error: type[Exception] | None
) -> None:
    suite, network = declared("region_of_callback", httpx.Response(status, text="{}"))
    suite = suite.with_attributes(
        revoke_url="https://accounts.suite.example/revoke", revoke_headers=headers, revoke_method="POST",
        revoke_params={"refresh": "{token}", "missing": "{api_domain}"}, revoke_body_type="json",
    )  # fmt: skip
    if error is None:
        assert await suite.revoke_credentials(OAuthTokens("at", "rt")) is True
    else:
        with pytest.raises(error):
            await suite.revoke_credentials(OAuthTokens("at", "rt"))
    assert json.loads(network.request.content) == {"refresh": "rt"}


# --- OAuth: lookup ---------------------------------------------------------------------------------------------------

SITES = {"sites": [{"id": "s1", "name": "One"}, {"id": "s2", "name": "Two"}]}


async def test_the_config_chooses_one_of_the_accounts() -> None:
    tracker, network = declared(
        "choice_of_sites", json_response(TOKENS), json_response(SITES), json_response({}),
        CHOICE_OF_SITES_PRIVATE_KEY=pem(RSA_KEY), CHOICE_OF_SITES_PRIVATE_KEY_ID="key-1",
    )  # fmt: skip
    tracker = tracker.for_config({"site": "s2"})
    query = query_of(authorization_url(tracker))
    assert (query["audience"], query["resource"]) == ("api.tracker.example", "https://api.tracker.example/")
    tokens = await exchange(tracker)
    lookup = network.requests[1]
    assert (lookup.method, json.loads(lookup.content), lookup.headers["Authorization"]) == (
        "POST",
        {"page": 1},
        "Bearer at",
    )
    assert await tracker.verify_connection(tokens) == NewAccount("s2", "Two")
    assert network.requests[2].url.path == "/ex/s2/rest/myself"
    form = form_of(network.requests[0])
    assert form["resource"] == "https://api.tracker.example/"
    assert "client_secret" not in form
    token = jwt.decode(form["client_assertion"], RSAKey.import_key(RSA_KEY.public_key()), algorithms=["RS256"])
    assert token.header["kid"] == "key-1"
    assert (token.claims["iss"], token.claims["sub"], token.claims["aud"]) == (
        "our id", "our id", "https://auth.tracker.example/oauth/token",
    )  # fmt: skip
    assert token.claims["exp"] - token.claims["iat"] == 300


@pytest.mark.parametrize(
    ("config", "found", "chosen"),
    [
        ({}, {"sites": [{"id": "s1", "name": "One"}]}, "s1"),
        ({}, SITES, None),
        ({"site": "s3"}, SITES, None),
        ({}, {"sites": []}, None),
    ],
)
async def test_without_a_choice_the_error_lists_the_accounts(
    config: dict[str, str], found: object, chosen: str | None
) -> None:
    settings = {"CHOICE_OF_SITES_PRIVATE_KEY": pem(RSA_KEY)}
    answers = (json_response(TOKENS), json_response(found), json_response({}))
    tracker, _ = declared("choice_of_sites", *answers, **settings)
    tracker = tracker.for_config(config)
    if chosen is not None:
        assert (await exchange(tracker)).extras["site_id"] == chosen
        return
    with pytest.raises(AccountNotChosen, match=r"config\.site must name one of the accounts") as raised:
        await exchange(tracker)
    if found is SITES:
        assert "s1 (One), s2 (Two)" in str(raised.value)


@pytest.mark.parametrize("found", [{}, {"sites": "none"}, [], "text"])
async def test_a_lookup_without_a_list_is_unavailable(found: object) -> None:
    answers = (json_response(TOKENS), json_response(found), json_response({}))
    tracker, _ = declared("choice_of_sites", *answers, CHOICE_OF_SITES_PRIVATE_KEY=pem(RSA_KEY))
    with pytest.raises(ProviderUnavailable):
        await exchange(tracker)


# --- client credentials ----------------------------------------------------------------------------------------------

OWN_CLIENT = ApiKey("", secret_fields={"client_id": "abc", "client_secret": "s&1"})


async def test_tokens_are_obtained_with_the_accounts_own_client() -> None:
    answer = {"access_token": "at", "expires_in": 600}
    partner, network = declared("own_client", *(json_response({**answer, "access_token": f"at-{n}"}) for n in (1, 2)))
    assert partner.missing_settings == []
    assert not partner.has_authorization_page
    tokens = await partner.for_config({"tenant": "acme"}).credentials_of(OWN_CLIENT)
    assert tokens.is_renewable
    assert (tokens.access_token, tokens.refresh_token, tokens.extras) == ("at-1", None, {"tenant": "acme"})
    again = tokens.updated_with(await partner.refresh(tokens), NOW)
    assert (again.access_token, again.secret_fields) == ("at-2", OWN_CLIENT.secret_fields)
    for request in network.requests:
        assert str(request.url) == "https://login.partner.example/acme/oauth2/token"
        assert form_of(request) == {
            "grant_type": "client_credentials",
            "scope": "orders stock",
            "audience": "https://api.partner.example",
            "client_id": "abc",
            "client_secret": "s&1",
        }
    assert "s&1" not in repr(tokens)


@pytest.mark.parametrize("answer", [{"error": "invalid_client"}, {"error": "unauthorized_client"}, {}])
async def test_a_refused_client_of_an_account_is_that_accounts_fault(answer: dict[str, str]) -> None:
    partner, _ = declared("own_client", json_response(answer, 401))
    with pytest.raises(ProviderRejected) as raised:
        await partner.for_config({"tenant": "acme"}).credentials_of(OWN_CLIENT)
    assert raised.value.oauth_error == "invalid_grant"
    # Negative control: where the client is ours, the same response blames no account.
    ours, _ = declared("own_client", json_response(answer, 401))
    with pytest.raises(ProviderMisconfigured):
        await ours.with_attributes(secret_fields={}).for_config({"tenant": "acme"}).credentials_of(ApiKey(""))


# --- client authentication -------------------------------------------------------------------------------------------


async def test_a_client_assertion_is_signed_by_a_secret_or_a_key() -> None:
    secret = "0123456789abcdef0123456789abcdef"
    curve = ec.generate_private_key(ec.SECP256R1())
    for key, public, algorithm in (
        (secret, OctKey.import_key(secret), "HS256"),
        (pem(RSA_KEY).replace("\n", "\\n"), RSAKey.import_key(RSA_KEY.public_key()), "RS256"),
        (pem(curve), ECKey.import_key(curve.public_key()), "ES256"),
    ):
        first, second = [await client_assertion("id", "https://as.example/token", key, NOW) for _ in range(2)]
        claims = [jwt.decode(one["client_assertion"], public, algorithms=[algorithm]).claims for one in (first, second)]
        assert claims[0]["jti"] != claims[1]["jti"]
        assert claims[0]["iat"] == int(NOW.timestamp())


@pytest.mark.parametrize("key", ["-----BEGIN PRIVATE KEY-----\nbroken\n-----END PRIVATE KEY-----", "-----BEGIN x"])
async def test_an_unusable_private_key_is_our_mistake(key: str) -> None:
    with pytest.raises(ProviderMisconfigured) as raised:
        await client_assertion("id", "https://as.example/token", key, NOW)
    assert raised.value.__cause__ is None
    assert "broken" not in str(raised.value)


def test_a_private_key_is_a_required_setting() -> None:
    tracker, _ = declared("choice_of_sites", CHOICE_OF_SITES_PRIVATE_KEY="")
    assert tracker.missing_settings == ["CHOICE_OF_SITES_PRIVATE_KEY"]


# --- families, fields and errors -------------------------------------------------------------------------------------


def test_a_member_of_a_family_has_its_keys_and_its_own() -> None:
    family = provider("family", FakeTransport())
    assert family.oauth_token_url == "https://oauth2.googleapis.com/token"  # the family's
    assert family.revocation_ends == "grant"
    assert family.errors.dead == ["gone for good"]  # its own, in place of the family's
    assert not {"quotaExceeded", "deleted_client"} & set(family.errors.codes)
    assert [file.name for file in family.declared_in] == ["family.toml", "google.toml"]


@pytest.mark.parametrize("base", ["Google", "gmail", "../square", "bases/google"])
def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path, base: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'integration_type = "mine"\nauth_method = "oauth2"\nbase = "{base}"\n')
    with pytest.raises(ProvidersError) as raised:
        read_declaration(path, dev_mode=False)
    problems = [problem for problem in raised.value.problems if f"{path}: base: " in problem]
    assert problems
    assert "line 3" in problems[0]


@pytest.mark.parametrize(
    ("config", "host", "hints"),
    [
        ({}, "www", None),
        ({"stage": "test"}, "sandbox", None),
        ({"stage": "live", "login_hints": ["ada@a.example", "bob"]}, "www", "ada@a.example,bob"),
        ({"login_hints": []}, "www", None),
        ({"metadata": {"colour": "red"}}, "www", None),
    ],
)
def test_a_field_may_be_a_choice_with_values_or_a_list(config: dict[str, Any], host: str, hints: str | None) -> None:
    family = provider("family", FakeTransport()).for_config(config)
    assert query_of(authorization_url(family)).get("login_hint") == hints
    assert family.api_url(OAuthTokens("at", extras=family.url_params)) == f"https://{host}.family.example/v3"


def test_a_field_that_is_declared_later_has_its_default_for_older_accounts() -> None:
    assert provider("family", FakeTransport()).api_url(OAuthTokens("at")) == "https://www.family.example/v3"


@pytest.mark.parametrize(
    ("config", "field", "problem"),
    [
        ({"stage": "www"}, "config.stage", "must be one of: live, test"),
        ({"login_hints": "ada"}, "config.login_hints", "must be a list"),
        ({"login_hints": ["ada", "B"]}, "config.login_hints.1", "must match"),
        ({"login_hints": ["ada", 7.5]}, "config.login_hints.1", "must match"),
        ({"login_hints": [["ada"]]}, "config.login_hints.0", "must be a text"),
        ({"site": "http://family.example/"}, "config.site", ""),
        ({"site": "family.example"}, "config.site", ""),
    ],
)
def test_declared_fields_of_a_config_are_validated(config: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidField) as raised:
        provider("family", FakeTransport()).for_config(config)
    assert raised.value.field == field
    assert problem in raised.value.problem


def test_other_fields_of_a_config_belong_to_callers() -> None:
    config = {"colour": "red", "metadata": {"a": 1}, "sync_enabled": True}
    assert provider("family", FakeTransport()).for_config(config) is not None


@pytest.mark.parametrize(
    ("response", "unauthorized", "limited", "reason"),
    [
        (json_response({"errors": [{"code": "gone for good"}]}, 400), True, False, "gone for good"),
        (httpx.Response(403, text=" gone for good\n"), True, False, None),
        (httpx.Response(403, text="<p>gone for good</p>"), False, False, None),
        (json_response({"error": {".tag": "slow down"}}, 409), False, True, "slow down"),
        (json_response({}, 403, x_remaining="0"), False, True, None),
        (json_response({}, 403, x_remaining="1"), False, False, None),
        (json_response({}, 404, x_remaining="0"), False, False, None),
        (json_response({"errors": [{"code": "quota"}]}, 401), False, False, "quota"),
        (json_response({"errors": [{"code": "teapot"}]}, 418), False, False, "teapot"),
        (json_response({"errors": [{"code": "free text"}]}, 401), True, False, None),
    ],
)
async def test_codes_are_found_by_any_path_and_have_their_meaning(
    response: httpx.Response, unauthorized: bool, limited: bool, reason: str | None
) -> None:
    family, _ = declared("family", response)
    found = await family.call_api(
        OAuthTokens("at"), ApiRequest("GET", "/x"), deadline=timedelta(seconds=9), body_limit=10_000
    )
    assert (found.is_unauthorized, found.is_rate_limited, found.reason) == (unauthorized, limited, reason)


async def test_a_refused_request_does_not_reject_the_credentials() -> None:
    family, _ = declared("family", *[json_response({"errors": [{"code": "quota"}]}, 403)] * 2)
    with pytest.raises(ProviderUnavailable):
        await family.verify_connection(OAuthTokens("at"))
    plain = family.with_attributes(errors=family.errors.model_copy(update={"request": []}))
    with pytest.raises(ProviderRejected):  # negative control
        await plain.verify_connection(OAuthTokens("at"))


async def test_a_name_with_a_dot_is_in_quotes() -> None:
    family, _ = declared("family", json_response({"user": {"@id": "u1"}}))
    assert (await family.verify_connection(OAuthTokens("at"))).account_id == "u1"


@pytest.mark.parametrize("server", ["Accounts.suite.example", "accounts.suite.EXAMPLE"])
def test_a_kept_value_matches_its_pattern(server: str) -> None:
    suite = provider("region_of_callback", FakeTransport())
    with pytest.raises(InvalidField, match="accounts-server"):
        suite.for_callback({"accounts-server": server})
    open_suite = suite.with_attributes(kept_patterns={})
    assert open_suite.for_callback({"accounts-server": server}) is not None  # negative control


async def test_a_key_of_another_form_is_not_sent() -> None:
    monitor, network = declared("two_headers")
    with pytest.raises(ProviderRejected):
        await monitor.verify_connection(ApiKey("_key", secret_fields={"application_key": "0123abcd"}))
    assert network.requests == []


@pytest.mark.parametrize(("status", "is_done"), [(404, True), (500, False)])
async def test_a_grant_that_is_gone_counts_as_revoked(status: int, is_done: bool) -> None:
    notes, _ = declared("json_tokens", httpx.Response(status))
    if is_done:
        assert await notes.revoke_credentials(OAuthTokens("at"))
    else:
        with pytest.raises(ProviderUnavailable):
            await notes.revoke_credentials(OAuthTokens("at"))


def test_the_language_names_every_scheme_of_the_server() -> None:
    assert set(get_args(SchemeName)) == set(SCHEMES)
    assert provider("family", FakeTransport()).webhook_scheme is SCHEMES["standard"]


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ('{ scheme = "svix" }', "webhook.scheme"),
        ('{ scheme = "standard", encoding = "hex" }', "webhook.encoding"),
        ('{ scheme = "stripe", signature_header = "X-S" }', "webhook.signature_header"),
        ("{}", "webhook.signature_header"),
    ],
)
def test_a_named_scheme_has_no_other_key(tmp_path: Path, webhook: str, field: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'integration_type = "mine"\nauth_method = "api_key"\nverify = false\nwebhook = {webhook}\n')
    with pytest.raises(ProvidersError) as raised:
        read_declaration(path, dev_mode=False)
    assert [problem for problem in raised.value.problems if f"{path}: {field}: " in problem and "line 4" in problem]


def test_a_copy_with_other_templates_authenticates_by_them() -> None:
    shop = provider("family", FakeTransport())
    assert shop.request_auth(OAuthTokens("at")).headers == {"Authorization": "Bearer at"}
    own = shop.with_attributes(request_headers={"X-Token": "{access_token}"})
    assert own.request_auth(OAuthTokens("at")).headers == {"X-Token": "at"}


async def test_a_member_has_the_behaviour_of_its_family(tmp_path: Path) -> None:
    (tmp_path / "threads.toml").write_text(
        'integration_type = "threads"\nauth_method = "oauth2"\nbase = "meta"\nscopes = ["threads_basic"]\n'
        'authorize_url = "https://threads.example/authorize"\ntoken_url = "https://threads.example/token"\n'
    )
    factory = ProviderFactory()
    load_toml_providers(tmp_path, factory, dev_mode=False)
    network = FakeTransport(json_response({"access_token": "at", "expires_in": 3600}))
    settings = {"THREADS_CLIENT_ID": "id", "THREADS_CLIENT_SECRET": "secret"}
    threads = factory.build(context(network, settings))["threads"]
    tokens = await require_oauth(threads).exchange_code_for_tokens("c0de", REDIRECT, "v" * 43)
    assert tokens.refresh_token == "at"  # Meta's access tokens are their own refresh tokens
