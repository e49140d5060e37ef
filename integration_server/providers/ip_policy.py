"""Which addresses a provider may be reached at: those of the public internet, and in dev mode this machine's own.

Lists of our own, since what Python's `ipaddress` calls global differs between its versions, and includes multicast.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

# IANA IPv4 Special-Purpose Address Registry (RFC 6890), and what clouds answer on.
_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, though the address is a public one
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; some clouds' metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# The only IPv6 addresses that are given out to the public (RFC 4291 §2.4). All others are local, or carry an IPv4
# address for a translator: mapped, compatible, NAT64.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them, which carries an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",  # documentation
    )
)
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and to nothing between."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return (
        address in _GLOBAL_UNICAST
        and address.scope_id is None
        and not any(address in network for network in _SPECIAL_V6)
    )


def is_public_or_loopback(address: Address) -> bool:
    """Likewise, or is this machine's own: for dev mode, where the sandbox is."""
    return is_public(address) or any(address in network for network in _LOOPBACK)
