"""The sidecar's ASGI app: which path leads where."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integration_server.sidecar.callback import CallbackEndpoint, HandleCallback
from integration_server.sidecar.limits import HttpLimits, RequestLimits
from integration_server.sidecar.middleware import AccessLog, FixedHeaders, security_headers
from integration_server.sidecar.pages import Pages
from integration_server.sidecar.probes import CheckHealth, ReadinessProbe, live
from integration_server.sidecar.responses import Responses
from integration_server.sidecar.webhooks import ReceiveWebhook, WebhookEndpoint

CALLBACK_PATH = "/api/v1/integrations/callback"
WEBHOOK_PATH = "/api/v1/webhooks/{integration_type}/{endpoint}"


def create_app(
    *,
    handle_callback: HandleCallback,
    receive_webhook: ReceiveWebhook,
    check_health: CheckHealth,
    limits: HttpLimits,
    public_url: str,
) -> Starlette:
    """The app, over the RPCs that it is a client of. `public_url` is where it is for those outside."""
    pages = Pages()
    responses = Responses(pages)
    callback = CallbackEndpoint(handle_callback, responses)
    webhook = WebhookEndpoint(receive_webhook, responses, public_url)
    app = Starlette(
        routes=[
            _exact_route(["GET"], CALLBACK_PATH, callback.receive),
            _exact_route(["GET"], f"{CALLBACK_PATH}/{{integration_type}}", callback.receive),
            _exact_route(["GET", "POST"], WEBHOOK_PATH, webhook.receive),
            Route("/healthz", live),
            Route("/readyz", ReadinessProbe(check_health).ready),
        ],
        middleware=[
            Middleware(FixedHeaders, security_headers(pages.policy)),
            Middleware(AccessLog, responses),
            Middleware(RequestLimits, responses, limits),
        ],
        exception_handlers={HTTPException: responses.http_exception},
    )
    # Starlette would redirect a path with a slash too many to whatever the Host header says, code and state too.
    app.router.redirect_slashes = False
    return app


def _exact_route(methods: Sequence[str], path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route without the HEAD that Starlette adds to GET: looking ahead at a link must not use its state up."""
    route = Route(path, endpoint)
    route.methods = set(methods)
    return route
