"""The HTML pages for browsers that cannot be redirected to an app.

All texts are fixed (`templates/pages.toml`). No value of a request, a provider or a result is rendered, so a page
cannot contain injected content. Autoescaping and the content security policy are second lines of defence.
"""

import base64
import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from integration_server.sidecar.error_mapping import HttpError
from integrations.v1.integration_service_pb2 import HandleCallbackResponse


@dataclass(frozen=True, slots=True)
class PageTexts:
    """The texts of one page. `mark` selects the sign above the title; `errors` are the reasons and statuses that it is
    shown for, a reason before a status."""

    mark: str
    title: str
    message: str
    next_step: str
    errors: Sequence[str | int] = ()


class ResultPages:
    """Renders the pages. `policy` is the content security policy that they need."""

    def __init__(self) -> None:
        environment = Environment(
            loader=PackageLoader("integration_server.sidecar"), autoescape=True, undefined=StrictUndefined
        )
        texts = tomllib.loads(environment.get_template("pages.toml").render())
        self.pages = {name: PageTexts(**fields) for name, fields in texts.items()}
        self._by_error = {error: page for page in self.pages.values() for error in page.errors}
        self._template = environment.get_template("page.html")
        style = environment.get_template("page.css").render()
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        # Allows this one style and nothing else (CSP Level 3 §2.3.1: a hash-source).
        self.policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )

    def callback_result(self, result: HandleCallbackResponse) -> HTMLResponse:
        """The page for a callback that the server handled."""
        unfinished = "unconfirmed" if result.confirmation_token else "access_denied"
        return self.render(self.pages["connected" if result.success else unfinished], HTTPStatus.OK)

    def http_error(self, error: HttpError) -> HTMLResponse:
        """The page for a request that failed."""
        page = self._by_error.get(error.reason) or self._by_error.get(error.status, self.pages["invalid"])
        return self.render(page, error.status)

    def render(self, page: PageTexts, status: HTTPStatus) -> HTMLResponse:
        """The response with a page."""
        return HTMLResponse(self._template.render(page=page), status)
