from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from integration_server.domain.credentials import ApiKey, AuthMethod, OAuthTokens, RequestAuth
from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.domain.webhooks import WebhookResponse
from integration_server.rpc import mapping
from integration_server.service.credentials.credential_service import UsableCredentials
from integration_server.service.health.health_checks import HealthCheckPage
from integration_server.service.webhooks.webhook_ingestion import NOT_FOUND, UNAUTHORIZED
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.clock import NOON, SettableClock
from tests.fakes.provider import FakeProvider

AUTH = RequestAuth({"Authorization": "Bearer access"}, {"key": "value"})
PENDING = Integration(
    integration_id=IntegrationId(2**63 - 1),
    uid="uid",
    user_id=UserId("ada"),
    integration_type="fake",
    auth_method=AuthMethod.OAUTH2,
    create_time=NOON,
    update_time=NOON,
)
FULL = replace(
    PENDING,
    name="Mine",
    config={"a": [1, 0.5, None, {"b": True}]},
    account_id="account-1",
    account_label="ada@example.com",
    scopes=("read",),
    missing_scopes=("write",),
    is_renewable=True,
    last_error=Failure("PROVIDER_UNAVAILABLE", NOON, "down"),
    error_count=3,
    last_health_check=NOON,
    access_token_expire_time=NOON,
    refresh_token_expire_time=NOON,
    connect_time=NOON,
    oauth_client="tenant",
    version=7,
)
CHECK = HealthCheck(FULL, Status.ERROR, False, NOON, timedelta(milliseconds=42), "PROVIDER_UNAVAILABLE", "down")


def fields_of_message(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize("status", Status)
def test_every_status_has_its_value(status: Status) -> None:
    encoded = mapping.encode_health_check(replace(CHECK, status=status)).status
    assert integration_pb2.Status.Name(encoded) == f"STATUS_{status.name}"


@pytest.mark.parametrize("method", AuthMethod)
def test_every_auth_method_has_its_value(method: AuthMethod) -> None:
    encoded = mapping.encode_integration(replace(PENDING, auth_method=method), NOON).auth_method
    assert integration_pb2.AuthMethod.Name(encoded) == f"AUTH_METHOD_{method.name}"


def test_every_field_of_an_integration_is_set() -> None:
    encoded = mapping.encode_integration(FULL, NOON)
    assert fields_of_message(encoded) == {
        "integration_id": str(2**63 - 1),
        "user_id": "ada",
        "integration_type": "fake",
        "name": "Mine",
        "config": {"a": [1, 0.5, None, {"b": True}]},
        "is_active": True,
        "status": "STATUS_ERROR",
        "auth_method": "AUTH_METHOD_OAUTH2",
        "scopes": ["read"],
        "missing_scopes": ["write"],
        "account_id": "account-1",
        "account_label": "ada@example.com",
        "is_connected": True,
        "last_error": {
            "error_class": "PROVIDER_UNAVAILABLE",
            "error_time": "2026-03-01T12:00:00.123456Z",
            "message": "down",
        },
        "error_count": 3,
        "oauth_client": "tenant",
        **dict.fromkeys(
            (
                "last_health_check",
                "access_token_expire_time",
                "refresh_token_expire_time",
                "create_time",
                "update_time",
                "connect_time",
            ),
            "2026-03-01T12:00:00.123456Z",
        ),
    }
    assert set(fields_of_message(encoded)) == set(encoded.DESCRIPTOR.fields_by_name)


def test_unknown_fields_are_unset() -> None:
    encoded = mapping.encode_integration(PENDING, NOON)
    assert encoded.status == integration_pb2.STATUS_PENDING
    unset = ("last_error", "last_health_check", "access_token_expire_time", "refresh_token_expire_time", "connect_time")
    assert not any(encoded.HasField(name) for name in unset)


@pytest.mark.parametrize("number", [1e308, -1e308, 5e-324, 2**53, 0, -0.5])
def test_a_number_of_a_config_is_decoded_and_encoded_without_loss(number: float) -> None:
    config = Struct()
    config.update({"n": number})
    encoded = mapping.encode_integration(replace(PENDING, config=mapping.decode_config(config)), NOON)
    assert encoded.config["n"] == number


def test_a_time_is_encoded_in_utc() -> None:
    in_tokyo = NOON.astimezone(timezone(timedelta(hours=9)))
    last = datetime.max.replace(tzinfo=UTC)
    encoded = mapping.encode_integration(replace(PENDING, create_time=in_tokyo, update_time=last), NOON)
    assert encoded.create_time.ToDatetime(UTC) == NOON
    assert encoded.update_time.ToDatetime(UTC) == last


def test_every_field_of_a_health_check_is_set() -> None:
    assert fields_of_message(mapping.encode_health_check(CHECK)) == {
        "integration_id": str(2**63 - 1),
        "integration_type": "fake",
        "name": "Mine",
        "status": "STATUS_ERROR",
        "check_time": "2026-03-01T12:00:00.123456Z",
        "latency": "0.042s",
        "error_class": "PROVIDER_UNAVAILABLE",
        "message": "down",
    }


def test_a_token_has_its_expiry_time_headers_and_parameters() -> None:
    tokens = OAuthTokens("access", "refresh", NOON)
    encoded = mapping.encode_credentials(UsableCredentials(tokens, ("read",), AUTH))
    assert fields_of_message(encoded) == {
        "bearer_token": "access",
        "expire_time": "2026-03-01T12:00:00.123456Z",
        "scopes": ["read"],
        "headers": {"Authorization": "Bearer access"},
        "query_params": {"key": "value"},
    }


def test_a_token_without_expiry_has_no_expiry_time_and_no_refresh_token() -> None:
    encoded = mapping.encode_credentials(UsableCredentials(OAuthTokens("access", "refresh"), (), AUTH))
    assert not encoded.HasField("expire_time")
    assert b"refresh" not in encoded.SerializeToString()


def test_a_webhook_response_says_whether_the_request_was_verified() -> None:
    assert mapping.encode_webhook_response(WebhookResponse(202, body=b"ok")).verified
    for rejected in (NOT_FOUND, UNAUTHORIZED):
        assert not mapping.encode_webhook_response(rejected).verified


def test_an_api_key_is_returned_without_the_webhook_secret() -> None:
    encoded = mapping.encode_credentials(UsableCredentials(ApiKey("key", "secret", "hook"), (), RequestAuth()))
    assert fields_of_message(encoded) == {"api_key": {"api_key": "key", "api_secret": "secret"}}


def test_an_integration_type_names_its_missing_settings() -> None:
    provider = FakeProvider(SettableClock(), auth_method=AuthMethod.BASIC, required_fields=("api_key", "api_secret"))
    assert mapping.encode_integration_type(provider).configured
    provider.missing_settings = ["FAKE_CLIENT_ID"]
    assert fields_of_message(mapping.encode_integration_type(provider)) == {
        "integration_type": "fake",
        "display_name": "Fake",
        "auth_method": "AUTH_METHOD_BASIC",
        "scopes": ["read"],
        "required_fields": ["api_key", "api_secret"],
        "missing_settings": ["FAKE_CLIENT_ID"],
    }


def test_a_value_for_a_field_that_the_message_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="ratio"):
        mapping.encode(integration_pb2.ErrorRate, ErrorRate(timedelta(hours=1), 4, 1), ratio=0.25)


def test_a_nested_value_becomes_a_message() -> None:
    page = HealthCheckPage([], "next", [ErrorRate(timedelta(hours=1), 4, 1)])
    assert fields_of_message(mapping.encode(pb.ListHealthChecksResponse, page, health_checks=[])) == {
        "next_page_token": "next",
        "error_rates": [{"window": "3600s", "checks": 4, "failures": 1, "rate": 0.25}],
    }
