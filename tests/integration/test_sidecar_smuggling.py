"""Requests that a proxy and the sidecar could read in different ways are refused, and the connection is closed.

Each attack is a request with a second one behind it. Without the check the sidecar handles the second one, which a
proxy in front of it has not seen as a request.
"""

from collections.abc import Mapping
from dataclasses import replace

import h11
import pytest

from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.http_protocol import StrictConnection
from tests.fakes.limits import LIMITS
from tests.integration.sidecar_clients import connect, serving_sidecar
from tests.unit.sidecar.fakes import FakeServer

UNLIMITED = replace(LIMITS, failures_per_second=1_000_000)
LINE = b"POST /api/v1/webhooks/stripe/first HTTP/1.1\r\n"
POST = LINE + b"Host: sidecar\r\n"
SMUGGLED = b"GET /api/v1/webhooks/stripe/smuggled HTTP/1.1\r\nHost: sidecar\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"

# What h11 alone accepts.
ATTACKS = {
    "length and chunks": POST + b"Content-Length: %d\r\n" % len(END + SMUGGLED) + CHUNKED + b"\r\n" + END,
    "chunks and length": POST + CHUNKED + b"Content-Length: 4\r\n\r\n" + END,
    "two equal lengths": POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 0, 0\r\n\r\n",
    "a length with an underscore": POST + b"Content_Length: %d\r\n\r\n" % len(SMUGGLED),
    "a coding with an underscore": POST + b"Transfer_Encoding: chunked\r\n\r\n",
    "any header with an underscore": POST + b"X_Forwarded_For: 10.0.0.1\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + END,
    "a coding folded with a tab": POST + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n" + END,
    "a folded length": POST + b"Content-Length:\r\n 0\r\n\r\n",
    "another folded header": POST + b"X-Any: a\r\n Content-Length: 5\r\n\r\n",
    "lines that end with LF": POST.replace(b"\r\n", b"\n") + b"\n",
    "one line that ends with LF": POST + b"X-Any: a\nContent-Length: 0\r\n\r\n",
    "a head that ends with LF": POST + b"\n",
    "a control character": POST + b"X-Any: a\x01\r\n\r\n",
    "a coding in HTTP/1.0": LINE.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + END,
    "HTTP/1.2": LINE.replace(b"1.1", b"1.2") + b"Host: sidecar\r\n\r\n",
    "HTTP/2.0": LINE.replace(b"1.1", b"2.0") + b"Host: sidecar\r\n\r\n",
    "an absolute target": b"GET http://other/ HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "a fragment": b"GET /#a HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "two hosts in one": LINE + b"Host: sidecar, other\r\n\r\n",
    "a host with a path": LINE + b"Host: sidecar/other\r\n\r\n",
    "a host with a user": LINE + b"Host: user@sidecar\r\n\r\n",
    "CR in a chunk extension": POST + CHUNKED + b"\r\n1;a\rb\r\nx\r\n" + END,
    "a space behind a chunk's size": POST + CHUNKED + b"\r\n1 \r\nx\r\n" + END,
    "a folded trailer": POST + CHUNKED + b"\r\n0\r\nX-Any: a\r\n b\r\n\r\n",
    "trailers that end with LF": POST + CHUNKED + b"\r\n0\r\nX-Any: a\n\n",
    "a length in the trailers": POST + CHUNKED + b"\r\n0\r\nContent-Length: 4\r\n\r\n",
    "a trailer with an underscore": POST + CHUNKED + b"\r\n0\r\nX_Any: 4\r\n\r\n",
}

# What h11 refuses, too. A change of h11 must not be noticed by an attacker first.
ALSO_REFUSED = {
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "a list of two lengths": POST + b"Content-Length: 0, 5\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +0\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a hexadecimal length": POST + b"Content-Length: 0x0\r\n\r\n",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "an endless length": POST + b"Content-Length: " + b"0" * 21 + b"\r\n\r\n",
    "two codings": POST + CHUNKED + CHUNKED + b"\r\n" + END,
    "a list of codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
    "another coding": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "an obscured coding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END,
    "a quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + END,
    "an empty coding": POST + b"Transfer-Encoding:\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + END,
    "a tab before the colon": POST + b"Content-Length\t: 0\r\n\r\n",
    "a folded first header": LINE + b" Host: sidecar\r\n\r\n",
    "NUL in a value": POST + b"X-Any: a\0b\r\n\r\n",
    "NUL in a name": POST + b"X\0Any: a\r\n\r\n",
    "CR in a value": POST + b"X-Any: a\rContent-Length: 0\r\n\r\n",
    "lines that end with CR": POST.replace(b"\r\n", b"\r") + b"\r\r\n\r\n",
    "a name beyond ASCII": POST + b"X-\xe9: a\r\n\r\n",
    "no name": POST + b": a\r\n\r\n",
    "no colon": POST + b"chunked\r\n\r\n",
    "no host": LINE + b"\r\n",
    "two hosts": POST + b"Host: other\r\n\r\n",
    "a method that is no token": b"P(ST / HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "a space in the target": b"POST /a b HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "two spaces": b"POST  / HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "a tab for a space": b"POST\t/ HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "a target beyond ASCII": b"POST /\xe9 HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "no version": b"GET /\r\nHost: sidecar\r\n\r\n",
    "lower case": b"GET / http/1.1\r\nHost: sidecar\r\n\r\n",
    "an empty line first": b"\r\n" + POST + b"\r\n",
    "a chunk's size with a prefix": POST + CHUNKED + b"\r\n0x1\r\nx\r\n" + END,
    "a chunk's size with an underscore": POST + CHUNKED + b"\r\n1_0\r\n" + b"x" * 16 + b"\r\n" + END,
    "a negative chunk": POST + CHUNKED + b"\r\n-1\r\nx\r\n" + END,
    "an overflowing chunk": POST + CHUNKED + b"\r\n10000000000000001\r\nx\r\n" + END,
    "a chunk that is longer than its size": POST + CHUNKED + b"\r\n1\r\nxyz" + END,
    "a chunk's size that ends with LF": POST + CHUNKED + b"\r\n1\nx\r\n" + END,
    "LF in a chunk extension": POST + CHUNKED + b"\r\n1;a\nb\r\nx\r\n" + END,
    "CONNECT": b"CONNECT sidecar:443 HTTP/1.1\r\nHost: sidecar\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}

# The bodies contain nothing that looks like a chunk's header.
ACCEPTED = {
    "a length": POST + b"Content-Length: 2\r\n\r\nab",
    "no body": POST + b"\r\n",
    "chunks": POST + CHUNKED + b"\r\n2\r\nxy\r\n" + END,
    "upper case": POST + b"TRANSFER-ENCODING: Chunked\r\n\r\n2\r\nxy\r\n" + END,
    "spaces around a value": POST + b"Content-Length:\t 2 \r\n\r\nab",
    "a chunk extension": POST + CHUNKED + b'\r\n2;a="b c"\r\nxy\r\n' + END,
    "trailers": POST + CHUNKED + b"\r\n2\r\nxy\r\n0\r\nX-Checksum: 1\r\n\r\n",
    "an empty value": POST + b"X-Any:\r\n\r\n",
    "a value beyond ASCII": POST + b"X-Any: \xc3\xa9\r\n\r\n",
    "a header often": POST + 50 * b"X-Any: a\r\n" + b"\r\n",
    "a host with a port": LINE + b"Host: sidecar:8080\r\n\r\n",
    "an IPv6 host": LINE + b"Host: [2001:db8::1]:8080\r\n\r\n",
    "an empty host": LINE + b"Host:\r\n\r\n",
    "HTTP/1.0": LINE.replace(b"1.1", b"1.0") + b"Content-Length: 2\r\n\r\nab",
    "an upgrade": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab",
    "an expectation": POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
}


REFUSED: tuple[bytes, list[str]] = (b"HTTP/1.1 400 Bad Request", [])
HANDLED = (b"HTTP/1.1 200 OK", ["first"])


async def results_of(
    limits: HttpLimits, requests: Mapping[str, bytes], *, byte_by_byte: bool = False
) -> dict[str, tuple[bytes, list[str]]]:
    """For each connection, the first line of the response, and the endpoints of all requests that were handled."""
    server = FakeServer()
    results = {}
    async with serving_sidecar(limits, server) as port:
        for name, sent in requests.items():
            async with connect(port) as connection:
                for piece in [sent[at : at + 1] for at in range(len(sent))] if byte_by_byte else [sent]:
                    await connection.send(piece)
                connection.writer.write_eof()
                received = await connection.received()
            first_line, *_ = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").split(b"\r\n")
            results[name] = first_line, [webhook.endpoint for webhook in server.webhooks]
            server.webhooks.clear()
    return results


def with_second_request(attacks: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: attack + SMUGGLED for name, attack in attacks.items()}


async def test_an_ambiguous_request_is_refused_and_the_connection_closed() -> None:
    attacks = {**ATTACKS, **ALSO_REFUSED}
    assert await results_of(UNLIMITED, with_second_request(attacks)) == dict.fromkeys(attacks, REFUSED)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_ambiguous_request_is_refused_however_it_is_split(size: int) -> None:
    for attack in {**ATTACKS, **ALSO_REFUSED}.values():
        with pytest.raises(h11.RemoteProtocolError):
            parse(StrictConnection(LIMITS), attack + SMUGGLED, size)


def parse(connection: h11.Connection, sent: bytes, size: int) -> None:
    """Parse one request that arrives in pieces of a size."""
    for begin in range(0, len(sent), size):
        connection.receive_data(sent[begin : begin + size])
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return


async def test_negative_control_unchecked_the_smuggled_request_is_handled() -> None:
    results = await results_of(replace(UNLIMITED, refuse_ambiguous=False), with_second_request(ATTACKS))

    # After HTTP/1.0 the connection is closed; there the attack is the body that a proxy would not see.
    assert {name: endpoints[-1] for name, (_, endpoints) in results.items()} == {
        name: "first" if "HTTP/1.0" in name else "smuggled" for name in ATTACKS
    }


@pytest.mark.parametrize("byte_by_byte", [False, True])
async def test_an_unambiguous_request_is_handled(byte_by_byte: bool) -> None:
    assert await results_of(LIMITS, ACCEPTED, byte_by_byte=byte_by_byte) == dict.fromkeys(ACCEPTED, HANDLED)
