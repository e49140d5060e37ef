from datetime import UTC, datetime
from pathlib import Path

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.credentials.ports import JournaledRefresh
from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.refresh_journal import FileRefreshJournal, require_writable

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
REFRESH = JournaledRefresh(
    Integration(
        IntegrationId(7),
        "uid-7",
        UserId("ädä"),
        "acme",
        AuthMethod.OAUTH2,
        NOW,
        NOW,
        config={"region": ["eu", 1]},
        last_error=Failure("PROVIDER_UNAVAILABLE", NOW, "down"),
        version=3,
    ),
    NewCredentials(
        bytes(range(256)),
        scopes=("read", "write"),
        missing_scopes=("more",),
        lacks_required_scope=True,
        is_renewable=True,
        access_token_expire_time=NOW,
    ),
)


def modes(directory: Path) -> list[int]:
    """The permissions of the directory and its files."""
    return [path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "missing" / "journal"


async def test_a_journaled_refresh_is_pending_after_a_restart(directory: Path) -> None:
    await FileRefreshJournal(directory).append(REFRESH)
    assert await FileRefreshJournal(directory).pending() == [REFRESH]


async def test_the_files_are_private(directory: Path) -> None:
    await FileRefreshJournal(directory).append(REFRESH)
    assert modes(directory) == [0o700, 0o600]


async def test_a_removed_refresh_is_not_pending_and_can_be_removed_twice(directory: Path) -> None:
    journal = FileRefreshJournal(directory)
    await journal.append(REFRESH)
    for _ in range(2):
        await journal.remove(REFRESH)
        assert await journal.pending() == []


async def test_an_unreadable_file_is_kept_and_does_not_block_others(directory: Path) -> None:
    journal = FileRefreshJournal(directory)
    await journal.append(REFRESH)
    for name, content in (("1-1.refresh", b"{"), ("2-1.refresh", b'{"credentials": {}}'), ("3-1.12", b"")):
        (directory / name).write_bytes(content)
    assert await journal.pending() == [REFRESH]
    assert len(modes(directory)) == 1 + 4


async def test_a_refresh_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = FileRefreshJournal(tmp_path / "file" / "journal")
    await journal.append(REFRESH)
    assert await journal.pending() == [REFRESH]
    await journal.remove(REFRESH)
    assert await journal.pending() == []


async def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"REFRESH_JOURNAL_DIR: .*/file/journal"):
        require_writable(tmp_path / "file" / "journal")


async def test_a_missing_directory_has_no_pending_refreshes(directory: Path) -> None:
    assert await FileRefreshJournal(directory).pending() == []
