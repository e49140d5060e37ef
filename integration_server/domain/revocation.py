"""Revoking: what becomes, at the provider, of credentials that are gone here."""

from enum import StrEnum


class RevocationState(StrEnum):
    """What is known of credentials at their provider, once they are gone here."""

    REVOKED = "revoked"
    """The provider has confirmed that they are dead."""

    PENDING = "pending"
    """Not confirmed yet: tried again until they are dead, or given up."""

    NOT_SUPPORTED = "not_supported"
    """The provider has no way to revoke them."""

    GRANT_SHARED = "grant_shared"
    """Kept: revoking them would end another integration too, whose disconnection revokes them."""

    NOTHING_TO_REVOKE = "nothing_to_revoke"
    """There were none."""
