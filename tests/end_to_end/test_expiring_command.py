"""The command `expiring`, which lists integrations that expire within some days."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.engine import open_database
from tests.contracts.integration_rows import SqlRows, account, new_integration
from tests.end_to_end.processes import run, server_environment

DAY = timedelta(days=1)


async def connect(database_url: str, account_id: str, credentials: NewCredentials) -> None:
    async with open_database(database_url) as database:
        row = await SqlRows(database).add_connected(
            new_integration(), account(account_id), credentials, datetime.now(UTC)
        )
        assert row is not None


async def test_the_expiring_command_lists_the_integrations_that_expire(sqlite_url: str, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    environment = server_environment(sqlite_url, ENCRYPTION_KEY="", DEV_MODE="", COLUMNS="200")
    nothing = await run(tmp_path, environment, "expiring")
    assert (nothing.code, nothing.out) == (0, "")
    assert "No grant with a known expiry" in nothing.err

    renewable = NewCredentials(b"encrypted", is_renewable=True, refresh_token_expire_time=now + 3.5 * DAY)
    await connect(sqlite_url, "[b]renew\u200bable\x1b", renewable)
    await connect(sqlite_url, "once", NewCredentials(b"encrypted", access_token_expire_time=now + 1.5 * DAY))
    listed = await run(tmp_path, environment, "expiring", "--days", "4")
    _, first_line, second_line = listed.out.splitlines()
    assert [(line.split()[2], " ".join(line.split()[-2:])) for line in (first_line, second_line)] == [
        ("1.5", "access token"),
        ("3.5", "refresh token"),
    ]
    assert "[b]renew\\u{200b}able\\u{1b}@example.com" in second_line  # escaped, and not read as markup
    as_json = await run(tmp_path, environment, "expiring", "--days", "4", "--json")
    records = [json.loads(line) for line in as_json.out.splitlines()]
    assert [(record["in_days"], record["account"]) for record in records] == [
        (1.5, "once@example.com"),
        (3.5, "[b]renew\u200bable\x1b@example.com"),
    ]

    fewer = await run(tmp_path, environment, "expiring", "--days", "2")
    assert "refresh token" not in fewer.out
    first = await run(tmp_path, environment, "expiring", "--limit", "1")
    assert "there may be more" in first.err
    wrong = await run(tmp_path, environment, "expiring", "--days", "-1")
    assert wrong.code == 2
    assert "--days" in wrong.err
