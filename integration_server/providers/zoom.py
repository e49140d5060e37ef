"""Zoom: granular and classic scopes do not mix, so that a reconnection requests only those of the app's kind."""

from integration_server.providers.oauth2 import OAuth2Provider


class ZoomProvider(OAuth2Provider):
    """A Zoom user."""

    def can_request(self, scope: str) -> bool:
        """Whether the scope is granular or classic as the required ones are."""
        return super().can_request(scope) and _is_granular(scope) == any(map(_is_granular, self.required_scopes))


def _is_granular(scope: str) -> bool:
    """Whether a scope names a resource: "meeting:read:meeting:admin", in place of "meeting:read:admin"."""
    parts = scope.split(":")
    return len(parts) > 2 and parts[2] not in {"admin", "master"}
