"""5,000 webhooks a minute over two servers, one of which is killed midway; a fifth of the events is delivered twice."""

from pathlib import Path

from tests.end_to_end.deliveries import running_servers, send_while_one_is_killed
from tests.end_to_end.nursery import Nursery
from tests.end_to_end.variants import WITH_WEBHOOKS
from tests.faults.conftest import Trial

ACCOUNTS = 50
EVENTS = 100  # of each
SENT_TWICE = 0.2
MINUTE = 60.0


async def test_nothing_is_lost_or_doubled_when_a_server_is_killed(
    trial: Trial, nursery: Nursery, tmp_path: Path, database_url: str
) -> None:
    """One round, whatever is asked for: it is the only one in its database."""
    async with running_servers(tmp_path, database_url, nursery, WITH_WEBHOOKS) as servers:
        result = await send_while_one_is_killed(servers, trial.chance(1), ACCOUNTS, EVENTS, MINUTE / EVENTS, SENT_TWICE)
    trial.say(str(result))
    assert result.accepted == ACCOUNTS * EVENTS
    assert (result.lost, result.duplicates, result.out_of_order, result.not_told) == (0, 0, 0, 0)
