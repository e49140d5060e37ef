"""Likely mistakes in declarations whose keys and values are all valid: what an author writes by mistake.

Each would start, and fail later for every account, or silently do nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel

from integration_server.providers.declaration import (
    MODELS,
    ApiKeyDeclaration,
    BasicDeclaration,
    Declaration,
    OAuth2Declaration,
)
from integration_server.providers.declaration_tables import RESERVED_PARAMS, Webhook
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

_OF_CODES = frozenset({"code", "redirect_uri", "code_verifier"})
_SET_BY = {
    "client_secret_post": frozenset({"client_id", "client_secret"}),
    "client_secret_jwt": frozenset({"client_assertion", "client_assertion_type"}),
    "private_key_jwt": frozenset({"client_assertion", "client_assertion_type"}),
    "none": frozenset({"client_id"}),
}
"""The parameters that a `token_auth` sets."""

_WITH_SECRET = frozenset({"client_secret_basic", "client_secret_post", "client_secret_jwt"})

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
    yield from _kept_problems(declaration)
    yield from _valueless_names(declaration)
    yield from _account_problems(declaration)
    yield from _credential_problems(declaration)
    yield from _rate_limit_problems(declaration)
    yield from _code_problems(declaration)
    yield from _request_problems(declaration)
    if declaration.webhook is not None:
        yield from _webhook_problems(declaration, declaration.webhook)
    urls = {"api_base_url": declaration.api_base_url}
    urls |= {f"api_base_urls.{name}": url for name, url in declaration.api_base_urls.items()}
    for key, url in urls.items():
        if url is not None and "?" in url:
            yield key, "has a query, and the paths of requests are put behind it; use request_query"
    if isinstance(declaration, OAuth2Declaration):
        yield from _oauth_problems(declaration)


def _request_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    for index, name in enumerate(declaration.allowed_request_headers):
        if "*" in name:
            yield f"allowed_request_headers.{index}", "has a star: each header is named by itself"
    header = declaration.api_key_header if isinstance(declaration, ApiKeyDeclaration) else None
    if header is not None and header.lower() in map(str.lower, declaration.request_headers):
        yield "api_key_header", "is also one of request_headers"
    if declaration.lookup is not None and not declaration.lookup.keep:
        yield "lookup.keep", "is required: without it, nothing of the response is stored"
    for key in ("verify", "lookup"):
        request = getattr(declaration, key)
        if request is not None and request.body_type == "form" and _is_nested(request.body):
            yield f"{key}.body", "has a table or list, which no form has"


def _tables(value: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The tables whose names the author chooses, with their paths."""
    fields = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
    for key, part in fields.items():
        parts = (
            [((*path, key, str(index)), element) for index, element in enumerate(part)]
            if isinstance(part, list)
            else []
        )
        if isinstance(part, Mapping):
            yield (*path, key), part
            parts = [((*path, key, name), element) for name, element in part.items()]
        for element_path, element in [((*path, key), part), *parts]:
            if isinstance(element, BaseModel):
                yield from _tables(element, element_path)


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
    own = _OF_CLIENT if isinstance(declaration, OAuth2Declaration) else frozenset[str]()
    for name in sorted((_OF_SERVER - own).intersection(declaration.secret_fields)):
        yield f"secret_fields.{name}", "is a name whose value the server has; choose another one"
    of_files = {name for field in declaration.secret_fields.values() for name in field.keep}
    client_fields = own.intersection({*declaration.secret_fields, *of_files})
    if (
        isinstance(declaration, OAuth2Declaration)
        and len(client_fields) == 1
        and declaration.token_auth in _WITH_SECRET
    ):
        (name,) = client_fields
        yield (
            f"secret_fields.{name}",
            f"is without {min(own - client_fields)}: both are the account's, or both are ours",
        )
    for key in ("config_fields", "secret_fields"):
        for name in sorted(declaration.settings.keys() & getattr(declaration, key).keys()):
            yield f"settings.{name}", f"is also one of {key}"
    for index, alias in enumerate(declaration.aliases):
        if alias in {declaration.integration_type, *declaration.aliases[:index]}:
            yield f"aliases.{index}", "is there twice, or is the type itself"


def _kept_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    own = _OF_CLIENT if isinstance(declaration, OAuth2Declaration) else frozenset[str]()
    kept = set[str]()
    for path, table in _tables(declaration):
        if path[-1] == "keep":
            kept |= table.keys()
            of_file = own if path[0] == "secret_fields" else frozenset[str]()
            for name in sorted((_OF_SERVER - of_file).intersection(table)):
                yield ".".join((*path, name)), "is a name whose value the server has; choose another one"
            for key in ("secret_fields", "settings") if path[0] in {"token_response", "lookup"} else ():
                for name in sorted(getattr(declaration, key).keys() & table.keys()):
                    yield ".".join((*path, name)), f"is also one of {key}"
    if isinstance(declaration, OAuth2Declaration):
        kept |= {name.replace("-", "_") for name in declaration.keep_callback}
        for name in sorted(declaration.kept_patterns.keys() - kept):
            yield f"kept_patterns.{name}", "is not the name of a kept value"


def _valueless_names(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Names in templates that have no value when their request is sent: other credentials, or a later response."""
    missing = {"access_token", "refresh_token"}
    of_code, of_tokens, of_lookup = set[str](), set[str](), set[str]()
    if declaration.lookup is not None:
        of_lookup |= declaration.lookup.keep.keys()
    if isinstance(declaration, OAuth2Declaration):
        missing = {"api_key", "api_secret"}
        of_tokens |= declaration.token_response.keep.keys()
        if declaration.grant != "authorization_code":
            of_code |= _OF_CODES
        if declaration.grant != "device_code":
            of_code.add("device_code")
    known = {*declaration.config_fields, *declaration.secret_fields, *declaration.settings}
    known |= {name for field in declaration.secret_fields.values() for name in field.keep}
    if isinstance(declaration, OAuth2Declaration):
        known |= {name for request in declaration.login for name in request.keep}
        known |= {name.replace("-", "_") for name in declaration.keep_callback}
    for path, template in _texts(declaration):
        names = missing
        if path[0] in {"token_url", "token_params", "device_authorization_url"}:
            names = missing | (of_code | of_tokens | of_lookup) - known
        elif path[0] == "lookup" and path[1] in {"url", "body"}:
            names = missing | of_lookup - known - of_tokens
        for name in template_params(template):
            if name in names:
                yield ".".join(path), f"has {{{name}}}, which has no value when this is sent"


def _texts(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts of a declaration that may be templates, with their paths."""
    if isinstance(value, str) and path[0] not in {"webhook", "rate_limit_resources", "account_id_field"}:
        yield path, value
    parts: Mapping[str, object] = {}
    if isinstance(value, BaseModel):
        parts = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
        parts = {key: part for key, part in parts.items() if path or key not in _WITHOUT_TEMPLATES}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, list):
        parts = {str(index): part for index, part in enumerate(value)}
    for key, part in parts.items():
        yield from _texts(part, (*path, key))


_WITHOUT_TEMPLATES = frozenset({"config_fields", "secret_fields", "settings", "webhook", "rate_limit_resources"})


def _is_nested(body: Mapping[str, Any] | None) -> bool:
    return any(isinstance(value, dict | list) for value in (body or {}).values())


def _code_problems(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Codes that would have two meanings, of which only one counts."""
    seen: dict[str, str] = {}
    for meaning in ("dead", "client", "wait", "pending", "request"):
        for index, code in enumerate(getattr(declaration.errors, meaning)):
            if seen.setdefault(code, meaning) != meaning:
                yield f"errors.{meaning}.{index}", f"is {code!r}, which is also one of errors.{seen[code]}"


def _webhook_problems(declaration: Declaration, webhook: Webhook) -> Iterator[tuple[str, str]]:
    declared = webhook.model_fields_set
    if webhook.timestamp_header is None:
        for key in sorted(declared & {"tolerance_seconds", "timestamp_unit"}):
            yield f"webhook.{key}", "has no effect without timestamp_header: requests can be repeated at any time"
    if webhook.grant_ends and not (webhook.scheme or webhook.event_type or webhook.type_header):
        yield "webhook.grant_ends", "needs event_type or type_header, which say the type of an event"
    if webhook.handshake is not None and (webhook.handshake.query is None) == (webhook.handshake.field is None):
        yield "webhook.handshake", "must have query or field, and not both"
    is_oauth = isinstance(declaration, OAuth2Declaration)
    if webhook.secret == ("api_secret" if is_oauth else "client_secret"):
        yield "webhook.secret", f"is {webhook.secret!r}, which this auth_method has not"


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


def _client_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    """Parameters that the client authentication replaces, and a secret of a client that has none."""
    own = _SET_BY.get(declaration.token_auth, frozenset())
    for key in ("token_params", "refresh_params"):
        for name, template in getattr(declaration, key).items():
            if name in own:
                yield f"{key}.{name}", f"is set by the server, because token_auth is {declaration.token_auth}"
            elif declaration.token_auth == "none" and {"client_secret", "basic"}.intersection(
                template_params(template)
            ):
                yield f"{key}.{name}", "has our client's secret, and token_auth is none"
    for name, template in declaration.token_headers.items():
        if declaration.token_auth == "none" and {"client_secret", "basic"}.intersection(template_params(template)):
            yield f"token_headers.{name}", "has our client's secret, and token_auth is none; it is header"


def _authorization_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    """Parameters of the authorization URL that would be there twice, or replaced."""
    query = urlsplit(fill_with_placeholders(declaration.oauth_authorize_url or "")).query
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name in {*RESERVED_PARAMS, declaration.scope_param}:
            yield "authorize_url", f"has the parameter {name}, which the server sets"
    if declaration.scope_param in RESERVED_PARAMS - {"scope"}:
        yield "scope_param", "is a parameter that the server sets"
    if declaration.scope_param in declaration.authorize_params:
        yield f"authorize_params.{declaration.scope_param}", "is the scope_param, which has the scopes"


def _oauth_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    yield from _client_problems(declaration)
    yield from _authorization_problems(declaration)
    for index, scope in enumerate(declaration.required_scopes):
        if scope in declaration.retired_scopes:
            yield f"scopes.{index}", f"is {scope!r}, which is also one of retired_scopes"
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
