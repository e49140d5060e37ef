"""The grants that secrets obtain: a signed JWT (RFC 7523 §2.1) and a login, each with a fake network."""

import json
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from joserfc import jwt
from joserfc.jwk import RSAKey

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import (
    InvalidField,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.toml_providers import load_toml_providers
from tests.declarations import DECLARATIONS, declared_types
from tests.rsa_key import RSA_KEY
from tests.unit.providers.support import NOW, FakeTransport, context, exception_text, http_response, json_response

PUBLIC = RSAKey.import_key(RSA_KEY.public_key())
PEM = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SECRET_PEM = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"phrase")).decode()
TOKEN = {"access_token": "at-1", "expires_in": 3600, "token_type": "Bearer"}

GOOGLE = {
    "type": "service_account",
    "project_id": "salon",
    "private_key_id": "k-1",
    "private_key": PEM,
    "client_email": "sync@salon.iam.cloud.example",
    "client_id": "1029384756",
    "auth_uri": "https://accounts.cloud.example/o/oauth2/auth",
    "token_uri": "https://oauth2.cloud.example/token",
    "universe_domain": "cloud.example",
}


def read(directory: Path) -> ProviderFactory:
    factory = ProviderFactory()
    load_toml_providers(directory, factory, dev_mode=False)
    return factory


def provider(name: str, network: FakeTransport, factory: ProviderFactory, **settings: str) -> Any:
    prefix = name.upper()
    own = {f"{prefix}_CLIENT_ID": "our-id", f"{prefix}_CLIENT_SECRET": "our-secret", f"{prefix}_PRIVATE_KEY": PEM}
    return factory.build(context(network, {**own, **settings}), only=name)[name]


def declared(name: str, *responses: httpx.Response | Exception, **settings: str) -> tuple[Any, FakeTransport]:
    network = FakeTransport(*responses)
    return provider(name, network, declared_types(), **settings), network


def form_of(request: httpx.Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.content.decode()).items()}


def claims_of(token: str, algorithm: str = "RS256") -> tuple[dict[str, Any], dict[str, Any]]:
    read = jwt.decode(token, PUBLIC, algorithms=[algorithm])
    return read.header, read.claims


def secrets(**fields: str) -> ApiKey:
    return ApiKey("", secret_fields=fields)


def service_account(**changes: Any) -> ApiKey:
    return secrets(service_account=json.dumps({**GOOGLE, **changes}, indent=2))


# --- JWT bearer ------------------------------------------------------------------------------------------------------


async def test_a_pasted_service_account_gets_tokens_and_renews_them() -> None:
    account, network = declared(
        "service_account",
        *(json_response({**TOKEN, "access_token": f"at-{n}"}) for n in (1, 2)),
        SERVICE_ACCOUNT_CLIENT_ID="",  # it has none
    )
    assert account.missing_settings == []
    assert not account.has_authorization_page
    tokens = await account.for_config({"subject": "ada@salon.example"}).credentials_of(service_account())
    assert (tokens.access_token, tokens.is_renewable, tokens.lifetime) == ("at-1", True, timedelta(hours=1))
    again = tokens.updated_with(await account.refresh(tokens), NOW)
    assert (again.access_token, again.is_renewable, again.secret_fields) == ("at-2", True, tokens.secret_fields)
    for request in network.requests:
        assert str(request.url) == "https://oauth2.cloud.example/token"
        form = form_of(request)
        assert form.keys() == {"grant_type", "assertion"}
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        header, claims = claims_of(form["assertion"])
        assert header == {"alg": "RS256", "typ": "JWT", "kid": "k-1"}
        begin = int(NOW.timestamp())
        assert claims == {
            "iss": GOOGLE["client_email"],
            "sub": "ada@salon.example",
            "scope": "https://www.cloud.example/auth/calendar.readonly https://www.cloud.example/auth/contacts",
            "aud": GOOGLE["token_uri"],
            "iat": begin,
            "exp": begin + 3600,
        }
    sent = "".join(f"{one.url}{one.headers}{one.content!r}" for one in network.requests)
    assert "PRIVATE" not in sent + repr(tokens)
    assert PEM[60:120] not in sent


async def test_without_a_user_there_is_no_subject() -> None:
    account, network = declared("service_account", json_response(TOKEN))
    await account.for_config({}).credentials_of(service_account())
    assert "sub" not in claims_of(form_of(network.request)["assertion"])[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n") + "\r\n",
        lambda text: "  " + " ".join(text.split("\n")),
        lambda text: json.dumps(json.loads(text)),
    ],
    ids=["byte order mark", "Windows lines", "one line", "minified"],
)
async def test_a_file_is_usable_as_it_was_pasted(change: Any) -> None:
    account, network = declared("service_account", json_response(TOKEN))
    text = change(service_account().secret_fields["service_account"])
    assert account.secret_fields["service_account"].problem_of(text) is None
    await account.for_config({}).credentials_of(secrets(service_account=text))
    assert len(network.requests) == 1


NO_JSON = "is not a JSON file"
OTHER_JSON = "is another JSON file than expected: it has no text at "


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hello", NO_JSON),
        ("[]", NO_JSON),
        (json.dumps(GOOGLE)[:-40], NO_JSON),
        (PEM, NO_JSON),
        ("{" * 4000, NO_JSON),
        (json.dumps({"installed": {"client_id": "x"}}), OTHER_JSON + "private_key"),
        (json.dumps({**GOOGLE, "private_key": None}), OTHER_JSON + "private_key"),
        (json.dumps({**GOOGLE, "client_email": ["a"]}), OTHER_JSON + "client_email"),
        (json.dumps({**GOOGLE, "client_email": ""}), OTHER_JSON + "client_email"),
        (json.dumps({**GOOGLE, "token_uri": "a\x00b"}), OTHER_JSON + "token_uri"),
        (json.dumps({**GOOGLE, "more": "x" * 9000}), "must be a text of at most 8192 characters"),
    ],
)  # fmt: skip
def test_another_file_is_refused_and_not_quoted(text: str, problem: str) -> None:
    account, _ = declared("service_account")
    found = account.secret_fields["service_account"].problem_of(text)
    assert found is not None
    assert found.startswith(problem)
    assert "salon" not in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"private_key": "no key"}, "has a private key that is not a private key in PEM"),
        ({"private_key": PEM[:800]}, "has a private key that is not a complete private key"),
        ({"private_key": SECRET_PEM}, "has a private key that is encrypted"),
        ({"token_uri": "https://evil.example/token"}, "leads to an address that is not of this integration type"),
        ({"token_uri": "https://oauth2.cloud.example.evil.example/"}, "leads to an address"),
        ({"token_uri": "https://oauth2.cloud.example@evil.example/"}, "leads to an address"),
        ({"token_uri": "http://oauth2.cloud.example/token"}, "leads to an address"),
        ({"token_uri": "https://oauth2.cloud.example:8443/token"}, "leads to an address"),
        ({"token_uri": "oauth2.cloud.example"}, "leads to an address"),
    ],
)  # fmt: skip
async def test_a_file_that_cannot_be_used_is_an_error_of_its_field(changes: dict[str, str], problem: str) -> None:
    account, network = declared("service_account")
    with pytest.raises(InvalidField) as raised:
        await account.for_config({}).credentials_of(service_account(**changes))
    assert raised.value.field == "secret_fields.service_account"
    assert raised.value.problem.startswith(problem)
    assert network.requests == []
    assert PEM[60:120] not in exception_text(raised.value)


async def test_negative_control_a_host_pattern_that_allows_it_leads_there() -> None:
    account, network = declared("service_account", json_response(TOKEN))
    wide = account.with_attributes(host_patterns=("*.evil.example",)).for_config({})
    await wide.credentials_of(service_account(token_uri="https://login.evil.example/token"))
    assert network.request.url.host == "login.evil.example"


@pytest.mark.parametrize(
    ("response", "error", "code"),
    [
        (json_response({"error": "invalid_grant"}, 400), ProviderRejected, "invalid_grant"),
        (json_response({"error": "unauthorized_client"}, 401), ProviderRejected, "invalid_grant"),
        (json_response({"error": "invalid_client"}, 401), ProviderRejected, "invalid_grant"),
        (json_response({}, 401), ProviderRejected, "invalid_grant"),
        (json_response({"error": "invalid_scope"}, 400), ProviderRejected, "invalid_scope"),
        (json_response({}, 403), ProviderUnavailable, None),
        (json_response({}, 429, Retry_After="7"), ProviderUnavailable, None),
        (json_response({"error": "invalid_grant"}, 503), ProviderUnavailable, None),
        (httpx.ConnectError("down"), ProviderUnavailable, None),
        (json_response({"id_token": "x"}), ProviderUnavailable, None),
    ],
)  # fmt: skip
async def test_a_refused_assertion_is_the_fault_of_the_account_that_owns_the_key(
    response: httpx.Response | Exception, error: type[ProviderUnavailable], code: str | None
) -> None:
    account, _ = declared("service_account", response)
    tokens = OAuthTokens("at", secret_fields=service_account().secret_fields, is_reobtainable=True)
    with pytest.raises(error) as raised:
        await account.refresh(tokens)
    assert raised.value.oauth_error == code


async def test_our_own_key_signs_for_a_user_and_a_refused_client_is_ours() -> None:
    userinfo = {"sub": "u", "accounts": [{"base_uri": "https://eu.sign.example", "account_id": "a-1"}]}
    consent, network = declared(
        "signed_consent",
        json_response(TOKEN),
        json_response(userinfo),
        json_response(TOKEN),
        SIGNED_CONSENT_PRIVATE_KEY_ID="k-7",
    )
    tokens = await consent.for_config({"user": "0a1b2c3d"}).credentials_of(secrets())
    assert tokens.is_renewable
    header, claims = claims_of(form_of(network.requests[0])["assertion"])
    assert header["kid"] == "k-7"
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("our-id", "0a1b2c3d", "account.sign.example")
    assert claims["exp"] - claims["iat"] == 300
    assert claims["jti"]
    assert consent.api_url(tokens) == "https://eu.sign.example/restapi/v2.1/accounts/a-1"
    await consent.refresh(tokens)
    assert claims_of(form_of(network.requests[2])["assertion"])[1]["sub"] == "0a1b2c3d"
    for answer, error in (
        (json_response({"error": "invalid_client"}, 401), ProviderMisconfigured),
        (json_response({"error": "consent_required"}, 400), ProviderRejected),
    ):
        refusing, _ = declared("signed_consent", answer)
        with pytest.raises(error) as raised:
            await refusing.refresh(tokens)
        assert raised.value.oauth_error in {"invalid_client", "invalid_grant"}
    broken, network = declared("signed_consent", SIGNED_CONSENT_PRIVATE_KEY="broken")
    with pytest.raises(ProviderMisconfigured):
        await broken.for_config({"user": "0a1b2c3d"}).credentials_of(secrets())
    assert network.requests == []
    lacking, _ = declared("signed_consent", SIGNED_CONSENT_PRIVATE_KEY="", SIGNED_CONSENT_CLIENT_ID="")
    assert set(lacking.missing_settings) == {"SIGNED_CONSENT_CLIENT_ID", "SIGNED_CONSENT_PRIVATE_KEY"}


CONTENT = {
    "appSettings": {
        "clientID": "c-1",
        "clientSecret": "s-1",
        "appAuth": {"publicKeyID": "p-1", "privateKey": SECRET_PEM, "passphrase": "phrase"},
    },
    "enterpriseID": 1234567,
}


async def test_one_file_may_have_the_client_and_an_encrypted_key() -> None:
    content, network = declared("encrypted_key", json_response(TOKEN), httpx.Response(200), ENCRYPTED_KEY_CLIENT_ID="")
    assert content.missing_settings == []
    tokens = await content.credentials_of(secrets(app_config=json.dumps(CONTENT)))
    form = form_of(network.requests[0])
    assert (form["client_id"], form["client_secret"]) == ("c-1", "s-1")
    header, claims = claims_of(form["assertion"], "RS512")
    assert header == {"alg": "RS512", "typ": "JWT", "kid": "p-1"}
    assert (claims["iss"], claims["sub"], claims["sub_type"]) == ("c-1", "1234567", "enterprise")
    assert claims["exp"] - claims["iat"] == 45
    assert len(claims["jti"]) >= 16
    assert await content.revoke_credentials(tokens) is True
    assert form_of(network.requests[1])["token"] == "at-1"
    app: Any = CONTENT["appSettings"]
    wrong = {**CONTENT, "appSettings": {**app, "appAuth": {**app["appAuth"], "passphrase": "x"}}}
    with pytest.raises(InvalidField, match="cannot be decrypted") as raised:
        await content.credentials_of(secrets(app_config=json.dumps(wrong)))
    assert raised.value.field == "secret_fields.app_config"


async def test_the_jwt_may_be_a_header_without_the_parameters_of_oauth() -> None:
    answer = json_response({"token": "ghs", "expires_at": "2026-11-22T13:00:00Z"}, 201)
    app, network = declared("app_installation", answer, httpx.Response(204))
    tokens = await app.for_config({"installation": "42"}).credentials_of(secrets())
    assert str(network.requests[0].url) == "https://api.code.example/app/installations/42/access_tokens"
    assert json.loads(network.requests[0].content) == {}
    header, claims = claims_of(network.requests[0].headers["Authorization"].removeprefix("Bearer "))
    assert (header["alg"], set(claims)) == ("RS256", {"iss", "iat", "exp"})
    assert (tokens.access_token, tokens.lifetime) == ("ghs", timedelta(hours=1))
    assert app.request_auth(tokens).headers == {"Authorization": "Bearer ghs"}
    assert await app.revoke_credentials(tokens) is True
    assert (network.requests[1].method, network.requests[1].headers["Authorization"]) == ("DELETE", "Bearer ghs")


# --- login -----------------------------------------------------------------------------------------------------------

POS = {"status": "SUCCESS", "token": {"tokenType": "Bearer", "accessToken": "jwt", "expiresIn": 86400}}


async def test_a_login_gets_a_token_from_two_levels_of_json() -> None:
    pos, network = declared(
        "pos_login", json_response(POS), json_response({"guid": "g-1", "general": {"name": "Café"}})
    )
    assert pos.missing_settings == []
    tokens = await pos.for_config({"location": "l-1"}).credentials_of(secrets(client_id="c", client_secret="s"))
    login = network.requests[0]
    assert (login.method, login.headers["Pos-Version"]) == ("POST", "1")
    assert json.loads(login.content) == {"clientId": "c", "clientSecret": "s", "userAccessType": "MACHINE_CLIENT"}
    assert (tokens.access_token, tokens.lifetime, tokens.is_renewable) == ("jwt", timedelta(days=1), True)
    assert pos.request_auth(tokens).headers == {"Authorization": "Bearer jwt", "Pos-Location": "l-1"}
    account = await pos.verify_connection(tokens)
    assert (account.account_id, account.account_label) == ("g-1", "Café")
    assert await pos.revoke_credentials(tokens) is False


@pytest.mark.parametrize(
    ("response", "error", "code"),
    [
        (json_response({"code": 10010}, 401), ProviderRejected, "invalid_grant"),
        (json_response({"message": "no"}, 403), ProviderRejected, "invalid_grant"),
        (json_response({"code": 10010}, 400), ProviderRejected, "invalid_grant"),
        (json_response({"status": "FAILED", "code": "10010"}), ProviderRejected, "invalid_grant"),
        (json_response({"code": 10011}, 400), ProviderUnavailable, None),
        (json_response({"status": "FAILED"}), ProviderUnavailable, None),
        (json_response({"message": "Bad request"}, 400), ProviderUnavailable, None),
        (json_response({"code": 10010}, 500), ProviderUnavailable, None),
        (json_response({}, 429), ProviderUnavailable, None),
        (json_response({}, 403, Retry_After="60"), ProviderUnavailable, None),
        (httpx.Response(302, headers={"Location": "https://evil.example/"}), ProviderUnavailable, None),
        (httpx.Response(200, text="<html>Maintenance</html>"), ProviderUnavailable, None),
        (json_response({"status": "SUCCESS", "token": None}), ProviderUnavailable, None),
        (json_response({"status": "SUCCESS", "token": {"accessToken": "a\r\nX: y"}}), ProviderUnavailable, None),
        (httpx.ReadTimeout("slow"), ProviderUnavailable, None),
    ],
)  # fmt: skip
async def test_only_a_response_that_says_so_means_wrong_credentials(
    response: httpx.Response | Exception, error: type[ProviderUnavailable], code: str | None
) -> None:
    pos, network = declared("pos_login", response)
    tokens = OAuthTokens("old", secret_fields={"client_id": "c", "client_secret": "s3cret-value"}, is_reobtainable=True)
    with pytest.raises(error) as raised:
        await pos.refresh(tokens)
    assert raised.value.oauth_error == code
    assert len(network.requests) == 1
    assert "s3cret-value" not in exception_text(raised.value)


async def test_a_session_may_be_in_a_header_after_http_basic() -> None:
    headers = {"X-Auth-Token": "s-1", "X-Session-Id": "17"}
    storage, network = declared("session_header", httpx.Response(201, headers=headers), httpx.Response(204))
    key = secrets(username="ada", password="pä:ss")
    tokens = await storage.for_config({"host": "array-1"}).credentials_of(key)
    expected = b64encode("default/ada:pä:ss".encode()).decode()
    assert network.requests[0].headers["Authorization"] == f"Basic {expected}"
    assert network.requests[0].url == "https://array-1.storage.example/api/sessions"
    assert (tokens.access_token, tokens.lifetime) == ("s-1", timedelta(minutes=30))
    assert storage.request_auth(tokens).headers == {"X-Auth-Token": "s-1"}
    assert await storage.revoke_credentials(tokens) is True
    logout = network.requests[1]
    assert (logout.method, str(logout.url)) == ("DELETE", "https://array-1.storage.example/api/sessions/17")
    assert logout.headers["X-Auth-Token"] == "s-1"
    assert "Authorization" not in logout.headers


async def test_a_session_that_has_expired_is_not_logged_out() -> None:
    storage, network = declared("session_header")
    ended = OAuthTokens("s-1", expire_time=NOW, is_reobtainable=True, extras={"host": "array-1", "session": "17"})
    assert await storage.revoke_credentials(ended) is True
    assert network.requests == []


@pytest.mark.parametrize(("status", "ends"), [(419, True), (401, True), (403, False), (500, False)])
async def test_a_declared_status_means_that_the_session_has_ended(status: int, ends: bool) -> None:
    storage, _ = declared("session_header")
    assert storage.rejects_access_token(http_response({}, status)) is ends


COOKIES = [
    ("Set-Cookie", "B1SESSION=abc-1; path=/v1; HttpOnly; secure"),
    ("Set-Cookie", 'ROUTEID=".node4"; path=/v1'),
    ("Set-Cookie", "old=; Max-Age=0"),
    ("Set-Cookie", "broken"),
]


async def test_a_session_may_be_several_cookies() -> None:
    erp, network = declared(
        "session_cookie", httpx.Response(200, headers=COOKIES, json={"SessionTimeout": 30}), httpx.Response(204)
    )
    tokens = await erp.for_config({"host": "b1", "company": "SBO"}).credentials_of(secrets(username="u", password="p"))
    assert json.loads(network.requests[0].content) == {"CompanyDB": "SBO", "UserName": "u", "Password": "p"}
    assert erp.request_auth(tokens).headers == {"Cookie": 'B1SESSION=abc-1;ROUTEID=".node4"'}
    assert tokens.lifetime == timedelta(minutes=25)
    assert await erp.revoke_credentials(tokens) is True
    assert network.requests[1].headers["Cookie"] == 'B1SESSION=abc-1;ROUTEID=".node4"'
    assert str(network.requests[1].url) == "https://b1.erp.example/v1/Logout"


@pytest.mark.parametrize(
    ("attributes", "lifetime"),
    [
        ("; Max-Age=600", timedelta(minutes=10)),
        ("; Max-Age=600; Expires=Wed, 25 Nov 2026 12:00:00 GMT", timedelta(minutes=10)),
        ("; Expires=Wed, 25 Nov 2026 12:00:00 GMT", timedelta(days=3)),
        ("; Expires=soon", timedelta(minutes=25)),
        ("; Max-Age=", timedelta(minutes=25)),
        ("", timedelta(minutes=25)),
    ],
)
async def test_a_cookie_may_say_how_long_it_lasts(attributes: str, lifetime: timedelta) -> None:
    erp, _ = declared("session_cookie", httpx.Response(200, headers={"Set-Cookie": f"connect.sid=s%3Aabc{attributes}"}))
    response = erp.token_response.model_copy(update={"access_token": "cookie:connect.sid"})
    erp = erp.with_attributes(token_response=response).for_config({"host": "b1", "company": "SBO"})
    tokens = await erp.credentials_of(secrets(username="u", password="p"))
    assert (tokens.access_token, tokens.lifetime) == ("s%3Aabc", lifetime)


CHALLENGE = {"challenge": {"nonce": 42}}


async def test_a_first_request_may_bring_what_the_second_one_needs() -> None:
    challenge = httpx.Response(200, headers=[("X-Csrf-Token", "x" * 300), ("Set-Cookie", "pre=1")], json=CHALLENGE)
    session = httpx.Response(200, headers={"Content-Type": "text/plain"}, text="session-1\n")
    clinic, network = declared("two_logins", challenge, session, challenge, httpx.Response(200, text='"session-2"'))
    tokens = await clinic.for_config({"practice": "a&b"}).credentials_of(secrets(username="u", password="p&q"))
    first, second = network.requests
    assert str(first.url) == "https://api.clinic.example/v2/challenge?practice=a%26b"
    assert form_of(second) == {"user": "u", "password": "p&q", "nonce": "42"}
    assert (second.headers["Cookie"], second.headers["X-Csrf-Token"]) == ("pre=1", "x" * 300)
    assert clinic.request_auth(tokens).headers == {"X-Session": "session-1", "X-Csrf": "x" * 300}
    assert (await clinic.refresh(tokens)).access_token == "session-2"


@pytest.mark.parametrize(
    "challenge",
    [
        httpx.Response(503),
        httpx.Response(200, headers={"X-Csrf-Token": "x", "Set-Cookie": "pre=1"}, json={"challenge": None}),
        httpx.Response(200, headers={"X-Csrf-Token": "x" * 9000, "Set-Cookie": "pre=1"}, json=CHALLENGE),
        httpx.Response(200, json=CHALLENGE),
        httpx.Response(200, text="<html>"),
    ],
)
async def test_without_the_first_response_the_password_is_not_sent(challenge: httpx.Response) -> None:
    clinic, network = declared("two_logins", challenge)
    with pytest.raises(ProviderUnavailable):
        await clinic.for_config({"practice": "p"}).credentials_of(secrets(username="u", password="p"))
    assert len(network.requests) == 1


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_login_with_our_client_needs_its_settings(tmp_path: Path) -> None:
    text = (DECLARATIONS / "pos_login.toml").read_text()
    begin, end = text.index("[secret_fields]"), text.index("[config_fields]")
    (tmp_path / "pos_login.toml").write_text(text[:begin] + text[end:])
    ours = provider("pos_login", FakeTransport(), read(tmp_path), POS_LOGIN_CLIENT_ID="", POS_LOGIN_CLIENT_SECRET="")
    assert list(ours.missing_settings) == ["POS_LOGIN_CLIENT_ID", "POS_LOGIN_CLIENT_SECRET"]
    none, _ = declared("session_cookie", SESSION_COOKIE_CLIENT_ID="", SESSION_COOKIE_CLIENT_SECRET="")
    assert none.missing_settings == []


# --- further shapes --------------------------------------------------------------------------------------------------

SERVICE_KEY = """\
integration_type = "shape"
auth_method = "oauth2"
grant = "client_credentials"
token_url = "https://{uaa}/oauth/token"
host_patterns = ["*.authentication.cloud.example"]
verify = false
secret_fields.key = { keep = { client_id = "uaa.clientid", client_secret = "uaa.clientsecret", uaa = "uaa.url" } }
"""
NESTED_LOGIN = """\
integration_type = "shape"
auth_method = "oauth2"
grant = "login"
token_response = { access_token = "header:X-Subject-Token", expires_in = "token.expires_at" }
request_headers = { X-Auth-Token = "{access_token}" }
verify = false
secret_fields.password = {}
config_fields.user = {}

[[login]]
url = "https://keystone.example/v3/auth/tokens"
body.auth.identity.methods = ["password"]
body.auth.identity.password.user = { name = "{user}", password = "{password}", domain = { id = "default" } }
"""
PASSWORD_GRANT = """\
integration_type = "shape"
auth_method = "oauth2"
grant = "login"
verify = false
secret_fields.password = {}
config_fields.user = {}

[[login]]
url = "https://login.example/oauth/token"
basic_username = "{client_id}"
basic_password = "{client_secret}"
body = { grant_type = "password", username = "{user}", password = "{password}" }
body_type = "form"
"""


async def shape(directory: Path, text: str, key: ApiKey, *responses: httpx.Response) -> tuple[Any, Any, FakeTransport]:
    """The provider of a declaration, its credentials for a key, and the network."""
    (directory / "shape.toml").write_text(text)
    network = FakeTransport(*responses)
    found = provider("shape", network, read(directory))
    return found, await found.for_config({"user": "ada"}).credentials_of(key), network


async def test_client_credentials_may_come_from_a_file(tmp_path: Path) -> None:
    uaa = {"clientid": "sb-1", "clientsecret": "s=1", "url": "https://acme.authentication.cloud.example"}
    found, tokens, network = await shape(
        tmp_path, SERVICE_KEY, secrets(key=json.dumps({"uaa": uaa})), *[json_response(TOKEN)] * 2
    )
    await found.refresh(tokens)
    for request in network.requests:
        assert str(request.url) == "https://acme.authentication.cloud.example/oauth/token"
        assert request.headers["Authorization"] == f"Basic {b64encode(b'sb-1:s%3D1').decode()}"
    elsewhere = json.dumps({"uaa": {**uaa, "url": "https://evil.example"}})
    with pytest.raises(InvalidField, match=r"secret_fields\.key leads to an address"):
        await found.credentials_of(secrets(key=elsewhere))


async def test_a_login_may_have_a_deep_body_and_an_absolute_expiry(tmp_path: Path) -> None:
    answer = httpx.Response(
        201, headers={"X-Subject-Token": "gAAAA"}, json={"token": {"expires_at": "2026-11-22T13:00:00Z"}}
    )
    found, tokens, network = await shape(tmp_path, NESTED_LOGIN, secrets(password="p"), answer)
    user = {"name": "ada", "password": "p", "domain": {"id": "default"}}
    sent = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    assert json.loads(network.request.content) == sent
    assert (tokens.access_token, tokens.lifetime) == ("gAAAA", timedelta(hours=1))
    assert found.request_auth(tokens).headers == {"X-Auth-Token": "gAAAA"}


async def test_a_password_grant_is_a_login_with_our_client(tmp_path: Path) -> None:
    found, tokens, network = await shape(
        tmp_path,
        PASSWORD_GRANT,
        secrets(password="p"),
        json_response({**TOKEN, "refresh_token": "rt"}),
        json_response({"error": "invalid_grant"}, 400),
        json_response({"error": "invalid_client"}, 400),
    )
    assert form_of(network.request) == {"grant_type": "password", "username": "ada", "password": "p"}
    assert network.request.headers["Authorization"] == f"Basic {b64encode(b'our-id:our-secret').decode()}"
    assert (tokens.refresh_token, tokens.is_renewable) == (None, True)
    with pytest.raises(ProviderRejected):
        await found.refresh(tokens)
    with pytest.raises(ProviderMisconfigured):
        await found.refresh(tokens)
