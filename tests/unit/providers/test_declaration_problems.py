"""Mistakes in a declaration are refused before the server starts, all together, with file, line, field and hint."""

import json
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.toml_providers import json_schema, load_toml_providers, read_declaration
from tests.declarations import DECLARATIONS
from tests.unit.providers.support import FakeTransport, context

SHOP = """\
integration_type = "shop"
auth_method = "oauth2"
authorize_url = "https://{shop}.shops.example/authorize"
token_url = "https://{shop}.shops.example/token"
verify_url = "https://api.shops.example/{team}/me"
host_patterns = ["*.shops.example"]
token_response = { keep = { team = "team.id" } }
request_headers = { X-Team = "{team}" }

[config_fields]
shop = { pattern = "[a-z]+" }
"""


def problems_of(directory: Path, text: str) -> list[str]:
    path = directory / "shop.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProvidersError) as raised:
        read_declaration(path, dev_mode=False)
    return [located(problem.removeprefix(f"{path}: ")) for problem in raised.value.problems]


def located(problem: str) -> str:
    """The problem with its line first, where it has one: ":5: pkce: …"."""
    line = re.search(r" \(line ([0-9]+)(; |\))", problem)
    return f": {problem}" if line is None else f":{line[1]}: {problem}"


DEVICE = """\
integration_type = "tv"
auth_method = "oauth2"
grant = "device_code"
device_authorization_url = "https://tv.example/device"
token_url = "https://tv.example/token"
"""


@pytest.mark.parametrize(
    ("old", "new", "begin", "part"),
    [
        ("device_authorization_url", "# ", ": device_authorization_url: ", "is required"),
        (
            '"https://tv.example/device"',
            '"http://tv.example/device"',
            ":4: device_authorization_url: ",
            "must be https",
        ),
        ('"https://tv.example/device"', '"https://{x}.example/d"', ":4: device_authorization_url: ", "has {x}"),
        ("device_authorization_url", "device_url", ":4: device_url: ", "did you mean device_auth"),
        ('"device_code"', '"device"', ":3: grant: ", "device_code"),
        (
            '"device_code"',
            '"authorization_code"',
            ":4: device_authorization_url: ",
            "only used with grant = device_code",
        ),
        ("token_url", 'issuer = "https://tv.example"\ntoken_url', ":5: issuer: ", "no browser returns"),
        ("token_url", "pkce = false\ntoken_url", ":5: pkce: ", "no browser returns"),
        ("token_url", 'keep_callback = ["realmId"]\ntoken_url', ":5: keep_callback: ", "no browser returns"),
        ("token_url", 'authorize_url = "https://tv.example/a"\ntoken_url', ":5: authorize_url: ", "is not used"),
        ("token_url", "secret_fields.pin = {}\ntoken_url", ":5: secret_fields: ", "a user enters a code"),
        ("token_url", 'device_auth = "basic"\ntoken_url', ":5: device_auth: ", "client_secret_basic"),
        ("token_url", 'device_params = { a = "{code}" }\ntoken_url', ":5: device_params.a: ", "has {code}"),
        ("token_url", 'device_response = { url = "a" }\ntoken_url', ":5: device_response.url: ", "is not known"),
        ("token_url", 'errors = { pending = "waiting" }\ntoken_url', ":5: errors.pending: ", "list"),
    ],
)
def test_a_mistake_in_a_device_authorization(tmp_path: Path, old: str, new: str, begin: str, part: str) -> None:
    (tmp_path / "tv.toml").write_text(DEVICE)
    assert read_declaration(tmp_path / "tv.toml", dev_mode=False).integration_type == "tv"
    problems = problems_of(tmp_path, DEVICE.replace(old, new, 1))
    assert any(problem.startswith(begin) and part in problem for problem in problems), problems


def test_the_declaration_is_valid(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(SHOP)
    assert read_declaration(tmp_path / "shop.toml", dev_mode=False).integration_type == "shop"


@pytest.mark.parametrize(
    ("old", "new", "begin", "part"),
    [
        # templates with unknown names
        ('X-Team = "{team}"', 'X-Team = "{taem}"', ":8: request_headers.X-Team: ", "has {taem}, which is not one of:"),
        ("/{team}/me", "/{client_secret}/me", ":5: verify_url: ", "has {client_secret}"),
        ("{shop}.shops.example/authorize", "{team}.shops.example/authorize", ":3: authorize_url: ", "has {team}"),
        ("/authorize", "/authorize?k={access_token}", ":3: authorize_url: ", "has {access_token}"),
        ('X-Team = "{team}"', 'X-Team = "{refresh_token}"', ":8: request_headers.X-Team: ", "has {refresh_token}"),
        ('X-Team = "{team}"', 'X-Team = "{te-am}"', ":8: request_headers.X-Team: ", "braces around something"),
        ('X-Team = "{team}"', 'X-Team = "{}"', ":8: request_headers.X-Team: ", "braces around something"),
        ("/{team}/me", "/{team/me", ":5: verify_url: ", "is not an absolute http(s) URL"),
        # hosts without bounds
        ('host_patterns = ["*.shops.example"]', "", ":3: authorize_url: ", "no entry of host_patterns limits"),
        ('"*.shops.example"', '"*.other.example"', ":4: token_url: ", "no entry of host_patterns limits"),
        ('"*.shops.example"', '"*"', ":6: host_patterns.0: ", "is not '*.' and a domain"),
        ('"*.shops.example"', '"*.example"', ":6: host_patterns.0: ", "is not '*.' and a domain"),
        ("https://{shop}.shops.example/token", "https://{shop}.shops.example@x.example/token", ":4: token_url: ", ""),
        ("https://{shop}.shops.example/token", "http://{shop}.shops.example/token", ":4: token_url: ", "https"),
        # unknown keys
        ("host_patterns", "host_pattern", ":6: host_pattern: ", "is not known; did you mean host_patterns?"),
        ("keep = {", "kept = {", ":7: token_response.kept: ", "is not known; did you mean keep?"),
        ("pattern = ", "patern = ", ":11: config_fields.shop.patern: ", "is not known; did you mean pattern?"),
        ("verify_url =", 'basic_username = "a"\nverify_url =', ":5: basic_username: ", "only with basic"),
        ("verify_url =", "colour = 1\nverify_url =", ":5: colour: ", "is not known"),
        # types and values
        ('pattern = "[a-z]+"', 'pattern = "[a-z"', ":11: config_fields.shop.pattern: ", "not a regular expression"),
        ('pattern = "[a-z]+"', "choices = 1", ":11: config_fields.shop.choices: ", "should be a valid list"),
        ('pattern = "[a-z]+"', 'choices = ["a"], default = "b"', ":11: config_fields.shop.default: ", "one of: a"),
        ('auth_method = "oauth2"', 'auth_method = "oauth"', ":2: auth_method: ", "should be 'oauth2'"),
        ('"team.id"', '"team..id"', ":7: token_response.keep.team: ", "should match pattern"),
        ("verify_url =", 'token_auth = "basic"\nverify_url =', ":5: token_auth: ", "client_secret_basic"),
        ("verify_url =", 'grant = "password"\nverify_url =', ":5: grant: ", "authorization_code"),
        ("verify_url =", 'lifetime_seconds = "1h"\nverify_url =', ":5: lifetime_seconds: ", "number of seconds"),
        ("verify_url =", "verify = true\nverify_url =", ":5: verify: ", "can only be false"),
        ("verify_url =", "keep_callback = 7\nverify_url =", ":5: keep_callback: ", "valid list"),
        # keys that contradict each other
        ('authorize_url = "https://{shop}.shops.example/authorize"', "", ": authorize_url: ", "is required"),
        ("verify_url =", 'grant = "client_credentials"\nverify_url =', ":3: authorize_url: ", "is not used"),
        ("[config_fields]", "[secret_fields]\nkey = {}\n\n[config_fields]", ":10: secret_fields: ", "in the browser"),
        ("verify_url =", "verify = false\nverify_url =", ":6: verify_url: ", "cannot be combined with verify"),
        ("verify_url =", 'token_auth = "header"\nverify_url =', ": token_headers: ", "must have {client_secret}"),
        (
            "verify_url =",
            'revoke_url = "https://a.example/"\nrevoke = { url = "https://a.example/" }\nverify_url =',
            ":6: revoke: ",
            "cannot be combined with revoke_url",
        ),
        ("verify_url =", "never_expires = true\nlifetime_seconds = 5\nverify_url =", ":6: lifetime_seconds: ", "never"),
        (
            "verify_url =",
            'lookup = { url = "https://a.example", choose = { id = "id", by = "sit" } }\nverify_url =',
            ":5: lookup.choose.by: ",
            "is not one of config_fields",
        ),
        (
            "verify_url =",
            'webhook = { signature_header = "X-S", signed = "{timestamp}.{body}" }\nverify_url =',
            ":5: webhook.signed: ",
            "there is no timestamp_header",
        ),
        (
            "verify_url =",
            'webhook = { signature_header = "X-S", timestamp_header = "X-T" }\nverify_url =',
            ":5: webhook.timestamp_header: ",
            "anybody could change it",
        ),
        (
            "verify_url =",
            'webhook = { signature_header = "X-S", signed = "{url}" }\nverify_url =',
            ":5: webhook.signed: ",
            "has no {body}",
        ),
    ],
)
def test_a_mistake_has_its_line_and_field(tmp_path: Path, old: str, new: str, begin: str, part: str) -> None:
    text = SHOP.replace(old, new, 1)
    assert text != SHOP
    problems = problems_of(tmp_path, text)
    found = [problem for problem in problems if problem.startswith(begin) and part in problem]
    assert found, problems


ACCOUNT = """\
integration_type = "shop"
auth_method = "oauth2"
grant = "jwt_bearer"
token_url = "https://a.shops.example/token"
token_auth = "none"
host_patterns = ["*.shops.example"]
request_headers = { X-Team = "{mail}" }
assertion = { key = "{key}", claims = { iss = "{mail}", deep = { who = ["{mail}"] } } }
secret_fields.file = { keep = { key = "private_key", mail = "client_email" } }
"""
LOGIN = """\
integration_type = "shop"
auth_method = "oauth2"
grant = "login"
token_response = { access_token = "header:x-token", keep = { region = "region" } }
config_fields = { shop = {} }
secret_fields = { password = {} }

[[login]]
url = "https://a.shops.example/challenge"
keep = { nonce = "nonce" }

[[login]]
url = "https://a.shops.example/login"
body = { nonce = "{nonce}", deep = [{ password = "{password}" }] }
keep = { csrf = "cookie:csrf" }
"""


UNBOUNDED = ACCOUNT.replace("host_patterns", "# host_patterns")


@pytest.mark.parametrize("text", [ACCOUNT, LOGIN])
def test_the_declarations_of_grants_are_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "shop.toml").write_text(text)
    assert read_declaration(tmp_path / "shop.toml", dev_mode=False).integration_type == "shop"


@pytest.mark.parametrize(
    ("text", "old", "new", "begin", "part"),
    [
        # keys of another grant, and missing ones
        (ACCOUNT, '"jwt_bearer"', '"client_credentials"', ":8: assertion: ", "only used with the grant jwt_bearer"),
        (ACCOUNT, "assertion =", "assert =", ": assertion: ", "is required with the grant jwt_bearer"),
        (ACCOUNT, "token_url =", "# token_url =", ": token_url: ", "is required"),
        (ACCOUNT, "token_auth =", "pkce = false\ntoken_auth =", ":5: pkce: ", "not used with the grant jwt_bearer"),
        (LOGIN, '"login"', '"client_credentials"', ":8: login: ", "only used with the grant login"),
        (LOGIN, LOGIN[LOGIN.index("[[login]]") :], "", ": login: ", "is required with the grant login"),
        (LOGIN, "config_fields =", 'token_url = "https://x.example"\nconfig_fields =', ":5: token_url: ", "not used"),
        (LOGIN, "config_fields =", 'scopes = ["a"]\nconfig_fields =', ":5: scopes: ", "not used with the grant login"),
        (LOGIN, "config_fields =", "pkce = true\nconfig_fields =", ":5: pkce: ", "not used with the grant login"),
        # the JWT
        (ACCOUNT, 'iss = "{mail}", ', "", ":8: assertion.claims: ", "has no iss"),
        (ACCOUNT, "iss =", "exp = 7, iss =", ":8: assertion.claims.exp: ", "is set by the server"),
        (ACCOUNT, '["{mail}"]', '["{male}"]', ":8: assertion.claims: ", "has {male}, which is not one of"),
        (ACCOUNT, '["{mail}"]', '["{client_secret}"]', ":8: assertion.claims: ", "has {client_secret}"),
        (ACCOUNT, 'key = "{key}"', 'key = "{kee}"', ":8: assertion.key: ", "has {kee}, which is not one of"),
        (ACCOUNT, 'key = "{key}"', 'key = "secret"', ":8: assertion.key: ", "a key cannot be in a declaration"),
        (ACCOUNT, "claims =", 'algorithm = "none", claims =', ":8: assertion.algorithm: ", "'RS256'"),
        (ACCOUNT, "claims =", 'param = "", claims =', ":8: assertion.param: ", "the JWT would not be sent"),
        (ACCOUNT, "claims =", "lifetime_seconds = 9999, claims =", ":8: assertion.lifetime_seconds: ", "3600"),
        # the private key is sent nowhere
        (ACCOUNT, '"{mail}" }\n', '"{key}" }\n', ":7: request_headers: ", "signs and is sent nowhere"),
        (ACCOUNT, '"{mail}" }\n', '"{file}" }\n', ":7: request_headers: ", "signs and is sent nowhere"),
        (ACCOUNT, '["{mail}"]', '["{key}"]', ":8: assertion: ", "signs and is sent nowhere"),
        (ACCOUNT, "token_auth =", 'token_params = { k = "{key}" }\ntoken_auth =', ":5: token_params: ", "sent nowhere"),
        (ACCOUNT, "token_auth =", 'verify_url = "https://x.example/{key}"\ntoken_auth =', ":5: verify_url: ", "sent"),
        # names
        (ACCOUNT, "mail =", "file =", ":9: secret_fields.file.keep.file: ", "is the name of another field"),
        (LOGIN, "csrf =", "password =", ":15: login.1.keep.password: ", "is the name of another value"),
        (LOGIN, "csrf =", "access_token =", ":15: login.1.keep.access_token: ", "is the name of another value"),
        (LOGIN, 'nonce = "{nonce}"', 'nonce = "{csrf}"', ":12: login.1: ", "has {csrf}, which no earlier request"),
        (LOGIN, 'nonce = "{nonce}"', 'nonce = "{region}"', ":12: login.1: ", "which no earlier request"),
        (LOGIN, "example/challenge", "example/{nonce}", ":8: login.0: ", "which no earlier request"),
        (LOGIN, '"{password}"', '"{access_token}"', ":14: login.1.body: ", "has {access_token}, which is not one of"),
        (LOGIN, "https://a.shops", "https://{shop}.shops", ":9: login.0.url: ", "no entry of host_patterns limits"),
        (LOGIN, "https://a.shops", "http://a.shops", ":9: login.0.url: ", "must be https"),
        (LOGIN, "body =", 'body_type = "xml"\nbody =', ":14: login.1.body_type: ", "'form' or 'json'"),
        (LOGIN, "keep = { nonce", "kept = { nonce", ":10: login.0.kept: ", "is not known; did you mean keep?"),
        # hosts that a file brings
        (ACCOUNT, '"https://a.shops.example/token"', '"{mail}"\n# ', "", ""),
        (UNBOUNDED, '"https://a.shops.example/token"', '"{mail}"', ":4: token_url: ", "no entry of host_patterns"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_grant_has_its_line_and_field(
    tmp_path: Path, text: str, old: str, new: str, begin: str, part: str
) -> None:
    changed_text = text.replace(old, new, 1)
    assert changed_text != text
    if not part:  # a whole URL from a file, with a host pattern
        (tmp_path / "shop.toml").write_text(changed_text)
        read_declaration(tmp_path / "shop.toml", dev_mode=False)
        return
    problems = problems_of(tmp_path, changed_text)
    found = [problem for problem in problems if problem.startswith(begin) and part in problem]
    assert found, problems


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path) -> None:
    text = SHOP.replace("host_patterns", "host_pattern").replace('"{team}" }', '"{taem}" }').replace("[a-z]+", "[a-z")
    text = text.replace("verify_url =", "verify = false\nverify_url =")
    problems = problems_of(tmp_path, text)
    fields = [problem.split(": ")[1] for problem in problems]
    assert all(" (line " in problem for problem in problems)
    assert set(fields) >= {
        "host_pattern",
        "authorize_url",
        "token_url",
        "request_headers.X-Team",
        "config_fields.shop.pattern",
        "verify_url",
    }


def test_a_problem_has_a_hint(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, SHOP.replace("verify_url =", "pkce = 1\nverify_url ="))
    hint = "(line 5; Whether a code challenge is sent (RFC 7636).)"
    assert problem == f":5: pkce: Input should be a valid boolean {hint}"


def test_the_line_of_a_statement_with_several_lines_is_its_first(tmp_path: Path) -> None:
    text = SHOP.replace("verify_url =", 'scopes = [\n  "read",\n  # more\n  "wri te",\n]\nverify_url =')
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(":5: scopes.1: ")
    array = SHOP + "\n[[rate_limits]]\ncalls = 5\nseconds = 1\n\n[[rate_limits]]\ncalls = 0\nseconds = 1\n"
    (problem,) = problems_of(tmp_path, array)
    assert problem.startswith(":18: rate_limits.1.calls: ")


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, SHOP + "#" * 300_000)
    assert "has more than" in problem


def test_no_value_of_the_file_is_in_a_problem(tmp_path: Path) -> None:
    text = SHOP.replace("verify_url =", 'client_secret = "s3cret"\ntoken_body = "s3cret"\nverify_url =')
    assert "s3cret" not in "".join(problems_of(tmp_path, text))


# --- fuzzed declarations ---------------------------------------------------------------------------------------------

WRONG_VALUES = [7, -1, 0.5, True, False, "", "x" * 5000, "{nobody}", "a\nb", [], ["x", 1], {}, {"x": 1}, [[]], [{}]]


@cache
def declarations() -> list[Mapping[str, Any]]:
    return [tomllib.loads(path.read_text()) for path in sorted(DECLARATIONS.glob("*.toml"))]


def as_toml(value: Any) -> str:
    """A document or an inline value in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {as_toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return value.isoformat() if isinstance(value, date) else json.dumps(value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of a value."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from places(part, (*path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*path, index))


def changed(value: Any, path: tuple[Any, ...], new: Any, name: str | None = None) -> Any:
    """A copy with another value, or another name, at a path."""
    first, *rest = path
    if isinstance(value, list):
        return [changed(part, tuple(rest), new, name) if rest and i == first else (new if i == first else part)
                for i, part in enumerate(value)]  # fmt: skip
    return {
        (name if key == first and not rest and name is not None else key): (
            part if key != first else changed(part, tuple(rest), new, name) if rest else part if name else new
        )
        for key, part in value.items()
    }


@pytest.mark.parametrize("seed", range(40))
def test_a_fuzzed_declaration_is_valid_or_refused_with_its_field(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "fuzzed.toml"
    for _ in range(10):
        values = chance.choice(declarations())
        place = chance.choice(list(places(values)))
        mutated = changed(values, place, chance.choice(WRONG_VALUES))
        path.write_text("\n".join(f"{name} = {as_toml(part)}" for name, part in mutated.items()))
        factory = ProviderFactory()
        try:
            load_toml_providers(tmp_path, factory, dev_mode=False)
            factory.build(context(FakeTransport()))  # what is accepted works
        except ProvidersError as error:
            for problem in error.problems:
                assert problem.startswith(f"{path}"), problem
                assert problem.count(": ") >= 2, problem


@pytest.mark.parametrize("seed", range(20))
def test_a_misspelt_key_is_never_ignored(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "fuzzed.toml"
    for _ in range(10):
        values = chance.choice(declarations())
        key = chance.choice(list(values))
        position = chance.randrange(len(key))
        wrong = key[:position] + chance.choice("abcxyz_") + key[position + chance.choice((0, 1)) :]
        if wrong in values or wrong == key:
            continue
        mutated = changed(values, (key,), None, wrong)
        path.write_text("\n".join(f"{name} = {as_toml(part)}" for name, part in mutated.items()))
        with pytest.raises(ProvidersError) as raised:
            read_declaration(path, dev_mode=False)
        assert any(f": {wrong}: " in problem or f": {key}: " in problem for problem in raised.value.problems)


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    kinds = [one for one in schema["$defs"].values() if "auth_method" in one.get("properties", {})]
    assert {one["properties"]["auth_method"]["const"] for one in kinds} == {"oauth2", "api_key", "basic"}
    for values in declarations():
        (kind,) = (one for one in kinds if one["properties"]["auth_method"]["const"] == values["auth_method"])
        assert set(values) <= set(kind["properties"])
        assert kind["additionalProperties"] is False
        assert set(kind["required"]) <= set(values)
        assert any(set(one["required"]) <= set(values) for one in kind["anyOf"])  # without `base`, all that is needed
    assert all("description" in one for kind in kinds for one in kind["properties"].values())


JSON_TYPES: dict[type, set[str]] = {
    str: {"string"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    list: {"array"},
    dict: {"object"},
}


def test_the_schema_allows_the_types_of_all_values_in_declarations() -> None:
    """An editor that checks the lifetime of a token as a text would have its author write what the server refuses."""
    definitions = json_schema()["$defs"]

    def types_of(schema: Any) -> set[str]:
        if "$ref" in schema:
            return types_of(definitions[schema["$ref"].rpartition("/")[2]])
        of_values = {
            kind for value in schema.get("enum", [schema.get("const")]) for kind in JSON_TYPES.get(type(value), ())
        }
        return (
            {schema.get("type", "")} | of_values | {kind for one in schema.get("anyOf", ()) for kind in types_of(one)}
        )

    kinds = {
        definition["properties"]["auth_method"]["const"]: definition["properties"]
        for definition in definitions.values()
        if "auth_method" in definition.get("properties", {})
    }
    used = set()
    for values in declarations():
        for key, value in values.items():
            used.add(key)
            assert JSON_TYPES[type(value)] & types_of(kinds[values["auth_method"]][key]), (key, value)
    assert {"lifetime_seconds", "refresh_grace_seconds", "renew_after_seconds", "pkce", "verify"} <= used
    for key in ("lifetime_seconds", "refresh_grace_seconds", "renew_after_seconds"):
        assert "string" not in types_of(kinds["oauth2"][key])
