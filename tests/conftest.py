"""What every test gets: those under `tests/unit` may not reach any network, not even this machine's own."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

# gRPC's handlers around fork() crash the child while calls are under way. Children here only go on to exec a program,
# and need none. PostgreSQL's are forked rather than vforked, since they run as another user. gRPC looks at this when it
# is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc.aio
import hypothesis

# A test must not fail because the machine is slow, nor at hypothesis' own time limits.
hypothesis.settings.register_profile(
    "without time limits", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("without time limits")

pytest_plugins = ["tests.databases", "tests.end_to_end.prefork", "tests.pgbouncer"]

UNIT = Path(__file__).resolve().parent / "unit"


class SocketOpenedInUnitTest(Exception):
    """A unit test reached for the network. Give the code a fake, or move the test to `tests/integration`."""


@pytest.fixture(autouse=True)
def _no_sockets_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.is_relative_to(UNIT):
        forbid_sockets(monkeypatch)


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes what would reach a network raise `SocketOpenedInUnitTest`.

    Covers Python's sockets, so plain asyncio too, and name look-ups. gRPC reaches the network from C, so its
    servers and channels are refused as a whole; uvloop does likewise, and is not seen. An event loop's own
    socket pair goes on working: it names no address.
    """
    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _refuse_internet_sockets(name))
    monkeypatch.setattr(socket, "getaddrinfo", _always_refused("getaddrinfo"))
    for name in ("server", "insecure_channel", "secure_channel"):
        monkeypatch.setattr(grpc.aio, name, _always_refused(f"grpc.aio.{name}"))


def _refuse_internet_sockets(name: str) -> Callable[[socket.socket, Any], Any]:
    allowed = getattr(socket.socket, name)

    def checked(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise SocketOpenedInUnitTest(f"{name} {address}")
        return allowed(self, address)

    return checked


def _always_refused(name: str) -> Callable[..., NoReturn]:
    def checked(*args: object, **_kwargs: object) -> NoReturn:
        raise SocketOpenedInUnitTest(f"{name} {args}")

    return checked
