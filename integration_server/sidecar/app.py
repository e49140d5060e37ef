"""The sidecar's ASGI app: its routes and middleware."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integration_server.sidecar.callback import CallbackReceiver
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import HttpLimits, OuterMiddleware, RequestLimits, security_headers
from integration_server.sidecar.pages import ResultPages
from integration_server.sidecar.probes import Probes
from integration_server.sidecar.responses import Responses
from integration_server.sidecar.webhooks import WebhookReceiver

CALLBACK_PATH = "/api/v1/integrations/callback"
WEBHOOK_PATH = "/api/v1/webhooks/{integration_type}/{endpoint}"


def create_app(server: ServerClient, limits: HttpLimits, public_url: str) -> Starlette:
    """The app, which calls `server`. `public_url` is its base URL as browsers and providers see it."""
    pages = ResultPages()
    responses = Responses(pages)
    callback = CallbackReceiver(server, responses)
    webhook = WebhookReceiver(server, responses, public_url)
    probes = Probes(server)
    app = Starlette(
        routes=[
            _exact_route(["GET"], CALLBACK_PATH, callback.receive),
            _exact_route(["GET"], f"{CALLBACK_PATH}/{{integration_type}}", callback.receive),
            _exact_route(["GET", "POST"], WEBHOOK_PATH, webhook.receive),
            Route("/healthz", probes.live),
            Route("/readyz", probes.ready),
        ],
        middleware=[
            Middleware(OuterMiddleware, responses, security_headers(pages.policy)),
            Middleware(RequestLimits, responses, limits),
        ],
        exception_handlers={HTTPException: responses.http_exception},
    )
    # Starlette would redirect a path with a trailing slash, with code and state, to the host in the Host header.
    app.router.redirect_slashes = False
    return app


def _exact_route(methods: Sequence[str], path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route without HEAD, which Starlette adds to GET: a link preview must not use up the state."""
    route = Route(path, endpoint)
    route.methods = set(methods)
    return route
