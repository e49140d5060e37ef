"""The command `expiring`, which lists integrations that expire within some days."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.engine import open_database
from integration_server.storage.integrations import SqlIntegrations
from tests.contracts.store_contract import account, new_integration
from tests.end_to_end.processes import run, server_environment

DAY = timedelta(days=1)


async def connect(database_url: str, account_id: str, credentials: NewCredentials) -> None:
    async with open_database(database_url) as database:
        row = await SqlIntegrations(database).add_connected(
            new_integration(), account(account_id), credentials, datetime.now(UTC)
        )
        assert row is not None


async def test_the_expiring_command_lists_the_integrations_that_expire(sqlite_url: str, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    environment = server_environment(sqlite_url, ENCRYPTION_KEY="", DEV_MODE="", COLUMNS="200")
    nothing = await run(tmp_path, environment, "expiring")
    assert (nothing.code, nothing.err) == (0, "")
    assert "No grant with a known expiry" in nothing.out

    renewable = NewCredentials(b"encrypted", is_renewable=True, refresh_token_expire_time=now + 3.5 * DAY)
    await connect(sqlite_url, "[b]renew\u200bable\x1b", renewable)
    await connect(sqlite_url, "once", NewCredentials(b"encrypted", access_token_expire_time=now + 1.5 * DAY))
    listed = await run(tmp_path, environment, "expiring", "--days", "4")
    lines = [line for line in listed.out.splitlines() if "token" in line]
    assert [(line.split("│")[2].strip(), line.split("│")[7].strip()) for line in lines] == [
        ("1.5", "access token"),
        ("3.5", "refresh token"),
    ]
    assert (
        lines[1].split("│")[6].strip() == "[b]renew\\u{200b}able\\u{1b}@example.com"
    )  # escaped, and not read as markup

    fewer = await run(tmp_path, environment, "expiring", "--days", "2")
    assert "refresh token" not in fewer.out
    first = await run(tmp_path, environment, "expiring", "--limit", "1")
    assert "there may be more" in first.out
    wrong = await run(tmp_path, environment, "expiring", "--days", "-1")
    assert wrong.code == 2
    assert "--days" in wrong.err
