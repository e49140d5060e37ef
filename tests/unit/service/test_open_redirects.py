"""Only what is on a list character by character is an address to send a browser to, and every laxer way has a hole."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from integration_server.domain.errors import RedirectUriNotAllowed
from integration_server.service.redirects import RedirectPolicy
from tests.fakes.system import APP_CALLBACK, OWN_CALLBACK, PUBLIC_URL, RETURN_URL, FakeSystem
from tests.hostile import near

ASKING = {
    "redirect_uri": (APP_CALLBACK, lambda policy, wanted: policy.redirect_uri("fake", wanted)),
    "redirect_uri, our own": (OWN_CALLBACK, lambda policy, wanted: policy.redirect_uri("fake", wanted)),
    "return_url": (RETURN_URL, lambda policy, wanted: policy.return_url(wanted)),
}
Ask = Callable[[RedirectPolicy, str], str | None]


def taken(policy: RedirectPolicy, allowed: str, ask: Ask) -> list[str]:
    """Which of the addresses that are only like the allowed one are allowed as well."""
    wrongly = []
    for wanted in near(allowed):
        try:
            ask(policy, wanted)
        except RedirectUriNotAllowed:
            continue
        wrongly.append(wanted)
    return wrongly


@pytest.mark.parametrize(("allowed", "ask"), ASKING.values(), ids=ASKING)
def test_of_hundreds_of_addresses_that_are_like_an_allowed_one_none_is(allowed: str, ask: Ask) -> None:
    policy = RedirectPolicy(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
    assert len(near(allowed)) >= 200
    assert taken(policy, allowed, ask) == []
    ask(policy, allowed)


# --- the twins -----------------------------------------------------------------------------------------------------


Resembles = Callable[[str, str], bool]


class LaxPolicy(RedirectPolicy):
    """Allows also what only resembles something on a list."""

    def __init__(self, resembles: Resembles) -> None:
        super().__init__(PUBLIC_URL, [APP_CALLBACK], [RETURN_URL])
        self._resembles = resembles

    def redirect_uri(self, integration_type: str, wanted: str) -> str:
        """As it is wanted, if it resembles one."""
        if any(self._resembles(wanted, allowed) for allowed in (OWN_CALLBACK, APP_CALLBACK)):
            return wanted
        return super().redirect_uri(integration_type, wanted)

    def return_url(self, wanted: str) -> str | None:
        """As it is wanted, if it resembles one."""
        return wanted if self._resembles(wanted, RETURN_URL) else super().return_url(wanted)


def _beginning(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


LAX: dict[str, Resembles] = {
    "begins with the origin": lambda wanted, allowed: wanted.startswith(_beginning(allowed)),
    "begins with it": lambda wanted, allowed: wanted.startswith(allowed),
    "ends with it": lambda wanted, allowed: wanted.endswith(allowed),
    "contains the host": lambda wanted, allowed: urlsplit(allowed).netloc in wanted,
    "whatever the case": lambda wanted, allowed: wanted.lower() == allowed.lower(),
    "decoded": lambda wanted, allowed: unquote(wanted) == allowed,
    "stripped": lambda wanted, allowed: wanted.strip() == allowed,
    "without its fragment": lambda wanted, allowed: wanted.partition("#")[0] == allowed,
}


@pytest.mark.parametrize("lax", LAX.values(), ids=LAX)
@pytest.mark.parametrize(("allowed", "ask"), ASKING.values(), ids=ASKING)
def test_a_list_that_is_compared_in_another_way_lets_some_of_them_in(allowed: str, ask: Ask, lax: Resembles) -> None:
    assert taken(LaxPolicy(lax), allowed, ask)


@pytest.mark.parametrize("field", ["redirect_uri", "return_url"])
async def test_with_such_a_list_the_browser_is_sent_to_the_attacker(field: str) -> None:
    allowed = APP_CALLBACK if field == "redirect_uri" else RETURN_URL
    evil = next(address for address in near(allowed) if address.startswith("https://app.example.evil.example/"))
    asked: dict[str, Any] = {field: evil}
    strict, lax = FakeSystem(), FakeSystem(redirects=LaxPolicy(LAX["begins with the origin"]))
    with pytest.raises(RedirectUriNotAllowed):
        await strict.begin(**asked)
    async with lax.tasks:
        begun = await lax.begin(**asked)
        outcome = await lax.call_back(begun.state)
    sent_to = lax.provider.exchanges[0][1] if field == "redirect_uri" else outcome.redirect_url
    assert urlsplit(sent_to).hostname == "app.example.evil.example"
