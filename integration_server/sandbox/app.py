"""The sandbox's ASGI app: its routes. Counts the calls of each endpoint and applies its fault."""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integration_server.sandbox.authorization import AuthorizationEndpoint
from integration_server.sandbox.behaviour import Endpoint, Fault, Handler
from integration_server.sandbox.calendar import SimulatedCalendarApi
from integration_server.sandbox.pages import ConsentPages
from integration_server.sandbox.resources import Resources
from integration_server.sandbox.state import Sandbox
from integration_server.sandbox.tokens import TokenEndpoints

_FAULTS: Final = TypeAdapter(dict[Endpoint, Fault])
_CALENDAR_LIST = "/calendar/v3/users/me/calendarList"
_EVENTS = "/calendar/v3/calendars/{calendar_id}/events"


def create_app(sandbox: Sandbox) -> Starlette:
    """The app over the state in `sandbox`."""
    pages = ConsentPages()
    authorization = AuthorizationEndpoint(sandbox, pages)
    tokens = TokenEndpoints(sandbox)
    resources = Resources(sandbox)
    calendar = SimulatedCalendarApi(sandbox)

    def route(method: str, path: str, endpoint: Endpoint, handler: Handler) -> Route:
        async def respond(request: Request) -> Response:
            with sandbox.count_call(endpoint):
                fault = sandbox.behaviour.faults.get(endpoint)
                return await handler(request) if fault is None else await fault.respond(request, handler)

        return Route(path, respond, methods=[method])

    async def set_faults(request: Request) -> Response:
        """Replace all faults by those of a JSON object: endpoint to `status`, `headers`, `body`, `delay`."""
        try:
            faults = _FAULTS.validate_json(await request.body())
        except ValidationError as error:
            return Response(str(error), HTTPStatus.BAD_REQUEST)
        sandbox.behaviour = replace(sandbox.behaviour, faults=faults)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def show_index(_request: Request) -> Response:
        """The page at the address that `make run` prints."""
        return pages.render("index.html", HTTPStatus.OK, accounts=sandbox.accounts.values())

    return Starlette(
        routes=[
            Route("/", show_index),
            Route("/faults", set_faults, methods=["PUT"]),
            route("GET", "/oauth/authorize", "authorize", authorization.respond),
            route("POST", "/oauth/authorize", "decide", authorization.respond),
            route("POST", "/oauth/token", "token", tokens.issue),
            route("POST", "/oauth/revoke", "revoke", tokens.revoke),
            route("GET", "/userinfo", "userinfo", resources.userinfo),
            route("GET", "/api/account", "account", resources.account),
            route("GET", "/healthz", "healthz", resources.healthz),
            route("GET", _CALENDAR_LIST, "calendar", calendar.handler(calendar.list_calendars)),
            route("GET", f"{_CALENDAR_LIST}/primary", "calendar", calendar.handler(calendar.get_primary)),
            route("GET", _EVENTS, "calendar", calendar.handler(calendar.list_events)),
            route("POST", _EVENTS, "calendar", calendar.handler(calendar.insert)),
            route("GET", f"{_EVENTS}/{{event_id}}", "calendar", calendar.handler(calendar.get)),
            route("GET", f"{_EVENTS}/{{event_id}}/instances", "calendar", calendar.handler(calendar.list_instances)),
            route("PATCH", f"{_EVENTS}/{{event_id}}", "calendar", calendar.handler(calendar.patch)),
            route("DELETE", f"{_EVENTS}/{{event_id}}", "calendar", calendar.handler(calendar.delete)),
            route("GET", "/redirect-target", "redirect_target", resources.redirect_target),
            route("POST", "/redirect-target", "redirect_target", resources.redirect_target),
        ]
    )
