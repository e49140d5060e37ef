"""The store of the sandbox's calendars, with the rules of Google's API (see `calendar.py`) and without HTTP."""

import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from integration_server.sandbox.model import Account

TEAM: Final = "team@example.com"

_TEXTS: Final = frozenset({"summary", "description", "location", "status", "visibility"})
_WRITABLE: Final = _TEXTS | {"start", "end", "attendees", "recurrence", "reminders"}


class ApiError(Exception):
    """An error of Google's API."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(slots=True)
class StoredCalendar:
    """The events of one calendar, deleted ones included, each with the number of its last change."""

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
        return self._calendars.setdefault((account.sub, name), StoredCalendar())

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

    def patch(
        self, calendar: StoredCalendar, event_id: str, fields: Mapping[str, Any], etag: str | None
    ) -> dict[str, Any]:
        before = self.current(calendar, event_id, etag)
        after = {name: before[name] for name in _WRITABLE & before.keys()}
        for name in _WRITABLE & fields.keys():
            value = fields[name]
            if isinstance(value, dict):  # a patch is merged; null removes a field
                merged = {**(after.get(name) or {}), **value}
                value = {key: part for key, part in merged.items() if part is not None}
                if {"date", "dateTime"} <= value.keys():
                    raise ApiError(400, "invalid")
            after[name] = value
        return self._save(calendar, event_id, after)

    def delete(self, calendar: StoredCalendar, event_id: str, etag: str | None) -> None:
        if calendar.events.get(event_id, {}).get("status") == "cancelled":
            raise ApiError(410, "deleted")
        self.current(calendar, event_id, etag)
        calendar.events[event_id] = {"kind": "calendar#event", "id": event_id, "status": "cancelled"}
        calendar.changes[event_id] = next(self._numbers)
        self.writes += 1

    def current(self, calendar: StoredCalendar, event_id: str, etag: str | None) -> dict[str, Any]:
        event = calendar.events.get(event_id)
        if event is None or event["status"] == "cancelled":
            raise ApiError(404, "notFound")
        if etag is not None and etag != event["etag"]:
            raise ApiError(412, "conditionNotMet")
        return event

    def _save(self, calendar: StoredCalendar, event_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        now = self._now().isoformat().replace("+00:00", "Z")
        created = calendar.events.get(event_id, {}).get("created", now)
        event = {
            "kind": "calendar#event",
            "status": "confirmed",
            **fields,
            "id": event_id,
            "etag": f'"{number:016d}"',
            "htmlLink": f"https://calendar.example/event?eid={event_id}",
            "created": created,
            "updated": now,
        }
        calendar.events[event_id], calendar.changes[event_id] = event, number
        self.writes += 1
        return event
