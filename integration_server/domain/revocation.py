"""The state of a revocation at the provider."""

from enum import StrEnum


class RevocationState(StrEnum):
    """The state of a grant at its provider, after its integration was removed."""

    REVOKED = "revoked"
    """The provider has confirmed the revocation."""

    PENDING = "pending"
    """Not confirmed yet. It is retried until it succeeds or is given up."""

    NOT_SUPPORTED = "not_supported"
    """The provider does not support revocation."""

    GRANT_SHARED = "grant_shared"
    """Not revoked: it would end another integration. The disconnection of that one revokes the grant."""

    NOTHING_TO_REVOKE = "nothing_to_revoke"
    """The integration had no credentials."""
