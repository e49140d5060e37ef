"""The tree as a whole; `tests/unit/rpc/test_errors.py` has the statuses."""

from datetime import timedelta

import pytest

from integration_server.domain import errors
from integration_server.domain.errors import (
    IntegrationServerError,
    InvalidField,
    ProviderError,
    ProviderUnavailable,
    RedirectUriNotAllowed,
)
from tests.fakes.errors import EVERY_ERROR, error_classes


def test_every_error_is_tried() -> None:
    assert {type(error) for error in EVERY_ERROR} == set(error_classes())


def test_reasons_are_unlike_each_other() -> None:
    reasons = [kind.reason for kind in error_classes()]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
def test_a_message_is_a_sentence_to_show(error: IntegrationServerError) -> None:
    assert str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_the_tree_is_drawn_in_the_modules_docstring(kind: type[IntegrationServerError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_an_address_that_is_not_allowed_is_a_wrong_field() -> None:
    error = RedirectUriNotAllowed("return_url")
    assert isinstance(error, InvalidField)
    assert (error.field, error.reason) == ("return_url", "REDIRECT_URI_NOT_ALLOWED")


def test_a_provider_may_say_how_long_to_wait() -> None:
    assert ProviderUnavailable(retry_after=timedelta(seconds=7)).retry_after == timedelta(seconds=7)
    assert ProviderUnavailable().retry_after is None


def test_an_oauth_error_is_not_part_of_the_message() -> None:
    error = ProviderError("refused", oauth_error="invalid_grant")
    assert (str(error), error.oauth_error) == ("refused", "invalid_grant")
