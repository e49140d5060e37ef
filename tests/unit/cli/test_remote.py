"""Commands that call a server: options override the environment, and errors become one line and an exit code."""

import pytest

from integration_server.cli.remote import FAILED, NOT_AVAILABLE, connection_environment, describe, exit_code_of
from integration_server.client.configuration import Configuration
from integration_server.client.errors import (
    DeadlineExceeded,
    FieldViolation,
    IntegrationNotFound,
    IntegrationsError,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)

ENVIRONMENT = {
    "INTEGRATIONS_ADDRESS": "integrations:50051",
    "INTEGRATIONS_TOKEN": "of the environment",
    "INTEGRATIONS_CA_FILE": "/ca.pem",
}


def test_options_override_the_environment() -> None:
    given = {"address": "other:1", "token_file": "/token", "tls": True, "ca_file": None}
    configuration = Configuration.from_env(connection_environment(ENVIRONMENT, given))
    assert (configuration.address, configuration.tls, str(configuration.ca_file)) == ("other:1", True, "/ca.pem")
    # A token file that is named replaces the token of the environment, which would contradict it.
    assert (configuration.token, str(configuration.token_file)) == (None, "/token")


def test_without_options_the_environment_counts() -> None:
    configuration = Configuration.from_env(connection_environment(ENVIRONMENT, {}))
    assert (configuration.address, configuration.token) == ("integrations:50051", "of the environment")


def test_without_any_it_calls_the_default_address_of_this_machine() -> None:
    configuration = Configuration.from_env(connection_environment({"INTEGRATIONS_ADDRESS": ""}, {}))
    assert (configuration.address, configuration.uses_tls) == ("127.0.0.1:50051", False)


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (IntegrationNotFound("no such integration"), FAILED, "INTEGRATION_NOT_FOUND: no such integration"),
        (Unavailable("connection refused"), NOT_AVAILABLE, "UNAVAILABLE: connection refused"),
        (DeadlineExceeded("no response"), NOT_AVAILABLE, "DEADLINE_EXCEEDED: no response"),
        (PermissionDenied("may not"), FAILED, "PERMISSION_DENIED: may not"),
        (
            InvalidArgument("user_id is required", reason="INVALID_FIELD", fields=[FieldViolation("user_id", "is")]),
            FAILED,
            "INVALID_FIELD: user_id is required (--user)",
        ),
    ],
)
def test_an_error_is_one_line_with_its_reason(error: IntegrationsError, exit_code: int, line: str) -> None:
    assert (describe(error), exit_code_of(error)) == (line, exit_code)
