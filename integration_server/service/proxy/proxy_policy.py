"""The policy of the API proxy: which requests may be sent to a provider, and which response headers are returned.

A path can only extend the API's base URL: its grammar has no way to express a parent or another host, however often an
intermediary decodes it. Request headers pass an allow-list: a common set, and what the provider declares. Response
headers that carry credentials, or belong to one connection, are removed.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from integration_server.domain.credentials import ApiKey, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.domain.text import control_character_problem

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
"""Without TRACE, which echoes the request with its credentials, and CONNECT, which opens a tunnel."""

_IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 §9.2.2

_IDEMPOTENCY_KEY = "idempotency-key"

_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")  # RFC 3986 §3.3
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.1
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")  # RFC 9110 §5.5, ASCII only

_MAX_DECODINGS = 4  # a path that is still encoded after these is rejected

_HOP_BY_HOP_HEADERS = frozenset(  # RFC 9110 §7.6.1, RFC 9112 §6 and §7.1.2
    {"connection", "http2-settings", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_COMMON_REQUEST_HEADERS = frozenset(
    {
        *("accept", "accept-charset", "accept-language", "prefer", "user-agent"),  # RFC 9110 §12.5, §10.1.5, RFC 7240
        *("cache-control", "pragma"),  # RFC 9111 §5
        *("content-disposition", "content-encoding", "content-language", "content-range", "content-type"),
        *("content-digest", "content-md5", "digest", "repr-digest", "want-content-digest", "want-repr-digest"),
        *("if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range"),
        *(_IDEMPOTENCY_KEY, "x-request-id", "x-correlation-id", "traceparent", "tracestate"),
    }
)
"""Headers about the content and the conditions of a request, which mean the same at every provider."""

_RESERVED_REQUEST_HEADERS = _HOP_BY_HOP_HEADERS | {
    "accept-encoding",  # bodies are decompressed here
    "authorization",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "forwarded",
    "host",
    "via",
}
"""Headers that no provider can declare."""

_OVERRIDE = re.compile(
    r"-+(?:http-?)?(?:method|verb)-*|-*x-?(?:http-?)?(?:method|verb)-*|.*(?:method|verb)-?override-*"
    r"|-*(?:x-?)?(?:http-?)?(?:host|url|uri|path)-?override-*"
    r"|-*x-?(?:envoy-?)?(?:original|rewrite|forwarded)-?(?:url|uri|path|host|method|verb|prefix|port|proto)-*"
)
"""A header or parameter that makes some servers use another method, path or host than the request's: "_method" (Rails,
Laravel), "X-HTTP-Method-Override" (Google), "X-Original-URL" (IIS). Separators are written as "-"."""

_DROPPED_RESPONSE_HEADERS = _HOP_BY_HOP_HEADERS | {
    "authentication-info",
    "set-cookie",
    "set-cookie2",
    "www-authenticate",
}
_PROXY_HEADER_PREFIXES = ("proxy-", "x-forwarded-")

_OVERRIDE_PROBLEM = "overrides the method or the URL, which the request states itself"

_TOKEN_PARAMETER = "access_token"  # RFC 6750 §2.3


def require_valid_request(request: ApiRequest) -> None:
    """Raise `InvalidField` unless the request may be sent to any provider."""
    if request.method not in METHODS:
        raise InvalidField("method", f"must be one of {', '.join(METHODS)}")
    if problem := path_problem(request.path):
        raise InvalidField("path", problem)
    for index, (name, value) in enumerate(request.headers):
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidField(f"headers[{index}].name", "is not a header name (RFC 9110 section 5.1)")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidField(f"headers[{index}].value", "has characters that are not allowed in a header")
    for index, (name, _) in enumerate(request.query):
        if _is_override(name):
            raise InvalidField(f"query[{index}].name", _OVERRIDE_PROBLEM)
    if not _HEADER_VALUE.fullmatch(request.idempotency_key):
        raise InvalidField("idempotency_key", "has characters that are not allowed in a header")
    if request.idempotency_key and any(name.lower() == _IDEMPOTENCY_KEY for name, _ in request.headers):
        raise InvalidField("idempotency_key", "is in the headers too; set it once")


def require_allowed_headers(request: ApiRequest, declared: Collection[str]) -> None:
    """Raise `InvalidField` unless each header is common, or declared by the provider (`allowed_request_headers`)."""
    allowed = _COMMON_REQUEST_HEADERS.union(map(str.lower, declared))
    for index, (name, _) in enumerate(request.headers):
        if name.lower() not in allowed:
            problem = declaration_problem(name) or "is not a common header, nor one that the provider declares"
            raise InvalidField(f"headers[{index}].name", problem)


def declaration_problem(header: str) -> str | None:
    """Why a provider cannot declare a request header as allowed, as the end of a sentence; None if it can."""
    name = header.lower()
    if not _HEADER_NAME.fullmatch(name):
        return "is not a header name (RFC 9110 section 5.1)"
    # Servers of the CGI tradition (RFC 3875 §4.1.18) read "_" and "-" in names as the same.
    if (spelling := name.replace("_", "-")) in _RESERVED_REQUEST_HEADERS or spelling.startswith(_PROXY_HEADER_PREFIXES):
        return "is a header that only the server sets"
    return _OVERRIDE_PROBLEM if _is_override(name) else None


def _is_override(name: str) -> bool:
    return _OVERRIDE.fullmatch(re.sub("[^a-z0-9]", "-", unicodedata.normalize("NFKC", name).lower())) is not None


def is_retry_safe(request: ApiRequest) -> bool:
    """Whether a request may be sent again: it is idempotent, or the provider recognizes it by an idempotency key."""
    has_key = any(name.lower() == _IDEMPOTENCY_KEY and value for name, value in request.headers)
    return request.method in _IDEMPOTENT_METHODS or bool(request.idempotency_key) or has_key


def path_problem(path: str) -> str | None:
    """The problem of a path, as the end of a sentence; None if it is valid."""
    if not _PATH.fullmatch(path):
        return "must begin with '/', without scheme, host, query or characters that need percent-encoding"
    decoded = path
    for _ in range(_MAX_DECODINGS):
        # Some servers treat look-alikes of dots and slashes as such.
        if problem := _decoded_path_problem(decoded) or _decoded_path_problem(unicodedata.normalize("NFKC", decoded)):
            return problem
        try:
            decoded_again = unquote(decoded, errors="strict")
        except UnicodeDecodeError:  # for example an overlong encoding of a dot
            return "is not UTF-8 after decoding"
        if decoded_again == decoded:
            return None
        decoded = decoded_again
    return "is percent-encoded too many times"


def _decoded_path_problem(path: str) -> str | None:
    if "\\" in path:
        return "has a backslash, encoded or not"
    if problem := control_character_problem(path):
        return f"{problem} of the decoded path"
    segments = path.split("/")
    if "" in segments[1:-1]:
        return "has '//', encoded or not"
    # Some servers truncate a segment at ";" before they check it, and some file systems ignore characters of no width.
    if any(_without_format_characters(segment.partition(";")[0]).strip() in {".", ".."} for segment in segments):
        return "has a segment '.' or '..', encoded or not"
    return None


def _without_format_characters(text: str) -> str:
    return (
        text if text.isascii() else "".join(character for character in text if unicodedata.category(character) != "Cf")
    )


def require_no_credentials(request: ApiRequest, auth: RequestAuth) -> None:
    """Raise `InvalidField` if the request has a header or parameter that carries the credentials."""
    own_headers = {name.lower() for name in auth.headers}
    for index, (name, _) in enumerate(request.headers):
        if name.lower() in own_headers:
            raise InvalidField(f"headers[{index}].name", "is the header of the credentials, which the server adds")
    own_parameters = {name.lower() for name in auth.query_params} | {_TOKEN_PARAMETER}
    for index, (name, _) in enumerate(request.query):
        if name.lower() in own_parameters:
            raise InvalidField(f"query[{index}].name", "is the parameter of the credentials, which the server adds")


def forwardable_headers(headers: Iterable[tuple[str, str]], secrets: Collection[str]) -> Sequence[tuple[str, str]]:
    """The response headers that a backend gets: no connection headers, no cookies, none that contains a secret."""
    listed = list(headers)
    encoded_secrets = {form for secret in secrets for form in _encodings(secret)}
    hop_by_hop = {
        option.strip().lower()  # RFC 9110 §7.6.1: Connection names hop-by-hop headers
        for name, value in listed
        if name.lower() == "connection"
        for option in value.split(",")
    }
    return tuple(
        (name, value)
        for name, value in listed
        if name.lower() not in _DROPPED_RESPONSE_HEADERS
        and name.lower() not in hop_by_hop
        and not name.lower().startswith(_PROXY_HEADER_PREFIXES)
        and not _contains_any(name + value, encoded_secrets)
    )


def _contains_any(text: str, encoded_secrets: Collection[str]) -> bool:
    forms = {text}
    if "%" in text or "+" in text:
        forms |= {unquote(text), unquote_plus(text), unquote(unquote(text))}
    return any(secret in form for secret in encoded_secrets for form in forms)


def _encodings(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote_plus(secret)}


def secrets_of(credentials: Credentials, auth: RequestAuth) -> frozenset[str]:
    """The secrets that a response must not reveal."""
    values: list[str | None] = [*auth.headers.values(), *auth.query_params.values()]
    values += [value.partition(" ")[2] for value in auth.headers.values()]  # without the scheme
    if isinstance(credentials, OAuthTokens):
        values += [credentials.access_token, credentials.refresh_token, *credentials.secret_fields.values()]
    elif isinstance(credentials, ApiKey):
        # The key of a pair is a name: Twilio's account SID is part of every URL in its responses.
        values += [credentials.api_secret or credentials.api_key, credentials.webhook_secret]
        values += credentials.secret_fields.values()
    return frozenset(secret for secret in values if secret)
