"""Webhooks at two servers, one of which is killed: no accepted event is lost or duplicated.

A short version of `tests/faults/test_webhooks.py`.
"""

import random
from pathlib import Path

import pytest

from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.variants import WITH_WEBHOOKS, WITHOUT_DEDUPLICATION
from tests.end_to_end.webhook_senders import (
    WebhookSender,
    connect_accounts,
    list_inbox,
    run_servers,
    send_while_killing_a_server,
)

pytestmark = pytest.mark.slow


@pytest.mark.quick_on("postgres")
async def test_no_event_is_lost_or_duplicated_when_a_server_is_killed(
    prefork: PreforkServer, tmp_path: Path, database_url: str
) -> None:
    async with run_servers(tmp_path, database_url, prefork, WITH_WEBHOOKS) as servers:
        result = await send_while_killing_a_server(servers, random.Random(7), 4, 12)
    print(result)
    assert (result.accepted, result.lost, result.duplicates, result.out_of_order, result.unreported) == (48, 0, 0, 0, 0)


async def test_negative_control_without_deduplication_every_event_is_stored_twice(
    prefork: PreforkServer, tmp_path: Path, sqlite_url: str
) -> None:
    """Without deduplication, the inbox has each event twice."""
    async with run_servers(tmp_path, sqlite_url, prefork, WITHOUT_DEDUPLICATION) as servers:
        accounts = await connect_accounts(servers.all[0], 1)
        await WebhookSender(servers, random.Random(7)).send_all(accounts, 5)
        assert len(await list_inbox(servers.all[0].clients, accounts[0])) == 10


@pytest.mark.quick_on("postgres")
async def test_a_stream_resumes_from_its_cursor_after_a_server_is_killed(
    prefork: PreforkServer, tmp_path: Path, database_url: str
) -> None:
    async with run_servers(tmp_path, database_url, prefork, WITH_WEBHOOKS, count=1) as servers:
        result = await send_while_killing_a_server(servers, random.Random(8), 2, 8)
    assert (result.lost, result.duplicates, result.unreported) == (0, 0, 0)
