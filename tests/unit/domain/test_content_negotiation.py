"""Content negotiation: browsers get pages, programs get JSON."""

import pytest

from integration_server.domain.content_negotiation import wants_html


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "TEXT/HTML",
        "text/html;charset=utf-8",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "application/json;q=0.5, text/html;q=0.6",
        "text/html;q=0.5, application/json;q=0.5",
        "text/html;level=1;q=0.4, application/json;q=0.3",
        "*/*;q=0.1 , text/html",
        "text/*",
        "text/html, application/json;q=0",
    ],
)
def test_a_browser_gets_a_page(accept: str) -> None:
    assert wants_html([accept])


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/json",
        "application/json, text/plain, */*",
        "text/html;q=0.5, application/json",
        "text/html;q=0.5, */*",
        "text/html;q=0",
        "text/html;Q=0.000",
        "text/html;q=0, */*",
        "text/html;q=0.2, application/*;q=0.3",
        "image/png",
        "text/htmlx",
        ",;,;q=,/",
    ],
)
def test_a_program_gets_json(accept: str) -> None:
    assert not wants_html([accept])
