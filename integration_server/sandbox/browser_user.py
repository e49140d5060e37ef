"""Acts the part of the person at the browser: opens the consent page and decides."""

from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx


async def decide(
    client: httpx.AsyncClient, authorization_url: str, *, account: str | None = None, allow: bool = True
) -> str:
    """Where the browser is sent after the decision: the redirect URI with a code or an error. Not followed.

    `account` is a `sub`; None leaves the page's own choice. Raises `httpx.HTTPStatusError` when the sandbox
    shows an error page instead of redirecting.
    """
    page = await client.get(authorization_url, follow_redirects=False)
    if page.is_redirect:
        return page.headers["location"]
    page.raise_for_status()
    form = _Form()
    form.feed(page.text)
    fields = form.fields | {"decision": "allow" if allow else "refuse"}
    if account is not None:
        fields["account"] = account
    response = await client.post(urljoin(str(page.url), form.action), data=fields, follow_redirects=False)
    if not response.is_redirect:
        response.raise_for_status()
    return response.headers["location"]


class _Form(HTMLParser):
    """Collects what a browser would send of a page's one form, apart from the button."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = attributes.get("action", "")
        elif tag == "input" and (attributes["type"] == "hidden" or "checked" in attributes):
            self.fields[attributes["name"]] = attributes["value"]
