"""The worker processes of a server: how many there are, the port and the memory that they share."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import ceil
from pathlib import Path
from typing import TypeAlias

import structlog

from integration_server.domain.call_quota import CallCounts, LocalCounts
from integration_server.lifecycle import AddressTaken
from integration_server.setting_types import Address
from integration_server.settings import Settings
from integration_server.shared_memory import SharedCounts, SharedFeedState, SharedMemory

_CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # docs.kernel.org/admin-guide/cgroup-v2: "QUOTA PERIOD" or "max …"
_LISTENERS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = "0A"  # include/net/tcp_states.h
_PORT_ATTEMPTS = 16

IpAddress: TypeAlias = IPv4Address | IPv6Address

BEAT_INTERVAL = timedelta(seconds=1)
"""The interval between two calls of `Worker.beat`: a small part of the supervisor's `HANG_TIMEOUT`."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that serve gRPC, of `count`. The one with the number 0 also does the background work."""

    number: int = 0
    count: int = 1
    counts: CallCounts = field(default_factory=LocalCounts)
    memory: SharedMemory | None = None
    feed: SharedFeedState | None = None

    @classmethod
    def of(cls, memory: SharedMemory, number: int) -> "Worker":
        """The worker with this number."""
        feed = SharedFeedState(memory, leads=number == 0)
        return cls(number, memory.workers, SharedCounts(memory, number), memory, feed)

    @property
    def name(self) -> str:
        """The name of its process."""
        return worker_names(self.count)[self.number]

    @property
    def does_background_work(self) -> bool:
        """Whether it does what has to be done once, however many workers there are."""
        return self.number == 0

    async def beat(self) -> None:
        """Show the supervisor that the event loop runs. To be called every second."""
        if self.memory is not None:
            self.memory.beats[self.number] += 1


def worker_names(count: int) -> Sequence[str]:
    """The names of the workers' processes."""
    return ["server"] if count == 1 else [f"server-{number}" for number in range(1, count + 1)]


def worker_count(settings: Settings, cores: int | None = None) -> int:
    """The number of workers that `serve` runs: `WORKERS`, by default one for each core.

    SQLite has one writer at a time, for which several processes would wait, and development needs one.
    """
    if settings.workers is not None:
        return settings.workers
    if settings.dev_mode or sys.platform != "linux":
        return 1
    if settings.database_url.startswith("sqlite"):
        return 1
    return usable_cores() if cores is None else cores


def explain_worker_count(settings: Settings, cores: int | None = None) -> None:
    """Log why a server that could have several workers has one."""
    cores = usable_cores() if cores is None else cores
    is_default = settings.workers is None and not settings.dev_mode
    if is_default and cores > 1 and settings.database_url.startswith("sqlite"):
        structlog.get_logger(__name__).info("one_worker", reason="SQLite has one writer at a time", cores=cores)


def usable_cores(cpu_limit: Path = _CGROUP_CPU_LIMIT) -> int:
    """The cores that this process may use: of its affinity, and at most the limit of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_limit.read_text().split()
        return min(cores, max(1, ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no limit, or none that can be read
        return cores


# --- the port --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PortClaim:
    """An address that this server has claimed for its workers. `address` has the port also where any was asked for.

    `hosts` are those of its sockets, of which each worker has one.
    """

    address: Address
    hosts: Sequence[IpAddress]
    workers: int
    _foreign: int = 0

    def check(self) -> None:
        """Log when another program listens on the address too.

        The system gives it a part of the connections, or all to its own address if this server listens on all. It can
        only be a program of the same user that begins to listen with SO_REUSEPORT after this server. Whoever listens on
        another address of the port, or on all while this server listens on one, gets none of its connections.
        """
        listeners = find_listeners(self.address.port)
        takes_all = any(host.is_unspecified for host in self.hosts)
        sharing = [listener for listener in listeners if takes_all or listener in self.hosts]
        foreign = max(0, len(sharing) - len(self.hosts) * self.workers)
        if foreign > self._foreign:
            structlog.get_logger(__name__).error("port_shared", address=str(self.address), foreign_listeners=foreign)
        self._foreign = foreign


@contextmanager
def claimed_port(address: Address, workers: int) -> Iterator[PortClaim]:
    """Claim an address for the workers, who may then bind it with SO_REUSEPORT. Raises `AddressTaken`.

    It is bound without that option first, which fails if anybody listens, also with the option. The workers of another
    server can therefore not join. Nothing listens on the sockets of the claim.
    """
    with ExitStack() as stack:
        try:
            sockets, port = _bind(address, stack)
        except OSError as error:
            raise AddressTaken("GRPC_ADDRESS", address, error) from error
        for claimed in sockets:
            claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        hosts = [_without_mapping(ip_address(claimed.getsockname()[0])) for claimed in sockets]
        yield PortClaim(address._replace(port=port), hosts, workers)


def _bind(address: Address, stack: ExitStack) -> tuple[Sequence[socket.socket], int]:
    """Bind all addresses of the host to one port. Raises `OSError`."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for attempt in range(_PORT_ATTEMPTS):
        with ExitStack() as bound:
            try:
                sockets, port = _bind_all(
                    list(dict.fromkeys((address_info[0], address_info[4]) for address_info in found)), bound
                )
            except OSError as error:
                # Of several addresses, another may not have the free port of the first.
                if address.port or error.errno != errno.EADDRINUSE or attempt == _PORT_ATTEMPTS - 1:
                    raise
                continue
            stack.push(bound.pop_all())
            return sockets, port
    raise AssertionError


def _bind_all(targets: Sequence[tuple[int, tuple[object, ...]]], stack: ExitStack) -> tuple[list[socket.socket], int]:
    sockets: list[socket.socket] = []
    port, missing = 0, None
    for family, (host, wanted, *rest) in targets:
        claimed = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # As servers do, so that connections of an earlier one that are not quite over do not matter.
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            claimed.bind((host, wanted or port, *rest))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error  # an IPv6 address of localhost on a machine without IPv6
            continue
        port = claimed.getsockname()[1]
        sockets.append(claimed)
    if not sockets and missing is not None:
        raise missing
    return sockets, port


def find_listeners(port: int, tables: Sequence[Path] = _LISTENERS) -> Sequence[IpAddress]:
    """The addresses on which sockets of this network namespace listen at a port; none where the system does not say."""
    found: list[IpAddress] = []
    for path in tables:
        try:
            with path.open() as table:
                next(table)  # the names of the columns
                for line in table:  # those that listen come first
                    _, local, _, state, *_ = line.split(maxsplit=4)
                    if state != _LISTEN:
                        break
                    address, _, number = local.partition(":")
                    if int(number, 16) == port:
                        found.append(_parse_address(address))
        except (OSError, StopIteration, ValueError):
            continue
    return found


def _parse_address(text: str) -> IpAddress:
    """An address of the table: words of 32 bits, each in the machine's byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return _without_mapping(ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def _without_mapping(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 address stands for, or the address."""
    return getattr(address, "ipv4_mapped", None) or address
