"""The rules of Prometheus: their unit tests, with promtool, and the division of their durations for other tests."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.prometheus import DIVISOR, RULES, SKIP_REASON, divided, find_programs

needs_promtool = pytest.mark.skipif(find_programs() is None, reason=SKIP_REASON)


def promtool(folder: Path, rules: str) -> subprocess.CompletedProcess[str]:
    """The unit tests of the alerts, with these rules."""
    (folder / "alerts.yaml").write_text(rules)
    (folder / "alerts.test.yaml").write_text((RULES / "alerts.test.yaml").read_text())
    programs = find_programs()
    assert programs is not None
    return subprocess.run(
        [programs[1], "test", "rules", "alerts.test.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@needs_promtool
def test_every_alert_is_quiet_fires_and_resolves_with_its_real_durations(tmp_path: Path) -> None:
    result = promtool(tmp_path, (RULES / "alerts.yaml").read_text())
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@needs_promtool
def test_negative_control_alerts_that_wait_too_long_fail_their_unit_tests(tmp_path: Path) -> None:
    rules = re.sub(r"for: \d+[smhd]", "for: 1000d", (RULES / "alerts.yaml").read_text())
    result = promtool(tmp_path, rules)
    without_for = len(re.findall("- alert:", rules)) - len(re.findall("for: 1000d", rules))
    assert result.returncode == 1
    assert (result.stdout + result.stderr).count("got: nil") == len(re.findall("- alert:", rules)) - without_for


def test_all_durations_are_divided() -> None:
    rules = "for: 1m\ninterval: 30s\nrate(a[5m]) > 300 and b offset 1h"
    assert divided(rules, 30) == "for: 2000ms\ninterval: 1000ms\nrate(a[10000ms]) > 300 and b offset 120000ms"
    durations = re.compile(r"\b\d+[smhd]\b")
    everything = re.sub(r"#.*|ratio_rate\w+|within=\"7d\"|summary.*", "", (RULES / "alerts.yaml").read_text())
    assert durations.search(everything)
    assert not durations.search(divided(everything))


def test_divisor_is_the_documented_one() -> None:
    assert f"by {DIVISOR}, injects" in (RULES / "alerts.yaml").read_text()
