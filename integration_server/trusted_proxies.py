"""The address of a client, also behind proxies. Imports no other module of this package."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

_MAX_ENTRY_LENGTH = 64  # characters: longer than any address with a port
_MAX_HOPS = 32  # proxies in a row; more are a loop or a forged list
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2
_IPV6_PREFIX = 64  # bits: RFC 6177 §2, the least that a site gets; a single host may use all of it


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
                named = _parse_address(entries.pop())
                if named is None:
                    break
                address = named
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
