"""What a person sees in the browser when there is no app to send them back to.

Every word is ours and fixed: nothing of a request, of the provider or of the outcome is on a page, so nothing can
be smuggled onto one. Autoescaping and the policy stand behind that.
"""

import base64
import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from integration_server.sidecar.error_mapping import HttpError
from integrations.v1.integration_service_pb2 import HandleCallbackResponse


@dataclass(frozen=True, slots=True)
class Page:
    """What happened, and what to do next, in plain words. `mark` is the sign above them."""

    mark: Literal["done", "waiting", "stopped"]
    title: str
    happened: str
    next_step: str


CONNECTED = Page(
    "done",
    "Connected",
    "Your account is connected.",
    "You can close this page and go back to the app you came from.",
)
UNCONFIRMED = Page(
    "waiting",
    "One more step",
    "Your account is not connected yet: the app you came from has to confirm that it was you who asked.",
    "Go back to the app to finish.",
)
REFUSED = Page(
    "stopped",
    "Not connected",
    "Access was not granted, so nothing has been connected.",
    "If you did not mean that, go back to the app you came from and connect again.",
)
OTHER_ACCOUNT = Page(
    "stopped",
    "That was another account",
    "You signed in with a different account from the one that was connected before. Nothing has changed.",
    "Go back to the app you came from and connect again with the same account, or add the other one as new.",
)
EXPIRED = Page(
    "stopped",
    "This took too long",
    "For your safety a connection has to be finished within a few minutes, and that time is over.",
    "Go back to the app you came from and connect again.",
)
USED = Page(
    "stopped",
    "This link has been used",
    "It works once. If you have reloaded this page, your account may be connected already.",
    "Look in the app you came from, and connect again if it is not.",
)
INVALID = Page(
    "stopped",
    "This link does not work",
    "It is incomplete, has been changed, or belongs to something else. Nothing has been connected.",
    "Go back to the app you came from and connect again.",
)
BUSY = Page(
    "waiting",
    "Not available right now",
    "The connection could not be finished at the moment.",
    "Wait a minute, then go back to the app you came from and connect again.",
)
TIMED_OUT = Page(
    "waiting",
    "No answer in time",
    "Finishing the connection took too long. It may still have worked.",
    "Look in the app you came from, and connect again if your account is not there.",
)
SERVER_ERROR = Page(
    "stopped",
    "Something went wrong",
    "The connection could not be finished. The fault is on our side.",
    "Try again later. If it goes on, tell the people who run the app you came from.",
)
NOT_FOUND = Page(
    "stopped",
    "There is nothing here",
    "This address does not lead anywhere.",
    "Go back to the app you came from.",
)

_BY_REASON = {
    "STATE_EXPIRED": EXPIRED,
    "STATE_USED": USED,
    "ACCOUNT_MISMATCH": OTHER_ACCOUNT,
    "INTEGRATION_NOT_FOUND": INVALID,
    "PROVIDER_REJECTED": REFUSED,
    "PROVIDER_MISCONFIGURED": SERVER_ERROR,
    "PROVIDER_NOT_CONFIGURED": SERVER_ERROR,
}
_BY_STATUS = {
    HTTPStatus.NOT_FOUND: NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: BUSY,
    HTTPStatus.SERVICE_UNAVAILABLE: BUSY,
    HTTPStatus.GATEWAY_TIMEOUT: TIMED_OUT,
    HTTPStatus.INTERNAL_SERVER_ERROR: SERVER_ERROR,
}


def page_for_outcome(outcome: HandleCallbackResponse) -> Page:
    """The page for a callback that the server answered."""
    if outcome.success:
        return CONNECTED
    return UNCONFIRMED if outcome.confirmation_token else REFUSED


def page_for_error(http_error: HttpError) -> Page:
    """The page for a request that failed."""
    return _BY_REASON.get(http_error.reason) or _BY_STATUS.get(http_error.status, INVALID)


class Pages:
    """Renders the pages. `policy` is the content security policy under which they look as they should."""

    def __init__(self) -> None:
        environment = Environment(
            loader=PackageLoader("integration_server.sidecar"), autoescape=True, undefined=StrictUndefined
        )
        self._template = environment.get_template("page.html")
        self.policy = _policy(environment.get_template("page.css").render())

    def render(self, page: Page, status: HTTPStatus) -> HTMLResponse:
        """The page as an answer."""
        return HTMLResponse(self._template.render(page=page), status)


def _policy(style: str) -> str:
    """Allows this one style and nothing else (CSP Level 3 §2.3.1: a hash-source)."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
