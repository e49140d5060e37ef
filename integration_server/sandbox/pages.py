"""The consent page and the error page. They run no script and load nothing."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from integration_server.sandbox.model import Account

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class Pages:
    """Renders the pages."""

    def __init__(self) -> None:
        templates = Path(__file__).with_name("templates")
        self._environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined)

    def consent(
        self, *, client_name: str, scopes: Sequence[str], accounts: Sequence[Account], carried: Mapping[str, str]
    ) -> HTMLResponse:
        """Asks whether to grant `scopes` to `client_name`. The form sends `carried` together with the decision."""
        values = {"client_name": client_name, "scopes": scopes, "accounts": accounts, "carried": carried}
        return self._render("consent.html", 200, **values)

    def error(self, message: str) -> HTMLResponse:
        """Shows an error."""
        return self._render("error.html", 400, message=message)

    def _render(self, template: str, status: int, **values: object) -> HTMLResponse:
        nonce = secrets.token_urlsafe()
        page = self._environment.get_template(template).render(values, nonce=nonce)
        # Without form-action: browsers apply it to redirects after a form too, and those lead to the client.
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(page, status, {**_HEADERS, "Content-Security-Policy": policy})
