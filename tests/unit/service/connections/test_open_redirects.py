"""Only what is on a list character by character is an address to send a browser to, and every laxer way has a hole."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from integration_server.domain.errors import RedirectUriNotAllowed
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist
from tests.attack_inputs import similar_urls
from tests.fakes.system import APP_CALLBACK, OWN_CALLBACK, PUBLIC_URL, RETURN_URL, FakeSystem

ASKING = {
    "redirect_uri": (APP_CALLBACK, lambda policy, requested: policy.redirect_uri("fake", requested)),
    "redirect_uri, our own": (OWN_CALLBACK, lambda policy, requested: policy.redirect_uri("fake", requested)),
    "return_url": (RETURN_URL, lambda policy, requested: policy.return_url(requested)),
}
Ask = Callable[[RedirectAllowlist, str], str | None]


def taken(policy: RedirectAllowlist, allowed: str, ask: Ask) -> list[str]:
    """Which of the addresses that are only like the allowed one are allowed as well."""
    wrongly = []
    for requested in similar_urls(allowed):
        try:
            ask(policy, requested)
        except RedirectUriNotAllowed:
            continue
        wrongly.append(requested)
    return wrongly


@pytest.mark.parametrize(("allowed", "ask"), ASKING.values(), ids=ASKING)
def test_of_hundreds_of_addresses_that_are_like_an_allowed_one_none_is(allowed: str, ask: Ask) -> None:
    policy = RedirectAllowlist(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
    assert len(similar_urls(allowed)) >= 200
    assert taken(policy, allowed, ask) == []
    ask(policy, allowed)


# --- the twins -------------------------------------------------------------------------------------------------------


Resembles = Callable[[str, str], bool]


class LaxAllowlist(RedirectAllowlist):
    """Allows also what only resembles something on a list."""

    def __init__(self, resembles: Resembles) -> None:
        super().__init__(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
        self._resembles = resembles

    def redirect_uri(self, integration_type: str, requested: str) -> str:
        """As it is wanted, if it resembles one."""
        if any(self._resembles(requested, allowed) for allowed in (OWN_CALLBACK, APP_CALLBACK)):
            return requested
        return super().redirect_uri(integration_type, requested)

    def return_url(self, requested: str) -> str | None:
        """As it is wanted, if it resembles one."""
        return requested if self._resembles(requested, RETURN_URL) else super().return_url(requested)


def _beginning(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


LAX: dict[str, Resembles] = {
    "begins with the origin": lambda requested, allowed: requested.startswith(_beginning(allowed)),
    "begins with it": lambda requested, allowed: requested.startswith(allowed),
    "ends with it": lambda requested, allowed: requested.endswith(allowed),
    "contains the host": lambda requested, allowed: urlsplit(allowed).netloc in requested,
    "whatever the case": lambda requested, allowed: requested.lower() == allowed.lower(),
    "decoded": lambda requested, allowed: unquote(requested) == allowed,
    "stripped": lambda requested, allowed: requested.strip() == allowed,
    "without its fragment": lambda requested, allowed: requested.partition("#")[0] == allowed,
}


@pytest.mark.parametrize("lax", LAX.values(), ids=LAX)
@pytest.mark.parametrize(("allowed", "ask"), ASKING.values(), ids=ASKING)
def test_a_list_that_is_compared_in_another_way_lets_some_of_them_in(allowed: str, ask: Ask, lax: Resembles) -> None:
    assert taken(LaxAllowlist(lax), allowed, ask)


@pytest.mark.parametrize("field", ["redirect_uri", "return_url"])
async def test_with_such_a_list_the_browser_is_sent_to_the_attacker(field: str) -> None:
    allowed = APP_CALLBACK if field == "redirect_uri" else RETURN_URL
    evil = next(address for address in similar_urls(allowed) if address.startswith("https://app.example.evil.example/"))
    asked: dict[str, Any] = {field: evil}
    strict, lax = FakeSystem(), FakeSystem(options={"redirects": LaxAllowlist(LAX["begins with the origin"])})
    with pytest.raises(RedirectUriNotAllowed):
        await strict.begin(**asked)
    async with lax.tasks:
        begun = await lax.begin(**asked)
        outcome = await lax.call_back(begun.state)
    sent_to = lax.provider.exchanges[0][1] if field == "redirect_uri" else outcome.redirect_url
    assert urlsplit(sent_to).hostname == "app.example.evil.example"
