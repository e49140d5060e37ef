"""Decodes form-encoded parameters of a query or body: RFC 6749 §3.1, §3.2 and appendix B."""

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl

from starlette.requests import Request

from integration_server.sandbox.errors import OAuthError


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request. One without a value counts as omitted (§3.1)."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    repeated: frozenset[str] = frozenset()

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises `OAuthError` (invalid_request) if the text is not UTF-8."""
        try:
            pairs = parse_qsl(encoded.decode("utf-8"), errors="strict")
        except UnicodeDecodeError as error:
            raise OAuthError("invalid_request", "the parameters are not UTF-8") from error
        names = [name for name, _ in pairs]
        return cls(dict(pairs), frozenset(name for name in names if names.count(name) > 1))

    def find(self, name: str) -> str | None:
        return self.values.get(name)

    def get(self, name: str) -> str:
        if name not in self.values:
            raise OAuthError("invalid_request", f"{name} is missing")
        return self.values[name]

    def find_scopes(self) -> tuple[str, ...] | None:
        """The scopes in order, without duplicates (RFC 6749 §3.3); None if the parameter is missing."""
        scope = self.find("scope")
        return None if scope is None else tuple(dict.fromkeys(scope.split(" ")))

    def require_no_repetition(self) -> None:
        # RFC 6749 §3.1 and §3.2: parameters MUST NOT be included more than once.
        if self.repeated:
            raise OAuthError("invalid_request", "a parameter was sent more than once")


async def read_parameters(request: Request) -> Parameters:
    """The parameters of a POST's body, whose query is ignored (§2.3.1), or of another request's query."""
    if request.method != "POST":
        return Parameters.decode(request.scope["query_string"])
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "the body must be application/x-www-form-urlencoded")
    return Parameters.decode(await request.body())
