"""Negative controls of derived profiles: a declaration that differs from the simulated provider fails the suite.

Each case derives a profile from a declaration, changes the declaration in one place, and uses a provider of the changed
one. A difference that no request shows could not be found, and is not a case.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ReauthorizationRequired,
)
from integration_server.domain.revocation import RevocationState
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.toml_providers import provider_class, read_declaration
from integration_server.wiring.providers import registered_providers
from tests.conformance.conftest import BUILT_IN_PROFILES, derived_profiles, environment_settings
from tests.conformance.profile import Profile, read_profiles
from tests.conformance.scenario import Scenario, open_scenario
from tests.declarations import DECLARATIONS
from tests.fakes.system import ADA

CHANGES = {
    "another endpoint": ("json_tokens", "/v1/oauth/token", "/v2/oauth/token"),
    "another host": ("json_tokens", 'token_url = "https://api.', 'token_url = "https://www.'),
    "another client authentication": ("json_tokens", '"client_secret_basic"', '"client_secret_post"'),
    "no client authentication": ("json_tokens", '"client_secret_basic"', '"none"'),
    "another body": ("json_tokens", 'token_body = "json"', 'token_body = "form"'),
    "another fixed header": ("json_tokens", 'Notes-Version = "2026-06-01" }\nto', 'Notes-Version = "2025-06-01" }\nto'),
    "a header that is missing": ("json_tokens", 'request_headers = { Notes-Version = "2026-06-01" }\n', ""),
    "another path of a kept value": ("json_tokens", '"workspace.id"', '"team.id"'),
    "another authorization parameter": ("json_tokens", '{ owner = "user" }', '{ owner = "team" }'),
    "an authorization parameter too many": ("json_tokens", '{ owner = "user" }', '{ owner = "user", more = "1" }'),
    "a challenge that is not expected": ("json_tokens", "pkce = false", "pkce = true"),
    "scopes that are not expected": ("json_tokens", 'scope_param = ""', 'scopes = ["a"]'),
    "another revocation": ("json_tokens", "/v1/oauth/revoke", "/v1/oauth/revocation"),
    "another token in the revocation": ("json_tokens", 'params = { token = "{token}"', 'params = { other = "{token}"'),
    "another parameter": ("other_names", 'auth_code = "{code}"', 'authorization_code = "{code}"'),
    "a standard parameter that is refused": ("other_names", 'code = "", ', ""),
    "another parameter of the refresh": ("other_names", 'token = "{refresh_token}", refresh_token = ""', 'more = "1"'),
    "another refresh endpoint": ("other_names", "/v2/oauth/refresh/", "/v2/oauth/token/"),
    "another path of the token": ("other_names", '"data.token"', '"data.access_token"'),
    "another scope separator": ("other_names", 'scope_separator = ","', 'scope_separator = " "'),
    "another scope": ("other_names", '"video.list"]', '"video.upload"]'),
    "another header of the client": ("other_names", "Client {basic}", "Basic {basic}"),
    "another code of a dead grant": ("other_names", '["10010"]', '["10011"]'),
    "another method": ("other_names", 'method = "POST"', 'method = "PUT"'),
    "another content": ("other_names", 'body = { open_id = "{open_id}" }', 'body = { id = "{open_id}" }'),
    "another key": ("choice_of_sites", '"private_key_jwt"', '"client_secret_jwt"'),
    "another lookup": ("choice_of_sites", "accessible-resources", "resources"),
    "another list of accounts": ("choice_of_sites", 'list = "sites"', 'list = "pages"'),
    "another issuer": ("choice_of_sites", 'issuer = "https://auth.', 'issuer = "https://login.'),
    "another resource": ("choice_of_sites", 'resource = "https://api.', 'resource = "https://www.'),
    "another parameter of the callback": (
        "region_of_callback",
        '["accounts-server"]',
        '["accounts-server", "location"]',
    ),
    "another revocation method": ("region_of_callback", 'method = "DELETE"', 'method = "POST"'),
    "another prefix of the token": ("region_of_callback", "Suite-oauthtoken", "Bearer"),
    "another scope of the secrets": ("own_client", '["orders", "stock"]', '["orders"]'),
    "another audience": ("own_client", 'audience = "https://api.', 'audience = "https://www.'),
    "another header of a key": ("two_headers", "X-Api-Key", "X-Apikey"),
    "another header of a secret": ("two_headers", "X-Application-Key", "X-App-Key"),
    "another part of a nested body": ("two_headers", '["{region}", 1]', '["{region}", 2]'),
    "another path of a key": ("key_in_path", "bot{api_key}/getMe", "{api_key}/getMe"),
    "another criterion": ("key_in_path", '{ ok = "true" }', '{ ok = "false" }'),
    "another user name": ("email_and_token", "{email}/token", "{email}"),
    "another prefix of a key": ("token_prefix", "Token {api_key}", "Key {api_key}"),
    "another query parameter": ("token_prefix", "account = ", "account_id = "),
    "another algorithm": ("service_account", '"RS256"', '"RS512"'),
    "another key id": ("service_account", 'kid = "{key_id}"', 'kid = "{client_email}"'),
    "no key id": ("service_account", 'kid = "{key_id}"\n', ""),
    "another issuer of the assertion": ("service_account", 'iss = "{client_email}"', 'iss = "{key_id}"'),
    "another subject": ("service_account", 'sub = "{subject}"', 'sub = "{client_email}"'),
    "another claim for scopes": ("service_account", 'scope = "{scope}"', 'scp = "{scope}"'),
    "another scope in the assertion": ("service_account", "auth/contacts", "auth/contacts.readonly"),
    "another audience of the assertion": (
        "service_account",
        'aud = "{token_uri}"',
        'aud = "https://www.cloud.example"',
    ),
    "an id of the assertion": ("service_account", ', jti = ""', ""),
    "another lifetime of the assertion": ("service_account", "lifetime_seconds = 3600", "lifetime_seconds = 1800"),
    "another parameter for the assertion": (
        "encrypted_key",
        "lifetime_seconds = 45",
        'lifetime_seconds = 45\nparam = "jwt"',
    ),
    "another secret in the assertion": ("encrypted_key", 'iss = "{client_id}"', 'iss = "{key_id}"'),
    "a client beside the assertion": ("encrypted_key", '"client_secret_post"', '"none"'),
    "another header for the assertion": ("app_installation", '"Bearer {assertion}"', '"JWT {assertion}"'),
    "a grant type that is not expected": ("app_installation", 'grant_type = ""', 'more = ""'),
    "another algorithm of our key": ("signed_consent", "assertion = { ", 'assertion = { algorithm = "PS256", '),
    "another user of the assertion": ("signed_consent", 'sub = "{user}"', 'sub = "{client_id}"'),
    "another endpoint of a login": ("pos_login", "v1/authentication/login", "v1/login"),
    "another method of a login": ("pos_login", "[[login]]\n", '[[login]]\nmethod = "PUT"\n'),
    "another header of a login": ("pos_login", 'Pos-Version = "1"', 'Pos-Version = "2"'),
    "another member of a login": ("pos_login", "MACHINE_CLIENT", "USER"),
    "another secret in a login": ("pos_login", 'clientSecret = "{client_secret}"', 'clientSecret = "{client_id}"'),
    "another body of a login": ("pos_login", 'body_type = "json"', 'body_type = "form"'),
    "another criterion of a login": ("pos_login", 'status = "SUCCESS"', 'status = "OK"'),
    "another path of a session": ("pos_login", '"token.accessToken"', '"accessToken"'),
    "another code of a refused login": ("pos_login", 'dead = ["10010"]', 'dead = ["10012"]'),
    "another header of a session": ("session_header", 'token = "header:X-Auth-Token"', 'token = "header:X-Session"'),
    "another user of a login": ("session_header", '"{domain}/{username}"', '"{username}"'),
    "no password of a login": ("session_header", 'basic_password = "{password}"\n', ""),
    "another status of a login": ("session_header", "good_status = [201]", "good_status = [200]"),
    "another status of a refused login": ("session_header", "rejected_status = [422]", "rejected_status = [423]"),
    "another status of an ended session": ("session_header", "dead_status = [419]", "dead_status = [418]"),
    "another session to end": ("session_header", 'sessions/{session}"', 'sessions/current"'),
    "another cookie": ("session_cookie", '"cookie:*"', '"cookie:session"'),
    "another logout": ("session_cookie", "v1/Logout", "v1/logout"),
    "another first request": ("two_logins", "practice={practice}", "clinic={practice}"),
    "the first request left out": (
        "two_logins",
        'method = "GET"\nurl = "https://api.clinic.example/v2/challenge?practice={practice}"',
        'method = "GET"\nurl = "https://api.clinic.example/v2/practice"',
    ),
    "another value of the first request": ("two_logins", '"challenge.nonce"', '"nonce"'),
    "another use of the first request": ("two_logins", 'nonce = "{nonce}"', 'nonce = "{csrf}"'),
    "another header of the second request": ("two_logins", "headers = { X-Csrf-Token", "headers = { X-Csrf"),
    "another session text": ("two_logins", '"body:*"', '"token"'),
    "another path of the account": ("token_prefix", '"data.me.id"', '"data.user.id"'),
}


def factory_of(text: str, directory: Path) -> ProviderFactory:
    """A factory with the type that a text declares."""
    file = directory / "changed.toml"
    file.write_text(text)
    declaration, factory = read_declaration(file, dev_mode=False), ProviderFactory()
    factory.register(declaration.integration_type, provider_class(declaration))
    return factory


async def run(profile: Profile, factory: ProviderFactory) -> str | None:
    """Use an account from its connection to its end; what went wrong, if anything did."""
    async with open_scenario(profile, factory, dev_mode=False) as scenario:
        system, violations = scenario.system, scenario.simulated_provider.violations
        try:
            integration = await scenario.connect()
            assert (integration.account_id or "") == scenario.expected(profile.account_id)
            if profile.token is not None:
                scenario.expire_access_tokens()
            await scenario.get_credentials(integration)
            assert (await system.health_checker.check_health(integration.integration_id, ADA)).healthy
            state = await system.revocation_service.disconnect_integration(integration.integration_id, ADA)
            assert state is not RevocationState.PENDING
            if profile.renewal.kind == "secrets":
                await use_without_a_session(scenario)
            if profile.renewal.kind == "refresh":
                again = await scenario.connect()
                scenario.simulated_provider.revoke_all_grants()
                scenario.expire_access_tokens()
                with pytest.raises(ReauthorizationRequired):
                    await scenario.get_credentials(again)
        except (IntegrationServerError, AssertionError) as error:
            return str(violations or repr(error))
        return str(violations) if violations else None


SHAPES = {
    "a shared secret, and nested claims": """\
integration_type = "hs_key"
auth_method = "oauth2"
grant = "jwt_bearer"
token_url = "https://api.hs.example/token"
token_auth = "none"
token_params = { scope = "{scope}", team = "{team}" }
scopes = ["a", "b"]
verify_url = "https://api.hs.example/me?team={team}"
account_id_field = "id"
request_headers = { X-Client = "{app_id}" , Authorization = "Bearer {access_token}" }
secret_fields = { app_id = {}, app_secret = {} }
config_fields = { team = {} }
[assertion]
key = "{app_secret}"
algorithm = "HS256"
kid = "{app_id}"
claims = { iss = "{app_id}", scope = "{scope}", n = { deep = "{team}", list = ["{app_id}", 1] } }
lifetime_seconds = 60
""",
    "an encrypted key beside our client, and tokens that never expire": """\
integration_type = "es_key"
auth_method = "oauth2"
grant = "jwt_bearer"
token_url = "https://{region}.es.example/token"
host_patterns = ["*.es.example"]
token_auth = "client_secret_basic"
verify = false
account_id_field = "team"
never_expires = true
secret_fields = { pem = {}, phrase = {} }
config_fields = { team = {}, region = { values = { Europe = "eu", America = "us" } } }
revoke_url = "https://{region}.es.example/revoke"
[assertion]
key = "{pem}"
passphrase = "{phrase}"
algorithm = "ES384"
claims = { iss = "{client_id}", sub = "{team}" }
""",
    "one cookie of several, and a secret in the query": """\
integration_type = "cookie_one"
auth_method = "oauth2"
grant = "login"
token_response = { access_token = "cookie:sid", keep = { all = "cookie:*", csrf = "cookie:XSRF-TOKEN" } }
lifetime_seconds = 600
verify = { url = "https://api.co.example/me", method = "POST", body = { u = "{username}" } }
account_id_field = "id"
request_headers = { Cookie = "{all}", X-Xsrf = "{csrf}" }
request_query = { v = "2", tenant = "{tenant}" }
revoke = { url = "https://api.co.example/logout", token = "bearer", method = "GET" }
errors = { dead = ["gone"], dead_status = [440]}
secret_fields = { username = {}, password = {}, api_id = {} }
config_fields = { tenant = {} }
[[login]]
url = "https://api.co.example/{tenant}/login?key={api_id}"
method = "PUT"
body = { l = ["{username}", { p = "{password}:{username}" }] }
""",
    "three requests, of which the first says where, and a token in the URL": """\
integration_type = "three"
auth_method = "oauth2"
grant = "login"
token_response = { access_token = "header:Location-Token", expires_in = "header:X-Ttl" }
verify_url = "https://{node}.three.example/me"
host_patterns = ["*.three.example"]
account_id_field = "realm"
api_base_url = "https://{node}.three.example/s/{access}"
request_headers = { X-T = "{access_token}" }
revoke = { url = "https://{node}.three.example/s/{access}", method = "DELETE", token = "access_token" }
secret_fields = { username = {}, password = {} }
[[login]]
method = "GET"
url = "https://start.three.example/where/{username}"
keep = { node = "node.host", realm = "body.realm" }
[[login]]
url = "https://{node}.three.example/begin"
basic_username = "{client_id}"
basic_password = "{client_secret}"
body = {}
body_type = "form"
keep = { ticket = "body:*" }
[[login]]
url = "https://{node}.three.example/login"
headers = { X-Ticket = "{ticket}" }
body = { user = "{username}", hash = "{password}" }
keep = { access = "header:Location-Token" }
good_status = [202]
good_fields = { "a.b" = "true" }
""",
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES.keys())
async def test_other_shapes_of_secrets_work(tmp_path: Path, text: str) -> None:
    factory = factory_of(text, tmp_path)
    (profile,) = derived_profiles(environment_settings(), factory, factory.integration_types).values()
    assert await run(profile, factory) is None


async def test_negative_control_the_order_of_a_login_matters(tmp_path: Path) -> None:
    factory = factory_of((DECLARATIONS / "two_logins.toml").read_text(), tmp_path)
    profile = derived_profiles(environment_settings(), factory, ["two_logins"])["two_logins"]
    kept = {"csrf": "csrf-1", "cookies": "cookies=1;node=2", "nonce": "nonce-1"}  # so that the second request is right
    async with open_scenario(profile, factory, dev_mode=False) as scenario:
        provider = scenario.provider
        assert isinstance(provider, OAuth2Provider)
        await scenario.connect()
        scenario.use_provider(provider.with_attributes(login=provider.login[1:], url_params=kept))
        with pytest.raises(IntegrationServerError):
            await scenario.connect()
        (violation,) = scenario.simulated_provider.violations
        assert "is not the first request of a login" in violation


async def use_without_a_session(scenario: Scenario) -> None:
    """The provider ends a session, which is renewed, and then refuses the secrets in each way that it has."""
    system, simulated, profile = scenario.system, scenario.simulated_provider, scenario.profile
    integration = await scenario.connect()
    simulated.revoke_all_grants()
    system.clock.advance(timedelta(seconds=10))  # a caller gets three checks in a row
    assert (await system.health_checker.check_health(integration.integration_id, ADA)).healthy
    simulated.are_secrets_changed = True
    for rejection in profile.login[0].rejections if profile.login else ():
        simulated.fault = JSONResponse(dict(rejection.body), rejection.status)
        with pytest.raises(ProviderRejected):
            await scenario.connect()
    simulated.fault = None
    with pytest.raises((ProviderRejected, ProviderMisconfigured)):
        await scenario.connect()


@pytest.mark.parametrize(("name", "old", "new"), CHANGES.values(), ids=CHANGES.keys())
async def test_negative_control_a_difference_is_found(tmp_path: Path, name: str, old: str, new: str) -> None:
    text = (DECLARATIONS / f"{name}.toml").read_text()
    assert old in text
    original = factory_of(text, tmp_path)
    profile = derived_profiles(environment_settings(), original, [name])[name]
    assert await run(profile, original) is None
    assert await run(profile, factory_of(text.replace(old, new, 1), tmp_path)) is not None


def page_declarations() -> list[str]:
    """The declarations that docs/adding-a-provider.md explains step by step."""
    page = (Path(__file__).parents[2] / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")
    sections = [
        *re.findall(r"^### [^\n]*, step by step\n.*?(?=^##)", page, re.MULTILINE | re.DOTALL),
        page.partition("## 5. ")[2].partition("\n## ")[0],
    ]
    return re.findall(r"^```toml\n(.*?)^```$", "".join(sections), re.MULTILINE | re.DOTALL)


PAGE_SHAPES = ["service account", "login", "deviations", "two keys", "hosts", "own clients"]


@pytest.mark.slow
@pytest.mark.parametrize("text", page_declarations(), ids=PAGE_SHAPES)
async def test_the_shapes_of_the_page_work(tmp_path: Path, text: str) -> None:
    factory = factory_of(text, tmp_path)
    ((name, profile),) = derived_profiles(environment_settings(), factory, factory.integration_types).items()
    assert name.startswith("acme_")
    assert await run(profile, factory) is None


def test_every_type_of_the_server_has_a_profile() -> None:
    settings = environment_settings()
    written = {profile.integration_type for profile in read_profiles(BUILT_IN_PROFILES)}
    factory = registered_providers(settings)
    derived = derived_profiles(settings, factory, factory.integration_types)
    assert set(factory.integration_types) - derived.keys() - written == set()


HEADER_OF_LOOKUP = """\
integration_type = "acme_hours"
auth_method = "oauth2"
authorize_url = "https://id.hours.example/authorize"
token_url = "https://id.hours.example/token"
verify_url = "https://{at}.hours.example/me"
account_id_field = "account"
api_base_url = "https://api.hours.example"
request_headers = {{ Hours-Account = "{{account}}" }}
lookup = {{ url = "https://id.hours.example/accounts", keep = {{ account = "{path}" }} }}
"""


@pytest.mark.parametrize(("at", "path"), [("api", "id"), ("api", "accounts.0.id"), ("id", "data.id")])
async def test_a_header_with_a_value_of_the_lookup_is_required_after_it(tmp_path: Path, at: str, path: str) -> None:
    text = HEADER_OF_LOOKUP.format(at=at, path=path)
    factory = factory_of(text, tmp_path)
    profile = derived_profiles(environment_settings(), factory, ["acme_hours"])["acme_hours"]
    assert await run(profile, factory) is None
    without = text.replace('request_headers = { Hours-Account = "{account}" }\n', "")
    assert without != text
    assert "Hours-Account is missing" in str(await run(profile, factory_of(without, tmp_path)))


NO_GRANT_TYPE = """\
integration_type = "acme_camp"
auth_method = "oauth2"
authorize_url = "https://id.camp.example/authorize"
token_url = "https://id.camp.example/token"
token_params = { type = "web_server", grant_type = "" }
refresh_params = { type = "refresh", grant_type = "" }
verify_url = "https://api.camp.example/me"
account_id_field = "id"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [('type = "refresh"', 'type = "again"'), ('"web_server"', '"app"'), ('"refresh", ', '"refresh", a="b", ')],
)
async def test_token_requests_without_a_grant_type(tmp_path: Path, old: str, new: str) -> None:
    factory = factory_of(NO_GRANT_TYPE, tmp_path)
    profile = derived_profiles(environment_settings(), factory, ["acme_camp"])["acme_camp"]
    assert await run(profile, factory) is None
    assert old in NO_GRANT_TYPE
    assert await run(profile, factory_of(NO_GRANT_TYPE.replace(old, new), tmp_path)) is not None
