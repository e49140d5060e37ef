"""What the MACs of audit entries are computed over: JSON, so that no two entries have the same bytes."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from integration_server.domain.audit import Action, AuditEntry
from integration_server.storage.audit import Chain, commitment_of

KEY, SALT, COMMITMENT = b"k" * 32, b"s" * 32, b"c" * 32
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TEXTS = ("ada", "", '", "', '"], ["', "\\", '\\"', "\n\x00\x1f\x7f", "é\u2028\U0001f600", "\udcff", "'; --")


@pytest.mark.parametrize("text", TEXTS)
def test_entries_are_authenticated_as_json(text: str) -> None:
    """Also texts that end a string, which `AuditEntry.escaped` leaves as they are."""
    time = TIME.replace(microsecond=7).astimezone(timezone(timedelta(hours=2)))
    entry = AuditEntry(time, text, Action.CALL, text, -1, text, text, text, text, 1 << 62, 3)
    chain = Chain.empty("chain", 1, KEY)
    values = ["2026-01-02T03:04:05.000007+00:00", text, "call", -1, text, 1 << 62, text, 3, COMMITMENT.hex()]
    expected = hmac.digest(KEY, chain.head + json.dumps(values).encode(), "sha256")
    assert chain.extended_with(entry, COMMITMENT).head == expected
    assert commitment_of(entry, SALT) == hashlib.sha256(SALT + json.dumps([text] * 3).encode()).digest()


@pytest.mark.parametrize("changed", [{"integration_id": "1"}, {"integration_id": 1.0}, {"caller": None}, {"caller": 1}])
def test_values_of_another_type_are_errors(changed: dict[str, Any]) -> None:
    """In SQLite a column may have values of any type. They must not be taken for those that look like them."""
    values: dict[str, Any] = {"caller": "ada", "integration_id": 1, **changed}
    entry = AuditEntry(TIME, action=Action.CALL, **{**values, "caller": "ada"})
    object.__setattr__(entry, "caller", values["caller"])
    with pytest.raises((ValueError, TypeError)):
        Chain.empty("chain", 1, KEY).extended_with(entry, COMMITMENT)
