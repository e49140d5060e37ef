"""The capacity model: its table is that of docs/scaling.md, and needs grow with the installation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.capacity import INSTALLATIONS, MEASURED, Installation, needs_of, read_costs, simulate_day, table

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_has_the_table_of_the_committed_costs() -> None:
    assert table(MEASURED) in (DOCS / "scaling.md").read_text()


@pytest.mark.parametrize("kind", ["hit", "miss", "refresh", "check"])
def test_the_busiest_minutes_of_a_day_are_near_the_average_that_the_intervals_give(kind: str) -> None:
    one = Installation(60_000, check_interval_minutes=60)
    average = {"hit": 1600, "miss": 400, "refresh": 60_000 * 0.7 / 52, "check": 1000}[kind]
    rates = simulate_day(one)[kind]
    assert sum(rates) / len(rates) == pytest.approx(average, rel=0.05)


def test_the_outage_of_a_provider_piles_up_and_is_caught_up() -> None:
    without, usual = (
        needs_of(replace(INSTALLATIONS[1], outage_minutes=minutes), MEASURED).drain_minutes for minutes in (1, 30)
    )
    assert without < usual < 10


def test_needs_are_proportional_to_the_installation_and_to_the_costs() -> None:
    small, large = (needs_of(Installation(size, 60), MEASURED) for size in (1_000_000, 10_000_000))
    dear = needs_of(
        Installation(1_000_000, 60), replace(MEASURED, server_us={k: 2 * v for k, v in MEASURED.server_us.items()})
    )
    assert large.server_cores == pytest.approx(10 * small.server_cores)
    assert large.wal_bytes_per_second == pytest.approx(10 * small.wal_bytes_per_second)
    assert dear.server_cores == pytest.approx(2 * small.server_cores)
    assert dear.database_cores == small.database_cores


def test_the_costs_of_the_last_run_replace_the_committed_ones(tmp_path: Path) -> None:
    path = tmp_path / "unit-costs-postgres.json"
    assert read_costs(path) == MEASURED
    costs = {"hit": {"server_us": 1.0, "database_us": 2.0, "wal_bytes": 3.0}}
    path.write_text(json.dumps({"raw": {"costs": costs, "row_bytes": 4.0}}))
    read = read_costs(path)
    assert (read.server_us, read.database_us, read.wal_bytes, read.row_bytes) == (
        {"hit": 1.0},
        {"hit": 2.0},
        {"hit": 3.0},
        4.0,
    )
