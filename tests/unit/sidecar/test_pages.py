"""The pages: self-contained, under a content security policy that allows their style only."""

import base64
import hashlib
import re
from http import HTTPStatus

import pytest

from integration_server.sidecar.pages import PageTexts, ResultPages

ALL_PAGES = list(ResultPages().pages.values())


def rendered(page: PageTexts) -> str:
    return bytes(ResultPages().render(page, HTTPStatus.OK).body).decode()


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_a_page_shows_its_texts(page: PageTexts) -> None:
    html = rendered(page)

    for text in (page.title, page.message, page.next_step):
        assert f">{text}<" in html


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_a_page_loads_and_runs_nothing(page: PageTexts) -> None:
    html = rendered(page)

    assert not re.search(r"<script|<link|<img|<form|<iframe|\son\w+=|\shref=|\ssrc=|style=|url\(|@import", html)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_the_policy_allows_only_the_style_of_the_page(page: PageTexts) -> None:
    styles = re.findall(r"<style>(.*?)</style>", rendered(page), re.DOTALL)

    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert ResultPages().policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_texts_are_escaped() -> None:
    html = rendered(PageTexts("done", "</title><script>", "<img src=x onerror=alert(1)>", "\"'&{{ 7 * 7 }}"))

    assert "<script" not in html
    assert "<img" not in html
    assert "&#34;&#39;&amp;{{ 7 * 7 }}" in html


def test_each_error_selects_one_page() -> None:
    errors = [error for page in ALL_PAGES for error in page.errors]

    assert len(errors) == len(set(errors))
