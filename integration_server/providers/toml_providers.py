"""Providers without code: each `*.toml` file of a directory declares one. docs/adding-a-provider.md lists the keys.

The directory is `catalogue/`, of the built-in providers, or `PROVIDERS_DIR`.

A declaration becomes a subclass of a generic provider with the declared values as class attributes, equivalent to a
Python file that only declares. A file is validated as a whole: all its problems are reported together, each with the
file, the line, the field, the problem and a hint.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.providers.base import BaseProvider
from integration_server.providers.declaration import (
    MODELS,
    ApiKeyDeclaration,
    BasicDeclaration,
    Declaration,
    OAuth2Declaration,
)
from integration_server.providers.declaration_tables import SECRET_GRANTS
from integration_server.providers.declaration_templates import DeclaredNames
from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.meta import MetaProvider
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.declared_scheme import declared_scheme
from integration_server.providers.webhooks.named_schemes import SCHEMES

_GENERIC: Mapping[AuthMethod, Any] = {  # their classes; mypy allows abstract ones nowhere else
    AuthMethod.OAUTH2: OAuth2Provider,
    AuthMethod.API_KEY: ApiKeyProvider,
    AuthMethod.BASIC: BasicAuthProvider,
}

CATALOGUE = files("integration_server.providers") / "catalogue"
"""The directory of the built-in declarations."""

BASES = CATALOGUE / "bases"
"""What the providers of a family have in common: files with some of the keys."""

_FAMILIES: Mapping[str | None, Any] = {"meta": MetaProvider}  # the classes of those whose behaviour differs

# The longest declarations have ten kilobytes and some hundred lines. The lines of problems are searched in a time that
# grows with the square of their number.
_MAX_SIZE = 1 << 16  # bytes
_MAX_LINES = 2000
_MAX_DEPTH = 50  # levels; a body for an API has five or so


def load_toml_providers(
    directory: Traversable,
    factory: ProviderFactory,
    *,
    dev_mode: bool,
    behaviours: Mapping[str, Any] = MappingProxyType({}),
    finds_mistakes: bool = True,
) -> None:
    """Register every `*.toml` file of the directory, by name. Raises `ProvidersError` with all problems.

    `behaviours` are the classes of types that differ from the generic provider. `finds_mistakes` is as in
    `read_declaration`.
    """
    problems = list(_directory_problems(directory))
    for path in () if problems else declaration_files(directory):
        try:
            declaration = read_declaration(path, dev_mode=dev_mode, finds_mistakes=finds_mistakes)
            integration_type = declaration.integration_type
            build = provider_class(declaration, path, behaviours.get(integration_type))
            factory.register(integration_type, build, origin=str(path))
        except ProvidersError as error:
            problems.extend(error.problems)
    if problems:
        raise ProvidersError(problems)


def _directory_problems(directory: Traversable) -> Iterator[str]:
    """Why the declarations of a directory cannot be listed, and files that are meant as declarations, but are none."""
    if not directory.is_dir():
        yield f"{directory}: is not a directory"
        return
    try:
        names = sorted(file.name for file in directory.iterdir())
    except OSError as error:
        yield f"{directory}: cannot be read: {error.strerror}"
        return
    for name in names:
        if not name.endswith(".toml") and name.lower().endswith((".toml", ".toml.txt", ".tml")):
            yield f"{directory / name}: has a name that does not end with .toml (rename it, or move it away)"


def declaration_files(directory: Traversable) -> Sequence[Traversable]:
    """The files of a directory that declare providers, by name."""
    files = directory.iterdir() if directory.is_dir() else ()
    return sorted((file for file in files if file.name.endswith(".toml")), key=lambda file: file.name)


def read_declaration(path: Traversable, *, dev_mode: bool, finds_mistakes: bool = True) -> Declaration:
    """The declaration in a file. Raises `ProvidersError` with all its problems.

    `finds_mistakes` looks also for what is valid and means something else: `problems_between`, `likely_mistakes`.
    """
    text = _text_of(path)
    try:
        values = tomllib.loads(text)
    except ValueError as error:
        hint = "texts are in quotes, and a key or table is there once: https://toml.io"
        problem = re.sub(r" \(at (.*?)\)$", rf" (\1; {hint})", str(error))
        raise ProvidersError([f"{path}: cannot be read as TOML: {problem}"]) from error
    except RecursionError:
        values = None
    if values is None or _is_nested_deeper(values, _MAX_DEPTH):
        raise ProvidersError([f"{path}: has values that are nested deeper than {_MAX_DEPTH} levels"])
    bases = _bases()
    values = bases.get(str(values.get("base")), {}) | values
    model = MODELS.get(str(values.get("auth_method")), Declaration)
    context = {"dev_mode": dev_mode, "names": DeclaredNames.of(values), "bases": sorted(bases)}
    problems: list[tuple[Sequence[str], str]]
    try:
        declaration = model.model_validate(values, context=context)
        problems = list(_contradictions(declaration)) if finds_mistakes else []
        if not problems:
            return declaration
    except ValidationError as error:
        problems = [*_describe_errors(error, model), *_further_problems(error, model, values, context)]
        if model is Declaration:
            problems += [([key], _unknown_key(key, model)) for key in values if not _is_key_of_any(key)]
    lines = _lines_of(text)
    raise ProvidersError(
        f"{path}: {'.'.join(loc)}: {problem} ({_hint(loc, model, lines)})".removesuffix(" ()")
        for loc, problem in problems
    )


@cache
def _bases() -> Mapping[str, dict[str, Any]]:
    """What each family has in common, by its name."""
    files = declaration_files(BASES)
    return {file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8")) for file in files}


def _is_nested_deeper(value: object, depth: int) -> bool:
    """Whether a value has more levels; what reads declarations calls itself for each level."""
    level = [value]
    while level and depth >= 0:
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for inner in parts for part in inner]
        depth -= 1
    return bool(level)


def _text_of(path: Traversable) -> str:
    """The text of a file. Raises `ProvidersError`."""
    if not path.is_file():  # a pipe would be waited for
        raise ProvidersError([f"{path}: is not a file, or does not exist"])
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise ProvidersError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > _MAX_SIZE:
        raise ProvidersError([f"{path}: has more than {_MAX_SIZE} bytes"])
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ProvidersError([f"{path}: is not in UTF-8 (line {line}; save it with this encoding)"]) from error
    if text.count("\n") > _MAX_LINES:
        raise ProvidersError([f"{path}: has more than {_MAX_LINES} lines"])
    return text


def json_schema() -> dict[str, Any]:
    """The language as JSON Schema, for editors. What else than its names is required may come from a family."""
    declarations: TypeAdapter[Any] = TypeAdapter(OAuth2Declaration | ApiKeyDeclaration | BasicDeclaration)
    schema = declarations.json_schema(mode="validation", by_alias=True)
    for model in _with_tables(MODELS.values()):
        properties = schema["$defs"][model.__name__]["properties"]
        for key, field in keys_of(model).items():
            properties[key]["description"] = field.description
    names = ["integration_type", "auth_method"]
    for model in MODELS.values():
        definition = schema["$defs"][model.__name__]
        others = [key for key in definition["required"] if key not in names]
        definition |= {"required": names, "anyOf": [{"required": others}, {"required": ["base"]}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Provider declaration", **schema}


def _with_tables(models: Collection[type[BaseModel]]) -> set[type[BaseModel]]:
    """The models, and those of the tables in them."""
    tables = (table_of(field.annotation) for model in models for field in model.model_fields.values())
    inner = {table for table in tables if table is not None}
    return {*models, *(_with_tables(inner) if inner else ())}


# --- problems --------------------------------------------------------------------------------------------------------

_MESSAGES = {"missing": "is required"}
_PLACEHOLDERS = {  # of required keys, while the other keys of an invalid file are compared with each other
    "integration_type": "x",
}
_PLACEHOLDER_URL = "https://x.example/"  # of invalid ones, in the same way
_ACCOUNT_SOURCES = frozenset({"verify", "lookup", "token_response", "keep_callback", "config_fields", "login"})
_MAX_LISTED_KEYS = 15  # of a table; a whole declaration has more, which `types schema` lists


def _describe_errors(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Sequence[str], str]]:
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        loc = tuple(part for part in map(str, detail["loc"]) if part != "[key]")
        yield loc, _problem_at(loc, detail, model)


def _further_problems(
    error: ValidationError, model: type[Declaration], values: Mapping[str, Any], context: Mapping[str, Any]
) -> Iterator[tuple[Sequence[str], str]]:
    """The contradictions between those keys of a file that are valid."""
    invalid = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    required = {key: value for key, value in _PLACEHOLDERS.items() if key in keys_of(model)}
    others = required | {key: value for key, value in values.items() if key not in invalid}
    others |= {key: _PLACEHOLDER_URL for key in invalid & keys_of(model).keys() if key.endswith("_url")}
    try:
        valid = model.model_validate(others, context=context)
    except ValidationError:
        return  # without a valid `auth_method` it is not known which keys belong together
    for loc, problem in _contradictions(valid):
        depends_on = _ACCOUNT_SOURCES if loc[0].startswith("account_") else frozenset[str]()
        if not any(name.startswith(loc[0]) or name in depends_on for name in invalid):
            yield loc, problem


def _contradictions(declaration: Declaration) -> Iterator[tuple[Sequence[str], str]]:
    # The declarations that are built in are not searched for mistakes at a start.
    from integration_server.providers.declaration_contradictions import problems_between  # noqa: PLC0415
    from integration_server.providers.declaration_mistakes import likely_mistakes  # noqa: PLC0415

    for key, problem in (*problems_between(declaration), *likely_mistakes(declaration)):
        yield key.split("."), problem


def _problem_at(loc: Sequence[str], detail: ErrorDetails, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(loc[-1], _find(loc, model)[0])
    return _MESSAGES.get(detail["type"], detail["msg"])


def _hint(loc: Sequence[str], model: type[BaseModel], lines: Mapping[tuple[str, ...], int]) -> str:
    """The line, and the description of the key or of the table that has it."""
    _, field = _find(loc, model)
    description = "" if field is None or field.description is None else " ".join(field.description.split())
    return "; ".join(part for part in (_line_of(loc, lines), description) if part)


def _unknown_key(key: str, parent: type[BaseModel]) -> str:
    elsewhere = {name: method for method, model in MODELS.items() for name in keys_of(model)}
    if issubclass(parent, Declaration) and key in elsewhere:
        return f"is not allowed with this auth_method, only with {elsewhere[key]}"
    close = get_close_matches(key, elsewhere if parent is Declaration else keys_of(parent), n=1)
    if close:
        return f"is not known; did you mean {close[0]}?"
    known = f"; known are {', '.join(sorted(keys_of(parent)))}" if len(keys_of(parent)) <= _MAX_LISTED_KEYS else ""
    return f"is not known{known}"


def _is_key_of_any(key: str) -> bool:
    return any(key in keys_of(model) for model in MODELS.values())


@cache
def keys_of(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of a model by their keys in a file, with their docstrings as descriptions.

    The source is parsed here, and not with the class: a server whose declarations are valid shows no description.
    """
    descriptions: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            descriptions |= _attribute_docstrings(parent)
    keys = {}
    for name, field in model.model_fields.items():
        described = copy(field)
        described.description = descriptions.get(name)
        keys[field.alias or name] = described
    return keys


def _attribute_docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """The texts that follow the fields of a class in its source, by field."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    statements = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: inspect.cleandoc(text)
        for field, after in pairwise(statements)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr)
        if isinstance(after.value, ast.Constant) and isinstance(text := after.value.value, str)
    }


def _find(loc: Sequence[str], model: type[BaseModel]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The model that has the last key of a location, and the field of that key."""
    field: FieldInfo | None = None
    parent = model
    for part in loc:
        fields = keys_of(model)
        if part in fields:
            parent, field = model, fields[part]
            model = table_of(field.annotation) or model
        elif field is None or part != loc[-1]:
            parent = model
    return (model if loc and loc[-1] not in keys_of(parent) else parent), field


def table_of(annotation: object) -> type[BaseModel] | None:
    """The model in a type such as `dict[str, Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := table_of(part))), None)


def _lines_of(text: str) -> Mapping[tuple[str, ...], int]:
    """The line of each key, where its statement begins: the first line after which a shorter text has it."""
    lines = text.splitlines(keepends=True)
    found: dict[tuple[str, ...], int] = {}
    begin = 0
    for end in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("".join(lines[:end]))
        except ValueError:
            continue  # within a statement
        for path in _paths(values, ()):
            found.setdefault(path, begin + 1)
        begin = end
    return found


def _paths(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, part in items:
        yield from _paths(part, (*path, str(name)))


def _line_of(loc: Sequence[str], lines: Mapping[tuple[str, ...], int]) -> str:
    """The line of the location, or of the table that lacks it; nothing for a key that the whole file lacks."""
    known = (lines[part] for end in range(len(loc), 0, -1) if (part := tuple(loc[:end])) in lines)
    line = next(known, None)
    return "" if line is None else f"line {line}"


# --- providers -------------------------------------------------------------------------------------------------------


def provider_class(
    declaration: Declaration,
    declared_in: Traversable | None = None,
    behaviour: Any = None,  # noqa: ANN401  # a class, also an abstract one
) -> type[BaseProvider]:
    """A subclass of the generic provider, or of the one whose behaviour differs, with the declared values."""
    values = {name: getattr(declaration, name) for name in declaration.model_fields_set}
    files = [] if declared_in is None else [declared_in]
    if (base := values.pop("base", None)) is not None:
        files.append(BASES / f"{base}.toml")
    values |= {"__module__": __name__, "declared_in": files}
    values["expiring_facts"] = tuple(fact.fact() for fact in declaration.expiring_facts)
    if (revoke := values.pop("revoke", None)) is not None:
        values |= {f"revoke_{name}": getattr(revoke, name) for name in type(revoke).model_fields}
        values["revocation_ends"] = values.pop("revoke_ends")
    if isinstance(declaration, ApiKeyDeclaration):
        header, query = values.pop("api_key_header", None), values.pop("api_key_query_param", None)
        values["request_headers"] = {**declaration.request_headers, **({header: "{api_key}"} if header else {})}
        values["request_query"] = {**declaration.request_query, **({query: "{api_key}"} if query else {})}
    if (webhook := values.pop("webhook", None)) is not None:
        values["webhook_scheme"] = SCHEMES[webhook.scheme] if webhook.scheme else declared_scheme(webhook)
    if isinstance(declaration, OAuth2Declaration) and declaration.grant != "authorization_code":
        values["oauth_authorize_url"] = None
    if isinstance(declaration, OAuth2Declaration) and declaration.grant in SECRET_GRANTS:
        values.setdefault("oauth_token_url", None)  # of a login
        values["refresh_token_grace"] = timedelta.max  # the secrets obtain tokens any number of times
    values["rate_limits"] = tuple(limit.rate_limit() for limit in declaration.rate_limits)
    name = "".join(part.title() for part in declaration.integration_type.split("_"))
    generic = _FAMILIES.get(declaration.base, _GENERIC[declaration.auth_method])
    return type(f"{name}Provider", (behaviour or generic,), values)
