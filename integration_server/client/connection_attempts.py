"""How a connection that has begun ends: what both clients do while they wait for the user. No I/O."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from integration_server.client.errors import ProviderRejected, StateExpired
from integration_server.client.values import Attempt, CallbackResult
from integrations.v1.integration_pb2 import Integration

_GRACE = timedelta(minutes=1)  # for clocks that differ, and for a callback that has come at the last moment


def pauses() -> Iterator[float]:
    """Return the seconds between two reads of the state of a connection."""
    pause = 0.5
    while True:
        yield pause
        pause = min(pause * 1.5, 3.0)


def is_connected(integration: Integration, before: Integration) -> bool:
    """Whether an integration was connected since it was as `before`."""
    return integration.is_connected and (
        not before.is_connected or integration.connect_time.ToNanoseconds() > before.connect_time.ToNanoseconds()
    )


def merged(integrations: Sequence[Integration], before: Integration) -> int:
    """Return the integration that a new one has become: the user had connected the same account already.

    Raises `StateExpired` if there is none: the attempt has ended without a connection.
    """
    since = before.create_time.ToNanoseconds()
    reconnected = [row for row in integrations if row.is_connected and row.connect_time.ToNanoseconds() > since]
    if not reconnected:
        raise StateExpired("the connection was not completed, and its integration no longer exists")
    return max(reconnected, key=lambda row: row.connect_time.ToNanoseconds()).integration_id


def device_outcome(result: CallbackResult) -> int | None:
    """Return the integration of a device authorization; None while the user has not decided."""
    if result.success:
        return result.integration_id
    if result.reason == "authorization_pending":
        return None
    raise ProviderRejected(f"the device authorization has failed: {result.reason}")


def check_expiry(attempt: Attempt, now: datetime | None = None) -> None:
    """Raise `StateExpired` if nobody can complete the attempt any longer."""
    if attempt.expire_time is not None and (now or datetime.now(UTC)) > attempt.expire_time + _GRACE:
        raise StateExpired("the connection was not completed in time")
