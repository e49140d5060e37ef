"""Tests of the error classes; `tests/unit/rpc/test_errors.py` tests their gRPC statuses."""

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


def test_the_list_of_errors_is_complete() -> None:
    assert {type(error) for error in EVERY_ERROR} == set(error_classes())


def test_reasons_are_unique() -> None:
    reasons = [error_class.reason for error_class in error_classes()]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
def test_messages_are_printable(error: IntegrationServerError) -> None:
    assert str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda error_class: error_class.__name__)
def test_the_modules_docstring_names_every_error(error_class: type[IntegrationServerError]) -> None:
    assert error_class.__name__ in (errors.__doc__ or "")


def test_a_redirect_uri_that_is_not_allowed_is_an_invalid_field() -> None:
    error = RedirectUriNotAllowed("return_url")
    assert isinstance(error, InvalidField)
    assert (error.field, error.reason) == ("return_url", "REDIRECT_URI_NOT_ALLOWED")


def test_an_unavailable_provider_may_have_a_retry_after() -> None:
    assert ProviderUnavailable(retry_after=timedelta(seconds=7)).retry_after == timedelta(seconds=7)
    assert ProviderUnavailable().retry_after is None


def test_an_oauth_error_is_not_part_of_the_message() -> None:
    error = ProviderError("refused", oauth_error="invalid_grant")
    assert (str(error), error.oauth_error) == ("refused", "invalid_grant")
