"""The exact allow-lists of redirect URIs and return URLs (RFC 9700 §2.1), and result parameters in return URLs."""

from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit, urlunsplit

from integration_server.domain.errors import RedirectUriNotAllowed


class RedirectAllowlist:
    """The allowed redirect URIs and return URLs.

    The sidecar's callback path of a type is always allowed for that type. Each type has its own path, so that a
    callback cannot be attributed to another provider (RFC 9700 §4.4.2.2).
    """

    def __init__(
        self, public_url: str, allowed_redirect_uris: Iterable[str], allowed_return_urls: Iterable[str]
    ) -> None:
        self._callback = public_url.rstrip("/") + "/api/v1/integrations/callback/"
        self._redirect_uris = frozenset(allowed_redirect_uris)
        self._return_urls = frozenset(allowed_return_urls)

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


def with_result_params(return_url: str | None, **outcome: str) -> str:
    """The return URL with the outcome in its query; empty without a URL."""
    if return_url is None:
        return ""
    parts = urlsplit(return_url)
    query = "&".join(filter(None, (parts.query, urlencode(outcome))))
    return urlunsplit(parts._replace(query=query))
