import pytest

from integration_server.domain.errors import RedirectUriNotAllowed
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.domain.return_urls import with_result_params

APP_CALLBACK = "https://app.example/callback"
ALLOWLIST = RedirectAllowlist("https://hooks.example/", [APP_CALLBACK], ["https://app.example/done"])
OWN_CALLBACK = "https://hooks.example/api/v1/integrations/callback/fake"


@pytest.mark.parametrize(
    ("requested", "redirect_uri"), [("", OWN_CALLBACK), (OWN_CALLBACK, OWN_CALLBACK), (APP_CALLBACK, APP_CALLBACK)]
)
def test_an_allowed_redirect_uri_is_returned(requested: str, redirect_uri: str) -> None:
    assert ALLOWLIST.redirect_uri("fake", requested) == redirect_uri


@pytest.mark.parametrize(
    "requested",
    [
        APP_CALLBACK + "/",
        APP_CALLBACK + "?x=1",
        APP_CALLBACK + "#x",
        APP_CALLBACK.upper(),
        "https://app.example/",
        "https://app.example:443/callback",
        "https://app.example@evil.example/callback",
        "http://app.example/callback",
        " " + APP_CALLBACK,
        OWN_CALLBACK.replace("fake", "other"),
        "https://hooks.example/api/v1/integrations/callback/",
        "javascript:alert(1)",
    ],
)
def test_a_similar_redirect_uri_is_rejected(requested: str) -> None:
    with pytest.raises(RedirectUriNotAllowed) as caught:
        ALLOWLIST.redirect_uri("fake", requested)
    assert caught.value.field == "redirect_uri"


def test_return_urls_have_their_own_allowlist() -> None:
    assert ALLOWLIST.return_url("https://app.example/done") == "https://app.example/done"
    assert ALLOWLIST.return_url("") is None
    with pytest.raises(RedirectUriNotAllowed) as caught:
        ALLOWLIST.return_url(APP_CALLBACK)
    assert caught.value.field == "return_url"


@pytest.mark.parametrize(
    ("return_url", "redirect_url"),
    [
        (None, ""),
        ("https://app.example", "https://app.example?reason=a+%26+b"),
        ("https://app.example/done", "https://app.example/done?reason=a+%26+b"),
        ("https://app.example/done?tab=1&x", "https://app.example/done?tab=1&x&reason=a+%26+b"),
    ],
)
def test_result_parameters_are_added_to_the_query(return_url: str | None, redirect_url: str) -> None:
    assert with_result_params(return_url, reason="a & b") == redirect_url


@pytest.mark.parametrize(
    "public_url", ["https://hooks.example", "https://Hooks.Example:443/", "HTTPS://hooks.example/"]
)
@pytest.mark.parametrize(
    ("redirect_uri", "is_of_sidecar"),
    [
        (OWN_CALLBACK, True),
        ("https://hooks.example/api/v1/integrations/callback", True),
        ("https://hooks.example:443/api/v1/integrations/callback/", True),
        ("https://HOOKS.example/api/v1/integrations/callback/other?tenant=1", True),
        (APP_CALLBACK, False),
        ("https://hooks.example:8443/api/v1/integrations/callback/fake", False),
        ("https://hooks.example/api/v1/integrations/callbacks/fake", False),
        ("https://hooks.example.app.example/api/v1/integrations/callback/fake", False),
        ("https://app.example/?to=https://hooks.example/api/v1/integrations/callback/fake", False),
    ],
)
def test_the_sidecar_receives_the_browser_at_every_name_of_its_callback(
    public_url: str, redirect_uri: str, is_of_sidecar: bool
) -> None:
    assert RedirectAllowlist(public_url, [redirect_uri], []).is_of_sidecar(redirect_uri) is is_of_sidecar
