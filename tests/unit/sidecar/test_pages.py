"""The pages: self-contained, under a content security policy that allows their style only."""

import base64
import hashlib
import re
from html import unescape
from http import HTTPStatus

import pytest
from markupsafe import escape

from integration_server.sidecar.pages import PageTexts, ResultPages

ALL_PAGES = ResultPages().pages


def rendered(page: PageTexts, *names: str) -> str:
    return bytes(ResultPages().render(page, HTTPStatus.OK, *names).body).decode()


@pytest.mark.parametrize("page", ALL_PAGES.values(), ids=ALL_PAGES)
def test_a_page_shows_its_texts_with_and_without_names(page: PageTexts) -> None:
    for names in ((), ("Acme",), ("Acme", "ada@acme.example")):
        html = rendered(page, *names)
        assert f">{page.title}<" in html
        assert page.next_step in unescape(html)
        (message,) = re.findall("<p>(.*?)</p>", html)
        assert re.fullmatch(r"[A-Z\u201c<]([^{}%]|<bdi>)+\.", message)
        assert "  " not in message
        assert ("<bdi>Acme</bdi>" in message) is ("provider" in page.message and bool(names))
        assert ("<bdi>ada@acme.example</bdi>" in message) is ("account }}" in page.message and len(names) == 2)


@pytest.mark.parametrize("page", ALL_PAGES.values(), ids=ALL_PAGES)
def test_a_page_loads_and_runs_nothing(page: PageTexts) -> None:
    html = rendered(page)

    assert not re.search(r"<script|<link|<img|<form|<iframe|\son\w+=|\shref=|\ssrc=|style=|url\(|@import", html)


@pytest.mark.parametrize("page", ALL_PAGES.values(), ids=ALL_PAGES)
def test_the_policy_allows_only_the_style_of_the_page(page: PageTexts) -> None:
    styles = re.findall(r"<style>(.*?)</style>", rendered(page), re.DOTALL)

    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert ResultPages().policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@pytest.mark.parametrize(
    "hostile",
    ["<img src=x onerror=alert(1)>", "</bdi></p><script>", "\"'&{{ 7 * 7 }}", "{% raw %}<!--", "\u202emoc.live \u2066"],
)
def test_names_are_escaped_and_isolated(hostile: str) -> None:
    harmless = rendered(ALL_PAGES["connected"], "Acme", "account-name")
    html = rendered(ALL_PAGES["connected"], "Acme", hostile)
    assert html == harmless.replace("account-name", str(escape(hostile)))
    assert f"<bdi>{escape(hostile)}</bdi>" in html  # HTML §4.5.25: an override ends with the element


@pytest.mark.parametrize(
    "name", ["山田　太郎", "\u0646\u0627\u0645\u200c\u062e\u0627\u0646", "👩\u200d🚀 Ada", "Ada\u00a0Lovelace"]
)
def test_names_in_any_language_are_shown_unchanged(name: str) -> None:
    assert f"<bdi>{name}</bdi> is connected" in rendered(ALL_PAGES["connected"], "Acme", name)


def test_a_long_name_is_cut() -> None:
    html = rendered(ALL_PAGES["connected"], "Acme", "x" * 255)
    assert f"<bdi>{'x' * 100}…</bdi>" in html


def test_each_error_selects_one_page() -> None:
    errors = [error for page in ALL_PAGES.values() for error in page.errors]

    assert len(errors) == len(set(errors))
