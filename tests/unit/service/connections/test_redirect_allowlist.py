import pytest

from integration_server.domain.errors import RedirectUriNotAllowed
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist, with_result_params

APP = "https://app.example/callback"
POLICY = RedirectAllowlist("https://hooks.example/", [APP], ["https://app.example/done"])
OWN = "https://hooks.example/api/v1/integrations/callback/fake"


@pytest.mark.parametrize(("requested", "redirect_uri"), [("", OWN), (OWN, OWN), (APP, APP)])
def test_an_allowed_address_is_taken(requested: str, redirect_uri: str) -> None:
    assert POLICY.redirect_uri("fake", requested) == redirect_uri


@pytest.mark.parametrize(
    "requested",
    [
        APP + "/",
        APP + "?x=1",
        APP + "#x",
        APP.upper(),
        "https://app.example/",
        "https://app.example:443/callback",
        "https://app.example@evil.example/callback",
        "http://app.example/callback",
        " " + APP,
        OWN.replace("fake", "other"),
        "https://hooks.example/api/v1/integrations/callback/",
        "javascript:alert(1)",
    ],
)
def test_an_address_that_is_only_like_an_allowed_one_is_not(requested: str) -> None:
    with pytest.raises(RedirectUriNotAllowed) as refused:
        POLICY.redirect_uri("fake", requested)
    assert refused.value.field == "redirect_uri"


def test_return_addresses_have_a_list_of_their_own() -> None:
    assert POLICY.return_url("https://app.example/done") == "https://app.example/done"
    assert POLICY.return_url("") is None
    with pytest.raises(RedirectUriNotAllowed) as refused:
        POLICY.return_url(APP)
    assert refused.value.field == "return_url"


@pytest.mark.parametrize(
    ("return_url", "address"),
    [
        (None, ""),
        ("https://app.example", "https://app.example?reason=a+%26+b"),
        ("https://app.example/done", "https://app.example/done?reason=a+%26+b"),
        ("https://app.example/done?tab=1&x", "https://app.example/done?tab=1&x&reason=a+%26+b"),
    ],
)
def test_the_outcome_joins_what_the_address_has(return_url: str | None, address: str) -> None:
    assert with_result_params(return_url, reason="a & b") == address
