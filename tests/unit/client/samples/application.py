"""What an application does with the client: checked with mypy --strict and pyright, as its users check their code."""

from collections.abc import Iterator
from datetime import timedelta

from integration_server.client import (
    Account,
    AsyncIntegrations,
    Credentials,
    CredentialSource,
    FileCursorStore,
    Integrations,
    IntegrationsError,
)
from integration_server.client.errors import FieldViolation, ReauthorizationRequired, Unavailable


def header_of(source: CredentialSource) -> dict[str, str]:
    """Adapters of an application take any source."""
    credentials: Credentials = source.credentials(timedelta(minutes=2))
    return dict(credentials.headers)


def names(client: Integrations, user: str) -> Iterator[str]:
    """Iterate over the names of a user's integrations."""
    for integration in client.list(user=user):
        yield integration.name


def use(client: Integrations) -> int:
    """Call a provider."""
    account: Account = client.account(user="ada", type="google_calendar")
    header_of(account)
    try:
        response = account.call("GET", "/users/me/calendarList", query={"maxResults": "5"}, timeout=5)
    except ReauthorizationRequired as error:
        reason: str = error.reason
        raise RuntimeError(reason) from error
    except Unavailable as error:
        delay: timedelta | None = error.retry_after
        raise RuntimeError(delay) from error
    except IntegrationsError as error:
        fields: tuple[FieldViolation, ...] = error.fields
        raise RuntimeError(fields) from error
    for event in account.webhook_events("worker"):
        print(event.number, event.event_type)
    for change in client.events(cursor_store=FileCursorStore("cursor")):
        print(change.integration_id, change.user_id)
    return response.status_code


async def use_async() -> str:
    """Connect an account."""
    async with AsyncIntegrations.from_env() as client:
        connection = await client.connect(user="ada", type="sandbox")
        print(connection.authorization_url)
        account = await connection.wait(timeout=600)
        async for check in account.health_checks():
            print(check.healthy)
        return (await account.credentials()).access_token
