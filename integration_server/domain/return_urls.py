"""The result of a connection in the URL to which the browser returns."""

from urllib.parse import urlencode, urlsplit, urlunsplit


def with_result_params(return_url: str | None, **outcome: str) -> str:
    """The return URL with the outcome in its query; empty without a URL."""
    if return_url is None:
        return ""
    parts = urlsplit(return_url)
    query = "&".join(filter(None, (parts.query, urlencode(outcome))))
    return urlunsplit(parts._replace(query=query))
