"""Where a browser may be sent: exact allow-lists (RFC 9700 §2.1), and the outcome written into an address."""

from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit, urlunsplit

from integration_server.domain.errors import RedirectUriNotAllowed


class RedirectAllowlist:
    """Which redirect and return addresses are allowed.

    The sidecar's own callback path for a type is always allowed for that type: one path each, so that an answer
    cannot be taken for another provider's (RFC 9700 §4.4.2.2).
    """

    def __init__(
        self, public_url: str, allowed_redirect_uris: Iterable[str], allowed_return_urls: Iterable[str]
    ) -> None:
        self._callback = public_url.rstrip("/") + "/api/v1/integrations/callback/"
        self._redirect_uris = frozenset(allowed_redirect_uris)
        self._return_urls = frozenset(allowed_return_urls)

    def redirect_uri(self, integration_type: str, requested: str) -> str:
        """The wanted redirect address, or the type's own if none is wanted. Raises `RedirectUriNotAllowed`."""
        own = self._callback + integration_type
        if requested in ("", own) or requested in self._redirect_uris:
            return requested or own
        raise RedirectUriNotAllowed("redirect_uri")

    def return_url(self, requested: str) -> str | None:
        """The wanted return address, None if none is wanted. Raises `RedirectUriNotAllowed`."""
        if not requested:
            return None
        if requested not in self._return_urls:
            raise RedirectUriNotAllowed("return_url")
        return requested


def with_result_params(return_url: str | None, **outcome: str) -> str:
    """The return address with an outcome added to its query; empty if there is no address."""
    if return_url is None:
        return ""
    parts = urlsplit(return_url)
    query = "&".join(filter(None, (parts.query, urlencode(outcome))))
    return urlunsplit(parts._replace(query=query))
