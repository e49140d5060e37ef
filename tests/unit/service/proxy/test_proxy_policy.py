"""The proxy policy: no path leaves the API's base URL, and no header carries credentials in either direction."""

from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens, RequestAuth
from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.service.proxy.proxy_policy import (
    declaration_problem,
    forwardable_headers,
    path_problem,
    require_allowed_headers,
    require_no_credentials,
    require_valid_request,
    secrets_of,
)

BASE = "https://api.acme.example/v1"

DOTS = ("..", "%2e%2e", "%2E%2E", ".%2e", "%2e.", "%252e%252e", "%25252e%25252e", "..%3b", "..;", "..;x=1", "%E2%80%A5")
OTHER_DOTS = ("%EF%BC%8E%EF%BC%8E", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%C0%2E%C0%2E")
SLASHES = ("/", "%2f", "%2F", "%5c", "%5C", "%252f", "%255c", "%EF%BC%8F")


def rejected_field(check: Callable[[], None]) -> str | None:
    """The field that a check rejects; None if it accepts the request."""
    try:
        check()
    except InvalidField as error:
        return error.field
    return None


def traversals() -> Iterator[str]:
    """Paths with parent segments at the beginning, in the middle and at the end, single and repeated."""
    for dots in (*DOTS, *OTHER_DOTS):
        for slash in SLASHES:
            yield f"/{dots}{slash}admin"
            yield f"/things{slash}{dots}{slash}{dots}{slash}admin"
        yield f"/{dots}"
        yield f"/things/{dots}/"


ELSEWHERE = [
    "https://evil.example/",
    "http://evil.example/",
    "//evil.example/",
    "///evil.example/",
    "/\\evil.example/",
    "\\\\evil.example\\",
    "/%5Cevil.example/",
    "/%2F%2Fevil.example",
    "/%2Fevil.example//x",
    "@evil.example/",
    ".evil.example/",
    ":443@evil.example/",
    ":@evil.example",
    "evil.example",
    "",
    "?x=1",
    "#x",
    "/things?admin=1",
    "/things#x",
    "/things%3Fadmin%3D1\r\n",
    "/\thttps://evil.example",
    " /things",
    "/thi ngs",
    "/things\r\nHost: evil.example",
    "/things%0d%0aHost:%20evil.example",
    "/things%0aX: 1",
    "/things%00",
    "/things\0",
    "/things%",
    "/things%2",
    "/things%zz",
    "/th\u00efngs",
    "/things\u2028",
    "/things%C2%85",
    "/%2e%2e%E2%80%8B/things",
    "/.%E2%81%A0./things",
    "/./things",
    "/%2e/things",
    "/things//more",
    "/things/%2Fmore",
    "/things%7f",
    "/things<script>",
    '/things"',
    "/things|x",
    "/things^x",
    "/things`x",
    "/{things}",
    "/[things]",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "/%" + "25" * 12 + "2e",
]

HOSTILE = [*traversals(), *ELSEWHERE]


def test_there_are_many_traversals() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100


@pytest.mark.parametrize("path", HOSTILE, ids=ascii)
def test_no_path_leaves_the_base_url(path: str) -> None:
    assert path_problem(path) is not None
    with pytest.raises(InvalidField) as rejected:
        require_valid_request(ApiRequest("GET", path))
    assert rejected.value.field == "path"


@pytest.mark.parametrize(
    "name", ["株式会社\u3000山田.pdf", "क्\u200cष", "👩\u200d👧", "a\u00a0b", "soft\u00adhyphen", "a\u2028b", "Ünï"]
)
def test_names_in_paths_are_as_people_write_them(name: str) -> None:
    assert path_problem(f"/files/{quote(name)}") is None


def lands_outside(url: str) -> bool:
    """Whether a server that decodes repeatedly and resolves dots would leave the base URL."""
    for _ in range(5):
        url = unquote(url).replace("\\", "/").replace("\uff0f", "/").replace("\uff0e", ".").replace("\u2025", "..")
    parts = urlsplit(urljoin(url, ".") if url.endswith("..") else url)
    resolved = urlsplit(urljoin(f"{parts.scheme}://{parts.netloc}/", parts.path.replace(";", "/;")))
    return parts.netloc != "api.acme.example" or not resolved.path.startswith("/v1")


def test_negative_control_without_the_grammar_paths_leave_the_base_url() -> None:
    """If a path were appended to the base URL, or joined with it."""
    outside = [path for path in HOSTILE if lands_outside(BASE + path) or lands_outside(urljoin(BASE, path))]
    assert len(outside) >= 100


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/things",
        "/things/",
        "/calendars/ada%40example.com/events",
        "/calendars/en.uk%23holiday%40group.v.calendar.google.com/events",
        "/projects/group%2Fproject",
        "/things/a:b@c;d=e,f",
        "/a.b/..c/d..",
        "/%F0%9F%A6%86",
        "/100%25",
    ],
)
def test_paths_of_real_apis_are_valid(path: str) -> None:
    assert path_problem(path) is None


OURS = [
    *(
        "Authorization",
        "authorization",
        "AUTHORIZATION",
        "Cookie",
        "Cookie2",
        "Proxy-Authorization",
        "Proxy-Connection",
    ),
    *("Host", "Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length"),
    *("HTTP2-Settings", "Expect", "Accept-Encoding", "Via", "Forwarded", "X-Forwarded-For"),
]


OVERRIDES = [
    *("X-HTTP-Method-Override", "x-http-method-override", "X_HTTP_Method_Override", "X-HTTP_Method-Override"),
    *(
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Method",
        "HTTP-Method-Override",
        "httpMethodOverride",
        "XHTTPMethodOverride",
    ),
    *("_method", "__method", "_METHOD", "$method", "-method", "_http_method", "_method.", "\uff3fmethod"),
    *("X-Original-URL", "X_Original_URL", "x-original-uri", "X-Original-Host", "X-Original-Method", "XOriginalURL"),
    *("X-Rewrite-URL", "X-Rewrite-URI", "X_Rewrite_Path", "X-Forwarded-Host", "X_Forwarded_Path", "X-Forwarded-Prefix"),
    *("X-Host-Override", "X-HTTP-Host-Override", "URL-Override", "X-Envoy-Original-Path", "x.original.url"),
]


@pytest.mark.parametrize("name", [*OURS, *OVERRIDES, "X-Fine", "X-Host", "True-Client-IP", "X-Amz-Security-Token"])
def test_headers_that_are_neither_common_nor_declared_are_rejected(name: str) -> None:
    request = ApiRequest("GET", "/", headers=[("Accept", "*/*"), (name, "1")])
    with pytest.raises(InvalidField) as rejected:
        require_allowed_headers(request, ["Acme-Version"])
    assert rejected.value.field == "headers[1].name"


@pytest.mark.parametrize(
    "name", ["accept", "Content-Type", "IF-MATCH", "Range", "Idempotency-Key", "traceparent", "acme-version"]
)
def test_common_and_declared_headers_are_allowed(name: str) -> None:
    request = ApiRequest("GET", "/", headers=[(name, "1")])
    assert rejected_field(partial(require_allowed_headers, request, ["Acme-Version"])) is None


@pytest.mark.parametrize("name", [*OURS, *OVERRIDES, "X_Forwarded_For", "Content_Length", "a b", ""])
def test_a_provider_cannot_declare_what_only_the_server_sets(name: str) -> None:
    assert declaration_problem(name) is not None


@pytest.mark.parametrize("name", ["Stripe-Version", "X-GitHub-Api-Version", "X-Payment-Method", "Sforce-Call-Options"])
def test_a_provider_can_declare_its_own_headers(name: str) -> None:
    assert declaration_problem(name) is None


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_parameter_that_overrides_the_method_or_url_is_rejected(name: str) -> None:
    with pytest.raises(InvalidField) as rejected:
        require_valid_request(ApiRequest("GET", "/", query=[("q", "1"), (name, "DELETE")]))
    assert rejected.value.field == "query[1].name"


@pytest.mark.parametrize(
    "name", ["method", "payment_method", "original_url", "url", "filter[method]", "http_method", "redirect_uri", "host"]
)
def test_parameters_of_real_apis_are_allowed(name: str) -> None:
    assert rejected_field(partial(require_valid_request, ApiRequest("GET", "/", query=[(name, "1")]))) is None


def test_negative_control_the_names_without_the_allow_list_are_valid() -> None:
    """Nothing else of the policy rejects an override in a header."""
    requests = [ApiRequest("GET", "/", headers=[(name, "DELETE")]) for name in OVERRIDES[:6]]
    assert [rejected_field(partial(require_valid_request, request)) for request in requests] == [None] * 6


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "a\0", "\u00e4", "a(b)", " a"])
def test_a_header_name_must_be_a_token(name: str) -> None:
    with pytest.raises(InvalidField) as rejected:
        require_valid_request(ApiRequest("GET", "/", headers=[(name, "1")]))
    assert rejected.value.field == "headers[0].name"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "\u00e4", " a", "a ", "\x7f"])
def test_a_header_value_must_be_visible_ascii(value: str) -> None:
    for request, field in (
        (ApiRequest("GET", "/", headers=[("X-Thing", value)]), "headers[0].value"),
        (ApiRequest("GET", "/", idempotency_key=value), "idempotency_key"),
    ):
        with pytest.raises(InvalidField) as rejected:
            require_valid_request(request)
        assert rejected.value.field == field


@pytest.mark.parametrize("method", ["get", "TRACE", "CONNECT", "", "GET ", "GET /x HTTP/1.1\r\n", "PROPFIND"])
def test_other_methods_are_rejected(method: str) -> None:
    with pytest.raises(InvalidField) as rejected:
        require_valid_request(ApiRequest(method, "/"))
    assert rejected.value.field == "method"


def test_an_idempotency_key_is_set_once() -> None:
    request = ApiRequest("POST", "/", headers=[("Idempotency-Key", "1")], idempotency_key="2")
    with pytest.raises(InvalidField):
        require_valid_request(request)


def test_the_providers_credential_parameters_are_reserved() -> None:
    auth = RequestAuth({"X-Api-Key": "secret"}, {"key": "secret"})
    for request, field in (
        (ApiRequest("GET", "/", headers=[("x-api-key", "1")]), "headers[0].name"),
        (ApiRequest("GET", "/", query=[("a", "1"), ("key", "1")]), "query[1].name"),
        (ApiRequest("GET", "/", query=[("access_token", "1")]), "query[0].name"),
    ):
        with pytest.raises(InvalidField) as rejected:
            require_no_credentials(request, auth)
        assert rejected.value.field == field
    require_no_credentials(ApiRequest("GET", "/", headers=[("X-Other", "1")], query=[("q", "1")]), auth)


def test_connection_headers_and_cookies_are_removed() -> None:
    headers = [
        ("content-type", "application/json"),
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("www-authenticate", "Bearer"),
        ("proxy-authenticate", "Basic"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2c"),
        ("link", "a"),
        ("link", "b"),
    ]
    assert forwardable_headers(headers, ()) == (("content-type", "application/json"), ("link", "a"), ("link", "b"))


TOKENS = OAuthTokens("t/ok+en=1", "refresh token")


@pytest.mark.parametrize(
    "value",
    [
        "https://api.acme.example/next?access_token=t/ok+en=1",
        "https://api.acme.example/next?access_token=t%2Fok%2Ben%3D1",
        "https://api.acme.example/next?access_token=t%2fok%2ben%3d1",
        "https://api.acme.example/next?url=%3Ftoken%3Dt%252Fok%252Ben%253D1",
        "https://api.acme.example/next?r=refresh%20token",
        "https://api.acme.example/next?r=refresh+token",
        "Bearer t/ok+en=1",
    ],
)
def test_a_response_header_with_a_secret_is_removed(value: str) -> None:
    secrets = secrets_of(TOKENS, RequestAuth({"Authorization": "Bearer t/ok+en=1"}))
    assert forwardable_headers([("location", value), ("x-a", "1")], secrets) == (("x-a", "1"),)
    assert forwardable_headers([("location", value)], ()) != ()  # negative control


def test_the_key_of_a_pair_is_not_a_secret() -> None:
    secrets = secrets_of(ApiKey("AC1", "auth-token"), RequestAuth({"Authorization": "Basic abc=="}))
    assert secrets == {"Basic abc==", "abc==", "auth-token"}
    assert secrets_of(ApiKey("key"), RequestAuth(query_params={"k": "key"})) == {"key"}
