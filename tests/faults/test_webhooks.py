"""5,000 webhooks per minute at two servers, one of which is killed; a fifth of the events is delivered twice."""

from pathlib import Path

from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.variants import WITH_WEBHOOKS
from tests.end_to_end.webhook_senders import run_servers, send_while_killing_a_server
from tests.faults.conftest import FaultTrial

ACCOUNTS = 50
EVENTS = 100  # of each
SENT_TWICE = 0.2
MINUTE = 60.0


async def test_no_event_is_lost_or_duplicated_when_a_server_is_killed(
    trial: FaultTrial, prefork: PreforkServer, tmp_path: Path, database_url: str
) -> None:
    """The test has one round, because it needs an empty database."""
    async with run_servers(tmp_path, database_url, prefork, WITH_WEBHOOKS) as servers:
        result = await send_while_killing_a_server(servers, trial.rng(1), ACCOUNTS, EVENTS, MINUTE / EVENTS, SENT_TWICE)
    trial.report(str(result))
    assert result.accepted == ACCOUNTS * EVENTS
    assert (result.lost, result.duplicates, result.out_of_order, result.unreported) == (0, 0, 0, 0)
