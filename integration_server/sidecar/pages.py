"""The HTML pages for browsers that cannot be redirected to an app.

The texts are fixed (`templates/pages.toml`), apart from two names that the server states: the provider's, and the
provider's name for the account. The latter is text that somebody else has chosen: it is escaped, cut, and isolated from
the direction of the text around it. No value of a request is rendered. The content security policy is a second line of
defence.
"""

import base64
import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from integration_server.sidecar.error_mapping import HttpError
from integrations.v1.integration_service_pb2 import HandleCallbackResponse

_MAX_NAME_LENGTH = 100  # characters; an e-mail address rarely has more than 50


@dataclass(frozen=True, slots=True)
class PageTexts:
    """The texts of one page. `mark` selects the sign above the title; `errors` are the reasons and statuses that it is
    shown for, a reason before a status."""

    mark: str
    title: str
    message: str
    next_step: str
    errors: Sequence[str | int] = field(default=(), compare=False)


class ResultPages:
    """Renders the pages. `policy` is the content security policy that they need."""

    def __init__(self) -> None:
        loader = PackageLoader("integration_server.sidecar")
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        texts = tomllib.loads(loader.get_source(environment, "pages.toml")[0])
        self.pages = {name: PageTexts(**fields) for name, fields in texts.items()}
        self._by_error = {error: page for page in self.pages.values() for error in page.errors}
        self._template = environment.get_template("page.html")
        self._messages = {page: environment.from_string(page.message) for page in self.pages.values()}
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
        page = self.pages["connected" if result.success else unfinished]
        return self.render(page, HTTPStatus.OK, result.display_name, result.account_label)

    def http_error(self, error: HttpError) -> HTMLResponse:
        """The page for a request that failed."""
        by_status = self._by_error.get(error.status, self.pages["invalid"])
        page = self.pages.get(error.page) or self._by_error.get(error.reason) or by_status
        return self.render(page, error.status, error.display_name)

    def render(self, page: PageTexts, status: HTTPStatus, provider: str = "", account: str = "") -> HTMLResponse:
        """The response with a page. `provider` and `account` are names; empty if they are not known."""
        # A module of a template is markup, its names already escaped.
        message = self._messages[page].make_module({"provider": _isolated(provider), "account": _isolated(account)})
        return HTMLResponse(self._template.render(page=page, message=message), status)


def _isolated(name: str) -> Markup:
    """A name as markup, which does not change the direction of the text around it; empty for an empty one."""
    shown = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}…"
    return Markup("<bdi>{}</bdi>").format(shown) if shown else Markup()
