import re
from datetime import timedelta
from pathlib import Path

import pytest

from integration_server.domain.credentials import ApiKey, AuthMethod, OAuthTokens
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.providers.factory import ProviderFactory, ProviderRegistry, ProvidersError
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.toml_providers import load_toml_providers
from integration_server.service.integrations.ports import NewAccount
from tests.fakes.oauth_clients import shared_grants
from tests.unit.providers.support import FakeTransport, context, exception_text, json_response

ACME = """
integration_type = "acme"
display_name = "Acme & Co"
auth_method = "oauth2"
authorize_url = "https://acme.example/oauth/authorize"
token_url = "https://acme.example/oauth/token"
revoke_url = "https://acme.example/oauth/revoke"
issuer = "https://acme.example"
scopes = ["read", "offline_access"]
scope_separator = ","
token_auth = "client_secret_post"
authorize_params = { prompt = "consent" }
verify_url = "https://acme.example/userinfo"
account_id_field = "sub"
account_label_field = "profile.email"
api_base_url = "https://api.acme.example"
"""

MINIMAL = """
integration_type = "minimal"
auth_method = "oauth2"
authorize_url = "https://minimal.example/authorize"
token_url = "https://minimal.example/token"
"""

KEYED = """
integration_type = "keyed"
auth_method = "api_key"
verify_url = "https://keyed.example/me"
api_key_header = "X-Api-Key"
"""

PAIRED = """
integration_type = "paired"
auth_method = "basic"
verify_url = "https://paired.example/me"
"""


def write_files(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.toml").write_text(text, encoding="utf-8")
    return directory


def load(directory: Path, *, dev_mode: bool = False, network: FakeTransport | None = None) -> ProviderRegistry:
    factory = ProviderFactory()
    load_toml_providers(directory, factory, dev_mode=dev_mode)
    return factory.build(context(network or FakeTransport(), dev_mode=dev_mode))


def problems_with(directory: Path, **files: str) -> list[str]:
    with pytest.raises(ProvidersError) as raised:
        load(write_files(directory, **files))
    return [without_hint(problem.removeprefix(f"{directory}/")) for problem in raised.value.problems]


def without_hint(problem: str) -> str:
    """A problem without its line and the description of its key."""
    return re.sub(r" \((line [0-9]+|[A-Z]).*\)$", "", problem)


REVOCABLE = (
    MINIMAL
    + """
[revoke]
url = "https://minimal.example/grant"
"""
)


@pytest.mark.parametrize(
    ("keys", "ends", "shares"),
    [("", "token", ()), ('ends = "grant"', "grant", ("minimal",)), ('ends = "account"', "account", ("minimal",))],
)
def test_a_file_declares_what_a_revocation_ends(tmp_path: Path, keys: str, ends: str, shares: tuple[str, ...]) -> None:
    provider = load(write_files(tmp_path, minimal=REVOCABLE + keys))["minimal"]
    assert (provider.revoke_url, provider.revocation_ends) == ("https://minimal.example/grant", ends)
    assert provider.shares_grants_with == shares


@pytest.mark.parametrize(
    ("keys", "method", "token", "authorization"),
    [
        ("", "POST", "refresh", None),
        ('method = "DELETE"', "DELETE", "refresh", None),
        ('token = "access_token"', "POST", "access", None),
        ('token = "bearer"', "POST", None, "Bearer access"),
        ('token = "bearer"\nmethod = "DELETE"', "DELETE", None, "Bearer access"),
    ],
)
async def test_a_file_declares_the_request_of_a_revocation(
    tmp_path: Path, keys: str, method: str, token: str | None, authorization: str | None
) -> None:
    network = FakeTransport(json_response({}))
    files = write_files(tmp_path, minimal='token_auth = "client_secret_post"\n' + REVOCABLE + keys)
    assert await load(files, network=network)["minimal"].revoke_credentials(OAuthTokens("access", "refresh"))
    assert (network.request.method, network.form.get("token")) == (method, token)
    assert network.request.headers.get("authorization") == authorization
    assert ("client_secret" in network.form) is (token is not None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (REVOCABLE + 'ends = "user"', "revoke.ends: "),
        (REVOCABLE + 'token = "id_token"', "revoke.token: "),
        (REVOCABLE + 'method = "HEAD"', "revoke.method: "),
        (REVOCABLE + 'scope = "all"', "revoke.scope: is not known"),
        (MINIMAL + '[revoke]\nends = "grant"', "revoke.url: is required"),
        ('revoke_url = "https://minimal.example/revoke"' + REVOCABLE, "revoke: cannot be combined with revoke_url"),
    ],
)
def test_an_invalid_revocation_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = problems_with(tmp_path, minimal=text)
    assert found.startswith(f"minimal.toml: {problem}")


async def test_types_of_one_account_end_together_whatever_their_clients(tmp_path: Path) -> None:
    twin = REVOCABLE.replace('"minimal"', '"twin"', 1)
    providers = load(write_files(tmp_path, minimal=REVOCABLE + 'ends = "account"', twin=twin + 'ends = "grant"'))
    assert await shared_grants(providers, "minimal") == ("minimal", "twin")
    assert await shared_grants(providers, "twin") == ("twin",)


def test_a_file_declares_a_provider(tmp_path: Path) -> None:
    acme = load(write_files(tmp_path, acme=ACME))["acme"]
    assert isinstance(acme, OAuth2Provider)
    assert acme.display_name == "Acme & Co"
    assert acme.auth_method is AuthMethod.OAUTH2
    assert acme.oauth_authorize_url == "https://acme.example/oauth/authorize"
    assert acme.oauth_token_url == "https://acme.example/oauth/token"
    assert acme.revoke_url == "https://acme.example/oauth/revoke"
    assert acme.issuer == "https://acme.example"
    assert list(acme.required_scopes) == ["read", "offline_access"]
    assert acme.scope_separator == ","
    assert acme.token_auth == "client_secret_post"
    assert acme.authorize_params == {"prompt": "consent"}
    assert acme.verify_url == "https://acme.example/userinfo"
    assert acme.account_id_field == "sub"
    assert acme.account_label_field == "profile.email"
    assert acme.api_base_url == "https://api.acme.example"
    assert acme.missing_settings == ["ACME_CLIENT_ID", "ACME_CLIENT_SECRET"]


def test_absent_keys_have_the_defaults_of_the_generic_provider(tmp_path: Path) -> None:
    minimal = load(write_files(tmp_path, minimal=MINIMAL)).get("minimal")
    assert isinstance(minimal, OAuth2Provider)
    assert minimal.display_name == "Minimal"
    assert list(minimal.required_scopes) == []
    assert (minimal.scope_separator, minimal.token_auth) == (" ", "client_secret_basic")
    assert (minimal.issuer, minimal.revoke_url, minimal.verify_url) == (None, None, None)


async def test_api_keys_require_only_a_verify_url(tmp_path: Path) -> None:
    network = FakeTransport(json_response({}))
    providers = load(write_files(tmp_path, keyed=KEYED, paired=PAIRED), network=network)
    assert isinstance(providers["paired"], BasicAuthProvider)
    assert isinstance(providers["keyed"], ApiKeyProvider)
    await providers["keyed"].verify_connection(ApiKey("k"))
    assert network.request.headers["X-Api-Key"] == "k"


async def test_a_provider_without_a_verification_address_is_declared_as_such(tmp_path: Path) -> None:
    unverified = KEYED.replace('verify_url = "https://keyed.example/me"', "verify = false")
    network = FakeTransport()
    providers = load(write_files(tmp_path, keyed=unverified), network=network)
    assert await providers["keyed"].verify_connection(ApiKey("k")) == NewAccount(None, None)
    assert network.requests == []


@pytest.mark.parametrize(
    "verification", ["", "verify = true", 'verify = false\nverify_url = "https://keyed.example/me"', "verify = 0"]
)
def test_a_missing_verification_address_is_not_an_oversight(tmp_path: Path, verification: str) -> None:
    text = KEYED.replace('verify_url = "https://keyed.example/me"', verification)
    with pytest.raises(ProvidersError, match=r"keyed\.toml: verify"):
        load(write_files(tmp_path, keyed=text))


@pytest.mark.parametrize("fields", [["api_key"], ["api_secret"], ["api_key", "api_secret"]])
def test_a_provider_may_need_one_part_of_http_basic_only(tmp_path: Path, fields: list[str]) -> None:
    providers = load(write_files(tmp_path, paired=f"{PAIRED}required_fields = {fields}\n"))
    assert list(providers["paired"].required_fields) == fields


def test_a_declared_field_may_have_white_space(tmp_path: Path) -> None:
    text = f'{PAIRED}allows_whitespace_in = ["api_secret"]\n'
    assert load(write_files(tmp_path, paired=text))["paired"].key_problem("api_secret", "abcd efgh") is None


async def test_a_file_may_declare_several_apis(tmp_path: Path) -> None:
    text = f'{KEYED}api_base_urls = {{ content = "https://content.keyed.example/v2" }}\n'
    provider = load(write_files(tmp_path, keyed=text))["keyed"]
    assert provider.api_url(ApiKey("k"), "content") == "https://content.keyed.example/v2"
    for wrong in ('{ Content = "https://x.example" }', '{ content = "http://x.example" }', '"https://x.example"'):
        with pytest.raises(ProvidersError, match=r"keyed\.toml: api_base_urls"):
            load(write_files(tmp_path, keyed=f"{KEYED}api_base_urls = {wrong}\n"))


async def test_a_key_can_be_a_query_parameter(tmp_path: Path) -> None:
    queried = KEYED.replace('api_key_header = "X-Api-Key"', 'api_key_query_param = "key"')
    network = FakeTransport(json_response({}))
    providers = load(write_files(tmp_path, keyed=queried), network=network)
    await providers["keyed"].verify_connection(ApiKey("k y"))
    assert network.request.url == "https://keyed.example/me?key=k+y"
    (error_text,) = problems_with(tmp_path, keyed=f"{queried}api_key_header = 'X-Key'\n")
    assert error_text.startswith("keyed.toml: api_key_query_param: cannot be combined with api_key_header")


def test_declares_the_age_of_renewal(tmp_path: Path) -> None:
    providers = load(write_files(tmp_path, minimal=f"{MINIMAL}renew_after_seconds = 604800\n"))
    assert providers["minimal"].renew_after == timedelta(days=7)
    (error_text,) = problems_with(tmp_path, minimal=f"{MINIMAL}renew_after_seconds = 0\n")
    assert error_text.startswith("minimal.toml: renew_after_seconds: ")


def test_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not TOML")
    assert load(tmp_path).all() == []


def test_loopback_is_allowed_in_dev_mode_only(tmp_path: Path) -> None:
    local = MINIMAL.replace("https://minimal.example", "http://127.0.0.1:8090")
    assert load(write_files(tmp_path, local=local), dev_mode=True).all()
    problem = "must be https; plain http is for loopback in dev mode only"
    assert problems_with(tmp_path) == [f"local.toml: authorize_url: {problem}", f"local.toml: token_url: {problem}"]


def test_reports_all_problems_of_all_files(tmp_path: Path) -> None:
    files = {
        "a": "integration_type = ",
        "b": 'integration_type = "Not A Type"\nauth_method = "oauth2"\nauthorize_url = "acme.example"\ncolour = "red"',
        "c": ACME,
        "d": ACME,
        "e": 'integration_type = "e"\nauth_method = "magic"\nverify_url = 7',
        "f": KEYED + 'token_url = "https://keyed.example/token"',
        "g": 'integration_type = "g"\nauth_method = "basic"\napi_key_header = "X"',
        "h": "",
    }
    error_text = problems_with(tmp_path, **files)
    assert error_text[0].startswith("a.toml: cannot be read as TOML: Invalid value")
    assert error_text[1:] == [
        "b.toml: integration_type: String should match pattern '^[a-z][a-z0-9_]{0,63}$'",
        "b.toml: authorize_url: is not an absolute http(s) URL without user name and fragment",
        "b.toml: colour: is not known",
        "b.toml: token_url: is required",
        f"d.toml: integration_type: 'acme' is taken by {tmp_path}/c.toml",
        "e.toml: auth_method: Input should be 'oauth2', 'api_key' or 'basic'",
        "e.toml: verify_url: Input should be a valid string",
        "f.toml: token_url: is not allowed with this auth_method, only with oauth2",
        "g.toml: api_key_header: is not allowed with this auth_method, only with api_key",
        "g.toml: verify: is required, or verify_url; verify = false says that the API has no request for it",
        "h.toml: integration_type: is required",
        "h.toml: auth_method: is required",
    ]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("scopes = 'read write'", "scopes"),
        ("scopes = ['read write']", "scopes.0"),
        ("scopes = [7]", "scopes.0"),
        ("scope_separator = ''", "scope_separator"),
        ("token_auth = 'private_key'", "token_auth"),
        ("authorize_params = { state = 'mine' }", "authorize_params.state"),
        ("authorize_params = { max_age = 5 }", "authorize_params.max_age"),
        ("account_id_field = 'a..b'", "account_id_field"),
        ("account_id_field = ''", "account_id_field"),
        ("display_name = ''", "display_name"),
        ("issuer = 'https://minimal.example/#x'", "issuer"),
        ("revoke_url = 'http://minimal.example/'", "revoke_url"),
        ("api_base_url = '//minimal.example'", "api_base_url"),
        ("api_key_header = 'X-Key'", "api_key_header"),
        ("client_secret = 's3cret'", "client_secret"),
    ],
)
def test_a_problem_names_its_key(tmp_path: Path, line: str, field: str) -> None:
    (error_text,) = problems_with(tmp_path, minimal=MINIMAL + line)
    assert error_text.startswith(f"minimal.toml: {field}: ")


def test_a_misplaced_secret_is_not_disclosed(tmp_path: Path) -> None:
    with pytest.raises(ProvidersError) as raised:
        load(write_files(tmp_path, minimal=MINIMAL + "client_secret = 's3cret'"))
    assert "s3cret" not in exception_text(raised.value)


@pytest.mark.parametrize("name", ["Authori zation", "X-Key:", "X\nKey", ""])
def test_an_invalid_header_name_is_rejected(tmp_path: Path, name: str) -> None:
    (error_text,) = problems_with(tmp_path, keyed=KEYED.replace('"X-Api-Key"', repr(name).replace("'", '"')))
    assert error_text.startswith("keyed.toml: api_key_header: ")


def test_an_unreadable_file_is_reported_with_other_problems(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.toml").mkdir()
    error_text = problems_with(tmp_path, minimal=MINIMAL + "colour = 'red'")
    assert [problem.split(":")[0] for problem in error_text] == ["binary.toml", "folder.toml", "minimal.toml"]


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ProvidersError, match="is not a directory"):
        load_toml_providers(tmp_path / "missing", ProviderFactory(), dev_mode=True)


def test_a_file_cannot_replace_a_built_in_type(tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_text(ACME)
    factory = ProviderFactory()
    factory.register("acme", OAuth2Provider)
    with pytest.raises(ProvidersError, match=r"acme\.toml: integration_type: 'acme' is taken by .*OAuth2Provider"):
        load_toml_providers(tmp_path, factory, dev_mode=False)


def test_declares_rate_limits(tmp_path: Path) -> None:
    limits = """
calls_at_once = 4

[[rate_limits]]
calls = 100
seconds = 10

[[rate_limits]]
calls = 1000
seconds = 60
per = "app"
"""
    (tmp_path / "acme.toml").write_text(KEY_TOML + limits)
    factory = ProviderFactory()
    load_toml_providers(tmp_path, factory, dev_mode=False)
    provider = factory.build(context(FakeTransport()))["acme"]
    assert provider.rate_limits == (
        RateLimit(100, timedelta(seconds=10), LimitScope.INTEGRATION),
        RateLimit(1000, timedelta(minutes=1), LimitScope.APP),
    )
    assert provider.calls_at_once == 4
    (error_text,) = problems_with(tmp_path, acme=f"{KEY_TOML}calls_at_once = 0\n")
    assert error_text.startswith("acme.toml: calls_at_once: ")
    for wrong, field in (
        ("calls = 0\nseconds = 1", "calls"),
        ("calls = 1\nseconds = 0.5", "seconds"),
        ('calls = 1\nseconds = 1\nper = "user"', "per"),
        ("calls = 1", "seconds"),
        ("calls = 1\nseconds = 1\nminutes = 1", "minutes"),
    ):
        (tmp_path / "acme.toml").write_text(f"{KEY_TOML}\n[[rate_limits]]\n{wrong}\n")
        with pytest.raises(ProvidersError) as raised:
            load_toml_providers(tmp_path, ProviderFactory(), dev_mode=False)
        assert f"rate_limits.0.{field}" in str(raised.value)


KEY_TOML = """
integration_type = "acme"
auth_method = "api_key"
verify_url = "https://api.acme.example/me"
"""
