"""Unit tests open no sockets: the guard in `tests/conftest.py` prevents it."""

import asyncio
import socket
from collections.abc import Callable

import grpc.aio
import pytest

from tests.conftest import SocketOpenedInUnitTest

# A connection to port 0 fails at once, if the guard allows it.
UNUSED = ("127.0.0.1", 0)


def bind() -> int:
    """Bind a socket. Returns its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unbound:
        unbound.bind(UNUSED)
        port: int = unbound.getsockname()[1]
        return port


def connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unconnected:
        unconnected.connect(UNUSED)


def connect_ex() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as unconnected:
        unconnected.connect_ex(("::1", 0))


def create_connection() -> None:
    socket.create_connection(UNUSED).close()


def resolve() -> None:
    socket.getaddrinfo("localhost", 0)


@pytest.mark.parametrize("operation", [bind, connect, connect_ex, create_connection, resolve])
def test_network_access_is_rejected(operation: Callable[[], object]) -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        operation()


def test_without_the_guard_the_same_bind_succeeds() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        # Without the override, `socket.socket` inherits the method of its C base class.
        monkeypatch.delattr(socket.socket, "bind")
        assert bind() > 0


async def test_asyncio_has_no_network_access() -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        await asyncio.open_connection(*UNUSED)
    with pytest.raises(SocketOpenedInUnitTest):
        await asyncio.start_server(lambda _reader, _writer: None, *UNUSED)


async def test_grpc_has_no_network_access() -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        grpc.aio.insecure_channel("127.0.0.1:0")
    with pytest.raises(SocketOpenedInUnitTest):
        grpc.aio.server()


async def test_the_event_loops_own_socket_pair_works() -> None:
    assert await asyncio.to_thread(lambda: "woken through it") == "woken through it"
