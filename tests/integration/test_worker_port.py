"""Workers share a port that their server has claimed: no other server gets a part of the connections unnoticed."""

import errno
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta

import grpc
import pytest
from structlog.testing import capture_logs

from integration_server.lifecycle import AddressTaken, serving
from integration_server.setting_types import Address
from integration_server.wiring.workers import claimed_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")


@contextmanager
def listening(address: Address, *, shares: bool) -> Iterator[Address]:
    """A program that listens, with SO_REUSEPORT or without it."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind(tuple(address))
        listener.listen()
        yield address._replace(port=listener.getsockname()[1])


ANY_PORT = Address("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # for a moment
def test_any_number_of_workers_binds_a_claimed_port_and_no_one_else_listens_alone(host: str) -> None:
    with claimed_port(Address(host, 0), 3) as claim, ExitStack() as stack, capture_logs() as logs:
        assert claim.address.host == host
        with listening(ANY_PORT._replace(port=claim.address.port), shares=True):
            pass
        for _ in range(3):
            stack.enter_context(listening(ANY_PORT._replace(port=claim.address.port), shares=True))
        with pytest.raises(OSError), listening(ANY_PORT._replace(port=claim.address.port), shares=False):  # noqa: PT011
            pass
        claim.check()
    assert logs == []


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_on_which_another_program_listens_is_not_claimed(host: str, shares: bool) -> None:
    """Negative control: with SO_REUSEPORT only, as gRPC binds by default, a second server would share the port."""
    with listening(ANY_PORT, shares=shares) as taken:
        address = Address(host, taken.port)
        with (
            pytest.raises(AddressTaken, match=rf"GRPC_ADDRESS: .*{host}:{taken.port}: address already in use; stop"),
            claimed_port(address, 2),
        ):
            pass
        if shares:
            with listening(taken, shares=True):
                pass
    with claimed_port(address, 2) as claim:
        assert claim.address == address


def test_the_workers_of_another_server_cannot_join() -> None:
    with (
        claimed_port(ANY_PORT, 2) as claim,
        listening(claim.address, shares=True),
        pytest.raises(AddressTaken),
        claimed_port(claim.address, 2),
    ):
        pass


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_this_machine_does_not_have_is_named(host: str) -> None:
    with pytest.raises(AddressTaken, match=host), claimed_port(Address(host, 0), 2):
        pass


@pytest.mark.parametrize(("hosts", "serves"), [(["192.0.2.1", "127.0.0.1"], True), (["192.0.2.1"], False)])
async def test_a_name_may_have_an_address_that_this_machine_does_not_have(
    hosts: Sequence[str], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `localhost` has in a container without IPv6. gRPC resolves the name itself."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)
    listening = serving(grpc.aio.server(), "localhost:0", timedelta(0))
    with nullcontext() if serves else pytest.raises(AddressTaken, match="cannot assign requested address"):
        async with listening as port:
            assert port


def test_a_program_that_joins_later_is_reported_once_and_again_when_there_is_another() -> None:
    """The system lets any program of the same user join; a gRPC server does by default."""
    with claimed_port(ANY_PORT, 2) as claim, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(listening(claim.address, shares=True))
        with capture_logs() as logs:
            claim.check()
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(1)))
            assert server.add_insecure_port(str(claim.address)) == claim.address.port
            server.start()
            claim.check()
            claim.check()
            with listening(claim.address, shares=True):
                claim.check()
            server.stop(None).wait(60)
    assert [(log["event"], log["foreign_listeners"]) for log in logs] == [("port_shared", 1), ("port_shared", 2)]


@contextmanager
def port_that_is_free_at(*hosts: str) -> Iterator[int]:
    """A port at which no other program listens, at any of the addresses; it is not listened at either."""
    for _ in range(100):
        with ExitStack() as stack:
            port = 0
            try:
                for host in hosts:
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    bound.bind((host, port))
                    port = bound.getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        yield port
        return
    raise AssertionError("no port is free")


@pytest.mark.parametrize(
    ("own", "other", "is_shared"),
    [
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "0.0.0.0", False),  # the system prefers the more exact address
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "::", False),
        ("::1", "127.0.0.1", False),
        ("::1", "::", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),  # for the same reason
        ("0.0.0.0", "0.0.0.0", True),
        ("::", "::1", True),
        ("::", "127.0.0.1", True),
    ],
)
def test_only_who_gets_connections_of_this_server_is_reported(own: str, other: str, is_shared: bool) -> None:
    with (
        port_that_is_free_at(own, other) as port,
        claimed_port(Address(own, port), 2) as claim,
        ExitStack() as stack,
        capture_logs() as logs,
    ):
        for _ in range(2):
            stack.enter_context(listening(claim.address, shares=True))
        with listening(Address(other, claim.address.port), shares=True):
            claim.check()
        claim.check()  # it has ended
        workers = stack.pop_all()
        workers.close()
        for _ in range(2):  # workers that are started again
            stack.enter_context(listening(claim.address, shares=True))
        claim.check()
    assert [log["foreign_listeners"] for log in logs] == [1] * is_shared
