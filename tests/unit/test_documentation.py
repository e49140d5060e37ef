"""The documentation names only files that exist, and its tables have headers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ROOTS = (PROJECT, PROJECT / "integration_server", PROJECT / "tests", PROJECT / "docs")
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("examples/*.md")])


def links(page: Path) -> Iterator[str]:
    """The targets of relative links."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def paths(page: Path) -> Iterator[str]:
    """Paths in backticks, except those of the requirements and of generated files."""
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|proto|toml))`", page.read_text()):
        if not re.match(r"(\.|models/|schemas/|services/|routers/|data/|build/)", path):
            yield path


def rows_without_a_header(page: Path) -> list[str]:
    """Rows that begin a table and are not followed by its separator: they are shown as text."""
    lines = ["", *page.read_text().splitlines(), ""]
    return [
        line
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
        if line.startswith("| ") and not before.startswith("|") and not re.fullmatch(r"[-:| ]+", after)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_and_paths_exist(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []
    assert [path for path in paths(page) if not any((root / path).exists() for root in ROOTS)] == []


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](missing.md#part) [b](https://example.com) `rpc/missing.py` `rpc/*.py`")
    assert list(links(page)) == ["missing.md"]
    assert list(paths(page)) == ["rpc/missing.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_tables_have_a_header(page: Path) -> None:
    assert rows_without_a_header(page) == []


def test_a_row_without_a_header_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n")
    assert rows_without_a_header(page) == ["| 3 | 4 |"]
