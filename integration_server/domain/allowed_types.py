"""How far a call may reach."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AllowedTypes:
    """The integration types that a call may touch; None means all. What lies beyond is, to that call, not there."""

    integration_types: frozenset[str] | None = None

    def allows(self, integration_type: str) -> bool:
        """Whether the type is within it."""
        return self.integration_types is None or integration_type in self.integration_types

    def contains(self, other: "AllowedTypes") -> bool:
        """Whether all that is within the other is within it."""
        if self.integration_types is None or other.integration_types is None:
            return self.integration_types is None
        return other.integration_types <= self.integration_types


ALL_INTEGRATION_TYPES = AllowedTypes()
NO_INTEGRATION_TYPES = AllowedTypes(frozenset())
