"""A simulated user with a browser, who opens the consent page and decides."""

from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx


async def decide(
    client: httpx.AsyncClient, authorization_url: str, *, account: str | None = None, allow: bool = True
) -> str:
    """The URL that the browser is redirected to after the decision, with a code or an error. It is not opened.

    `account` is a `sub`; None keeps the page's preselection. Raises `httpx.HTTPStatusError` if the sandbox shows an
    error page.
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
    """Collects the fields that a browser sends for the form of a page, without the button."""

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
