"""Mistakes in declarations whose keys and values are all valid: what a person writes who means something else.

Each would start, and fail later for every account, or silently do nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from integration_server.providers.declaration import (
    MODELS,
    ApiKeyDeclaration,
    BasicDeclaration,
    Declaration,
    OAuth2Declaration,
)
from integration_server.providers.url_templates import fill_with_placeholders, template_params

_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only
_OF_HTTP = frozenset(  # headers that HTTP itself has, with values that only the client knows
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
)
_OF_CLIENT = frozenset({"client_id", "client_secret"})
"""What the secrets of an account may bring: a client of its own."""

_OF_SERVER = frozenset(
    {
        *("access_token", "refresh_token", "token", "api_key", "api_secret", "client_id", "client_secret", "basic"),
        *("code", "code_verifier", "redirect_uri", "device_code", "assertion"),
    }
)
"""Names of templates whose values the server has."""

_SENT = frozenset({"api_key", "api_secret", "access_token", "client_id", "client_secret", "refresh_token"})

_OF_SETTINGS = frozenset(
    {
        *("client_id", "client_secret", "scopes", "private_key", "private_key_id"),
        *("webhook_secret", "webhook_secret_retired", "webhook_verify_token"),
    }
)
"""Names of settings that every type has, or may have."""

_LEGITIMATE = frozenset({"display_name"})  # also a name that responses have
_TOP_LEVEL = frozenset(
    key
    for model in MODELS.values()
    for name, field in model.model_fields.items()
    if "_" in (key := field.alias or name) and key not in _LEGITIMATE
)


def likely_mistakes(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Problems of a valid declaration, each with its key."""
    for path, table in _tables(declaration):
        yield from _misplaced_keys(path, table)
        if path[-1].endswith("headers"):
            yield from _header_problems(path, table)
        if path[-1].endswith("headers") or path[-1] == "request_query":
            yield from _names_without_braces(path, table)
    yield from _name_problems(declaration)
    yield from _account_problems(declaration)
    yield from _credential_problems(declaration)
    yield from _rate_limit_problems(declaration)
    urls = {"api_base_url": declaration.api_base_url}
    urls |= {f"api_base_urls.{name}": url for name, url in declaration.api_base_urls.items()}
    for key, url in urls.items():
        if url is not None and "?" in url:
            yield key, "has a query, and the paths of requests are put behind it; use request_query"
    if isinstance(declaration, OAuth2Declaration):
        yield from _oauth_problems(declaration)


def _tables(value: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The tables whose names the author chooses, with their paths."""
    fields = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
    for key, part in fields.items():
        parts = [((*path, key, str(index)), one) for index, one in enumerate(part)] if isinstance(part, list) else []
        if isinstance(part, Mapping):
            yield (*path, key), part
            parts = [((*path, key, name), one) for name, one in part.items()]
        for place, one in [((*path, key), part), *parts]:
            if isinstance(one, BaseModel):
                yield from _tables(one, place)


def _misplaced_keys(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of the declaration that stand below the header of a table, and belong to it by the rules of TOML."""
    for name, value in table.items():
        if name in _TOP_LEVEL and isinstance(value, str):
            header = ".".join(path)
            yield ".".join((*path, name)), f"is a key of the declaration: it must stand above [{header}]"


def _header_problems(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    spellings = Counter(name.lower() for name in table)
    for name, template in table.items():
        key = ".".join((*path, name))
        if name.lower() in _OF_HTTP or name.lower().startswith("proxy-"):
            yield key, "is a header that only the server sets"
        if spellings[name.lower()] > 1:
            yield key, "is there twice: the names of headers have no case"
        if isinstance(template, str) and not _HEADER_VALUE.fullmatch(fill_with_placeholders(template)):
            yield key, "is empty, or has spaces around it or characters that no header can have"


def _names_without_braces(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, template in table.items():
        words = set(re.findall(r"[A-Za-z_]+", template)) if isinstance(template, str) else set[str]()
        if not template_params(str(template)) and (found := sorted(_SENT.intersection(words))):
            yield ".".join((*path, name)), f"has the text {found[0]}; its value is written {{{found[0]}}}"


def _name_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    for key, names in (("config_fields", declaration.config_fields), ("settings", declaration.settings)):
        for name in sorted(_OF_SERVER.intersection(names)):
            yield f"{key}.{name}", "is a name whose value the server has; choose another one"
    for name in sorted((_OF_SETTINGS - _OF_SERVER).intersection(declaration.settings)):
        yield f"settings.{name}", "is a setting that the server has for every type; choose another name"
    for name in sorted(declaration.settings.keys() & declaration.config_fields.keys()):
        yield f"settings.{name}", "is also one of config_fields"
    for path, table in _tables(declaration):
        if path[-1] == "keep":
            own = _OF_CLIENT if path[0] == "secret_fields" else frozenset[str]()
            for name in sorted((_OF_SERVER - own).intersection(table)):
                yield ".".join((*path, name)), "is a name whose value the server has; choose another one"
    for index, alias in enumerate(declaration.aliases):
        if alias in {declaration.integration_type, *declaration.aliases[:index]}:
            yield f"aliases.{index}", "is there twice, or is the type itself"


def _account_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Names of the account that no response can bring."""
    tables = [(path, table) for path, table in _tables(declaration) if path[-1] == "keep"]
    stored = {name for path, table in tables if path[0] != "secret_fields" for name in table}
    stored |= set(declaration.config_fields)
    if isinstance(declaration, OAuth2Declaration):
        stored |= {name.replace("-", "_") for name in declaration.keep_callback}
    if declaration.verify_url or declaration.verify:
        return
    for key in ("account_id_field", "account_label_field"):
        value = getattr(declaration, key)
        if value is not None and value not in stored:
            yield key, f"is {value!r}, which is no kept value, and there is no verification with a response"


def _credential_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """A fixed Authorization header in place of the one that has the credentials."""
    if not isinstance(declaration, OAuth2Declaration | ApiKeyDeclaration):
        if isinstance(declaration, BasicDeclaration):
            for name in declaration.request_headers:
                if name.lower() == "authorization":
                    yield f"request_headers.{name}", "contradicts HTTP Basic, which is the header Authorization"
        return
    templates = [*declaration.request_headers.values(), *declaration.request_query.values()]
    templates += [declaration.api_base_url or "", *declaration.api_base_urls.values()]
    if any(template_params(template) for template in templates):
        return
    for name in declaration.request_headers:
        if name.lower() == "authorization":
            yield f"request_headers.{name}", "has no name of a credential, and replaces the header that has it"


def _rate_limit_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    resources = declaration.rate_limit_resources
    for index, limit in enumerate(declaration.rate_limits):
        if limit.resource and not any(limit.resource == name or "{" in name for name in resources):
            yield f"rate_limits.{index}.resource", f"is {limit.resource!r}, which is not one of rate_limit_resources"
    for name, pattern in resources.items():
        if unknown := set(re.findall(r"\{(\w+)\}", name)) - re.compile(pattern).groupindex.keys():
            yield f"rate_limit_resources.{name}", f"names a group that its pattern lacks: {', '.join(sorted(unknown))}"


def _oauth_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    separator = declaration.scope_separator
    if any(char.isalnum() for char in separator):
        yield "scope_separator", f"is {separator!r}: write the character itself, such as a space or a comma"
    for index, scope in enumerate(declaration.required_scopes):
        if separator in scope:
            yield f"scopes.{index}", f"has the scope_separator {separator!r}: write several scopes as several texts"
        elif scope in declaration.required_scopes[:index]:
            yield f"scopes.{index}", "is there twice"
    if not declaration.pkce:
        for name, template in declaration.token_params.items():
            if "code_verifier" in template_params(template):
                yield f"token_params.{name}", "has {code_verifier}, and pkce is false"
