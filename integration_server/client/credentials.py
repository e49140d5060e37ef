"""Credentials as the client returns them, and the interfaces of what returns them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, Self

from integration_server.client.configuration import SecretText
from integrations.v1 import credentials_pb2

_SECRETS = ("access_token", "api_key", "api_secret")


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


def _secret_values(values: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({name: SecretText(value) for name, value in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Credentials of an integration, and how to put them on a request. Printing and pickling show no secret.

    `headers` and `query` authenticate a request if they are added to it unchanged, whatever the provider's scheme is.
    OAuth 2 credentials have an `access_token`; API keys have an `api_key`, and an `api_secret` if the provider has one.
    `expire_time` is in UTC, and None if the credentials do not expire.
    """

    integration_id: int
    integration_type: str = ""
    access_token: str = field(default="", repr=False)
    token_type: str = ""
    api_key: str = field(default="", repr=False)
    api_secret: str = field(default="", repr=False)
    expire_time: datetime | None = None
    scopes: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=_empty, repr=False, hash=False)
    query: Mapping[str, str] = field(default_factory=_empty, repr=False, hash=False)

    def __post_init__(self) -> None:
        """Hide the secrets where a library keeps them: in its attributes, its headers and its local variables."""
        for name in _SECRETS:
            object.__setattr__(self, name, SecretText(getattr(self, name)))
        object.__setattr__(self, "headers", _secret_values(self.headers))
        object.__setattr__(self, "query", _secret_values(self.query))

    @classmethod
    def decode(cls, message: credentials_pb2.Credentials, integration_id: int, integration_type: str) -> Self:
        """Return the credentials of a message of the contract."""
        expire_time = message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None
        return cls(
            integration_id=integration_id,
            integration_type=integration_type,
            access_token=message.bearer_token,
            token_type="Bearer" if message.bearer_token else "",
            api_key=message.api_key.api_key,
            api_secret=message.api_key.api_secret,
            expire_time=expire_time,
            scopes=tuple(message.scopes),
            headers=message.headers,
            query=message.query_params,
        )

    def has_same_secret(self, other: "Credentials") -> bool:
        """Whether a provider that rejects the one rejects the other too."""
        return (
            self.access_token == other.access_token
            and self.api_key == other.api_key
            and self.api_secret == other.api_secret
            and self.headers == other.headers
            and self.query == other.query
        )

    def __copy__(self) -> Self:
        """Values are frozen: a copy is the same."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Values are frozen: a copy is the same."""
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: a pickle, such as the arguments of a queued task, would hold the secret in plain text."""
        raise TypeError(
            "credentials cannot be pickled: pass the integration's id, and ask for them where they are used"
        )


class CredentialSource(Protocol):
    """Returns the credentials of one account: what adapters take."""

    def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """Return valid credentials, from memory while they are fresh. `min_ttl`: their minimum remaining lifetime.

        Raises `IntegrationsError` if there are none.
        """
        ...

    def renew(self, rejected: Credentials) -> Credentials:
        """Return newer credentials than those that the provider has rejected; `rejected` itself if there are none.

        Raises `IntegrationsError` if there are none at all any longer.
        """
        ...


class AsyncCredentialSource(Protocol):
    """`CredentialSource` for asyncio."""

    async def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """Return valid credentials, as in `CredentialSource`."""
        ...

    async def renew(self, rejected: Credentials) -> Credentials:
        """Return newer credentials, as in `CredentialSource`."""
        ...
