"""A simulation of Google Calendar's API, version 3, as documented: developers.google.com/calendar/api.

An account has two calendars: its e-mail address, with the alias "primary", and "team@example.com". Etags, pages, sync
tokens and errors are as documented. Daily and weekly events have instances. No e-mail is sent.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from integration_server.sandbox.behaviour import Handler
from integration_server.sandbox.calendar_store import TEAM, ApiError, CalendarStore, StoredCalendar
from integration_server.sandbox.model import Account
from integration_server.sandbox.recurrence import stamp_of
from integration_server.sandbox.resources import find_bearer_token
from integration_server.sandbox.state import Sandbox

QUOTA_BODY: Final = (
    b'{"error": {"errors": [{"domain": "usageLimits", "reason": "rateLimitExceeded", '
    b'"message": "Rate Limit Exceeded"}], "code": 403, "message": "Rate Limit Exceeded"}}'
)
"""The body of the 403 response to too many calls."""

_PROPERTY_FILTERS: Final = {"private": "privateExtendedProperty", "shared": "sharedExtendedProperty"}
_NOT_WITH_SYNC_TOKENS: Final = (
    *("timeMin", "timeMax", "orderBy", "q", "updatedMin", "iCalUID"),
    *_PROPERTY_FILTERS.values(),
)


class SimulatedCalendarApi:
    """The API over HTTP."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def _store(self) -> CalendarStore:
        return self._sandbox.calendars

    def handler(self, operation: Callable[[Account, Request, dict[str, Any]], Response]) -> Handler:
        """The HTTP handler of an operation, which gets the account, the request and its JSON."""

        async def respond(request: Request) -> Response:
            account = self._sandbox.find_account(find_bearer_token(request) or "")
            if account is None:
                return _error(ApiError(401, "authError"))
            try:
                content = await request.json() if request.method in {"POST", "PATCH"} else {}
                return operation(account, request, content)
            except ValueError:
                return _error(ApiError(400, "parseError"))
            except ApiError as error:
                return _error(error)

        return respond

    def get_primary(self, account: Account, _request: Request, _content: dict[str, Any]) -> Response:
        return JSONResponse(self._entry(account, account.email))

    def list_calendars(self, account: Account, request: Request, _content: dict[str, Any]) -> Response:
        entries = [self._entry(account, calendar_id) for calendar_id in (account.email, TEAM)]
        page, token = _page(entries, request, default_size=100, max_size=250)
        return JSONResponse({"kind": "calendar#calendarList", "items": page, **token})

    def _entry(self, account: Account, calendar_id: str) -> dict[str, Any]:
        primary = {"primary": True} if calendar_id == account.email else {}
        return {
            "kind": "calendar#calendarListEntry",
            "id": calendar_id,
            "summary": account.name if primary else "Team",
            "timeZone": "Europe/London",
            "accessRole": "owner" if primary else "writer",
            **primary,
        }

    def list_events(self, account: Account, request: Request, _content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        query = request.query_params
        since = _parse_sync_token(query.get("syncToken"), calendar)
        if since is not None and any(name in query for name in _NOT_WITH_SYNC_TOKENS):
            raise ApiError(400, "invalid")
        if query.get("orderBy") == "startTime" and query.get("singleEvents") != "true":
            raise ApiError(400, "invalid")
        if "updatedMin" in query:
            self._store.require_kept(datetime.fromisoformat(query["updatedMin"]))
        events = self._store.all_events(calendar, single=query.get("singleEvents") == "true")
        matching = [event for event in events if _matches(event, calendar, since, query)]
        if query.get("orderBy"):
            matching.sort(key=lambda event: _start_time(event) if query["orderBy"] == "startTime" else event["updated"])
        page, token = _page(matching, request, default_size=250, max_size=2500)
        token = token or {"nextSyncToken": f"sync-{self._store.number()}"}
        return JSONResponse({"kind": "calendar#events", "timeZone": "Europe/London", "items": page, **token})

    def get(self, account: Account, request: Request, _content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        return JSONResponse(self._store.find(calendar, request.path_params["event_id"]))

    def list_instances(self, account: Account, request: Request, _content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        query = request.query_params
        series = self._store.current(calendar, request.path_params["event_id"], None)
        matching = [
            instance
            for instance in self._store.instances(calendar, series)
            if _is_within(instance, query)
            and (instance["status"] != "cancelled" or query.get("showDeleted") == "true")
            and ("originalStart" not in query or stamp_of(instance["originalStartTime"]) == _stamp(query))
        ]
        page, token = _page(matching, request, default_size=250, max_size=2500)
        return JSONResponse({"kind": "calendar#events", "timeZone": "Europe/London", "items": page, **token})

    def insert(self, account: Account, request: Request, content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        return JSONResponse(self._store.insert(calendar, content))

    def patch(self, account: Account, request: Request, content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        event_id, etag = request.path_params["event_id"], request.headers.get("if-match")
        return JSONResponse(self._store.patch(calendar, event_id, content, etag))

    def delete(self, account: Account, request: Request, _content: dict[str, Any]) -> Response:
        calendar = self._store.calendar(account, request.path_params["calendar_id"])
        self._store.delete(calendar, request.path_params["event_id"], request.headers.get("if-match"))
        return Response(status_code=204)


def _matches(event: Mapping[str, Any], calendar: StoredCalendar, since: int | None, query: QueryParams) -> bool:
    if since is not None:
        stored_id = event["id"] if event["id"] in calendar.changes else event["recurringEventId"]
        return calendar.changes[stored_id] > since
    if event["status"] == "cancelled" and not _shows_cancelled(event, query):
        return False
    return (
        _is_within(event, query)
        and query.get("iCalUID", event.get("iCalUID")) == event.get("iCalUID")
        and ("updatedMin" not in query or _is_updated(event, query["updatedMin"]))
        and all(
            _has_properties(event.get("extendedProperties", {}).get(kind, {}), query.getlist(name))
            for kind, name in _PROPERTY_FILTERS.items()
        )
    )


def _shows_cancelled(event: Mapping[str, Any], query: QueryParams) -> bool:
    is_exception = "recurringEventId" in event and query.get("singleEvents") != "true"
    return is_exception or query.get("showDeleted") == "true" or "updatedMin" in query


def _is_within(event: Mapping[str, Any], query: QueryParams) -> bool:
    if "start" not in event:  # a cancelled event, of which the times are not kept
        return True
    end = event["end"].get("dateTime") or event["end"].get("date", "")
    return end > query.get("timeMin", "") and ("timeMax" not in query or _start_time(event) < query["timeMax"])


def _is_updated(event: Mapping[str, Any], updated_min: str) -> bool:
    return datetime.fromisoformat(event["updated"]) >= datetime.fromisoformat(updated_min)


def _has_properties(properties: Mapping[str, str], constraints: Iterable[str]) -> bool:
    return all(
        properties.get(name) == value for name, _, value in (constraint.partition("=") for constraint in constraints)
    )


def _start_time(event: Mapping[str, Any]) -> str:
    start = event.get("start") or event.get("originalStartTime") or {}
    return str(start.get("dateTime") or start.get("date", ""))


def _stamp(query: QueryParams) -> str:
    original = query["originalStart"]
    return stamp_of({"dateTime" if "T" in original else "date": original})


def _parse_sync_token(token: str | None, calendar: StoredCalendar) -> int | None:
    if token is None:
        return None
    number = token.removeprefix("sync-")
    if not number.isdecimal() or int(number) < calendar.oldest:
        raise ApiError(410, "fullSyncRequired")
    return int(number)


def _page(
    items: list[dict[str, Any]], request: Request, *, default_size: int, max_size: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    size = min(int(request.query_params.get("maxResults", default_size)), max_size)
    begin = int(request.query_params.get("pageToken", "page-0").removeprefix("page-"))
    page = items[begin : begin + size]
    return page, {"nextPageToken": f"page-{begin + size}"} if begin + size < len(items) else {}


def _error(error: ApiError) -> Response:
    detail = {"domain": "calendar", "reason": error.reason, "message": error.reason}
    return JSONResponse({"error": {"errors": [detail], "code": error.status, "message": error.reason}}, error.status)
