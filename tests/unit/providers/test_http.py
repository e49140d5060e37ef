import asyncio
import gzip
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from email.utils import format_datetime

import httpx
import pytest

from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.http import HttpResponse, ProviderHttp, UrlNotAllowed
from tests.unit.providers.support import NOW, FakeTransport, clock, exception_text

URL = "https://acme.example/token"
ORIGINS = {"https://acme.example:443"}


async def response_to(network: httpx.AsyncBaseTransport, method: str = "GET", **options: object) -> HttpResponse:
    async with ProviderHttp(clock, transport=network, deadline=timedelta(seconds=0.05)) as http:
        return await http.request(method, URL, allowed_origins=ORIGINS, **options)  # type: ignore[arg-type]


class Body(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.taken += 1
            yield chunk


# --- requests ------------------------------------------------------------------------------------------


async def test_sends_a_request_and_returns_the_response() -> None:
    network = FakeTransport(httpx.Response(201, headers={"X-Thing": "a"}, content=b"hello"))
    http_response = await response_to(network, "POST", headers={"X-Key": "k"}, query={"q": "a b"}, content="x=1")
    assert str(network.request.url) == f"{URL}?q=a+b"
    assert network.request.headers["X-Key"] == "k"
    assert network.request.content == b"x=1"
    assert (http_response.status, http_response.headers["x-thing"], http_response.body) == (201, "a", b"hello")


async def test_keeps_the_query_of_the_url() -> None:
    network = FakeTransport(httpx.Response(200))
    async with ProviderHttp(clock, transport=network) as http:
        await http.request("GET", f"{URL}?tenant=1", allowed_origins=ORIGINS, query={"key": "k"})
    assert dict(network.request.url.params) == {"tenant": "1", "key": "k"}


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/token",
        "https://acme.example:8443/token",
        "https://acme.example@evil.example/token",
        "https://acme.example.evil.example/token",
        "http://acme.example/token",
        "https://acme.example\\.evil.example/",
    ],
)
async def test_sends_nothing_to_an_undeclared_host(url: str) -> None:
    network = FakeTransport(httpx.Response(200))
    async with ProviderHttp(clock, transport=network, dev_mode=True) as http:
        with pytest.raises(UrlNotAllowed):
            await http.request("GET", url, allowed_origins=ORIGINS)
    assert network.requests == []


async def test_plain_http_is_allowed_for_loopback_in_dev_mode_only() -> None:
    url, origins = "http://127.0.0.1:8090/token", {"http://127.0.0.1:8090"}
    network = FakeTransport(httpx.Response(200))
    async with ProviderHttp(clock, transport=network) as http:
        with pytest.raises(UrlNotAllowed):
            await http.request("GET", url, allowed_origins=origins)
    async with ProviderHttp(clock, transport=network, dev_mode=True) as http:
        assert (await http.request("GET", url, allowed_origins=origins)).is_success


async def test_does_not_follow_redirects() -> None:
    network = FakeTransport(httpx.Response(307, headers={"Location": "https://evil.example/"}))
    http_response = await response_to(network, "POST", content="code=secret")
    assert http_response.status == 307
    assert not http_response.is_success
    assert len(network.requests) == 1


async def test_negative_control_a_client_that_follows_redirects_forwards_the_code() -> None:
    network = FakeTransport(httpx.Response(307, headers={"Location": "https://evil.example/"}), httpx.Response(200))
    async with httpx.AsyncClient(transport=network, follow_redirects=True) as client:
        await client.post(URL, content="code=secret")
    assert (network.requests[1].url.host, network.requests[1].content) == ("evil.example", b"code=secret")


async def test_stores_no_cookies() -> None:
    network = FakeTransport(httpx.Response(200, headers={"Set-Cookie": "session=a-users; Path=/"}), httpx.Response(200))
    async with ProviderHttp(clock, transport=network) as http:
        await http.request("GET", URL, allowed_origins=ORIGINS)
        await http.request("GET", URL, allowed_origins=ORIGINS)
    assert "Cookie" not in network.requests[1].headers


async def test_negative_control_a_default_client_stores_the_cookie() -> None:
    network = FakeTransport(httpx.Response(200, headers={"Set-Cookie": "session=a-users; Path=/"}), httpx.Response(200))
    async with httpx.AsyncClient(transport=network) as client:
        await client.get(URL)
        await client.get(URL)
    assert "Cookie" in network.requests[1].headers


# --- responses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("secret"),
        httpx.ConnectTimeout("secret"),
        httpx.ReadError("secret"),
        httpx.RemoteProtocolError("illegal status line: secret"),
        httpx.ProxyError("secret"),
        OSError("secret"),
    ],
)
async def test_a_network_failure_is_provider_unavailable(failure: Exception) -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await response_to(FakeTransport(failure))
    assert type(failure).__name__ in str(raised.value)
    assert "secret" not in exception_text(raised.value)


async def test_an_invalid_header_value_is_not_disclosed() -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await response_to(FakeTransport(httpx.Response(200)), headers={"Authorization": "Bearer sécret"})
    assert "cret" not in exception_text(raised.value)


async def test_a_slow_body_ends_at_the_deadline() -> None:
    async def send_slowly() -> AsyncIterator[bytes]:
        while True:
            yield b""
            await asyncio.sleep(0)

    with pytest.raises(ProviderUnavailable, match="TimeoutError"):
        await response_to(FakeTransport(httpx.Response(200, stream=Body(send_slowly()))))


async def test_negative_control_a_read_timeout_does_not_end_a_slow_body() -> None:
    async def send_slowly() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b""
            await asyncio.sleep(0)

    network = FakeTransport(httpx.Response(200, stream=Body(send_slowly())))
    async with ProviderHttp(clock, transport=network, deadline=timedelta(minutes=1)) as http:
        assert (await http.request("GET", URL, allowed_origins=ORIGINS)).is_success


async def test_reading_stops_at_the_body_limit() -> None:
    async def flood() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    body = Body(flood())
    with pytest.raises(ProviderUnavailable, match="BodyTooLarge"):
        await response_to(FakeTransport(httpx.Response(200, stream=body)))
    assert body.taken == 17


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    async with ProviderHttp(
        clock, transport=FakeTransport(httpx.Response(200, content=b"x" * 10)), body_limit=10
    ) as http:
        assert len((await http.request("GET", URL, allowed_origins=ORIGINS)).body) == 10
    async with ProviderHttp(
        clock, transport=FakeTransport(httpx.Response(200, content=b"x" * 11)), body_limit=10
    ) as http:
        with pytest.raises(ProviderUnavailable):
            await http.request("GET", URL, allowed_origins=ORIGINS)


def encoded(encoding: str, *chunks: bytes) -> httpx.Response:
    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Body(sent()))


def compressed(content: bytes, encoding: str = "gzip") -> httpx.Response:
    return encoded(encoding, gzip.compress(content))


async def test_decompresses_gzip() -> None:
    assert (await response_to(FakeTransport(compressed(b'{"a": 1}')))).body == b'{"a": 1}'


async def test_decompression_stops_at_the_body_limit() -> None:
    network = FakeTransport(compressed(b"\0" * (50 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(ProviderUnavailable, match="BodyTooLarge"):
            await response_to(network)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


async def test_negative_control_httpx_decompresses_everything() -> None:
    async with httpx.AsyncClient(transport=FakeTransport(compressed(b"\0" * (50 << 20)))) as client:
        assert len((await client.get(URL)).content) == 50 << 20


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " gzip\t", "x-gzip", "X-GZip", "gzip, identity", ",gzip"])
async def test_accepts_every_name_of_gzip(encoding: str) -> None:
    assert (await response_to(FakeTransport(compressed(b"{}", encoding)))).body == b"{}"


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " ", "identity,"])
async def test_accepts_every_name_of_identity(encoding: str) -> None:
    assert (await response_to(FakeTransport(encoded(encoding, b"{}")))).body == b"{}"


TWO_MEMBERS = gzip.compress(b'{"a": ') + gzip.compress(b"") + gzip.compress(b"1}")


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("padding", [b"", b"\0" * 512, b"\r\n", b"\n\x1f\x8b"])
async def test_decompresses_all_members_and_ignores_padding(size: int, padding: bytes) -> None:
    body = TWO_MEMBERS + padding
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    assert (await response_to(FakeTransport(encoded("gzip", *chunks)))).body == b'{"a": 1}'


def test_negative_control_one_decompressor_reads_one_member_only() -> None:
    assert zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(TWO_MEMBERS) == b'{"a": '


async def test_an_invalid_second_member_is_provider_unavailable() -> None:
    with pytest.raises(ProviderUnavailable):
        await response_to(FakeTransport(encoded("gzip", TWO_MEMBERS, b"\x1f\x8b, and no more gzip")))


async def response_for_body(body: bytes, *, body_limit: int = 1 << 20) -> HttpResponse:
    network = FakeTransport(encoded("gzip", body))
    async with ProviderHttp(clock, transport=network, body_limit=body_limit) as http:
        return await http.request("GET", URL, allowed_origins=ORIGINS)


async def test_the_body_limit_covers_all_members() -> None:
    body = gzip.compress(b"x" * 600) * 2
    assert len((await response_for_body(body, body_limit=1200)).body) == 1200
    with pytest.raises(ProviderUnavailable, match="BodyTooLarge"):
        await response_for_body(body, body_limit=1199)


@pytest.mark.parametrize("rest", [gzip.compress(b""), b"\0"], ids=["members", "padding"])
async def test_the_body_limit_covers_the_compressed_size(rest: bytes) -> None:
    body = gzip.compress(b"{}") + rest * 1000
    assert (await response_for_body(body, body_limit=len(body))).body == b"{}"
    with pytest.raises(ProviderUnavailable, match="BodyTooLarge"):
        await response_for_body(body, body_limit=len(body) - 1)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "gzip, br", "utf-8", "none", "binary"])
async def test_a_body_with_another_coding_is_unchanged_and_keeps_its_header(encoding: str) -> None:
    response = await response_to(FakeTransport(compressed(b"{}", encoding)))
    assert gzip.decompress(response.body) == b"{}"
    assert dict(response.header_list)["content-encoding"] == encoding


async def test_the_headers_of_a_compressed_body_are_removed_with_its_coding() -> None:
    response = await response_to(FakeTransport(compressed(b"{}", "gzip")))
    assert {"content-encoding", "content-length"}.isdisjoint(response.headers)


@pytest.mark.parametrize("length", [1, 10, 18, -9, -8, -1])
async def test_a_compressed_body_that_ends_early_is_provider_unavailable(length: int) -> None:
    with pytest.raises(ProviderUnavailable, match="InvalidBody"):
        await response_for_body(gzip.compress(b"{}" * 1000)[:length])


def test_negative_control_the_decompressor_itself_accepts_a_body_that_ends_early() -> None:
    assert zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(gzip.compress(b"{}" * 1000)[:-9])


async def test_an_empty_body_has_any_coding() -> None:
    assert (await response_for_body(b"")).body == b""


async def test_the_response_to_head_keeps_its_headers() -> None:
    headers = {"Content-Encoding": "gzip", "Content-Length": "1234"}
    response = await response_to(FakeTransport(httpx.Response(200, headers=headers)), method="HEAD")
    assert (response.headers["content-length"], response.headers["content-encoding"]) == ("1234", "gzip")


async def test_a_range_is_requested_without_a_coding() -> None:
    network = FakeTransport(httpx.Response(206))
    await response_to(network, headers={"Range": "bytes=0-9"})
    assert network.requests[-1].headers["accept-encoding"] == "identity"


async def test_invalid_gzip_is_provider_unavailable() -> None:
    response = httpx.Response(200, stream=httpx.ByteStream(b"not gzip"), headers={"Content-Encoding": "gzip"})
    with pytest.raises(ProviderUnavailable):
        await response_to(FakeTransport(response))


# --- Retry-After -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", 0),
        ("120", 120),
        ("1.5", 1.5),
        (" 7 ", 7),
        ("-5", 0),
        ("PT1M", 60),
        ("30s", 30),
        ("500ms", 0.5),
        ("60000ms", 60),
        ("1h30m", 3_600),
        ("1m30.5s", 90.5),
        ("120, 120", 120),
        ("5, 60", 60),
        ('"60"', 60),
        ("2 mins", 120),
        ((NOW + timedelta(seconds=90)).isoformat(), 90),
        (str(int(NOW.timestamp()) + 90), 90),
        (format_datetime(NOW + timedelta(seconds=90)), 90),
        ("9" * 400, 3_600),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=400), usegmt=True), 3_600),
    ],
)
async def test_reads_retry_after(value: str, wait: float) -> None:
    http_response = await response_to(FakeTransport(httpx.Response(503, headers={"Retry-After": value})))
    assert http_response.retry_after == timedelta(seconds=wait)


async def test_the_longest_of_several_retry_after_headers_counts() -> None:
    headers = [("Retry-After", "3"), ("Retry-After", format_datetime(NOW + timedelta(seconds=90), usegmt=True))]
    response = await response_to(FakeTransport(httpx.Response(503, headers=headers)))
    assert response.retry_after == timedelta(seconds=90)


@pytest.mark.parametrize(
    "value", ["", "soon", "²", "nan", "5 fortnights", "5 foo 3s", "Mon, 01 Jan 99999 00:00:00 GMT"]
)
async def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    headers = [(b"Retry-After", value.encode())]
    assert (await response_to(FakeTransport(httpx.Response(503, headers=headers)))).retry_after is None


# --- logs and reprs ------------------------------------------------------------------------------------------


async def test_logs_contain_no_query_header_or_body(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    network = FakeTransport(httpx.Response(200, content=b"s3cret-body"), httpx.ReadError("s3cret-error"))
    with caplog.at_level(logging.DEBUG):
        async with ProviderHttp(clock, transport=network) as http:
            for _ in range(2):
                with suppress(ProviderUnavailable):
                    await http.request(
                        "POST",
                        f"{URL}?a=s3cret-url",
                        allowed_origins=ORIGINS,
                        query={"key": "s3cret-query"},
                        headers={"Authorization": "s3cret-header"},
                        content="s3cret-form",
                    )
    logged = caplog.text + "".join(capsys.readouterr())
    assert "acme.example" in logged
    assert "s3cret" not in logged


async def test_negative_control_a_client_of_httpx_logs_the_query(caplog: pytest.LogCaptureFixture) -> None:
    async with httpx.AsyncClient(transport=FakeTransport(httpx.Response(200))) as client:
        with caplog.at_level(logging.DEBUG, logger="httpx"):
            await client.get(URL, params={"key": "s3cret"})
    assert "s3cret" in caplog.text


def test_the_repr_of_a_response_hides_headers_and_body() -> None:
    assert "s3cret" not in repr(HttpResponse(200, {"Set-Cookie": "s3cret"}, b"s3cret"))
