"""Peers: the address of a client, also behind proxies, and what peers that are not known may cost.

Peers are counted by `peer_key`: their failed attempts, and the log lines that they cause. The memory of both limiters
is bounded, whatever number of peers there are.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

_MAX_ENTRY_LENGTH = 64  # characters: longer than any address with a port
_MAX_HOPS = 32  # proxies in a row; more are a loop or a forged list
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2
_IPV6_PREFIX = 64  # bits: RFC 6177 §2, the least that a site gets; a single host may use all of it
_SECOND_CHANCES = 8  # peers that are examined before one that is over its limit is forgotten


# --- addresses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed."""

    networks: tuple[Network, ...] = ()

    def client_address(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """Return the address of the client: of the peer, or what trusted proxies name in its place.

        `peer` is the address of the connection, without its port. `forwarded_for` are the values of the
        `X-Forwarded-For` headers, in order. They are read from the right, where the nearest proxy appends: the first
        address that is not a trusted proxy is the client, and what stands to the left of it is the client's own text.
        An entry that is no address ends the search at the proxy that sent it.
        """
        address = _parse_address(peer)
        if address is None:
            return peer
        if self._trusts(address):
            entries = ",".join(forwarded_for).rsplit(",", maxsplit=_MAX_HOPS)[-_MAX_HOPS:]
            while entries and self._trusts(address):
                forwarded = _parse_address(entries.pop())
                if forwarded is None:
                    break
                address = forwarded
        return str(address)

    def is_proxy(self, peer: str) -> bool:
        """Whether the address of a connection is that of a trusted proxy."""
        address = _parse_address(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.networks)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse comma-separated addresses and networks. Raises `ValueError`."""
    networks = list[Network]()
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            network: Network = ip_network(part)
        except ValueError:
            raise ValueError(f"{part!r} is not an address or a network such as 10.0.0.0/8") from None
        if isinstance(network, IPv6Network) and network.subnet_of(_IPV4_MAPPED):
            # Addresses are compared as IPv4: see `_parse_address`.
            address = IPv4Address(int(network.network_address) & (2**32 - 1))
            network = IPv4Network((address, network.prefixlen - _IPV4_MAPPED.prefixlen))
        if not network.prefixlen:
            raise ValueError(f"{part!r} contains every client, who could then name any address")
        networks.append(network)
    return tuple(networks)


def peer_key(address: str) -> str:
    """Return what limits count a client by: its address, or the /64 of an IPv6 address."""
    parsed = _parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address that may have a port, brackets or a zone; an IPv4-mapped one becomes IPv4."""
    text = text.strip()
    if len(text) > _MAX_ENTRY_LENGTH:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


# --- limits ----------------------------------------------------------------------------------------------------------


class PeerLimiter:
    """Limits the failures of each peer: `burst` at once, and `per_second` in the long run.

    It is a GCRA: for each peer it keeps the time at which all of its failures are forgiven. Only failures count, so
    that peers without failures use no memory, and attempts that are refused do not prolong the refusal. At most
    `max_peers` are remembered. A peer over its limit is forgotten only after others, so that an attacker with many
    addresses does not free one of them with the others.
    """

    def __init__(
        self, *, burst: int, per_second: float, monotonic: Callable[[], float], max_peers: int = 10_000
    ) -> None:
        self._cost = 1 / per_second  # seconds for which a failure counts
        self._capacity = burst * self._cost
        self._monotonic = monotonic
        self._max_peers = max_peers
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()  # the least recent failure first

    def retry_after(self, peer: str) -> timedelta | None:
        """Return how long the peer has to wait for its next attempt; None if it may try now."""
        excess = self._excess(self._forgiven_at.get(peer, 0.0))
        return timedelta(seconds=excess) if excess > 0 else None

    def record_failure(self, peer: str) -> None:
        """Count a failed attempt."""
        now = self._monotonic()
        self._forgiven_at[peer] = max(self._forgiven_at.get(peer, now), now) + self._cost
        self._forgiven_at.move_to_end(peer)
        if len(self._forgiven_at) > self._max_peers:
            self._forget_one()

    def forgive(self, peer: str) -> None:
        """Forget a peer's failures."""
        self._forgiven_at.pop(peer, None)

    def _excess(self, forgiven_at: float) -> float:
        """Return the seconds until a peer is below its limit; at most 0 if it is now."""
        return forgiven_at - self._monotonic() - self._capacity + self._cost

    def _forget_one(self) -> None:
        for _ in range(_SECOND_CHANCES):
            peer, forgiven_at = next(iter(self._forgiven_at.items()))
            if self._excess(forgiven_at) <= 0:
                break
            self._forgiven_at.move_to_end(peer)
        self._forgiven_at.popitem(last=False)


class LogLimiter:
    """Decides which events are logged: one for each key and interval, and `max_lines` of all keys in an interval.

    Whoever causes events without end therefore cannot fill the disk, with however many addresses.
    """

    def __init__(
        self, *, monotonic: Callable[[], float], interval: timedelta = timedelta(minutes=1), max_lines: int = 60
    ) -> None:
        self._monotonic = monotonic
        self._interval = interval.total_seconds()
        self._max_lines = max_lines
        self._interval_end = 0.0
        self._logged: set[str] = set()
        self._suppressed = 0

    def admit(self, key: str) -> int | None:
        """Return None if the event is not logged, else the number of events that were not logged before it."""
        now = self._monotonic()
        if now >= self._interval_end:
            self._interval_end = now + self._interval
            self._logged.clear()
        if key in self._logged or len(self._logged) >= self._max_lines:
            self._suppressed += 1
            return None
        self._logged.add(key)
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
