"""The types of settings: addresses, durations, files and URLs, parsed from the text of an environment variable.

Imports nothing of ours, so that the sidecar's process can read its settings without the server's libraries.
"""

import ipaddress
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from integration_server.domain.peers import Network, parse_networks

T = TypeVar("T")

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def reachable(self) -> "Address":
        """The address at which this machine reaches a server that listens on this one."""
        with suppress(ValueError):  # a name
            address = ipaddress.ip_address(self.host)
            if address.is_unspecified:
                return self._replace(host="127.0.0.1" if address.version == 4 else "::1")
        return self


def parse_address(text: str) -> Address:
    """Parse HOST:PORT, with an IPv6 host in brackets. Raises `ValueError`."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    # A URL's user, path or query would be dropped, and another address than the written one be used.
    if not host or port is None or not text.isprintable() or set(text) & set("@/?#\\ "):
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051, with a port up to 65535")
    return Address(host, port)


def is_url(text: str) -> bool:
    """Whether a setting that takes a path or a URL has a URL."""
    return "://" in text


def is_http_url(text: str) -> bool:
    """Whether this is a URL with a host and without a user, of http or https."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


def is_loopback(host: str) -> bool:
    """Whether the host is this machine's loopback interface. A name other than localhost may resolve to anything."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def is_browser_url(url: str) -> bool:
    """Whether a browser can be sent to the URL: absolute, encrypted unless it is on loopback, without a fragment.

    User information is refused, because people take `https://app.example@evil.example` for app.example.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for an invalid one
    except ValueError:
        return False
    is_plain = url.isprintable() and not set(url) & set(" \\#") and "@" not in parts.netloc
    is_secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    return bool(is_plain and is_secure and parts.hostname)


def from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """Parse a value that is text."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def split_list(text: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def require(is_valid: Callable[[T], bool], message: str) -> AfterValidator:
    """Reject other values with the message, in which {} is the value."""

    def validate(value: T) -> T:
        if not is_valid(value):
            raise ValueError(message.format(value))
        return value

    return AfterValidator(validate)


def duration(variable: str, default: timedelta, *, le: timedelta, ge: timedelta | None = None) -> Any:  # noqa: ANN401  # as pydantic's Field
    """A duration. Its variable is a number, and the last word of the variable's name is the unit.

    Without a least value, it must be more than nothing.
    """
    bound: Any = {"gt": timedelta(0)} if ge is None else {"ge": ge}
    return Field(default=default, alias=variable, le=le, **bound)


def _parse_duration(unit: timedelta, text: str) -> timedelta:
    try:
        return float(text) * unit
    except OverflowError:
        raise ValueError("is too large") from None
    except ValueError:  # no number, or NaN
        raise ValueError("must be a number, without a unit") from None


Seconds = Annotated[timedelta, from_text(partial(_parse_duration, SECOND))]
Hours = Annotated[timedelta, from_text(partial(_parse_duration, HOUR))]
Days = Annotated[timedelta, from_text(partial(_parse_duration, DAY))]
ListenAddress = Annotated[Address, from_text(parse_address)]
OptionalListenAddress = Annotated[Address | None, from_text(lambda text: parse_address(text) if text else None)]
ExistingFile = Annotated[Path, require(Path.is_file, "{} is not a file; create it or correct the path")]
ExistingDirectory = Annotated[Path, require(Path.is_dir, "{} is not a directory; create it or correct the path")]
# RFC 6749 §3.1.2: an absolute URI without a fragment.
BrowserUrl = Annotated[
    str,
    require(
        is_browser_url, "{!r} must be an absolute https URL without user and fragment; plain http only on loopback"
    ),
]
Networks = Annotated[tuple[Network, ...], from_text(parse_networks)]
BrowserUrlList = Annotated[tuple[BrowserUrl, ...], from_text(split_list)]
BaseUrl = Annotated[BrowserUrl, require(lambda url: "?" not in url, "{!r} must have no query: paths are appended")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
