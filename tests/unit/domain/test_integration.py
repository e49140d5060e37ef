from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationInactive, IntegrationPending, ReauthorizationRequired
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from tests.fakes.clock import NOON

WORKING = Integration(
    integration_id=IntegrationId(1),
    uid="uid",
    user_id=UserId("ada"),
    integration_type="fake",
    auth_method=AuthMethod.OAUTH2,
    create_time=NOON,
    update_time=NOON,
    connect_time=NOON,
    is_renewable=True,
    access_token_expire_time=NOON + timedelta(hours=1),
)
FAILED = Failure("PROVIDER_UNAVAILABLE", NOON, "down")
EXPIRED = {"is_renewable": False, "access_token_expire_time": NOON}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, Status.ACTIVE),
        ({"connect_time": None}, Status.PENDING),
        ({"connect_time": None, "is_active": False}, Status.PENDING),
        ({"is_active": False}, Status.INACTIVE),
        ({"is_active": False, "reauthorization_required": True}, Status.INACTIVE),
        ({"is_active": False, "last_error": FAILED}, Status.INACTIVE),
        ({"reauthorization_required": True}, Status.EXPIRED),
        ({"reauthorization_required": True, "last_error": FAILED}, Status.EXPIRED),
        (EXPIRED, Status.EXPIRED),
        ({**EXPIRED, "access_token_expire_time": NOON + timedelta.resolution}, Status.ACTIVE),
        ({**EXPIRED, "is_renewable": True}, Status.ACTIVE),
        ({"is_renewable": False, "access_token_expire_time": None}, Status.ACTIVE),
        ({"last_error": FAILED}, Status.ERROR),
        ({"lacks_required_scope": True}, Status.ERROR),
        ({"missing_scopes": ("extra",)}, Status.ACTIVE),
    ],
)
def test_the_status_is_derived_from_the_stored_fields(changes: dict[str, Any], status: Status) -> None:
    assert replace(WORKING, **changes).status(NOON) is status


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"connect_time": None, "is_active": False}, IntegrationPending),
        ({"is_active": False, "reauthorization_required": True}, IntegrationInactive),
        ({"reauthorization_required": True}, ReauthorizationRequired),
    ],
)
def test_require_usable_raises_for_unusable_integrations(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        replace(WORKING, **changes).require_usable()


@pytest.mark.parametrize("changes", [{}, {"last_error": FAILED}, {"lacks_required_scope": True}])
def test_require_usable_accepts_integrations_with_errors(changes: dict[str, Any]) -> None:
    integration = replace(WORKING, **changes)
    integration.require_usable()
    assert integration.status(NOON) in {Status.ACTIVE, Status.ERROR}
