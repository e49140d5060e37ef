"""Readiness in the log: one line for each change, with its cause."""

import pytest
from structlog.testing import capture_logs

from integration_server.wiring.storage import NotReady, ReadinessLog

AWAY, REFUSED = NotReady("StoreUnavailable", "the database is away"), NotReady("KeyringError", "no key unwraps it")


def test_each_change_is_one_line() -> None:
    with capture_logs() as lines:
        log = ReadinessLog()
        for cause in (None, None, AWAY, AWAY, NotReady(AWAY.kind, "in other words"), REFUSED, None, None, AWAY):
            log.note(cause)
    assert [(line["event"], line.get("kind"), line.get("message")) for line in lines] == [
        ("ready", None, None),
        ("not_ready", AWAY.kind, AWAY.message),
        ("not_ready", REFUSED.kind, REFUSED.message),
        ("ready", None, None),
        ("not_ready", AWAY.kind, AWAY.message),
    ]


@pytest.mark.slow
def test_a_server_that_starts_without_its_database_says_so() -> None:
    with capture_logs() as lines:
        ReadinessLog().note(AWAY)
    assert [line["event"] for line in lines] == ["not_ready"]
