"""The consent page and the error page. They run no script and load nothing."""

import secrets
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class ConsentPages:
    """Renders the pages."""

    def __init__(self) -> None:
        templates = Path(__file__).with_name("templates")
        self._environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined)

    def render(self, template: str, status: int, **values: object) -> HTMLResponse:
        """The page of a template with these values."""
        nonce = secrets.token_urlsafe()
        page = self._environment.get_template(template).render(values, nonce=nonce)
        # Without form-action: browsers apply it to redirects after a form too, and those lead to the client.
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(page, status, {**_HEADERS, "Content-Security-Policy": policy})
