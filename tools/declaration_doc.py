"""Writes the table of keys of docs/adding-a-provider.md from the model of declarations: `make providers-doc`."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from integration_server.providers.declaration import MODELS
from integration_server.providers.toml_providers import keys_of, table_of

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-provider.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"
NAMES = {"timedelta": "seconds", "float": "number", "int": "number", "bool": "true or false", "str": "text"}


def render_page(page: str) -> str:
    """The page with an up-to-date table of keys."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_tables()}\n{END}{after}"


def render_tables() -> str:
    """One table for the keys of a file, and one for the keys of each table in it."""
    methods: dict[str, list[str]] = {}
    fields: dict[str, FieldInfo] = {}
    for method, model in MODELS.items():
        for key, field in keys_of(model).items():
            methods.setdefault(key, []).append(method)
            fields.setdefault(key, field)
    lines = ["| key | value | for | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        allowed = "all" if len(methods[key]) == len(MODELS) else ", ".join(methods[key])
        lines.append(f"| `{key}` | {type_name(field)} | {allowed} | {meaning(field)} |")
    for title, table in tables(fields):
        lines += ["", f"`{title}`:", "", "| key | value | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {type_name(field)} | {meaning(field)} |" for key, field in keys_of(table).items()]
    return "\n".join(lines) + "\n"


def tables(fields: dict[str, FieldInfo]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The tables of a declaration with their titles, each model once."""
    found: dict[type[BaseModel], list[str]] = {}
    pending = list(fields.items())
    while pending:
        path, field = pending.pop(0)
        model = table_of(field.annotation)
        if model is not None:
            found.setdefault(model, []).append(f"{path}.<name>" if get_origin(field.annotation) is dict else path)
            if len(found[model]) == 1:
                pending += [(f"{path}.{key}", inner) for key, inner in keys_of(model).items()]
    return ((" / ".join(paths), model) for model, paths in found.items())


def meaning(field: FieldInfo) -> str:
    """The description of a field, and its default."""
    text = re.sub(r"\s+", " ", field.description or "")
    default = field.default
    is_shown = not field.is_required() and isinstance(default, str | bool | int | float) and default != ""
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"**Required.** {text}" if field.is_required() else f"{text} Default: `{shown}`." if is_shown else text


def type_name(field: FieldInfo) -> str:
    """The type of a field in words."""
    return _name(field.annotation)


def _name(annotation: Any) -> str:  # noqa: ANN401  # any type
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in {Union, UnionType}:
        return _name(next(part for part in args if part is not type(None)))
    if origin is list:
        return f"list of {_name(args[0])}"
    if origin is dict:
        return f"table of {_name(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    name = getattr(annotation, "__name__", "value")
    return NAMES.get(name, "text" if hasattr(annotation, "_member_map_") else "value")


def main() -> None:
    """Write the page."""
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
