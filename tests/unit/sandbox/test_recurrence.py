"""The sandbox's recurring events have the instances that RFC 5545 §3.3.10 gives them."""

from typing import Any

import pytest

from integration_server.sandbox.recurrence import expand_series


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        ("RRULE:FREQ=DAILY;COUNT=3", ["20260328", "20260329", "20260330"]),
        ("RRULE:FREQ=WEEKLY;INTERVAL=2;COUNT=2", ["20260328", "20260411"]),
        ("RRULE:FREQ=WEEKLY;UNTIL=20260411", ["20260328", "20260404", "20260411"]),
        ("RRULE:FREQ=YEARLY;COUNT=2", []),
        ("RDATE;VALUE=DATE:20260401", []),
    ],
)
def test_a_rule_gives_the_days_of_the_instances(rule: str, days: list[str]) -> None:
    series: dict[str, Any] = {"id": "a", "start": {"date": "2026-03-28"}, "end": {"date": "2026-03-29"}}
    instances = list(expand_series({**series, "recurrence": [rule]}))
    assert [instance["id"] for instance in instances] == [f"a_{day}" for day in days]
    assert all("recurrence" not in instance for instance in instances)


def test_an_endless_rule_has_bounded_instances_at_the_same_local_time() -> None:
    start = {"dateTime": "2026-03-27T09:00:00Z", "timeZone": "Europe/Zurich"}
    end = {"dateTime": "2026-03-27T10:00:00Z", "timeZone": "Europe/Zurich"}
    series = {"id": "a", "start": start, "end": end, "recurrence": ["RRULE:FREQ=DAILY"]}
    instances = list(expand_series(series))
    assert len(instances) == 730
    assert instances[2]["originalStartTime"]["dateTime"] == "2026-03-29T08:00:00Z"  # clocks go forward
    assert instances[2]["end"]["dateTime"] == "2026-03-29T09:00:00Z"
