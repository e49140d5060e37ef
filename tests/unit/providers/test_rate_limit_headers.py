from datetime import timedelta

import pytest

from integration_server.domain.proxy_messages import Quota
from integration_server.providers.rate_limit_headers import parse_rate_limit_headers
from tests.unit.providers.support import NOW

IN_A_MINUTE = str(int(NOW.timestamp()) + 60)


def quota(remaining: int, seconds: float) -> Quota:
    return Quota(remaining, timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ratelimit": '"default";r=50;t=30'}, [quota(50, 30)]),
        ({"ratelimit": '"burst";r=5;t=1,"day";r=900;t=4000'}, [quota(5, 1), quota(900, 4000)]),
        ({"ratelimit": "limit=100, remaining=50, reset=5"}, [quota(50, 5)]),
        ({"ratelimit-remaining": "7", "ratelimit-reset": "12"}, [quota(7, 12)]),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": IN_A_MINUTE}, [quota(0, 60)]),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": IN_A_MINUTE + "000"}, [quota(0, 60)]),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1000000000"}, [quota(3, 0)]),
        ({"x-rate-limit-remaining": "3", "x-rate-limit-reset": "2.5"}, [quota(3, 2.5)]),
        (
            {"x-hubspot-ratelimit-remaining": "9", "x-hubspot-ratelimit-interval-milliseconds": "10000"},
            [quota(9, 10)],
        ),
        ({"x-shopify-shop-api-call-limit": "39/40"}, [quota(1, 0.5)]),
        ({"x-minlimit-remaining": "4"}, [quota(4, 60)]),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "99999999"}, [quota(1, 86400)]),
    ],
)
def test_parses_common_headers(headers: dict[str, str], expected: list[Quota]) -> None:
    assert list(parse_rate_limit_headers(headers, NOW)) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-remaining": "5"},
        {"x-ratelimit-reset": "5"},
        {"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "5"},
        {"x-ratelimit-remaining": "many", "x-ratelimit-reset": "soon"},
        {"x-ratelimit-remaining": "1" * 400, "x-ratelimit-reset": "5"},
        {"x-ratelimit-remaining": "nan", "x-ratelimit-reset": "inf"},
        {"ratelimit": "\x00;;;r=;t="},
        {"x-shopify-shop-api-call-limit": "40"},
    ],
)
def test_invalid_headers_are_ignored(headers: dict[str, str]) -> None:
    assert list(parse_rate_limit_headers(headers, NOW)) == []
