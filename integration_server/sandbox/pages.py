"""The two pages that a person can see. They run no script and load nothing from elsewhere."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from integration_server.sandbox.model import Account


class Pages:
    def __init__(self) -> None:
        templates = Path(__file__).with_name("templates")
        self._environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined)

    def consent(
        self,
        *,
        client_name: str,
        scopes: Sequence[str],
        accounts: Sequence[Account],
        carried: Mapping[str, str],
    ) -> HTMLResponse:
        """Asks whether `client_name` may have `scopes`. `carried` comes back with the decision."""
        return self._render(
            "consent.html", 200, client_name=client_name, scopes=scopes, accounts=accounts, carried=carried
        )

    def error(self, message: str) -> HTMLResponse:
        return self._render("error.html", 400, message=message)

    def _render(self, template: str, status: int, **values: object) -> HTMLResponse:
        nonce = secrets.token_urlsafe()
        page = self._environment.get_template(template).render(values, nonce=nonce)
        return HTMLResponse(page, status, {**_HEADERS, "Content-Security-Policy": _policy(nonce)})


_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


def _policy(nonce: str) -> str:
    # No form-action: browsers also apply it to the redirects after a form, and those lead to the client.
    return f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
