"""Output of commands: tables, fields, and JSON.

Others choose names, accounts and messages, so every text is escaped before it reaches a terminal. A table has neither
colours nor lines, and each row is one line: a terminal that is too narrow cuts the widest cells; a pipe or a file gets
everything. JSON is that of the REST API: the contract's names, 64-bit integers as strings.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len, set_cell_size

from integration_server.domain.text_escaping import escape

ItemT = TypeVar("ItemT")

_GAP = "  "
_ABSENT = "-"  # so that each row of a table in a pipe has the same number of fields
_MIN_WIDTH = 6  # of a cell that is cut


def format_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    *,
    clean: Callable[[str], str] = escape,
) -> Sequence[str]:
    """Return the lines of a table. `width` is that of the terminal, in cells; None: cut nothing.

    A column whose name begins with "!" is never cut, such as an id: the others give way.
    """
    names = [name.removeprefix("!") for name in columns]
    body = [[clean(cell) or _ABSENT for cell in row] for row in rows]
    lines = [[name.upper() for name in names], *body]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    if width is not None:
        cuttable = [index for index, name in enumerate(columns) if not name.startswith("!")]
        _shrink(widths, cuttable, width - len(_GAP) * (len(columns) - 1))
    return [_GAP.join(map(_fit, cells, widths)).rstrip() for cells in lines]


def _shrink(widths: list[int], cuttable: Sequence[int], available: int) -> None:
    """Narrow the widest columns until all fit."""
    while sum(widths) > available and any(widths[index] > _MIN_WIDTH for index in cuttable):
        widths[max(cuttable, key=lambda index: widths[index])] -= 1


def _fit(cell: str, width: int) -> str:
    if cell_len(cell) <= width:
        return set_cell_size(cell, width)
    return set_cell_size(cell, width - 1).rstrip() + "…"


def output_width() -> int | None:
    """The width of the terminal in cells; None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], nothing: str, *, clean: Callable[[str], str] = escape
) -> None:
    """Print a table. Without rows, `nothing` is printed on standard error."""
    if not rows:
        typer.echo(nothing, err=True)
        return
    for line in format_table(columns, rows, output_width(), clean=clean):
        typer.echo(line)


def print_records(
    columns: Sequence[str],
    records: Sequence[Sequence[object]],
    nothing: str,
    *,
    as_json: bool,
    clean: Callable[[str], str] = escape,
) -> None:
    """Print records of this machine: as a table, or as a JSON object on each line, whose names are the columns'."""
    if not as_json:
        print_table(columns, [list(map(_text, record)) for record in records], nothing, clean=clean)
        return
    names = [name.removeprefix("!").removesuffix(" (UTC)").replace(" ", "_") for name in columns]
    for record in records:
        typer.echo(json.dumps(dict(zip(names, record, strict=True)), default=datetime.isoformat))


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%F %T}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def print_fields(fields: Mapping[str, str]) -> None:
    """Print fields that have a value, one on each line."""
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            typer.echo(f"{name:{width}}{_GAP}{escape(value)}")


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as the REST API has it."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(document: object) -> None:
    """Print a JSON document."""
    # ASCII: JSON's own escapes also cover what a terminal would obey.
    typer.echo(json.dumps(document, indent=2))


def print_result(document: Mapping[str, object], *lines: str, as_json: bool) -> None:
    """Print what a command has done: as a JSON document, or as lines of text."""
    if as_json:
        typer.echo(json.dumps(document, indent=2, default=datetime.isoformat))
    else:
        typer.echo("\n".join(lines))


def print_json_lines(messages: Iterable[Message]) -> None:
    """Print one JSON object on each line, as the messages arrive."""
    for message in messages:
        typer.echo(json.dumps(to_json(message)))


def format_time(message: Message, field: str) -> str:
    """Return a time in UTC, to the second; empty if it is unset."""
    if not message.HasField(field):
        return ""
    value: Timestamp = getattr(message, field)
    return f"{value.ToDatetime(UTC):%F %T}"


@contextmanager
def waiting(activity: str) -> Iterator[None]:
    """Show an activity on standard error while it lasts, if that is a terminal."""
    from rich.console import Console  # noqa: PLC0415  # commands that do not wait need none of it

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(escape(activity)):
        yield


def counted(activity: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Return the items, and show on standard error how many have arrived, if that is a terminal."""
    from rich.console import Console  # noqa: PLC0415  # likewise

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    with console.status(activity) as status:
        for number, item in enumerate(items, 1):
            status.update(f"{activity}: {number:,}")
            yield item
