"""How credentials are put on HTTP requests, whatever the library."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit, urlunsplit

from integration_server.client.credentials import Credentials

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_same_origin(url: str, other: str) -> bool:
    """Whether both URLs have the same scheme, host and port (RFC 6454). A URL that cannot be read has no origin."""
    origin = _origin(url)
    return origin is not None and origin == _origin(other)


def _origin(url: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def with_query_params(url: str, params: Mapping[str, str]) -> str:
    """Return the URL with these query parameters, which replace those of the same names. Others stay unchanged."""
    if not params:
        return url
    parts = urlsplit(url)
    others = [pair for pair in parts.query.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in params]
    return urlunsplit(parts._replace(query="&".join([*others, urlencode(params)])))


def carries(url: str, headers: Mapping[str, str], credentials: Credentials) -> bool:
    """Whether a request with this URL and these headers has the credentials. A redirect may have dropped them."""
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    return all(headers.get(name) == value for name, value in credentials.headers.items()) and all(
        query.get(name) == value for name, value in credentials.query.items()
    )


def access_token(credentials: Credentials, library: str) -> str:
    """Return the access token. Raises `ValueError` for an integration that has an API key."""
    if not credentials.access_token:
        raise ValueError(f"{library} needs an access token; {_name(credentials)} has none")
    return credentials.access_token


def key_pair(credentials: Credentials, library: str) -> tuple[str, str]:
    """Return the API key and its secret. Raises `ValueError` for an integration without both."""
    if not credentials.api_key or not credentials.api_secret:
        raise ValueError(f"{library} needs an API key with a secret; {_name(credentials)} has none")
    return credentials.api_key, credentials.api_secret


def _name(credentials: Credentials) -> str:
    return f"integration {credentials.integration_id} ({credentials.integration_type})"
