"""Hot reload of files."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile


def number_in(contents: Contents) -> int:
    try:
        return sum(int(content) for content in contents.values())
    except ValueError:
        raise InvalidFile("is not a number") from None


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    write(path, "1")
    return path


async def test_the_value_follows_the_file(path: Path) -> None:
    reloaded = ReloadedFile("number", [path], number_in)
    assert reloaded.value == 1
    write(path, "2")
    assert reloaded.value == 1
    await reloaded.poll()
    assert reloaded.value == 2


async def test_an_invalid_file_keeps_the_value_and_is_logged_once(path: Path) -> None:
    reloaded = ReloadedFile("number", [path], number_in)
    with capture_logs() as logs:
        for content in ("two", "two", "three"):
            write(path, content)
            await reloaded.poll()
        remove(path)
        await reloaded.poll()
        await reloaded.poll()
    assert reloaded.value == 1
    assert [entry["problems"] for entry in logs] == [
        ("is not a number",),
        (f"{path}: cannot be read (No such file or directory)",),
    ]
    write(path, "3")
    await reloaded.poll()
    assert reloaded.value == 3


async def test_an_earlier_content_is_valid_again(path: Path) -> None:
    reloaded = ReloadedFile("number", [path], number_in)
    for content, value in (("bad", 1), ("1", 1), ("2", 2)):
        write(path, content)
        await reloaded.poll()
        assert reloaded.value == value


def test_the_constructor_rejects_invalid_and_missing_files(path: Path) -> None:
    write(path, "one")
    with pytest.raises(InvalidFile, match="is not a number"):
        ReloadedFile("number", [path], number_in)
    with pytest.raises(InvalidFile) as missing:
        ReloadedFile("number", [path.with_name("a"), path.with_name("b")], number_in)
    assert len(missing.value.problems) == 2
