"""Unit tests open no sockets: the guard in `tests/conftest.py` is on, and is what stops them."""

import asyncio
import socket
from collections.abc import Callable

import grpc.aio
import pytest

from tests.conftest import SocketOpenedInUnitTest

# Port 0 is nobody's: a connection to it fails at once, and reaches nothing, where the guard lets it through.
NOBODY = ("127.0.0.1", 0)


def bind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unbound:
        unbound.bind(NOBODY)


def connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unconnected:
        unconnected.connect(NOBODY)


def connect_ex() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as unconnected:
        unconnected.connect_ex(("::1", 0))


def create_connection() -> None:
    socket.create_connection(NOBODY).close()


def look_up() -> None:
    socket.getaddrinfo("localhost", 0)


@pytest.mark.parametrize("operation", [bind, connect, connect_ex, create_connection, look_up])
def test_reaching_for_the_network_is_refused(operation: Callable[[], None]) -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        operation()


def test_without_the_guard_the_same_bind_succeeds() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        # What `socket.socket` inherits is the untouched method of its C base.
        monkeypatch.delattr(socket.socket, "bind")
        bind()


async def test_asyncio_cannot_reach_it_either() -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        await asyncio.open_connection(*NOBODY)
    with pytest.raises(SocketOpenedInUnitTest):
        await asyncio.start_server(lambda _reader, _writer: None, *NOBODY)


async def test_grpc_cannot_reach_it_either() -> None:
    with pytest.raises(SocketOpenedInUnitTest):
        grpc.aio.insecure_channel("127.0.0.1:0")
    with pytest.raises(SocketOpenedInUnitTest):
        grpc.aio.server()


async def test_the_event_loops_own_socket_pair_works() -> None:
    assert await asyncio.to_thread(lambda: "woken through it") == "woken through it"
