"""How many workers serve."""

import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from integration_server.settings import Settings
from integration_server.wiring.workers import (
    explain_worker_count,
    find_listeners,
    usable_cores,
    worker_count,
    worker_names,
)

KEY = "s0Jp4OhRzGU0CphHkf4fWtxSm1lAHkn9zhBwYFhMc0g="
POSTGRES = "postgresql://db/integrations"


@pytest.mark.parametrize(
    ("variables", "cores", "expected"),
    [
        ({"DATABASE_URL": POSTGRES}, 8, 8),
        ({"DATABASE_URL": POSTGRES}, 1, 1),
        ({"DATABASE_URL": POSTGRES, "WORKERS": ""}, 3, 3),
        ({"DATABASE_URL": POSTGRES, "WORKERS": "2"}, 8, 2),
        ({"DATABASE_URL": POSTGRES, "DEV_MODE": "true"}, 8, 1),
        ({"DATABASE_URL": POSTGRES, "DEV_MODE": "true", "WORKERS": "4"}, 8, 4),
        ({"DATABASE_URL": "sqlite:///x.db", "WORKERS": "4"}, 8, 4),
    ],
)
def test_there_is_one_worker_for_each_core_unless_the_setting_says_otherwise(
    variables: dict[str, str], cores: int, expected: int
) -> None:
    with capture_logs() as logs:
        settings = Settings.from_environment({"ENCRYPTION_KEY": KEY, **variables})
        assert worker_count(settings, cores) == expected
        explain_worker_count(settings, cores)
    assert logs == []


def test_sqlite_has_one_worker_and_the_log_says_why() -> None:
    settings = Settings.from_environment({"ENCRYPTION_KEY": KEY, "DATABASE_URL": "sqlite:///x.db"})
    with capture_logs() as logs:
        assert [worker_count(settings, cores) for cores in (8, 1)] == [1, 1]
        for cores in (8, 1):
            explain_worker_count(settings, cores)
    assert [(log["event"], log["cores"]) for log in logs] == [("one_worker", 8)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", None), ("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1), ("", None), ("1 0", None)],
)
def test_a_container_has_the_cores_of_its_cpu_limit(limit: str, expected: int | None, tmp_path: Path) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(f"{limit}\n")
    all_cores = usable_cores(tmp_path / "absent")
    assert usable_cores(path) == min(all_cores, expected or all_cores)


def test_a_worker_is_named_by_its_number_unless_it_is_the_only_one() -> None:
    assert [worker_names(count) for count in (1, 2)] == [["server"], ["server-1", "server-2"]]


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables have the machine's byte order")
def test_listeners_are_found_by_port_in_both_tables(tmp_path: Path) -> None:
    columns = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    v4, v6 = tmp_path / "tcp", tmp_path / "tcp6"
    v4.write_text(
        columns
        + "   0: 0100007F:C383 00000000:0000 0A 00000000:00000000\n"
        + "   1: 00000000:C384 00000000:0000 0A 00000000:00000000\n"
        + "   2: 0100007F:C383 0100007F:9999 01 00000000:00000000\n"
    )
    everywhere, loopback, mapped = "0" * 32, "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"
    rest = f"{everywhere}:0000 0A 00000000:00000000\n"
    v6.write_text(columns + "".join(f"   0: {one}:C383 {rest}" for one in (everywhere, loopback, mapped)))
    assert list(map(str, find_listeners(0xC383, [v4, v6]))) == ["127.0.0.1", "::", "::1", "127.0.0.1"]
    assert list(map(str, find_listeners(0xC384, [v4, v6, tmp_path / "absent"]))) == ["0.0.0.0"]
