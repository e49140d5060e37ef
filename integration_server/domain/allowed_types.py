"""The integration types that a call may access."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AllowedTypes:
    """A set of integration types; None means all. To the call, integrations of other types do not exist."""

    integration_types: frozenset[str] | None = None

    def allows(self, integration_type: str) -> bool:
        """Whether the type is allowed."""
        return self.integration_types is None or integration_type in self.integration_types

    def contains(self, other: "AllowedTypes") -> bool:
        """Whether all types that `other` allows are allowed."""
        if self.integration_types is None or other.integration_types is None:
            return self.integration_types is None
        return other.integration_types <= self.integration_types


ALL_INTEGRATION_TYPES = AllowedTypes()
NO_INTEGRATION_TYPES = AllowedTypes(frozenset())
