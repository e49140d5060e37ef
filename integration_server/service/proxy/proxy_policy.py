"""What of a backend's request may go to a provider, and what of the answer comes back.

A path can only lead further down from the API's base address: it is written in one grammar, without any way to say
"up" or "elsewhere", however often somebody on the way decodes it. Headers that carry credentials, or belong to one
connection, are this server's on the way out and stay here on the way in.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from integration_server.domain.credentials import ApiKey, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import ApiRequest

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
"""Neither TRACE, which shows the request as it came, nor CONNECT, which opens a tunnel."""

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 §9.2.2

IDEMPOTENCY_KEY = "idempotency-key"

_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")  # RFC 3986 §3.3
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.1
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")  # RFC 9110 §5.5, ASCII only

_MAX_DECODINGS = 4  # what is still encoded after so many has no good reason to be

_HOP_BY_HOP_HEADERS = frozenset(  # RFC 9110 §7.6.1, RFC 9112 §6 and §7.1.2
    {"connection", "http2-settings", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_RESERVED_REQUEST_HEADERS = _HOP_BY_HOP_HEADERS | {
    "accept-encoding",  # bodies are inflated here
    "authorization",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "forwarded",
    "host",
    "via",
    # They make a request something else than its method says.
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
}
_DROPPED_RESPONSE_HEADERS = _HOP_BY_HOP_HEADERS | {
    "authentication-info",
    "content-encoding",  # bodies are inflated here
    "content-length",
    "set-cookie",
    "set-cookie2",
    "www-authenticate",
}
_PROXY_HEADER_PREFIXES = ("proxy-", "x-forwarded-")

_TOKEN_PARAMETER = "access_token"  # RFC 6750 §2.3


def require_valid_request(request: ApiRequest) -> None:
    """Raise `InvalidField` unless the request is one that may go to any provider."""
    if request.method not in METHODS:
        raise InvalidField("method", f"must be one of {', '.join(METHODS)}")
    if problem := path_problem(request.path):
        raise InvalidField("path", problem)
    for index, (name, value) in enumerate(request.headers):
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidField(f"headers[{index}].name", "is not a header's name (RFC 9110 section 5.1)")
        if name.lower() in _RESERVED_REQUEST_HEADERS or name.lower().startswith(_PROXY_HEADER_PREFIXES):
            raise InvalidField(f"headers[{index}].name", "names a header that only this server sets")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidField(f"headers[{index}].value", "has characters that a header cannot have")
    if not _HEADER_VALUE.fullmatch(request.idempotency_key):
        raise InvalidField("idempotency_key", "has characters that a header cannot have")
    if request.idempotency_key and any(name.lower() == IDEMPOTENCY_KEY for name, _ in request.headers):
        raise InvalidField("idempotency_key", "is in the headers too; give it once")


def path_problem(path: str) -> str | None:
    """What is wrong with a path, or None."""
    if not _PATH.fullmatch(path):
        return "must begin with '/', and have neither scheme, host, query nor characters that need percent-encoding"
    decoded = path
    for _ in range(_MAX_DECODINGS):
        # Some servers take what looks like a dot or a slash for one.
        if problem := _decoded_path_problem(decoded) or _decoded_path_problem(unicodedata.normalize("NFKC", decoded)):
            return problem
        try:
            decoded_again = unquote(decoded, errors="strict")
        except UnicodeDecodeError:  # overlong forms of a dot among them
            return "is not UTF-8, once decoded"
        if decoded_again == decoded:
            return None
        decoded = decoded_again
    return "is percent-encoded again and again"


def _decoded_path_problem(path: str) -> str | None:
    if any(character in path for character in "\\\x7f") or not path.isprintable():
        return "has a backslash or a control character, encoded or not"
    segments = path.split("/")
    if "" in segments[1:-1]:
        return "has '//', encoded or not"
    # Some servers cut a segment at ";" before they look at it.
    if any(segment.partition(";")[0].strip() in {".", ".."} for segment in segments):
        return "has a segment '.' or '..', encoded or not"
    return None


def require_no_credentials(request: ApiRequest, auth: RequestAuth) -> None:
    """Raise `InvalidField` if the request brings what only this server puts on requests to that provider."""
    own_headers = {name.lower() for name in auth.headers}
    for index, (name, _) in enumerate(request.headers):
        if name.lower() in own_headers:
            raise InvalidField(f"headers[{index}].name", "names the header of the credentials, which the server adds")
    own_parameters = {name.lower() for name in auth.query_params} | {_TOKEN_PARAMETER}
    for index, (name, _) in enumerate(request.query):
        if name.lower() in own_parameters:
            raise InvalidField(f"query[{index}].name", "names the parameter of the credentials, which the server adds")


def forwardable_headers(headers: Iterable[tuple[str, str]], secrets: Collection[str]) -> Sequence[tuple[str, str]]:
    """The headers of an answer that a backend gets: none of the connection's, no cookies, none with a secret in it."""
    listed = list(headers)
    named = {
        option.strip().lower()  # RFC 9110 §7.6.1: what Connection names is for the next hop only
        for name, value in listed
        if name.lower() == "connection"
        for option in value.split(",")
    }
    return tuple(
        (name, value)
        for name, value in listed
        if name.lower() not in _DROPPED_RESPONSE_HEADERS
        and name.lower() not in named
        and not name.lower().startswith(_PROXY_HEADER_PREFIXES)
        and not _contains_secret(name + value, secrets)
    )


def _contains_secret(text: str, secrets: Collection[str]) -> bool:
    forms = {text, unquote(text), unquote_plus(text), unquote(unquote(text))}
    return any(form in read for secret in secrets for form in _encodings(secret) for read in forms)


def _encodings(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote_plus(secret)}


def secrets_of(credentials: Credentials, auth: RequestAuth) -> frozenset[str]:
    """All that an answer must not give away."""
    values: list[str | None] = [*auth.headers.values(), *auth.query_params.values()]
    values += [value.partition(" ")[2] for value in auth.headers.values()]  # without the scheme
    if isinstance(credentials, OAuthTokens):
        values += [credentials.access_token, credentials.refresh_token]
    elif isinstance(credentials, ApiKey):
        # Of a pair the key is a name: Twilio's account SID is part of every address in its answers.
        values += [credentials.api_secret or credentials.api_key, credentials.webhook_secret]
    return frozenset(secret for secret in values if secret)
