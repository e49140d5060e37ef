"""OAuth errors. Descriptions are fixed texts, so that no value of a request is echoed."""

from collections.abc import Mapping


class OAuthError(Exception):
    """An error code of RFC 6749: of §4.1.2.1 at the authorization endpoint, of §5.2 at the token endpoint."""

    def __init__(
        self, code: str, description: str, *, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.description = description
        self.status = status
        self.headers = dict(headers or {})
