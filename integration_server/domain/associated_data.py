"""What an encrypted value is bound to: its table, column and row, and the other values of the row."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from integration_server.domain.integration import Integration


class AssociatedData(NamedTuple):
    """The associated data of an encrypted value. It decrypts only with the same data.

    They are its table, column and row, and `bound_values`: in canonical JSON, the other values of the row that decide
    whether it is the newest and where it is sent.
    """

    table: str
    column: str
    uid: str
    user_id: str = ""
    integration_type: str = ""
    bound_values: str = ""


def bound_values_of(integration: Integration) -> str:
    """The values of the row that the credentials are bound to, beside uid, user and type, in canonical JSON.

    They are those that identify the row, the versions, and all that is set together with one of them. What changes
    alone (errors, due times, `reauthorization_required`) is not among them.
    """
    return _to_json(
        integration.integration_id,
        integration.version,
        integration.settings_version,
        integration.webhook_secret_id,
        integration.auth_method,
        integration.oauth_client,
        integration.account_id,
        integration.account_label,
        integration.name,
        integration.config,
        integration.is_active,
        integration.scopes,
        integration.missing_scopes,
        integration.lacks_required_scope,
        integration.is_renewable,
        integration.access_token_expire_time,
        integration.refresh_token_expire_time,
        integration.connect_time,
    )


def _time_text(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is not expected in a row")
    return (value if value.tzinfo is UTC else value.astimezone(UTC)).isoformat(timespec="microseconds")


_encode_json = json.JSONEncoder(sort_keys=True, check_circular=False, default=_time_text).encode


def _to_json(*values: object) -> str:
    return _encode_json(values)


# Called with the uid or other id of the row, its user, its integration type, and the values that they are bound to.

credentials_aad = partial(AssociatedData, "integrations", "encrypted_credentials")
"""Of an integration's credentials, also while they wait in the revocation outbox."""

attempt_aad = partial(AssociatedData, "authorization_attempts", "encrypted_details")
"""Of the details of an authorization attempt."""

callback_aad = partial(AssociatedData, "authorization_attempts", "encrypted_callback")
"""Of the pending callback of an authorization attempt."""

outcome_aad = partial(AssociatedData, "authorization_attempts", "encrypted_outcome")
"""Of the outcome of the callback of an authorization attempt."""


def oauth_client_aad(
    uid: str, integration_type: str, name: str, client_id: str, callers: Sequence[str], version: int
) -> AssociatedData:
    """Of the secrets of an OAuth client, which belongs to no user."""
    bound_values = _to_json(name, client_id, callers, version)
    return AssociatedData("oauth_clients", "encrypted_secrets", uid, "", integration_type, bound_values)


def webhook_secret_aad(
    uid: str,
    user_id: str,
    integration_type: str,
    secret_id: str,
    column: str,
    set_time: datetime,
    previous_expire_time: datetime | None,
) -> AssociatedData:
    """Of a webhook secret of an integration: in `column`, of the secrets with this id."""
    bound_values = _to_json(secret_id, set_time, previous_expire_time)
    return AssociatedData("webhook_secrets", column, uid, user_id, integration_type, bound_values)


def payload_aad(
    uid: str,
    user_id: str,
    integration_type: str,
    integration_id: int,
    event_id: str,
    event_type: str,
    receive_time: datetime,
) -> AssociatedData:
    """Of the payload of a webhook event. The uid is the event's."""
    bound_values = _to_json(integration_id, event_id, event_type, receive_time)
    return AssociatedData("webhook_events", "encrypted_payload", uid, user_id, integration_type, bound_values)


def route_aad(uid: str, user_id: str, integration_type: str, route: str) -> AssociatedData:
    """Of the copy of a route of an integration's webhooks."""
    return AssociatedData("webhook_routes", "encrypted_copy", uid, user_id, integration_type, _to_json(route))


def unrouted_payload_aad(
    uid: str, integration_type: str, oauth_client: str, event_id: str, event_type: str, receive_time: datetime
) -> AssociatedData:
    """Of the payload of a webhook event without an integration, which belongs to no user."""
    bound_values = _to_json(oauth_client, event_id, event_type, receive_time)
    return AssociatedData("unrouted_webhooks", "encrypted_payload", uid, "", integration_type, bound_values)


def chain_key_aad(chain_id: str) -> AssociatedData:
    """Of the key of an audit chain, which belongs to no user."""
    return AssociatedData("audit_chains", "encrypted_key", chain_id)
