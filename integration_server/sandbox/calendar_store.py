"""The store of the sandbox's calendars, with the rules of Google's API (see `calendar.py`) and without HTTP."""

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from integration_server.sandbox.model import Account
from integration_server.sandbox.recurrence import expand_series

TEAM: Final = "team@example.com"

_TEXTS: Final = frozenset({"summary", "description", "location", "status", "visibility", "transparency"})
_WRITABLE: Final = _TEXTS | {"start", "end", "attendees", "recurrence", "reminders", "extendedProperties"}
_IDENTIFYING: Final = ("recurringEventId", "originalStartTime")
_KEPT: Final = (*_IDENTIFYING, "created", "iCalUID")
_KEPT_CHANGES: Final = timedelta(days=28)


class ApiError(Exception):
    """An error of Google's API."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(slots=True)
class StoredCalendar:
    """The events of one calendar, deleted ones included, each with the number of its last change.

    A recurring event is stored once; its instances are stored only if they were changed or cancelled.
    """

    owner: str
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    oldest: int = 0
    """The number before which sync tokens have expired."""


class CalendarStore:
    """The calendars of all accounts. `writes` counts the changes."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._calendars: dict[tuple[str, str], StoredCalendar] = {}
        self._numbers = itertools.count(1)
        self.writes = 0

    def calendar(self, account: Account, calendar_id: str) -> StoredCalendar:
        name = account.email if calendar_id == "primary" else calendar_id
        if name not in {account.email, TEAM}:
            raise ApiError(404, "notFound")
        return self._calendars.setdefault((account.sub, name), StoredCalendar(account.email))

    def expire_sync_tokens(self) -> None:
        """Expire all sync tokens that were issued so far."""
        number = next(self._numbers)
        for calendar in self._calendars.values():
            calendar.oldest = number

    def number(self) -> int:
        return next(self._numbers)

    def insert(self, calendar: StoredCalendar, fields: Mapping[str, Any]) -> dict[str, Any]:
        event_id = fields.get("id") or secrets.token_hex(13)
        if event_id in calendar.events:
            raise ApiError(409, "duplicate")
        if not all(isinstance(fields.get(name), dict) for name in ("start", "end")):
            raise ApiError(400, "required")
        return self._save(calendar, event_id, {name: fields[name] for name in _WRITABLE & fields.keys()})

    def find(self, calendar: StoredCalendar, event_id: str) -> dict[str, Any]:
        """An event or an instance, also a deleted one."""
        series = calendar.events.get(event_id.rpartition("_")[0], {})
        instances = self.instances(calendar, series) if event_id not in calendar.events else ()
        found = calendar.events.get(event_id) or next(
            (instance for instance in instances if instance["id"] == event_id), None
        )
        if found is None:
            raise ApiError(404, "notFound")
        return found

    def instances(self, calendar: StoredCalendar, series: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The instances of a recurring event, changed ones as they are."""
        return (calendar.events.get(instance["id"], instance) for instance in expand_series(series))

    def all_events(self, calendar: StoredCalendar, *, single: bool) -> Iterator[dict[str, Any]]:
        """All events; if `single`, the instances of recurring events instead of these."""
        for event in list(calendar.events.values()):
            if single and event.get("recurrence"):
                yield from self.instances(calendar, event)
            elif not (single and calendar.events.get(event.get("recurringEventId", ""), {}).get("recurrence")):
                yield event

    def require_kept(self, updated_min: datetime) -> None:
        """Raise unless all changes since a time are known."""
        if updated_min < self._now() - _KEPT_CHANGES:
            raise ApiError(410, "updatedMinTooLongAgo")

    def patch(
        self, calendar: StoredCalendar, event_id: str, fields: Mapping[str, Any], etag: str | None
    ) -> dict[str, Any]:
        before = self.current(calendar, event_id, etag)
        after = _merge(
            {name: before[name] for name in _WRITABLE & before.keys()},
            {name: fields[name] for name in _WRITABLE & fields.keys()},
        )
        if any({"date", "dateTime"} <= after[name].keys() for name in ("start", "end")):
            raise ApiError(400, "invalid")
        if fields.get("attendeesOmitted"):
            replacements = {attendee.get("email"): attendee for attendee in after["attendees"]}
            after["attendees"] = [
                replacements.get(attendee.get("email"), attendee) for attendee in before.get("attendees", ())
            ]
        return self._save(calendar, event_id, {**after, **{name: before[name] for name in _KEPT if name in before}})

    def delete(self, calendar: StoredCalendar, event_id: str, etag: str | None) -> None:
        if calendar.events.get(event_id, {}).get("status") == "cancelled":
            raise ApiError(410, "deleted")
        self.current(calendar, event_id, etag)
        changed = [event["id"] for event in calendar.events.values() if event.get("recurringEventId") == event_id]
        for name in (event_id, *changed):
            before = self.find(calendar, name)
            cancelled = {"kind": "calendar#event", "id": name, "status": "cancelled", "updated": self._timestamp()}
            cancelled |= {kept: before[kept] for kept in _IDENTIFYING if kept in before}
            calendar.events[name], calendar.changes[name] = cancelled, next(self._numbers)
        self.writes += 1

    def current(self, calendar: StoredCalendar, event_id: str, etag: str | None) -> dict[str, Any]:
        event = self.find(calendar, event_id)
        if event["status"] == "cancelled":
            raise ApiError(404, "notFound")
        if etag is not None and etag != event["etag"]:
            raise ApiError(412, "conditionNotMet")
        return event

    def _save(self, calendar: StoredCalendar, event_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        now = self._timestamp()
        owner = {"email": calendar.owner, "self": True}
        event = {
            "kind": "calendar#event",
            "status": "confirmed",
            "created": now,
            "iCalUID": f"{event_id}@calendar.example",
            **fields,
            "id": event_id,
            "etag": f'"{number:016d}"',
            "htmlLink": f"https://calendar.example/event?eid={event_id}",
            "creator": owner,
            "organizer": owner,
            "eventType": "default",
            "sequence": 0,
            "updated": now,
        }
        calendar.events[event_id], calendar.changes[event_id] = event, number
        self.writes += 1
        return event

    def _timestamp(self) -> str:
        return self._now().isoformat().replace("+00:00", "Z")


def _merge(before: Any, patch: Any) -> Any:  # noqa: ANN401  # JSON values
    """A patch is merged as in RFC 7396: objects at all levels, and null removes a field."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        merged[name] = _merge(merged.get(name), value)
    return {name: value for name, value in merged.items() if value is not None}
