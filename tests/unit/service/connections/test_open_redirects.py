"""Redirect URLs are compared exactly with the allow-lists; every laxer comparison allows an attacker's URL."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from integration_server.domain.errors import RedirectUriNotAllowed
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from tests.attack_inputs import similar_urls
from tests.fakes.system import APP_CALLBACK, OWN_CALLBACK, PUBLIC_URL, RETURN_URL, FakeSystem

CHECKS = {
    "redirect_uri": (APP_CALLBACK, lambda allowlist, requested: allowlist.redirect_uri("fake", requested)),
    "own redirect_uri": (
        OWN_CALLBACK,
        lambda allowlist, requested: allowlist.redirect_uri("fake", requested),
    ),
    "return_url": (RETURN_URL, lambda allowlist, requested: allowlist.return_url(requested)),
}
Check = Callable[[RedirectAllowlist, str], str | None]


def wrongly_allowed(allowlist: RedirectAllowlist, allowed: str, check: Check) -> list[str]:
    """The URLs that are similar to the allowed one and are also allowed."""
    allowed_urls = []
    for requested in similar_urls(allowed):
        try:
            check(allowlist, requested)
        except RedirectUriNotAllowed:
            continue
        allowed_urls.append(requested)
    return allowed_urls


@pytest.mark.parametrize(("allowed", "check"), CHECKS.values(), ids=CHECKS)
def test_urls_similar_to_an_allowed_url_are_rejected(allowed: str, check: Check) -> None:
    allowlist = RedirectAllowlist(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
    assert len(similar_urls(allowed)) >= 200
    assert wrongly_allowed(allowlist, allowed, check) == []
    check(allowlist, allowed)


# --- negative controls -----------------------------------------------------------------------------------------------


Matcher = Callable[[str, str], bool]


class LaxAllowlist(RedirectAllowlist):
    """Negative control: an allow-list with a laxer comparison."""

    def __init__(self, matches: Matcher) -> None:
        super().__init__(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
        self._matches = matches

    def redirect_uri(self, integration_type: str, requested: str) -> str:
        """The requested URL, if it matches."""
        if any(self._matches(requested, allowed) for allowed in (OWN_CALLBACK, APP_CALLBACK)):
            return requested
        return super().redirect_uri(integration_type, requested)

    def return_url(self, requested: str) -> str | None:
        """The requested URL, if it matches."""
        return requested if self._matches(requested, RETURN_URL) else super().return_url(requested)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


LAX_MATCHERS: dict[str, Matcher] = {
    "starts with the origin": lambda requested, allowed: requested.startswith(_origin(allowed)),
    "starts with the URL": lambda requested, allowed: requested.startswith(allowed),
    "ends with the URL": lambda requested, allowed: requested.endswith(allowed),
    "contains the host": lambda requested, allowed: urlsplit(allowed).netloc in requested,
    "ignores the case": lambda requested, allowed: requested.lower() == allowed.lower(),
    "percent-decoded": lambda requested, allowed: unquote(requested) == allowed,
    "without whitespace": lambda requested, allowed: requested.strip() == allowed,
    "without the fragment": lambda requested, allowed: requested.partition("#")[0] == allowed,
}


@pytest.mark.parametrize("lax", LAX_MATCHERS.values(), ids=LAX_MATCHERS)
@pytest.mark.parametrize(("allowed", "check"), CHECKS.values(), ids=CHECKS)
def test_negative_control_other_comparisons_allow_similar_urls(allowed: str, check: Check, lax: Matcher) -> None:
    assert wrongly_allowed(LaxAllowlist(lax), allowed, check)


@pytest.mark.parametrize("field", ["redirect_uri", "return_url"])
async def test_negative_control_with_a_lax_comparison_the_browser_is_sent_to_the_attacker(field: str) -> None:
    allowed = APP_CALLBACK if field == "redirect_uri" else RETURN_URL
    evil = next(url for url in similar_urls(allowed) if url.startswith("https://app.example.evil.example/"))
    fields: dict[str, Any] = {field: evil}
    strict, lax = FakeSystem(), FakeSystem(options={"redirects": LaxAllowlist(LAX_MATCHERS["starts with the origin"])})
    with pytest.raises(RedirectUriNotAllowed):
        await strict.begin(**fields)
    async with lax.tasks:
        authorization = await lax.begin(**fields)
        result = await lax.call_back(authorization.state)
    sent_to = lax.provider.exchanges[0][1] if field == "redirect_uri" else result.redirect_url
    assert urlsplit(sent_to).hostname == "app.example.evil.example"
