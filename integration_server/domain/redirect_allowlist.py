"""The exact allow-lists of redirect URIs and return URLs (RFC 9700 §2.1)."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from integration_server.domain.errors import RedirectUriNotAllowed


class RedirectAllowlist:
    """The allowed redirect URIs and return URLs.

    The sidecar's callback path of a type is always allowed for that type. Each type has its own path, so that a
    callback cannot be attributed to another provider (RFC 9700 §4.4.2.2). `default_return_url` is the return URL of
    requests that name none; it is allowed as well.
    """

    def __init__(
        self,
        public_url: str,
        allowed_redirect_uris: Iterable[str],
        allowed_return_urls: Iterable[str],
        default_return_url: str | None = None,
    ) -> None:
        self._callback = public_url.rstrip("/") + "/api/v1/integrations/callback/"
        self._redirect_uris = frozenset(allowed_redirect_uris)
        self._return_urls = frozenset(filter(None, (*allowed_return_urls, default_return_url)))
        self.default_return_url = default_return_url

    def redirect_uri(self, integration_type: str, requested: str) -> str:
        """The requested redirect URI; the type's own for an empty one. Raises `RedirectUriNotAllowed`."""
        own = self._callback + integration_type
        if requested in ("", own) or requested in self._redirect_uris:
            return requested or own
        raise RedirectUriNotAllowed("redirect_uri")

    def return_url(self, requested: str) -> str | None:
        """The requested return URL; None for an empty one. Raises `RedirectUriNotAllowed`."""
        if not requested:
            return None
        if requested not in self._return_urls:
            raise RedirectUriNotAllowed("return_url")
        return requested

    def is_of_sidecar(self, redirect_uri: str) -> bool:
        """Whether a redirect URI is a callback path of the sidecar, with or without a type."""
        return f"{_address(redirect_uri)}/".startswith(_address(self._callback))


def _address(url: str) -> str:
    """Equal for URLs that reach the same place: without the query, and as RFC 3986 §6.2.3 normalizes host and port."""
    parts = urlsplit(url)
    default_port = {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or default_port}{parts.path}"
