"""Of the client's address, only what trusted proxies have added is believed. Failures and log lines are limited."""

from datetime import timedelta
from ipaddress import ip_network

import pytest

from integration_server.domain.peers import LogLimiter, PeerLimiter, TrustedProxies, parse_networks, peer_key

PROXIES = TrustedProxies(parse_networks("10.0.0.0/8, 2001:db8:1::/48"))


class Monotonic:
    """A clock in seconds that tests set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


def fail(limiter: PeerLimiter, peer: str, times: int) -> None:
    for _ in range(times):
        limiter.record_failure(peer)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        pytest.param("198.51.100.7", ["203.0.113.9"], "198.51.100.7", id="an untrusted peer names nobody"),
        pytest.param("10.0.0.1", ["203.0.113.9"], "203.0.113.9", id="one proxy"),
        pytest.param("10.0.0.1", ["192.0.2.1, 203.0.113.9"], "203.0.113.9", id="the client's own text is to the left"),
        pytest.param("10.0.0.1", ["203.0.113.9, 10.0.0.2"], "203.0.113.9", id="two proxies"),
        pytest.param("10.0.0.1", ["203.0.113.9", "10.0.0.2"], "203.0.113.9", id="each proxy in a header of its own"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", ["10.0.0.3"], "10.0.0.3", id="all trusted"),
        pytest.param("10.0.0.1", [""], "10.0.0.1", id="empty"),
        pytest.param("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1", id="no address"),
        pytest.param("10.0.0.1", ["203.0.113.9, _hidden, 10.0.0.2"], "10.0.0.2", id="no address behind a proxy"),
        pytest.param("10.0.0.1", ["203.0.113.9,"], "10.0.0.1", id="an empty last entry"),
        pytest.param("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9", id="with a port"),
        pytest.param("10.0.0.1", ["[2001:db8::9]:4711"], "2001:db8::9", id="IPv6 with a port"),
        pytest.param("10.0.0.1", ["2001:DB8:0::9"], "2001:db8::9", id="another spelling of IPv6"),
        pytest.param("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9", id="IPv4 in IPv6"),
        pytest.param("2001:db8:1::5", ["203.0.113.9"], "203.0.113.9", id="an IPv6 proxy"),
        pytest.param("10.0.0.1", ["0" * 100_000], "10.0.0.1", id="a long entry"),
        pytest.param(
            "10.0.0.1", ["203.0.113.9," + "10.0.0.2," * 10_000 + "10.0.0.2"], "10.0.0.2", id="endless proxies"
        ),
        pytest.param("10.0.0.1", ["010.0.0.1"], "10.0.0.1", id="octal"),
        pytest.param("10.0.0.1", ["3405803785"], "10.0.0.1", id="a number"),
        pytest.param("", ["203.0.113.9"], "", id="a Unix socket"),
    ],
)
def test_the_client_is_what_trusted_proxies_name(peer: str, forwarded_for: list[str], client: str) -> None:
    assert PROXIES.client_address(peer, forwarded_for) == client


@pytest.mark.parametrize(
    ("peer", "is_proxy"),
    [("10.0.0.1", True), ("::ffff:10.0.0.1", True), ("2001:db8:1::5", True), ("198.51.100.7", False), ("", False)],
)
def test_trusted_proxies_are_known_by_their_networks(peer: str, is_proxy: bool) -> None:
    assert PROXIES.is_proxy(peer) is is_proxy


def test_without_trusted_proxies_the_client_is_the_peer() -> None:
    """The negative control is the case "one proxy" above: the same header from a trusted proxy is believed."""
    assert TrustedProxies().client_address("10.0.0.1", ["203.0.113.9"]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
        ("203.0.113.9", "::ffff:203.0.113.9", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unix:", "unix:", True),
    ],
)
def test_a_host_cannot_change_its_key_within_its_network(one: str, other: str, same: bool) -> None:
    assert (peer_key(one) == peer_key(other)) is same


@pytest.mark.parametrize("text", ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:a00:0/104"])
def test_a_network_of_ipv4_addresses_in_ipv6_is_that_of_ipv4(text: str) -> None:
    """Addresses are compared as IPv4, so that an IPv6 network would trust nobody."""
    proxies = TrustedProxies(parse_networks(text))
    assert proxies.is_proxy("10.0.0.1")
    assert proxies.is_proxy("::ffff:10.0.0.1")
    assert not proxies.is_proxy("203.0.113.9")


def test_networks_are_parsed() -> None:
    assert parse_networks("10.0.0.0/8, 192.0.2.1,::1, ") == (
        ip_network("10.0.0.0/8"),
        ip_network("192.0.2.1/32"),
        ip_network("::1/128"),
    )


@pytest.mark.parametrize(
    "text", ["proxy.internal", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "10.0.0.1,::/0", "::ffff:0:0/96"]
)
def test_names_and_networks_of_everybody_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address|contains every client"):
        parse_networks(text)


def test_a_peer_is_refused_after_a_burst_of_failures(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)

    fail(limiter, "bad", 2)
    assert limiter.retry_after("bad") is None
    fail(limiter, "bad", 1)

    assert limiter.retry_after("bad") == timedelta(seconds=2)
    assert limiter.retry_after("good") is None


def test_failures_are_forgiven_at_the_rate(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)
    fail(limiter, "bad", 3)

    monotonic.now += 2
    assert limiter.retry_after("bad") is None
    limiter.record_failure("bad")
    assert limiter.retry_after("bad") == timedelta(seconds=2)

    monotonic.now += 100
    fail(limiter, "bad", 2)
    assert limiter.retry_after("bad") is None


def test_a_forgiven_peer_may_fail_again(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)
    fail(limiter, "good", 3)

    limiter.forgive("good")
    limiter.forgive("never seen")

    fail(limiter, "good", 2)
    assert limiter.retry_after("good") is None


def test_the_number_of_peers_is_bounded(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=1, per_second=1, monotonic=monotonic, max_peers=10)

    for number in range(1_000):
        limiter.record_failure(str(number))

    assert sum(limiter.retry_after(str(number)) is not None for number in range(1_000)) == 10


def test_many_addresses_do_not_free_one_that_is_over_its_limit(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=2, per_second=0.001, monotonic=monotonic, max_peers=10)
    fail(limiter, "bad", 2)

    for number in range(1_000):
        limiter.record_failure(str(number))

    assert limiter.retry_after("bad") is not None
    assert limiter.retry_after("999") is None


def test_each_key_is_logged_once_in_an_interval(monotonic: Monotonic) -> None:
    log = LogLimiter(monotonic=monotonic, interval=timedelta(minutes=1))

    assert [log.admit("a"), log.admit("a"), log.admit("a"), log.admit("b")] == [0, None, None, 2]
    monotonic.now += 60
    assert log.admit("a") == 0


def test_lines_of_all_keys_are_bounded(monotonic: Monotonic) -> None:
    log = LogLimiter(monotonic=monotonic, max_lines=5)

    assert sum(log.admit(str(number)) is not None for number in range(1_000)) == 5
    monotonic.now += 60
    assert log.admit("1000") == 995
