"""The state of a revocation at the provider."""

from enum import StrEnum


class RevocationState(StrEnum):
    """The state of a grant at its provider, after its integration was removed."""

    REVOKED = "revoked"
    """The provider has confirmed the revocation."""

    PENDING = "pending"
    """Not confirmed yet: it is retried until it succeeds or is given up. Or not sent, because integrations of other
    users have the same grant; the last of them revokes it. Nothing tells a user which of both it is."""

    NOT_SUPPORTED = "not_supported"
    """The provider does not support revocation."""

    GRANT_SHARED = "grant_shared"
    """Not revoked: it would end another integration of the same user. The last one that has the grant revokes it."""

    NOTHING_TO_REVOKE = "nothing_to_revoke"
    """The integration had no credentials."""
