"""What people do wrong in declarations: each mistake is refused at start with file, field and hint."""

import os
import random
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.toml_providers import CATALOGUE, load_toml_providers, read_declaration
from tests.declarations import DECLARATIONS
from tests.unit.providers.support import FakeTransport, context

NO_TOML = "cannot be read as TOML"
SHAPES = sorted(DECLARATIONS.glob("*.toml"))
FILES = [*SHAPES, *sorted(Path(str(CATALOGUE)).glob("*.toml"))]


def problems_of(directory: Path, content: str | bytes, name: str = "acme.toml") -> list[str]:
    """The problems of a server whose directory has a file, each without the path that it begins with."""
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    factory = ProviderFactory()
    try:
        load_toml_providers(directory, factory, dev_mode=False)
        factory.build(context(FakeTransport()))
    except ProvidersError as error:
        return [problem.removeprefix(f"{path}: ") for problem in error.problems]
    return []


KEYED = """\
integration_type = "keyed"
auth_method = "api_key"
verify_url = "https://api.keyed.example/me"
api_base_url = "https://api.keyed.example"
account_id_field = "id"
request_headers = { X-Key = "{api_key}" }
"""
USER = """\
integration_type = "user"
auth_method = "oauth2"
authorize_url = "https://user.example/authorize"
token_url = "https://user.example/token"
scopes = ["read", "write"]
verify_url = "https://user.example/me"
account_id_field = "id"
"""


MISTAKES: dict[str, tuple[str, str, str, str]] = {
    # a key of the declaration below the header of a table
    "a URL among headers": (KEYED, 'X-Key = "{api_key}" }', 'X-Key = "{api_key}", api_base_url = "https://a.example" }',
                            "request_headers.api_base_url: is a key of the declaration: it must stand above"),
    "a URL among parameters": (USER, "scopes =", '[token_params]\nscope_separator = ","\nscopes =', "token_params."),
    "a field among APIs": (KEYED, "account_id_field", "[api_base_urls]\naccount_id_field", "api_base_urls.account_id"),
    "a URL among kept values": (USER, "verify_url", "[token_response.keep]\nverify_url", "token_response.keep.verify"),
    "a URL below a field": (KEYED, "verify_url", "[config_fields.shop]\nverify_url", "config_fields.shop.verify_url"),
    # braces
    "no closing brace": (KEYED, '"{api_key}"', '"Key {api_key"', "request_headers.X-Key: has a brace without its"),
    "no opening brace": (KEYED, '"{api_key}"', '"Key api_key}"', "request_headers.X-Key: has a brace without its"),
    "a shell's braces": (KEYED, '"{api_key}"', '"Key ${api_key}"', "request_headers.X-Key: has ${…}"),
    "double braces": (KEYED, '"{api_key}"', '"{{api_key}}"', "request_headers.X-Key: has braces around something"),
    "a space in braces": (KEYED, '"{api_key}"', '"{ api_key }"', "request_headers.X-Key"),
    # headers
    "a header with a space": (KEYED, '"{api_key}"', '"Key {api_key} "', "request_headers.X-Key: is empty, or has sp"),
    "a header with an umlaut": (KEYED, '"{api_key}"', '"Schlüssel {api_key}"', "request_headers.X-Key: is empty"),
    "an empty header": (KEYED, '"{api_key}"', '""', "request_headers.X-Key: is empty"),
    "a header twice": (KEYED, '"{api_key}"', '"{api_key}", x-key = "a"', "request_headers.X-Key: is there twice"),
    "the header Host": (KEYED, "X-Key", "Host", "request_headers.Host: is a header that only the server sets"),
    "the header Content-Length": (KEYED, '"{api_key}"', '"{api_key}", Content-Length = "0"', "request_headers.Content"),
    "a fixed key": (KEYED, 'X-Key = "{api_key}"', 'Authorization = "Bearer abc"', "request_headers.Authorization: has"),
    "a name and a colon": (KEYED, "X-Key =", '"X-Key:" =', "request_headers.X-Key:: "),
    # URLs
    "a space after a URL": (KEYED, 'example/me"', 'example/me "', "verify_url: is not an absolute http(s) URL"),
    "a space before a URL": (KEYED, '"https://api.keyed.example/me', '" https://api.keyed.example/me', "verify_url: "),
    "a fragment": (KEYED, 'example/me"', 'example/me#top"', "verify_url: is not an absolute"),
    "a user in a URL": (KEYED, "https://api.keyed.example/me", "https://me@api.keyed.example/me", "verify_url: is not"),
    "no scheme": (KEYED, "https://api.keyed.example/me", "api.keyed.example/me", "verify_url: is not an absolute"),
    "plain http": (KEYED, "https://api.keyed.example/me", "http://api.keyed.example/me", "verify_url: must be https"),
    "a query of the API": (KEYED, 'base_url = "https://api.keyed.example', 'base_url = "https://api.keyed.example?v=1',
                           "api_base_url: has a query, and the paths of requests are put behind it"),
    "a placeholder in brackets": (KEYED, "https://api.keyed.example/me", "https://<shop>.keyed.example/me", "verify"),
    # lists and texts
    "scopes as one text": (USER, '["read", "write"]', '"read write"', "scopes: Input should be a valid list"),
    "scopes in one element": (USER, '["read", "write"]', '["read write"]', "scopes.0: "),
    "scopes with the separator": (USER, 'scopes = ["read", "write"]', 'scope_separator = ","\nscopes = ["read,write"]',
                                  "scopes.0: has the scope_separator"),
    "a truth value as text": (USER, "scopes =", 'pkce = "false"\nscopes =', "pkce: Input should be a valid boolean"),
    "a number as text": (USER, "scopes =", 'lifetime_seconds = "3600"\nscopes =', "lifetime_seconds: "),
    "an alias that is the type": (KEYED, "verify_url", 'aliases = ["keyed"]\nverify_url', "aliases.0: is there twice"),
    "an alias twice": (KEYED, "verify_url", 'aliases = ["a", "a"]\nverify_url', "aliases.1: is there twice"),
    "a scope twice": (USER, '"write"]', '"read"]', "scopes.1: is there twice"),
    "a separator in words": (USER, "scopes =", 'scope_separator = "comma"\nscopes =', "scope_separator: is 'comma'"),
    # paths
    "a JSONPath": (KEYED, 'account_id_field = "id"', 'account_id_field = "$.data.id"', "account_id_field: is not"),
    "a JSON pointer": (KEYED, 'account_id_field = "id"', 'account_id_field = "/id"', "account_id_field: is not"),
    "an index in brackets": (KEYED, '"id"', '"accounts[0].id"', "account_id_field: is not a dotted path"),
    "a path of a kept value": (USER, "scopes =", 'token_response = { keep = { a = "$.a" } }\nscopes =',
                               "token_response.keep.a: is not a dotted path"),
    # names
    "a name without braces": (KEYED, '"{api_key}"', '"api_key"', "request_headers.X-Key: has the text api_key"),
    "a name after a scheme": (USER, "scopes =", 'request_query = { token = "access_token" }\nscopes =',
                              "request_query.token: has the text access_token"),
    "a field with a name of the server": (KEYED, "request_headers", "config_fields = { api_key = {} }\nrequest_headers",
                                          "config_fields.api_key: is a name whose value the server has"),
    "a setting that every type has": (USER, "scopes =", "settings = { private_key = {} }\nscopes =",
                                      "settings.private_key: is a setting that the server has for every type"),
    "a field and a setting": (USER, "scopes =", "settings = { a = {} }\nconfig_fields = { a = {} }\nscopes =",
                              "settings.a: is also one of config_fields"),
    "a kept token": (USER, "scopes =", 'token_response = { keep = { access_token = "x" } }\nscopes =',
                     "token_response.keep.access_token: is a name whose value the server has"),
    "an account that nothing names": (KEYED, 'verify_url = "https://api.keyed.example/me"', "verify = false",
                                      "account_id_field: is 'id', which is no kept value"),
    # contradictions
    "a verifier without a challenge": (USER, "scopes =",
                                       'pkce = false\ntoken_params = { v = "{code_verifier}" }\nscopes =',
                                       "token_params.v: has {code_verifier}, and pkce is false"),
    "a limit of an unknown resource": (KEYED, "verify_url",
                                       'rate_limits = [{ calls = 1, seconds = 1, resource = "x" }]\nverify_url',
                                       "rate_limits.0.resource: is 'x', which is not one of rate_limit_resources"),
    "a resource with an unknown group": (KEYED, "verify_url", 'rate_limit_resources = { "{a}" = "/x" }\nverify_url',
                                         "rate_limit_resources.{a}: names a group that its pattern lacks: a"),
    # names without a value when they are sent
    "a token of an API key": (KEYED, '"{api_key}"', '"{access_token}"', "request_headers.X-Key: has {access_token}"),
    "a key of a user": (USER, "scopes =", 'request_headers = { X = "{api_key}" }\nscopes =',
                        "request_headers.X: has {api_key}, which has no value when this is sent"),
    "a response before it": (USER, "scopes =",
                             'token_params = { a = "{t}" }\ntoken_response = { keep = { t = "t" } }\nscopes =',
                             "token_params.a: has {t}, which has no value when this is sent"),
    "a token endpoint of its own response": (
        USER, "https://user.example/token", "https://user.example/{t}/token\"\ntoken_response.keep.t = \"t",
        "token_url: has {t}, which has no value when this is sent"),
    "a lookup of its own response": (
        KEYED, "verify_url", 'lookup = { url = "https://a.example/{t}", keep = { t = "t" } }\nverify_url',
        "lookup.url: has {t}, which has no value when this is sent"),
    "a device code of a browser": (USER, "scopes =", 'token_params = { a = "{device_code}" }\nscopes =',
                                   "token_params.a: has {device_code}, which has no value"),
    "a code without a browser": (
        USER, 'authorize_url = "https://user.example/authorize"',
        'grant = "client_credentials"\ntoken_params = { a = "{code}" }', "token_params.a: has {code}, which has"),
    # what the server would replace
    "the client's id among parameters": (
        USER, "scopes =", 'token_auth = "client_secret_post"\ntoken_params = { client_id = "x" }\nscopes =',
        "token_params.client_id: is set by the server, because token_auth is client_secret_post"),
    "a secret of a public client": (
        USER, "scopes =", 'token_auth = "none"\nrefresh_params = { secret = "{client_secret}" }\nscopes =',
        "refresh_params.secret: has our client's secret, and token_auth is none"),
    "a secret in the headers of a public client": (
        USER, "scopes =", 'token_auth = "none"\ntoken_headers = { Authorization = "Basic {basic}" }\nscopes =',
        "token_headers.Authorization: has our client's secret, and token_auth is none"),
    "a copied authorization URL": (USER, "/authorize", "/authorize?client_id=abc&response_type=code",
                                   "authorize_url: has the parameter client_id, which the server sets"),
    "scopes as the state": (USER, "scopes =", 'scope_param = "state"\nscopes =', "scope_param: is a parameter that"),
    "scopes twice": (USER, "scopes =",
                     'scope_param = "user_scope"\nauthorize_params = { user_scope = "a" }\nscopes =',
                     "authorize_params.user_scope: is the scope_param"),
    "a retired scope": (USER, "scopes =", 'retired_scopes = ["read"]\nscopes =', "scopes.0: is 'read', which is also"),
    "a header twice in two keys": (KEYED, "verify_url", 'api_key_header = "x-key"\nverify_url',
                                   "api_key_header: is also one of request_headers"),
    # what has no effect
    "a tolerance without a time": (
        KEYED, "verify_url", 'webhook = { signature_header = "S", tolerance_seconds = 60 }\nverify_url',
        "webhook.tolerance_seconds: has no effect without timestamp_header"),
    "ends without a type": (KEYED, "verify_url",
                            'webhook = { signature_header = "S", grant_ends = ["end"] }\nverify_url',
                            "webhook.grant_ends: needs event_type or type_header"),
    "an empty handshake": (KEYED, "verify_url",
                           'webhook = { signature_header = "S", handshake = {} }\nverify_url',
                           "webhook.handshake: must have query or field, and not both"),
    "a client's secret without a client": (
        KEYED, "verify_url", 'webhook = { signature_header = "S", secret = "client_secret" }\nverify_url',
        "webhook.secret: is 'client_secret', which this auth_method has not"),
    "a lookup that keeps nothing": (KEYED, "verify_url", 'lookup = { url = "https://a.example" }\nverify_url',
                                    "lookup.keep: is required"),
    "a pattern of nothing": (USER, "scopes =", 'kept_patterns = { a = "[a-z]+" }\nscopes =',
                             "kept_patterns.a: is not the name of a kept value"),
    "a star among headers": (KEYED, "verify_url", 'allowed_request_headers = ["*"]\nverify_url',
                             "allowed_request_headers.0: has a star"),
    "a form with a table": (
        KEYED, 'verify_url = "https://api.keyed.example/me"',
        'verify = { url = "https://a.example", method = "POST", body_type = "form", body = { a = { b = 1 } } }',
        "verify.body: has a table or list, which no form has"),
    # two meanings
    "a code with two meanings": (USER, "scopes =", 'errors = { dead = ["a"], wait = ["a"] }\nscopes =',
                                 "errors.wait.0: is 'a', which is also one of errors.dead"),
    "a kept value and a setting": (USER, "scopes =",
                                   "settings = { a = {} }\ntoken_response = { keep = { a = 'a' } }\nscopes =",
                                   "token_response.keep.a: is also one of settings"),
    "a secret with a name of the server": (KEYED, "verify_url", "secret_fields = { api_key = {} }\nverify_url",
                                           "secret_fields.api_key: is a name whose value the server has"),
    "a secret without an id": (
        USER, 'authorize_url = "https://user.example/authorize"',
        'grant = "client_credentials"\nsecret_fields.client_secret = {}',
        "secret_fields.client_secret: is without client_id"),
    # times
    "a truth value as a time": (USER, "scopes =", "lifetime_seconds = true\nscopes =",
                                "lifetime_seconds: must be a number of seconds"),
    "a duration in words": (USER, "scopes =", 'renew_after_seconds = "PT1H"\nscopes =',
                            "renew_after_seconds: must be a number of seconds"),
    "a time of the day": (USER, "scopes =", "refresh_grace_seconds = 01:00:00\nscopes =",
                          "refresh_grace_seconds: must be a number of seconds"),
    "a template as a path": (KEYED, 'account_id_field = "id"', 'account_id_field = "{id}"', "account_id_field: is not"),
    # other keys beside a mistake in the method
    "a key of the method": (KEYED, "auth_method", "auth_methd", "auth_methd: is not known; did you mean auth_method?"),
    "a table around all": (KEYED, "integration_type", "[provider]\nintegration_type", "provider: is not known"),
    # TOML
    "a text without quotes": (KEYED, '"keyed"', "keyed", f"{NO_TOML}: Invalid value (line 1, column 20; texts are in"),
    "a colon": (KEYED, "auth_method =", "auth_method:", f"{NO_TOML}: Expected '=' after a key in"),
    "a key twice": (KEYED, "verify_url", 'auth_method = "basic"\nverify_url', f"{NO_TOML}: Cannot overwrite a value"),
    "a table twice": (KEYED, "request_headers", "[settings]\n[settings]\nrequest_headers", f"{NO_TOML}: Cannot"),
    "a comment with slashes": (KEYED, "verify_url", "// the URL\nverify_url", f"{NO_TOML}: Invalid statement"),
    "typographic quotes": (KEYED, '"keyed"', "“keyed”", f"{NO_TOML}: Invalid value (line 1"),
    "a quote that is open": (KEYED, '"keyed"', '"keyed', f"{NO_TOML}: Illegal character"),
    "a comma at the end of a line": (KEYED, '"keyed"', '"keyed",', f"{NO_TOML}: Expected newline or end of document"),
    "a truth value in capitals": (USER, "scopes =", "pkce = False\nscopes =", f"{NO_TOML}: Invalid value"),
}  # fmt: skip


def test_the_files_without_mistakes_are_valid(tmp_path: Path) -> None:
    assert problems_of(tmp_path, KEYED) == []
    assert problems_of(tmp_path, USER) == []


@pytest.mark.parametrize(("text", "old", "new", "problem"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_with_its_field(tmp_path: Path, text: str, old: str, new: str, problem: str) -> None:
    changed = text.replace(old, new, 1)
    assert changed != text
    problems = problems_of(tmp_path, changed)
    found = [one for one in problems if one.startswith(problem)]
    assert found, problems
    assert re.search(r"\(.*line [0-9]+", found[0]), found


INVALID_SOURCES = ['verify_url = "/me"', 'verify_url = "https://api.keyed.example/me "', "verify = 'https://a.example'",
                   'verify = { url = "https://a.example", method = "get" }']  # fmt: skip


@pytest.mark.parametrize("source", INVALID_SOURCES)
def test_a_mistake_is_reported_once(tmp_path: Path, source: str) -> None:
    """The account's id is in the response of a request that is invalid: it is no second problem."""
    (problem,) = problems_of(tmp_path, KEYED.replace('verify_url = "https://api.keyed.example/me"', source))
    assert problem.startswith("verify")


FILES_THAT_ARE_NONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (lambda path: path.mkdir(), "is not a file"),
    "a symlink to nothing": (lambda path: path.symlink_to(path.with_name("none")), "is not a file"),
    "a loop of symlinks": (lambda path: path.symlink_to(path), "is not a file"),
    "a pipe": (os.mkfifo, "is not a file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "UTF-16": (lambda path: path.write_bytes(KEYED.encode("utf-16")), "is not in UTF-8 (line 1; save it with"),
    "Latin-1": (
        lambda path: path.write_bytes(f"# a\n# {chr(228)}\n{KEYED}".encode("latin-1")),
        "is not in UTF-8 (line 2",
    ),
    "binary content": (lambda path: path.write_bytes(bytes(range(256))), "is not "),
    "a huge file": (lambda path: path.write_text(KEYED + "#" * 100_000), "has more than 65536 bytes"),
    "many lines": (lambda path: path.write_text(KEYED + "\n" * 3000), "has more than 2000 lines"),
    "deep lists": (
        lambda path: path.write_text("a = " + "[" * 10_000 + "]" * 10_000),
        "has values that are nested deeper",
    ),
    "deep tables": (lambda path: path.write_text(f"[{'.'.join(['a'] * 9000)}]\n"), "has values that are nested"),
    "nothing": (lambda path: path.write_text(""), "integration_type: is required"),
    "a comment": (lambda path: path.write_text("# later\n"), "auth_method: is required"),
    "another format": (lambda path: path.write_text('{"integration_type": "acme"}'), f"{NO_TOML}: "),
}


@pytest.mark.parametrize(("make", "problem"), FILES_THAT_ARE_NONE.values(), ids=FILES_THAT_ARE_NONE.keys())
def test_a_file_that_is_no_declaration_is_refused(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "acme.toml"
    make(path)
    factory = ProviderFactory()
    with pytest.raises(ProvidersError) as raised:
        load_toml_providers(tmp_path, factory, dev_mode=False)
    assert any(one.startswith(f"{path}: {problem}") for one in raised.value.problems), raised.value.problems


@pytest.mark.parametrize("depth", [46, 100, 300, 350, 400, 450, 480])
def test_deep_values_are_refused_wherever_they_are_read(tmp_path: Path, depth: int) -> None:
    for value in ("[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth):
        assert problems_of(tmp_path, f"{KEYED}verify = {{ url = 'https://a.example', body = {value} }}\n")


@pytest.mark.parametrize("name", ["Acme.TOML", "acme.Toml", "acme.toml.txt", "acme.tml"])
def test_a_file_whose_name_is_nearly_right_is_not_ignored(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(tmp_path, KEYED, name)
    assert problem == "has a name that does not end with .toml (rename it, or move it away)"


@pytest.mark.parametrize("name", ["README.md", "acme.toml~", ".acme.toml.swp", "acme.toml.bak"])
def test_other_files_are_ignored(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path, "anything", name) == []


@pytest.mark.parametrize(
    "change",
    [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"), lambda text: text.rstrip("\n")],
    ids=["a byte order mark", "CRLF", "no last newline"],
)
def test_what_editors_do_is_accepted(tmp_path: Path, change: Callable[[str], str]) -> None:
    for text in (KEYED, USER):
        path = tmp_path / "acme.toml"
        path.write_bytes(change(text).encode())
        assert read_declaration(path, dev_mode=False).integration_type == tomllib.loads(text)["integration_type"]


def test_a_missing_directory_and_a_file_in_its_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(KEYED)
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ProvidersError, match="is not a directory"):
            load_toml_providers(path, ProviderFactory(), dev_mode=False)


def test_two_files_of_one_type_or_alias_are_refused_with_both_files(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(KEYED)
    (problem,) = problems_of(tmp_path, KEYED, "two.toml")
    assert problem == f"integration_type: 'keyed' is taken by {tmp_path / 'one.toml'}"
    aliased = USER.replace("scopes =", 'aliases = ["keyed"]\nscopes =')
    (problem,) = problems_of(tmp_path, aliased, "two.toml")
    assert problem == f"aliases: 'keyed' is taken by {tmp_path / 'one.toml'}"


def test_the_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(KEYED.replace("verify_url", "verfy_url"))
    (tmp_path / "two.toml").mkdir()
    problems = problems_of(tmp_path, USER.replace("pkce", "x").replace("scopes", "scops"), "three.toml")
    assert [any(name in problem for problem in problems) for name in ("one.toml", "two.toml", "scops")] == [True] * 3


# --- all declarations, with random mistakes in their text ------------------------------------------------------------


def statements(text: str) -> list[str]:
    """The statements and comments of a document."""
    found, pending = [], ""
    for line in text.splitlines(keepends=True):
        pending += line
        try:
            tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        found.append(pending)
        pending = ""
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", SHAPES, ids=[path.stem for path in SHAPES])
def test_no_key_may_stand_below_a_table(tmp_path: Path, path: Path) -> None:
    """Every text of the top level, moved below each kind of table in turn, is refused."""
    parts = statements(path.read_text())
    first = next((index for index, part in enumerate(parts) if part.startswith("[")), len(parts))
    movable = [part for part in parts[:first] if re.match(r"\w+_\w+ = \"", part) and "display_name" not in part]
    for part in movable:
        rest = "".join(one for one in parts if one != part)
        for header in ("request_headers", "request_query", "api_base_urls", "config_fields.any", "errors"):
            if header.partition(".")[0] not in rest:
                assert problems_of(tmp_path, f"{rest}\n[{header}]\n{part}"), (header, part)


def mistake(text: str, chance: random.Random) -> bytes:
    """The text with one mistake of a person or of an editor."""
    position = chance.randrange(len(text))
    lines = text.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    changes: list[Callable[[], str | bytes]] = [
        lambda: text[:position] + text[position + 1 :],
        lambda: text[:position] + chance.choice("\"'[]{}=#,.\\x1\n\t\u00a0") + text[position:],
        lambda: text[:position],
        lambda: text[:position].encode() + b"\xff\x00" + text[position:].encode(),
        lambda: "".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: "".join([*lines[:line], *lines[line + 1 :], lines[line]]),
        lambda: text.replace('"', "", 2),
        lambda: text.replace("= ", "= x", 1),
        lambda: "".join([*lines[:line], lines[line].swapcase(), *lines[line + 1 :]]),
        lambda: "".join(lines[:line]) + "[[" + "".join(lines[line:]),
        lambda: text.replace("{", "{{", 1),
        lambda: text.replace("https://", chance.choice(["http://", "https:/", "HTTPS://", "https://{nobody}."]), 1),
    ]
    changed = chance.choice(changes)()
    return changed.encode() if isinstance(changed, str) else changed


@pytest.mark.parametrize("seed", range(8))
def test_a_declaration_with_a_random_mistake_is_valid_or_refused_as_a_whole(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        path = chance.choice(FILES)
        for problem in problems_of(tmp_path, mistake(path.read_text(), chance)):
            assert ": " in problem or problem.startswith("is "), problem
            assert len(problem) < 2000
