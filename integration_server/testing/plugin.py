"""The pytest plugin: the fixture `integration_server_sandbox`.

It is loaded in every test run where the package is installed, so it imports the client only when a test needs it.
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration_server.testing.sandbox import IntegrationServerSandbox

_SANDBOX = pytest.StashKey["IntegrationServerSandbox"]()
_LOG_START = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def integration_server_sandbox(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["IntegrationServerSandbox"]:
    """A real Integration Server with the sandbox provider, in a process of its own until the end of the session.

    What a test switches is switched back at its end. docs/testing-with-the-sandbox.md describes the switches.
    """
    from integration_server.testing.sandbox import running_sandbox_server  # noqa: PLC0415 — see above

    with running_sandbox_server(tmp_path_factory.mktemp("integration_server")) as sandbox:
        request.config.stash[_SANDBOX] = sandbox
        try:
            yield sandbox
        finally:
            del request.config.stash[_SANDBOX]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Remember where the server's log is when a test begins."""
    sandbox = item.config.stash.get(_SANDBOX, None)
    item.stash[_LOG_START] = 0 if sandbox is None else sandbox.log_size
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Switch back what the test has switched, after its own fixtures have ended, also if one of them fails."""
    try:
        return (yield)
    finally:
        sandbox = item.config.stash.get(_SANDBOX, None)
        if sandbox is not None:
            sandbox.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the server has logged during a test that fails to its report."""
    report = yield
    sandbox = item.config.stash.get(_SANDBOX, None)
    if report.failed and sandbox is not None and "integration_server_sandbox" in getattr(item, "fixturenames", ()):
        report.sections.append(("Integration Server's log", sandbox.read_log(item.stash.get(_LOG_START, 0))))
    return report
