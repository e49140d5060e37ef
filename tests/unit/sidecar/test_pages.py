"""The pages: self-contained, under a policy that allows their style and nothing else."""

import base64
import hashlib
import re
from http import HTTPStatus

import pytest

from integration_server.sidecar import pages
from integration_server.sidecar.pages import Page, Pages

ALL_PAGES = [value for value in vars(pages).values() if isinstance(value, Page)]


def rendered(page: Page) -> str:
    return bytes(Pages().render(page, HTTPStatus.OK).body).decode()


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_says_what_happened_and_what_to_do_next(page: Page) -> None:
    html = rendered(page)

    for text in (page.title, page.happened, page.next_step):
        assert f">{text}<" in html


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_loads_nothing_and_runs_nothing(page: Page) -> None:
    html = rendered(page)

    assert not re.search(r"<script|<link|<img|<form|<iframe|\son\w+=|\shref=|\ssrc=|style=|url\(|@import", html)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.title)
def test_the_policy_allows_the_style_of_the_page_and_nothing_else(page: Page) -> None:
    styles = re.findall(r"<style>(.*?)</style>", rendered(page), re.DOTALL)

    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert Pages().policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_even_a_hostile_text_of_our_own_would_be_escaped() -> None:
    html = rendered(Page("done", "</title><script>", "<img src=x onerror=alert(1)>", "\"'&{{ 7 * 7 }}"))

    assert "<script" not in html
    assert "<img" not in html
    assert "&#34;&#39;&amp;{{ 7 * 7 }}" in html
