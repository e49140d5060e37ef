"""The errors of the client: one class for each reason of the contract, with fields, metadata and retry time."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf import any as any_message
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from integration_server.client import errors
from integration_server.client.errors import BY_REASON, FieldViolation, error_of_call, error_of_status
from integration_server.domain import errors as server_errors
from integration_server.rpc.errors import status_of
from integrations.v1.error_reason_pb2 import ErrorReason

REASONS = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118


def test_each_reason_has_a_class_of_its_name() -> None:
    assert set(BY_REASON) == REASONS
    for reason, kind in BY_REASON.items():
        assert kind.__name__ == reason.title().replace("_", "")


@pytest.mark.parametrize(
    "error",
    [
        server_errors.InvalidField("user_id", "is empty"),
        server_errors.IntegrationNotFound(),
        server_errors.StateExpired(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_server_is_the_class_of_its_reason(error: server_errors.IntegrationServerError) -> None:
    converted = error_of_status(status_of(error))
    assert converted.reason == error.reason
    assert type(converted) is BY_REASON[error.reason]
    assert converted.message == str(error)


def packed(code: int, *details: Message) -> status_pb2.Status:
    return status_pb2.Status(code=code, message="no", details=map(any_message.pack, details))


def test_fields_metadata_and_retry_time_are_read() -> None:
    error = error_of_status(
        packed(
            8,
            error_details_pb2.ErrorInfo(reason="QUOTA_EXCEEDED", metadata={"limit": "calls"}),
            error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=3)),
            error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field="a", description="is bad")]
            ),
        )
    )
    assert isinstance(error, errors.QuotaExceeded)
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.retry_after, error.metadata) == (timedelta(seconds=3), {"limit": "calls"})
    assert error.fields == (FieldViolation("a", "is bad"),)
    assert str(error) == "no (a: is bad)"


@pytest.mark.parametrize("code", list(grpc.StatusCode)[1:], ids=lambda code: code.name)
def test_a_status_without_a_reason_has_the_class_of_its_code(code: grpc.StatusCode) -> None:
    error = error_of_call(code, "text", [("other", "x")])
    assert (error.reason, error.message) == ("", "text")
    assert error.code is code or type(error) is errors.IntegrationsError


def test_a_reason_of_a_newer_server_is_an_error_of_its_status() -> None:
    error = error_of_status(packed(9, error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE")))
    assert type(error) is errors.FailedPrecondition
    assert error.reason == "FROM_THE_FUTURE"


def test_a_status_that_a_proxy_has_replaced_counts() -> None:
    details = packed(5, error_details_pb2.ErrorInfo(reason="INTEGRATION_NOT_FOUND")).SerializeToString()
    assert type(error_of_call(grpc.StatusCode.UNAVAILABLE, "gone", [("grpc-status-details-bin", details)])) is (
        errors.Unavailable
    )
