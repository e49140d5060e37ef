"""The sidecar's ASGI app: its routes and middleware."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from integration_server.logs import AnyAccessLog
from integration_server.sidecar.bodies import BodyReader
from integration_server.sidecar.callback import CallbackReceiver
from integration_server.sidecar.error_responses import ErrorResponses
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.middleware import (
    LIVE_PATH,
    READY_PATH,
    AnonymousLimits,
    Area,
    OuterMiddleware,
    Probes,
    Readiness,
    security_headers,
)
from integration_server.sidecar.pages import ResultPages
from integration_server.sidecar.webhooks import WebhookReceiver

CALLBACK_PATH = Area.CALLBACK.value
WEBHOOK_PATH = f"{Area.WEBHOOKS.value}{{integration_type}}/{{endpoint}}"


def create_app(
    server: ServerClient,
    limits: HttpLimits,
    public_url: str,
    anonymous: AnonymousLimits,
    default_return_url: str | None = None,
    draining: asyncio.Event | None = None,
    access_log: AnyAccessLog | None = None,
) -> ASGIApp:
    """The app, which calls `server`: the probes, and the endpoints for the rest.

    It is not ready once `draining` is set. `public_url` is its base URL as browsers and providers see it.
    `default_return_url` is where a browser continues that arrives without a valid state. Each verified request has a
    line in `access_log`.
    """
    pages = ResultPages()
    headers = security_headers(pages.policy)
    endpoints = create_endpoints(
        server,
        limits,
        public_url,
        pages,
        anonymous,
        headers,
        default_return_url,
        access_log,
    )
    readiness = Readiness(server, limits.readiness_max_age, draining=draining)
    return Probes(endpoints, readiness, headers, anonymous.log_failure)


def create_endpoints(
    server: ServerClient,
    limits: HttpLimits,
    public_url: str,
    pages: ResultPages,
    anonymous: AnonymousLimits,
    headers: Mapping[str, str],
    default_return_url: str | None = None,
    access_log: AnyAccessLog | None = None,
) -> Starlette:
    """The routes. Only an endpoint reads a body: a request without a route is refused unread."""
    bodies, errors = BodyReader(limits), ErrorResponses(pages)
    callback = CallbackReceiver(
        server, pages, errors, bodies, default_return_url, refuse_speculative=limits.refuse_speculative
    )
    webhook = WebhookReceiver(server, errors, public_url, bodies)
    app = Starlette(
        routes=[
            _exact_route(["GET", "POST"], CALLBACK_PATH, callback.receive),
            _exact_route(["GET", "POST"], f"{CALLBACK_PATH}/", callback.receive),  # an empty type is none
            _exact_route(["GET", "POST"], f"{CALLBACK_PATH}/{{integration_type}}", callback.receive),
            _exact_route(["GET", "POST"], WEBHOOK_PATH, webhook.receive),
            *(_exact_route(None, path, _refuse_method) for path in (LIVE_PATH, READY_PATH)),
        ],
        middleware=[Middleware(OuterMiddleware, errors.http_error, headers, anonymous, access_log)],
        exception_handlers={HTTPException: errors.http_exception},
    )
    # Starlette would redirect a path with a trailing slash, with code and state, to the host in the Host header.
    app.router.redirect_slashes = False
    return app


def _exact_route(methods: Sequence[str] | None, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route without HEAD, which Starlette adds to GET: a link preview must not use up the state. None is any."""
    route = Route(path, endpoint)
    route.methods = None if methods is None else set(methods)
    return route


async def _refuse_method(_request: Request) -> Response:
    """`Probes` has responded to the methods of a probe."""
    raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
