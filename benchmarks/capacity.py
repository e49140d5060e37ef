"""The capacity model of docs/scaling.md: what installations need, from measured costs and a simulated day.

A day of a sample of integrations is simulated minute by minute: reads follow the hours, tokens are refreshed in the
tenth of their lifetime before the refresh buffer, checks have their interval, and one provider does not respond for
half an hour. The busiest ten minutes, multiplied by the size of the installation and by the measured costs, give the
needs.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MINUTES = 24 * 60
_SAMPLE = 5_000  # integrations; each stands for as many as the size needs
_PEAK = 10  # minutes
_SEED = 1  # the table must be the same whenever it is printed


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs: microseconds of CPU of the server and of the database, and bytes of write-ahead log, by kind."""

    server_us: Mapping[str, float]
    database_us: Mapping[str, float]
    wal_bytes: Mapping[str, float]
    row_bytes: float


MEASURED = Costs(
    server_us={"hit": 407, "miss": 1_046, "refresh": 5_853, "check": 4_084},
    database_us={"hit": 5, "miss": 186, "refresh": 1_358, "check": 1_349},
    wal_bytes={"hit": 527, "miss": 388, "refresh": 6_250, "check": 4_869},
    row_bytes=3_043,
)
"""Of `make bench ARGS=unit-costs` on two cores of an AMD EPYC, Python 3.11 and PostgreSQL 18."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation and the habits of its callers.

    `reads` are the credentials that callers request for an integration in an hour, on average over a day.
    """

    integrations: int
    check_interval_minutes: int
    reads: float = 2.0
    miss_share: float = 0.2
    oauth_share: float = 0.7
    lifetime_minutes: int = 60
    outage_share: float = 0.1  # of the integrations, all of one provider
    outage_minutes: int = 30
    utilization: float = 0.6  # of the cores at the peak
    background_per_worker: float = 100  # BACKGROUND_CALLS_PER_SECOND
    connections_per_worker: int = 6  # DATABASE_POOL_SIZE and the monitoring connection


INSTALLATIONS = (
    Installation(10_000, check_interval_minutes=15),
    Installation(1_000_000, check_interval_minutes=6 * 60),
    Installation(100_000_000, check_interval_minutes=24 * 60),
)


@dataclass(frozen=True, slots=True)
class Needs:
    """The needs in the busiest ten minutes. `per_second` has the rates by kind, `drain_minutes` is of the outage."""

    installation: Installation
    per_second: Mapping[str, float]
    workers: int
    server_cores: float
    database_cores: float
    memory_bytes: float
    table_bytes: float
    wal_bytes_per_second: float
    commits_per_second: float
    connections: int
    drain_minutes: float

    @property
    def provider_calls_per_second(self) -> float:
        """The requests to providers, without those of `CallProvider`."""
        return self.per_second["refresh"] + self.per_second["check"]


def simulate_day(installation: Installation) -> Mapping[str, Sequence[float]]:
    """How often each kind of work happens in each minute, for all integrations."""
    source = random.Random(_SEED)  # a simulation
    weight = installation.integrations / _SAMPLE
    due = {"refresh": [0.0] * _MINUTES, "check": [0.0] * _MINUTES}
    begin, end = 12 * 60, 12 * 60 + installation.outage_minutes
    for number in range(_SAMPLE):
        is_out = number < _SAMPLE * installation.outage_share
        for kind in ("refresh", "check"):
            if kind == "refresh" and number % 100 >= 100 * installation.oauth_share:
                continue
            for minute in _due_minutes(installation, kind, source):
                # What is due during the outage is done after it: the circuit breaker tries only a few.
                at = end if is_out and begin <= minute < end else minute
                due[kind][at] += weight
    average = installation.integrations * installation.reads / 60
    reads = [average * (1 + 0.8 * math.sin(2 * math.pi * (minute / _MINUTES - 0.3))) for minute in range(_MINUTES)]
    return {
        "hit": [read * (1 - installation.miss_share) for read in reads],
        "miss": [read * installation.miss_share for read in reads],
        **due,
    }


def _due_minutes(installation: Installation, kind: str, source: random.Random) -> Iterator[int]:
    """The minutes of a day in which an integration is due."""
    interval = installation.lifetime_minutes if kind == "refresh" else installation.check_interval_minutes
    time = source.uniform(0, interval)
    while time < _MINUTES:
        yield int(time)
        # docs/refreshing.md: a tenth of the lifetime before the buffer of five minutes. docs/health.md: ± 10 %.
        jitter = source.uniform(0, 0.1) if kind == "refresh" else source.uniform(-0.1, 0.1)
        time += interval * (1 - jitter) - (5 if kind == "refresh" else 0)


def needs_of(installation: Installation, costs: Costs) -> Needs:
    """The needs of an installation."""
    day = simulate_day(installation)
    end = 12 * 60 + installation.outage_minutes
    # Without the backlog of the outage, which waits: it gets what the workers have left.
    ordinary = {kind: [*rates[:end], *rates[end + 1 :]] for kind, rates in day.items()}
    # Ten minutes, because the minutes of a sample vary more than those of all integrations.
    peak = {
        kind: max(sum(rates[minute : minute + _PEAK]) for minute in range(len(rates) - _PEAK)) / _PEAK / 60
        for kind, rates in ordinary.items()
    }
    server = sum(peak[kind] * costs.server_us[kind] for kind in peak) / 1e6 / installation.utilization
    database = sum(peak[kind] * costs.database_us[kind] for kind in peak) / 1e6 / installation.utilization
    wal = sum(peak[kind] * costs.wal_bytes[kind] for kind in peak)
    background = peak["refresh"] + peak["check"]
    # Half of the background rate is left for what an outage has delayed.
    workers = max(2, math.ceil(server), math.ceil(2 * background / installation.background_per_worker))
    left = workers * installation.background_per_worker - background
    backlog = day["refresh"][end] + day["check"][end]
    return Needs(
        installation,
        peak,
        workers=workers,
        server_cores=server,
        database_cores=database,
        memory_bytes=workers * _WORKER_BYTES,
        table_bytes=installation.integrations * costs.row_bytes,
        wal_bytes_per_second=wal,
        # Audit entries of reads are committed in batches, once a second and worker.
        commits_per_second=_COMMITS * background + workers,
        connections=workers * installation.connections_per_worker,
        drain_minutes=backlog / left / 60,
    )


_WORKER_BYTES = 90 * 2**20  # `make bench ARGS=idle`, with a full cache of 10,000 integrations within it
_COMMITS = 2.1  # a lease and a commit of the tokens, or a transaction of a check; a claim for eight rows


def read_costs(path: Path) -> Costs:
    """The costs of the last run of `unit-costs`, or the committed ones."""
    if not path.exists():
        return MEASURED
    raw: Any = json.loads(path.read_text())["raw"]
    names = ("server_us", "database_us", "wal_bytes")
    server, database, wal = ({kind: float(one[name]) for kind, one in raw["costs"].items()} for name in names)
    return Costs(server, database, wal, raw["row_bytes"])


def table(costs: Costs) -> str:
    """The table of docs/scaling.md."""
    columns = [needs_of(installation, costs) for installation in INSTALLATIONS]
    rates = [column.per_second for column in columns]
    checked, drained = "health check of an integration every", "minutes to catch up half an hour's outage of a provider"
    rows = {
        checked: [_duration(column.installation.check_interval_minutes) for column in columns],
        "reads per second (hits and misses)": [_round(rate["hit"] + rate["miss"]) for rate in rates],
        "refreshes per second": [_round(rate["refresh"]) for rate in rates],
        "checks per second": [_round(rate["check"]) for rate in rates],
        "**provider calls per second**": [_round(column.provider_calls_per_second) for column in columns],
        "**cores of the servers**": [_round(column.server_cores) for column in columns],
        "workers": [f"{column.workers:,}" for column in columns],
        "**memory of the servers**": [_bytes(column.memory_bytes) for column in columns],
        "**cores of the database**": [_round(column.database_cores) for column in columns],
        "table of integrations with its indexes": [_bytes(column.table_bytes) for column in columns],
        "**write-ahead log per second**": [_bytes(column.wal_bytes_per_second) for column in columns],
        "**IOPS**: commits, and pages of the log": [
            _round(column.commits_per_second + column.wal_bytes_per_second / 8192) for column in columns
        ],
        "**connections**": [f"{column.connections:,}" for column in columns],
        drained: [f"{column.drain_minutes:.1f}" for column in columns],
    }
    header = (
        "| the busiest ten minutes of a day | " + " | ".join(f"{one.integrations:,}" for one in INSTALLATIONS) + " |"
    )
    lines = [header, "|---" * (1 + len(columns)) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])


def _duration(minutes: int) -> str:
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h"


def _round(value: float) -> str:
    """Two significant digits: the model is not more exact."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{_round(value)} {unit}"
        value /= 1000
    return f"{_round(value)} TB"
