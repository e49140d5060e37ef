"""The pytest plugin in somebody else's test suite: the one in docs/testing-with-the-sandbox.md, and one that fails."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest

from integration_server.testing.sandbox import SandboxError, require_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
(SUITE,) = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/testing-with-the-sandbox.md").read_text(), re.DOTALL | re.MULTILINE
)
SWITCHES = """
import datetime
import threading

import httpx
import pytest

from integration_server.client import errors

MINUTES = datetime.timedelta(minutes=1)


@pytest.fixture
def sandbox(integration_server_sandbox):
    return integration_server_sandbox


def profile(sandbox, account):
    with httpx.Client(auth=account.httpx(), base_url=sandbox.provider_url) as client:
        return client.get("/userinfo")


def test_a_refused_refresh_ends_the_integration(sandbox):
    account = sandbox.connect(user="heinz")
    sandbox.refuse_refresh()
    sandbox.expire_tokens()
    with pytest.raises(errors.ReauthorizationRequired):
        profile(sandbox, account)


def test_the_switch_of_the_test_before_is_off(sandbox):
    account = sandbox.connect(user="edsger")
    sandbox.expire_tokens()
    assert profile(sandbox, account).status_code == 200


def test_tokens_expire_on_the_clock_of_server_and_provider(sandbox):
    account = sandbox.connect(user="barbara")
    first = account.credentials().access_token
    sandbox.advance(90 * MINUTES)
    assert profile(sandbox, account).json()["sub"] == "barbara"
    assert account.credentials().access_token != first


def test_the_lifetime_of_tokens(sandbox):
    sandbox.set_token_lifetime(MINUTES)
    account = sandbox.connect(user="tony")
    assert account.credentials().expire_time - datetime.datetime.now(datetime.UTC) <= MINUTES


def test_rate_limits_and_slow_responses(sandbox):
    account = sandbox.connect(user="niklaus")
    sandbox.rate_limit(3 * MINUTES)
    response = profile(sandbox, account)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "180")
    sandbox.recover()
    sandbox.fail("userinfo", delay=datetime.timedelta(seconds=0.1), status=418)
    assert profile(sandbox, account).status_code == 418
    assert sandbox.calls()["userinfo"] >= 2


def test_keys_and_the_simulated_calendar(sandbox):
    key = sandbox.connect(user="john", type="sandbox_api_key")
    assert httpx.get(sandbox.provider_url + "/api/account", auth=key.httpx()).json()["id"] == "acct_sandbox"
    calendar = sandbox.connect(user="john", type="google_calendar")
    url = sandbox.provider_url + "/calendar/v3/users/me/calendarList"
    assert httpx.get(url, auth=calendar.httpx()).json()["items"]


def test_an_account_that_cannot_be_connected(sandbox):
    sandbox.outage()
    with pytest.raises(Exception, match="/oauth/authorize responded with 503"):
        sandbox.connect(user="ken")


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        (lambda sandbox: sandbox.fail("user_info", status=500), "unknown endpoints"),
        (lambda sandbox: sandbox.fail("userinfo", status=9999), "from 200 to 599"),
        (lambda sandbox: sandbox.slow_down(-MINUTES), "not negative"),
        (lambda sandbox: sandbox.fail(status=200, body="x" * (16 << 20)), "bytes; at most"),
        (lambda sandbox: sandbox.revoke(user="nobody"), "connect it first"),
        (lambda sandbox: sandbox.advance(-MINUTES), "moves forward"),
        (lambda sandbox: sandbox.advance(datetime.timedelta.max), "moves forward"),
    ],
)
def test_a_switch_that_would_have_no_effect_is_refused_and_the_server_goes_on(sandbox, switch, message):
    with pytest.raises(Exception, match=message):
        switch(sandbox)
    account = sandbox.connect(user="donald")
    sandbox.fail("userinfo", status=200, body="x" * (2 << 20))
    assert len(profile(sandbox, account).content) == 2 << 20


@pytest.fixture
def broken(sandbox):
    yield
    sandbox.outage()
    raise AssertionError("a fixture that fails at its end")


def test_whose_fixture_fails(broken):
    pass


def test_the_switch_of_that_fixture_is_off(sandbox):
    assert profile(sandbox, sandbox.connect(user="frances")).status_code == 200


def test_that_fails(sandbox):
    account = sandbox.connect(user="dennis")
    sandbox.revoke(user="dennis")
    assert profile(sandbox, account).status_code == 200


def test_that_fails_without_the_fixture():
    assert threading.active_count() == 0
"""


@dataclass(frozen=True)
class Run:
    """A finished run of the suite."""

    returncode: int
    output: str
    outcomes: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run both files as a user does: nothing of our tests is importable, and the plugin is found by its entry point."""
    folder = tmp_path_factory.mktemp("users_suite")
    (folder / "test_documented.py").write_text(SUITE)
    (folder / "test_switches.py").write_text(SWITCHES)
    installed = folder / "site"
    (installed / "integration_server_plugin-1.dist-info").mkdir(parents=True)
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    lines = ["[pytest11]", *(f"{name} = {module}" for name, module in entry_points.items())]
    (installed / "integration_server_plugin-1.dist-info/entry_points.txt").write_text("\n".join(lines))
    (installed / "integration_server_plugin-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: integration-server-plugin\nVersion: 1\n"
    )
    for package in ("integration_server", "generated/integrations"):
        (installed / Path(package).name).symlink_to(ROOT / package)
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=out.xml"]
    finished = subprocess.run(
        [*command, f"--basetemp={folder / 'tmp'}"],
        check=False,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    cases = ET.parse(folder / "out.xml").iter("testcase")  # noqa: S314 — pytest's own
    outcomes = {case.get("name", ""): case[0].tag if len(case) else "passed" for case in cases}
    return Run(finished.returncode, finished.stdout + finished.stderr, outcomes, folder)


def test_the_documented_suite_and_all_switches_pass(run: Run) -> None:
    failed = {name for name, outcome in run.outcomes.items() if outcome != "passed"}
    assert failed == {"test_that_fails", "test_that_fails_without_the_fixture", "test_whose_fixture_fails"}, run.output
    functions = {name.partition("[")[0] for name in run.outcomes}
    assert len(functions) == SUITE.count("\ndef test_") + SWITCHES.count("\ndef test_")
    assert run.returncode == 1


def test_a_failure_shows_the_servers_log_of_that_test_only(run: Run) -> None:
    log = re.findall(r"-+ Integration Server's log -+\n(.*?)^(?:_|=|-)", run.output, re.DOTALL | re.MULTILINE)
    assert len(log) == 2, run.output
    assert ["provider_request_completed" in one for one in log] == [False, True]  # pytest shows errors first
    assert "google_calendar" not in log[1]  # of an earlier test


def test_the_server_ends_with_the_session(run: Run) -> None:
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(run.folder) in (process.info["cmdline"] or [])
    ]
    assert left == []
    assert list((run.folder / "tmp").rglob("integrations.db"))  # it did run there


def test_without_the_server_the_fixture_says_how_to_install_it() -> None:
    with pytest.raises(SandboxError, match=r"pip install 'integration-server\[testing\]'"):
        require_server(["sqlalchemy", "no_such_module"])
