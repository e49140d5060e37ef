"""OAuth errors. Descriptions are fixed texts, so that no value of a request is echoed."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class OAuthError(Exception):
    """An error code of RFC 6749: of §4.1.2.1 at the authorization endpoint, of §5.2 at the token endpoint."""

    code: str
    description: str
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)
