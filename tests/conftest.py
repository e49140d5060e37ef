"""Fixtures for all tests. Tests in `tests/unit` cannot open sockets, not even on loopback."""

import gc
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

# gRPC's fork handlers crash the child while calls are in flight. The children of tests only exec a program, and need
# none. (PostgreSQL's are forked, not vforked, because they run as another user.) gRPC reads the variable when it is
# imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc.aio
import hypothesis
from xdist.scheduler import LoadFileScheduling

from tests.postgres import memory_folder

# The folders of `tmp_path` are in memory where there is some: SQLite waits for the disk at each commit, and the tests
# of all workers wait for each other there. pytest reads the variable when it makes the first folder.
if (_memory := memory_folder(for_programs=True)) is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_memory))

# A test must not fail because the machine is slow, nor at hypothesis' own time limits.
hypothesis.settings.register_profile(
    "without time limits", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("without time limits")

pytest_plugins = ["tests.databases", "tests.end_to_end.prefork", "tests.openbao", "tests.pgbouncer"]

UNIT = Path(__file__).resolve().parent / "unit"

LONG_FILES = frozenset(
    {
        UNIT / "rpc" / "test_bad_input.py",
        UNIT / "service" / "connections" / "test_shared_accounts.py",
        UNIT / "service" / "credentials" / "test_mass_invalid_grants.py",
        UNIT / "service" / "test_database_tampering.py",
    }
)
"""Files with minutes of work, whose tests share nothing. They begin first, and workers share their tests."""


def pytest_configure() -> None:
    """Let the processes of tests end at SIGINT. Shells start jobs in the background with the signal ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage: half a million objects are made, and stay. Later collections do not scan them either."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Leave the captured output out of reports that nobody reads: workers would send megabytes of logs."""
    report = yield
    if report.passed:
        report.sections = []
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With `--dist loadfile`, share the tests of long files among workers; otherwise all would wait for one of them."""
    return SharedLongFiles(config, log) if config.getvalue("dist") == "loadfile" else None


class SharedLongFiles(LoadFileScheduling):
    """Gives each file to one worker, and each test of a long file."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return nodeid if self.config.rootpath / path in LONG_FILES else path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, and leave to `make test-all` what a `quick_on` marker leaves to it.

    The longest files are first. The others alternate between those that wait for processes and sockets, and those that
    compute: the workers together then use the processors all the time. In each kind small files are last, except that
    tests of whole servers, which take long however few they are, come before others: no worker begins a long file when
    the others have nothing left.
    """
    sizes = Counter(item.path for item in items)
    by_size = sorted(sizes, key=sizes.__getitem__, reverse=True)
    whole_servers = [path for path in sizes if path.is_relative_to(UNIT.parent / "end_to_end")]
    position: dict[Path, float] = dict.fromkeys(LONG_FILES, -1.0)
    for kind in (
        [path for path in by_size if path.is_relative_to(UNIT)],
        [*dict.fromkeys([*whole_servers, *(path for path in by_size if not path.is_relative_to(UNIT))])],
    ):
        position = {path: number / len(kind) for number, path in enumerate(kind)} | position
    items.sort(key=lambda item: position[item.path])
    for item in items:
        marker = item.get_closest_marker("quick_on")
        if marker is not None and _databases_of(item) - {*marker.args}:
            item.add_marker(pytest.mark.slow)


def _databases_of(item: pytest.Item) -> set[Any]:
    """The databases in the parameters of a test."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in values if isinstance(value, str)} & {"sqlite", "postgres"}


class SocketOpenedInUnitTest(Exception):
    """A unit test used the network. Pass a fake to the code, or move the test to `tests/integration`."""


@pytest.fixture(scope="module")
def connections_are_collected() -> Generator[None]:
    """Collect what libraries leave to the garbage collector in a module that ignores it: later it would be an error."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_sockets_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.is_relative_to(UNIT):
        forbid_sockets(monkeypatch)


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make network access raise `SocketOpenedInUnitTest`.

    Covers Python's sockets (thus asyncio), name look-ups, and gRPC's servers and channels, which open sockets in C.
    uvloop's sockets are not detected. The socket pair of an event loop has no address and keeps working.
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
