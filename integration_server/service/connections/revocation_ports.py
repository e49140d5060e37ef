"""The port of the revocation outbox."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Protocol

from integration_server.domain.integration import UserId
from integration_server.domain.oauth_client import client_key
from integration_server.service.background.ports import Claim


@dataclass(frozen=True, slots=True)
class OrphanedGrant:
    """Encrypted credentials that belong to no integration any more.

    The associated data of `encrypted_credentials` is that of the former integration: uid, user, type and
    `bound_values`. `token_fingerprint` is that of `OAuthTokens`.
    """

    uid: str
    user_id: UserId
    integration_type: str
    account_id: str | None
    encrypted_credentials: bytes = field(repr=False)
    bound_values: str = field(default="", repr=False)
    token_fingerprint: str | None = field(default=None, repr=False)
    oauth_client: str = ""

    @property
    def client_key(self) -> str:
        """The key of its client (`domain/oauth_client.py`)."""
        return client_key(self.integration_type, self.oauth_client)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A grant to revoke. `attempts` counts the claims, `age` is the time since it was added to the outbox.

    `is_complete`: it is revoked, and only the record of that is left.
    """

    grant: OrphanedGrant
    attempts: int
    age: timedelta
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class ClientScope:
    """The grants of a type to one OAuth client, or to every one if `oauth_client` is None."""

    integration_type: str
    oauth_client: str | None


@dataclass(frozen=True, slots=True)
class GrantProof:
    """When the grant of a new connection was valid for certain, on the database's clock, and what may end it.

    `ended_by` are the clients whose revocations end its grant, with the account.
    """

    time: datetime
    ended_by: Collection[ClientScope] = ()


class RevocationInProgress(Exception):  # not an error: the connection is stored later
    """A revocation may have ended the grant of a new connection, which is therefore not stored yet."""


class CallDecision(Enum):
    """Whether a revocation may be sent to the provider."""

    SEND = auto()
    """It ends no integration. The caller has a new claim, for the duration of the call."""

    SHARED_WITH_OWN = auto()
    """It would end another integration of the same user, and has been removed from the outbox."""

    SHARED = auto()
    """It would end integrations of other users only, and has been removed from the outbox."""

    NOT_CLAIMED = auto()
    """Another process has claimed or removed it."""


class RevocationOutbox(Protocol):
    """The outbox of grants to revoke, shared by all processes. `DueWork` claims and postpones its rows."""

    async def add(self, grant: OrphanedGrant) -> None:
        """Add a grant that is due at once."""

    async def begin_call(
        self,
        claim: Claim[Revocation],
        ended: Collection[ClientScope],
        comparable_types: Collection[str],
        claim_duration: timedelta,
        *,
        keeps_shared_grants: bool = True,
    ) -> tuple[CallDecision, Claim[Revocation]]:
        """Decide whether the revocation may be sent, and claim it anew for the call if so.

        It may not if it would end a connected integration: one with the same token, of any type; or one of
        `ended`, the clients whose grants it ends with the account, that may have the same account. These are:

        - an integration with this account, of any user;
        - if the account is unknown, every integration;
        - an integration whose account is unknown, except one of another user that lacks a required scope: a user can
          cause that on purpose, and would prevent the revocations of all others;
        - an integration of the same user, of a type that is not one of `comparable_types`: it names accounts
          differently.

        The decision and the commits of connections exclude each other: an integration that is connected afterwards
        waits for the end of the call, and its grant is proven anew (`RevocationInProgress`). For negative controls,
        nothing is compared without `keeps_shared_grants`.
        """

    async def complete(self, claim: Claim[Revocation]) -> None:
        """Record that the grant is revoked, and delete its credentials.

        The record stays until it is due, for connections of the account that were in progress. Then `remove` it.
        """

    async def remove(self, claim: Claim[Revocation]) -> None:
        """Remove a grant that needs no further attempt; does nothing if it is gone."""
