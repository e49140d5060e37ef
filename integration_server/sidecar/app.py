"""The sidecar's ASGI app: which path leads where."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integration_server.sidecar.answers import Answers
from integration_server.sidecar.callback import CallbackEndpoint, HandleCallback
from integration_server.sidecar.limits import HttpLimits, RequestLimits
from integration_server.sidecar.middleware import AccessLog, FixedHeaders, safe_headers
from integration_server.sidecar.pages import Pages
from integration_server.sidecar.probes import CheckHealth, ReadinessProbe, live

CALLBACK_PATH = "/api/v1/integrations/callback"


def create_app(*, handle_callback: HandleCallback, check_health: CheckHealth, limits: HttpLimits) -> Starlette:
    """The app, over the RPCs that it is a client of."""
    pages = Pages()
    answers = Answers(pages)
    callback = CallbackEndpoint(handle_callback, answers)
    app = Starlette(
        routes=[
            _get_only(CALLBACK_PATH, callback.receive),
            _get_only(f"{CALLBACK_PATH}/{{integration_type}}", callback.receive),
            Route("/healthz", live),
            Route("/readyz", ReadinessProbe(check_health).ready),
        ],
        middleware=[
            Middleware(FixedHeaders, safe_headers(pages.policy)),
            Middleware(AccessLog, answers),
            Middleware(RequestLimits, answers, limits),
        ],
        exception_handlers={HTTPException: answers.refusal},
    )
    # Starlette would redirect a path with a slash too many to whatever the Host header says, code and state too.
    app.router.redirect_slashes = False
    return app


def _get_only(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route without the HEAD that Starlette adds to GET: looking ahead at a link must not use its state up."""
    route = Route(path, endpoint)
    route.methods = {"GET"}
    return route
