"""A token verifier without cryptography."""

from datetime import datetime

from integration_server.domain.callers import Identity, IdentityKind
from integration_server.rpc.authentication import TokenAuthenticator
from integration_server.rpc.errors import Unauthenticated
from tests.fakes.clock import SettableClock


class FakeTokenVerifier:
    """Accepts tokens of the form "kind name"."""

    def __init__(self, expire_time: datetime | None = None) -> None:
        self._expire_time = expire_time

    @property
    def keys(self) -> object:
        """None that could change."""
        return ()

    async def resolve_identity(self, token: str) -> Identity:
        """Return the identity that the token names."""
        kind, _, name = token.partition(" ")
        if not name:
            raise Unauthenticated("the token names nobody")
        return Identity(IdentityKind(kind), name, self._expire_time)


def fake_tokens(expire_time: datetime | None = None) -> TokenAuthenticator:
    """Accepts the tokens of `FakeTokenVerifier`, without limiting failures."""
    return TokenAuthenticator(FakeTokenVerifier(expire_time), None, SettableClock())
