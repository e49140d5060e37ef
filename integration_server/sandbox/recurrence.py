"""The instances of a recurring event in the sandbox's calendars: RFC 5545 §3.3.10 with FREQ, INTERVAL, COUNT and UNTIL.

DAILY and WEEKLY rules are expanded; other rules, EXRULE, RDATE and EXDATE are not. Instances repeat by local time.
"""

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

_PERIODS: Final = {"DAILY": timedelta(days=1), "WEEKLY": timedelta(weeks=1)}
_MAX_INSTANCES: Final = 730  # an endless rule has two years of days


def expand_series(series: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The instances of a recurring event by its rule, each with `recurringEventId` and `originalStartTime`."""
    rule = _rule(series)
    if rule.get("FREQ") not in _PERIODS:
        return
    period = _PERIODS[rule["FREQ"]] * int(rule.get("INTERVAL", "1"))
    shared = {name: value for name, value in series.items() if name != "recurrence"}
    for number in range(min(int(rule.get("COUNT", _MAX_INSTANCES)), _MAX_INSTANCES)):
        start, end = (_shift(series[name], number * period) for name in ("start", "end"))
        stamp = stamp_of(start)
        if "UNTIL" in rule and stamp > rule["UNTIL"]:
            return
        ids = {"id": f"{series['id']}_{stamp}", "recurringEventId": series["id"], "originalStartTime": start}
        yield {**shared, **ids, "start": start, "end": end}


def stamp_of(time: Mapping[str, str]) -> str:
    """A day or time in the form of iCalendar, in UTC: the last part of an instance's id."""
    if "dateTime" not in time:
        return time["date"].replace("-", "")
    return datetime.fromisoformat(time["dateTime"]).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def _rule(series: Mapping[str, Any]) -> Mapping[str, str]:
    lines = (line for line in series.get("recurrence") or () if line.startswith("RRULE"))
    parts = itertools.chain.from_iterable(line.partition(":")[2].split(";") for line in lines)
    return dict(part.split("=", 1) for part in parts if "=" in part)


def _shift(time: Mapping[str, str], offset: timedelta) -> dict[str, str]:
    if "dateTime" not in time:
        return {**time, "date": (date.fromisoformat(time["date"]) + offset).isoformat()}
    zone = ZoneInfo(time["timeZone"]) if "timeZone" in time else UTC
    local = datetime.fromisoformat(time["dateTime"]).astimezone(zone) + offset  # the same local time on another day
    return {**time, "dateTime": local.astimezone(UTC).isoformat().replace("+00:00", "Z")}
