"""Tables of commands: 80 columns, pipes, and texts that others choose."""

import json
from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from integration_server.cli.integrations import INTEGRATION_COLUMNS, integration_row
from integration_server.cli.tables import format_table, print_json_lines, to_json
from integrations.v1.integration_pb2 import STATUS_ACTIVE, Integration

HOSTILE = "\x1b[2J\x1b]0;title\x07\u202ea\nb\tc\x9b1m"


def integration(**fields: object) -> Integration:
    given = {"integration_id": 2**63 - 1, "integration_type": "google_calendar", "status": STATUS_ACTIVE, **fields}
    return Integration(**given)  # type: ignore[arg-type]  # the fields of a message


@pytest.mark.parametrize("name", ["short", "a long name " * 30, "日本語の名前" * 20, "e\u0301" * 90, HOSTILE * 9, ""])
def test_a_row_is_one_line_that_fits_a_terminal_of_80_columns(name: str) -> None:
    rows = [integration_row(integration(name=name, account_label=name)) for _ in range(3)]
    lines = format_table(INTEGRATION_COLUMNS, rows, 80)
    assert len(lines) == 1 + len(rows)
    for line in lines:
        assert cell_len(line) <= 80
        assert line.isprintable()
        assert line == line.rstrip()
    assert all(str(2**63 - 1) in line and "ACTIVE" in line for line in lines[1:])  # an id is never cut


def test_without_the_escaping_a_text_controls_the_terminal() -> None:
    assert "\x1b[2J" in "".join(format_table(["name"], [[HOSTILE]], None, clean=str))
    assert "\x1b" not in "".join(format_table(["name"], [[HOSTILE]], None))


def test_a_pipe_gets_whole_cells_in_columns() -> None:
    long = "x" * 300
    lines = format_table(["!id", "name", "error"], [["1", long, ""], ["12", "y", "z"]], None)
    assert [line.split() for line in lines] == [["ID", "NAME", "ERROR"], ["1", long, "-"], ["12", "y", "z"]]
    assert len({line.index(cell) for line, cell in zip(lines, ("NAME", "x", "y"), strict=True)}) == 1


def test_a_cut_cell_says_so() -> None:
    (_, row) = format_table(["!id", "name"], [["1", "x" * 100]], 20)
    assert row.endswith("…")
    assert len(row) == 20


@pytest.mark.parametrize("width", [1, 10, 40])
def test_a_terminal_that_is_far_too_narrow_gets_what_fits_least(width: int) -> None:
    lines = format_table(INTEGRATION_COLUMNS, [integration_row(integration(name="n" * 50))], width)
    assert len({len(line) for line in lines}) <= 2
    assert "nnnnn…" in lines[1]


def lines_of(capsys: pytest.CaptureFixture[str]) -> Sequence[str]:
    return capsys.readouterr().out.splitlines()


def test_json_has_the_contracts_names_and_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_lines([integration(name=HOSTILE), integration()])
    lines = lines_of(capsys)
    assert len(lines) == 2
    assert lines[0].isascii()
    assert lines[0].isprintable()
    first = json.loads(lines[0])
    assert first == to_json(integration(name=HOSTILE))
    assert (first["name"], first["integration_id"], first["status"]) == (HOSTILE, str(2**63 - 1), "STATUS_ACTIVE")
    assert first["error_count"] == 0
