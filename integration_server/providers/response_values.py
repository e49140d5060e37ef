"""Values of a response that are not in its JSON body: headers, cookies, and the whole body."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from integration_server.providers.http import HttpResponse

_WHOLE_BODY = "body:*"


def is_outside_json(path: str) -> bool:
    """Whether a path leads to a header, to a cookie, or to the whole body."""
    place, _, name = path.partition(":")
    return path == _WHOLE_BODY or (place in {"header", "cookie"} and bool(name))


def values_outside_json(response: HttpResponse, paths: Iterable[str]) -> Mapping[str, object]:
    """The values of a response at those paths that lead to a header, to a cookie, or to the whole body, by path."""
    found: dict[str, object] = {}
    for path in paths:
        place, _, name = path.partition(":")
        if place == "header" and name:
            found[path] = response.headers.get(name.lower())
        elif place == "cookie" and name:
            found[path] = _cookie_header(response) if name == "*" else _cookies(response).get(name, ("", ""))[0]
        elif path == _WHOLE_BODY:
            found[path] = response.json if isinstance(response.json, str) else _text_of(response)
    return found


def cookie_lifetime(response: HttpResponse, path: str, now: datetime) -> float | None:
    """The seconds until the cookie at a path expires (RFC 6265 §4.1.2), as far as the response says."""
    _, attributes = _cookies(response).get(path.removeprefix("cookie:"), ("", ""))
    declared = dict(part.strip().lower().partition("=")[::2] for part in attributes.split(";"))
    try:
        if "max-age" in declared:
            return float(int(declared["max-age"]))
        if "expires" in declared:
            return (parsedate_to_datetime(declared["expires"]) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        pass  # RFC 6265 §5.2.1 and §5.2.2: an attribute that cannot be read is ignored
    return None


def _cookies(response: HttpResponse) -> Mapping[str, tuple[str, str]]:
    """The cookies of a response by name, each with its value and its attributes; the last of a name counts."""
    texts = [value for name, value in response.header_list if name.lower() == "set-cookie"]
    pairs = [text.partition(";")[::2] for text in texts]
    return {
        pair.partition("=")[0].strip(): (pair.partition("=")[2].strip(), attributes)
        for pair, attributes in pairs
        if "=" in pair
    }


def _cookie_header(response: HttpResponse) -> str:
    """All cookies as the value of a Cookie header (RFC 6265 §4.2.1), but without spaces, which no token has."""
    return ";".join(f"{name}={value}" for name, (value, _) in _cookies(response).items() if value)


def _text_of(response: HttpResponse) -> str:
    is_text = response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/plain"
    return response.body.decode("utf-8", "replace").strip() if is_text else ""
