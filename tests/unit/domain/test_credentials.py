from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens, RequestAuth
from tests.fakes.clock import NOON

MINUTE = timedelta(minutes=1)
TOKENS = OAuthTokens(
    access_token="access",
    refresh_token="refresh",
    expire_time=NOON + 10 * MINUTE,
    lifetime=60 * MINUTE,
    refresh_token_expire_time=NOON + timedelta(days=30),
    scopes=("read",),
    extras={"realm": "1"},
)
WITHOUT_EXPIRY = OAuthTokens(access_token="access")


@pytest.mark.parametrize(
    ("ttl", "is_valid"),
    [(timedelta(0), True), (9 * MINUTE, True), (10 * MINUTE, True), (10 * MINUTE + timedelta.resolution, False)],
)
def test_a_token_is_good_for_at_most_its_remaining_lifetime(ttl: timedelta, is_valid: bool) -> None:
    assert TOKENS.is_good_for(ttl, NOON) is is_valid


def test_a_token_has_expired_at_its_expire_time() -> None:
    expire_time = NOON + 10 * MINUTE
    assert not TOKENS.has_expired(expire_time - timedelta.resolution)
    assert TOKENS.has_expired(expire_time)
    assert not TOKENS.is_good_for(timedelta(0), expire_time)


def test_a_token_without_expire_time_never_expires() -> None:
    assert not WITHOUT_EXPIRY.has_expired(NOON)
    assert WITHOUT_EXPIRY.is_good_for(timedelta.max, NOON)


@pytest.mark.parametrize(
    ("lifetime", "buffer"),
    [(60 * MINUTE, 5 * MINUTE), (10 * MINUTE, 5 * MINUTE), (4 * MINUTE, 2 * MINUTE), (None, 5 * MINUTE)],
)
def test_the_buffer_is_at_most_half_of_the_lifetime(lifetime: timedelta | None, buffer: timedelta) -> None:
    assert replace(TOKENS, lifetime=lifetime).buffer(5 * MINUTE) == buffer


def test_fields_missing_in_a_token_response_are_kept() -> None:
    refreshed = TOKENS.updated_with(OAuthTokens(access_token="new", expire_time=NOON + 99 * MINUTE), NOON)
    assert refreshed == replace(TOKENS, access_token="new", expire_time=NOON + 99 * MINUTE, lifetime=None)


def test_fields_of_a_token_response_replace_the_previous_ones() -> None:
    response = OAuthTokens(
        access_token="new",
        refresh_token="rotated",
        expire_time=NOON + 99 * MINUTE,
        lifetime=99 * MINUTE,
        refresh_token_expire_time=NOON + timedelta(days=60),
        scopes=(),
        extras={"tenant": "2"},
    )
    assert TOKENS.updated_with(response, NOON) == replace(response, extras={"realm": "1", "tenant": "2"})


@pytest.mark.parametrize(
    "secret",
    [
        OAuthTokens(access_token="hush", refresh_token="hush", extras={"hush": "hush"}),
        ApiKey("hush", "hush", "hush"),
        RequestAuth({"Authorization": "hush"}, {"key": "hush"}),
    ],
    ids=lambda secret: type(secret).__name__,
)
def test_the_repr_contains_no_secrets(secret: object) -> None:
    assert "hush" not in repr(secret)
